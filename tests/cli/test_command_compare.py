"""The command compare: its table, files, own scores, unreadable images and messages."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import bliss_jax as bj
from bliss_jax.cli import main

UNTRAINED = ["--model", "bliss-jax/untrained", "--quiet"]


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def write_pictures(folder, tint, number, rng):
    folder.mkdir(parents=True)
    for i in range(number):
        noise = np.asarray(tint) + rng.integers(-60, 60, (20, 24, 3))
        pixels = np.clip(noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Returns a folder with det, and with the images normal/*.png, good/*.png and odd/*.png."""
    root = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(0)
    write_pictures(root / "normal", (200, 40, 40), 12, rng)
    write_pictures(root / "good", (190, 60, 60), 6, rng)
    write_pictures(root / "odd", (90, 90, 160), 6, rng)
    (root / "words.txt").write_text("\n".join(f"word {i}" for i in range(20)))
    (root / "mine.py").write_text(
        "def plain(embeddings, label_embeddings):\n    return -(embeddings @ label_embeddings.T).max(axis=1)\n"
    )
    result = run("fit", "--images", root / "normal", "--labels", "red", "--dictionary",
                 root / "words.txt", *UNTRAINED, "-o", root / "det")  # fmt: skip
    assert result.exit_code == 0, result.output
    plain = bj.Score("plain", lambda embeddings, label_embeddings: embeddings[:, 0])
    bj.Detector.load(root / "det").with_score(plain).save(root / "det-own")
    return root


def test_the_table_and_the_files_are_those_of_detector_compare(own, tmp_path):
    files = ["--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv"]
    result = run("compare", own / "det", own / "good", "--anomalies", own / "odd", *files, "--quiet",
                 "--score", "bliss", "--score", "max_cosine", "--reference", "max_cosine")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    detector = bj.Detector.load(own / "det")
    images = [
        np.asarray(Image.open(f))
        for name in ("good", "odd")
        for f in sorted((own / name).iterdir())
    ]
    found = detector.compare(
        images, np.arange(12) >= 6, ["bliss", "max_cosine"], reference="max_cosine"
    )
    written = json.loads((tmp_path / "r.json").read_text())
    assert written.pop("provenance")["model"] == detector.provenance["model"]
    assert written == json.loads(json.dumps(found.describe()))
    assert written["tests"] == 1
    for cells in found.cells():
        assert all(cell in result.stdout for cell in cells)
    assert f"Best of 2 scores: {found.best}" in result.stdout
    assert found.summary() in result.stdout
    with (tmp_path / "r.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["score"] for line in lines] == [row.name for row in found.rows]
    for line, row in zip(lines, found.rows, strict=True):
        assert float(line["auroc"]) == row.auroc
        assert (line["p_value"] == "") == (row.name == "max_cosine")


@pytest.mark.slow
def test_default_scores_are_compared_and_missing_ones_named(own, tmp_path):
    files = ["--json", tmp_path / "r.json", "--quiet"]
    result = run("compare", own / "det", own / "good", "--anomalies", own / "odd", *files)
    assert result.exit_code == 0, result.output
    aurocs = {r["score"]: r["auroc"] for r in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert "mahalanobis" in aurocs
    detector = bj.Detector.load(own / "det").with_score("clip_ad")
    scores = [detector.score(sorted((own / name).iterdir())) for name in ("good", "odd")]
    by_hand = bj.auroc(np.concatenate(scores), np.arange(12) >= 6)
    assert aurocs["clip_ad"] == pytest.approx(float(by_hand))
    assert "knn is left out: it needs the embeddings of the fitted images" in result.stdout


@pytest.mark.slow
def test_own_scores_are_compared_and_load_their_detector(own):
    place = f"{own / 'mine.py'}:plain"
    sample = [own / "good", "--anomalies", own / "odd", "--quiet"]
    refused = run("compare", own / "det-own", *sample)
    assert refused.exit_code == 1
    assert "pass its function" in refused.stderr
    assert "--score MODULE:FUNCTION" in refused.stderr
    arguments = ["--score", place, "--score", "max_cosine"]
    result = run("compare", own / "det-own", *sample, *arguments)
    assert result.exit_code == 0, result.output
    assert "plain" in result.stdout
    same = run("compare", own / "det", *sample, *arguments)
    assert same.stdout == result.stdout


def test_unreadable_images_are_listed_and_the_others_compared(own, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    for file in (own / "odd").iterdir():
        (odd / file.name).write_bytes(file.read_bytes())
    (odd / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    files = sorted((own / "good").iterdir())
    result = run(
        "compare", own / "det", *files, "--anomalies", odd, "--quiet", "--score", "max_cosine"
    )
    assert result.exit_code == 3
    assert "6 anomalous and 6 normal images" in result.stdout
    assert "skipped: cannot read image" in result.stderr
    assert "broken.png" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["det", "good"], 2, "Missing option '--anomalies'"),
        (["none", "good", "--anomalies", "odd"], 1, "found no such file"),
        (["det", "none", "--anomalies", "odd"], 1, "there is no file or folder"),
        (["det", "good", "--anomalies", "none"], 1, "there is no file or folder"),
        (["det", "good", "--anomalies", "good"], 1, "as both, and 5 more files"),
        (["det", "good", "--anomalies", "odd/00.png", "--score", "mcm"], 1, "expected at least two anomalous"),
        (["det", "good", "--anomalies", "odd", "--score", "blis"], 1, "--score: unknown score 'blis'"),
        (["det", "good", "--anomalies", "odd", "--score", "m:"], 2, "MODULE:FUNCTION or FILE.py:FUNCTION, got 'm:'"),
        (["det", "good", "--anomalies", "odd", "--score", "knn"], 1, "'knn' cannot be computed"),
        (["det", "good", "--anomalies", "odd", "--confidence", "1"], 2, "--confidence"),
        (["det", "good", "--anomalies", "odd", "--reference", "x"], 1, "--reference: expected one of"),
        (["det", "good", "--anomalies", "odd", "--json", "none/r.json"], 1, "there is no folder"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(own, monkeypatch, arguments, code, message):
    monkeypatch.chdir(own)
    result = run("compare", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
