"""The commands fit, score, explain and info on folders of images: rows, files, reports and exit codes."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import bliss_jax as bj
from bliss_jax.cli import main

UNTRAINED = ["--model", "bliss-jax/untrained", "--quiet"]
BROKEN = b"\x89PNG\r\n\x1a\n no image"


def run(*arguments: object, **options):
    return CliRunner().invoke(main, [str(a) for a in arguments], **options)


def picture(rng, tint):
    noise = np.asarray(tint) + rng.integers(-40, 40, (20, 24, 3))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Returns a folder with normal/{red,blue}/*.png and new/, which has subfolders and an unreadable file."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for name, tint in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (root / "normal" / name).mkdir(parents=True)
        for i in range(10):  # as in test_files_in_the_wild.py, so that both share compiled programs
            picture(rng, tint).save(root / "normal" / name / f"{i:02d}.png")
    (root / "new" / "deep" / "er").mkdir(parents=True)
    for i in range(12):
        folder = root / "new" / ("deep/er" if i % 3 == 0 else "")
        picture(rng, rng.integers(0, 255, 3)).save(folder / f"{i:02d}.png")
    (root / "new" / "broken.png").write_bytes(BROKEN)
    (root / "words.txt").write_text("\n".join(f"word {i}" for i in range(20)))
    return root


@pytest.fixture(scope="module")
def detector(own):
    file = own / "det.safetensors"
    result = run("fit", "--images", own / "normal", "--folders", "--dictionary", own / "words.txt",
                 *UNTRAINED, "-o", file)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    return file


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_fit_writes_the_detector_of_detector_fit(own, detector):
    by_hand = bj.Detector.fit(
        bj.load_model("bliss-jax/untrained"), own / "normal", dictionary=own / "words.txt"
    )
    loaded = bj.Detector.load(detector)
    assert loaded.class_names == ("blue", "red")
    np.testing.assert_array_equal(loaded.moments.cov, by_hand.moments.cov)
    np.testing.assert_array_equal(loaded.calibration_embeddings, by_hand.calibration_embeddings)
    described = json.loads(run("info", detector, "--json").stdout)
    assert described == json.loads(json.dumps(loaded.describe()))
    assert "blue (7), red (9)" in run("info", detector).stdout


def test_score_prints_one_row_per_file_with_the_detectors_scores(own, detector):
    result = run("score", detector, own / "new", "--quiet", "--alpha", 0.2)
    assert result.exit_code == 3
    assert "cannot be scored" in result.stderr
    rows = rows_of(result.stdout)
    paths = [row["path"] for row in rows]
    top = sorted(str(f) for f in (own / "new").iterdir() if f.is_file())
    deep = sorted(str(f) for f in (own / "new" / "deep" / "er").iterdir())
    assert paths == [*top[:8], *deep[:0], *top[8:], *deep] or sorted(paths) == sorted(top + deep)
    assert len(paths) == 13
    scored = [row for row in rows if row["score"]]
    images = [np.asarray(Image.open(row["path"])) for row in scored]
    det = bj.Detector.load(detector)
    scores = det.score(images)
    np.testing.assert_allclose([float(r["score"]) for r in scored], scores, rtol=1e-3, atol=1e-3)
    assert [r["anomaly"] for r in scored] == [str(int(s > det.threshold(0.2))) for s in scores]
    [bad] = [row for row in rows if not row["score"]]
    assert bad["path"].endswith("broken.png")
    assert bad["error"]
    assert bad["anomaly"] == ""


def test_all_output_formats_hold_the_same_values(own, detector, tmp_path):
    import pyarrow.parquet

    for name in ("s.csv", "s.jsonl", "s.parquet"):
        result = run("score", detector, own / "new", "--explain", "-o", tmp_path / name, "--quiet")
        assert result.exit_code == 3, result.output
        assert result.stdout == ""
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(tmp_path / "s.parquet").to_pylist()
    cells = rows_of((tmp_path / "s.csv").read_text())
    assert len(lines) == len(table) == len(cells) == 13
    for line, row, cell in zip(lines, table, cells, strict=True):
        assert line["path"] == row["path"] == cell["path"]
        if line["score"] is None:
            assert row["score"] is None
            assert cell["score"] == cell["words"] == ""
            continue
        assert np.float32(line["score"]) == np.float32(row["score"]) == np.float32(cell["score"])
        assert [w for w, _ in line["words"]] == [w["word"] for w in row["words"]]
        assert len(line["words"]) == 5
    assert run("score", detector, own / "new", "-o", tmp_path / "s.txt").exit_code == 2
    printed = run("score", detector, own / "new", "--explain", "--quiet", "--json").stdout
    assert [json.loads(line) for line in printed.splitlines()] == lines


def test_top_prints_the_most_anomalous_images_and_then_the_unreadable_files(own, detector):
    every = rows_of(run("score", detector, own / "new", "--quiet").stdout)
    top = rows_of(run("score", detector, own / "new", "--quiet", "--top", 4).stdout)
    best = sorted((r for r in every if r["score"]), key=lambda r: -float(r["score"]))[:4]
    assert top == [*best, *(r for r in every if not r["score"])]


def test_fdr_flags_by_benjamini_hochberg_over_the_whole_run(own, detector):
    rows = rows_of(run("score", detector, own / "new", "--quiet", "--alpha", 0.3, "--fdr").stdout)
    scored = [row for row in rows if row["score"]]
    p = np.array([float(row["p_value"]) for row in scored], np.float32)
    flags = np.asarray(bj.benjamini_hochberg(p, 0.3))
    assert [row["anomaly"] for row in scored] == [str(int(f)) for f in flags]
    assert run("score", detector, own / "new", "--fdr").exit_code == 2


def test_the_report_shows_the_most_anomalous_images_and_escapes_every_name(own, detector, tmp_path):
    script = "<script>alert(1)</script>"
    fitted = bj.Detector.load(detector, embeddings_only=True)
    hostile = fitted.with_labels((script, "other"), fitted.label_embeddings).with_dictionary(
        [f"<b>word {i}</b>" for i in range(20)], fitted.dictionary_embeddings
    )
    det = tmp_path / "det.safetensors"
    hostile.save(det)
    rng = np.random.default_rng(1)
    new = tmp_path / "new"
    new.mkdir()
    named = new / "<script>alert(2)<\u2215script>.png"
    picture(rng, (200, 40, 40)).save(named)
    picture(rng, (40, 40, 200)).save(new / "blue.png")
    (new / "<img src=x onerror=alert(3)>.png").write_bytes(BROKEN)
    result = run("score", det, new, "--report", tmp_path / "page", "--alpha", 0.5, "--quiet")
    assert result.exit_code == 3, result.output
    page = (tmp_path / "page" / "index.html").read_text()
    for wrong in ("<script>alert", "<img src=x", "<b>word"):
        assert wrong not in page
    assert page.count("&lt;script&gt;alert(2)") >= 2  # the heading and the picture's text
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;b&gt;word" in page
    assert "src=x" in page
    assert "<script" not in page


@pytest.mark.slow
def test_fit_labels_assigns_each_image_the_label_of_the_largest_cosine(own, tmp_path):
    det = tmp_path / "det.safetensors"
    one = ["--images", own / "normal" / "red", "--dictionary", own / "words.txt", *UNTRAINED]
    assert run("fit", *one, "--labels", "red thing", "-o", det).exit_code == 0
    assert bj.Detector.load(det).class_names == ("red thing",)
    both = ["--images", own / "normal", "--dictionary", own / "words.txt", *UNTRAINED]
    result = run("fit", *both, "--labels", "red,blue", "--calibration", 0, "-o", det)
    model = bj.load_model("bliss-jax/untrained")
    files = sorted((own / "normal").rglob("*.png"))
    images = model.encode_images([np.asarray(Image.open(file)) for file in files])
    labels = model.encode_texts(["This is a photo of a red", "This is a photo of a blue"])
    counts = np.bincount(np.argmax(images @ labels.T, axis=1), minlength=2)
    if counts.min():
        assert result.exit_code == 0, result.output
        loaded = bj.Detector.load(det)
        assert loaded.moments.count.tolist() == counts.tolist()
        assert "labels by the largest cosine" in loaded.provenance["images"]["source"]
    else:
        assert result.exit_code == 1
        assert "got none of" in result.stderr
    for wrong in (["--labels", "a", "--folders"], []):
        assert run("fit", *both, *wrong, "-o", det).exit_code == 2


def test_fit_lists_and_skips_unreadable_images_and_strict_makes_them_an_error(own, tmp_path):
    folder = tmp_path / "normal" / "red"
    folder.mkdir(parents=True)
    for file in sorted((own / "normal" / "red").iterdir())[:10]:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "bad.png").write_bytes(BROKEN)
    arguments = ["fit", "--images", tmp_path / "normal", "--folders", *UNTRAINED]
    arguments += ["--dictionary", own / "words.txt", "-o", tmp_path / "det"]
    result = run(*arguments)
    assert result.exit_code == 3
    assert "skipped: cannot read image 'red/bad.png'" in result.stderr
    assert len(bj.Detector.load(tmp_path / "det").provenance["images"]["unreadable"]) == 1
    (tmp_path / "det").unlink()
    assert run(*arguments, "--strict").exit_code == 1
    assert not (tmp_path / "det").exists()


def test_explain_prints_the_detectors_explanation(own, detector):
    files = [own / "new" / "01.png", own / "new" / "broken.png"]
    result = run("explain", detector, *files, "--words", 3, "--json")
    assert result.exit_code == 3
    why, bad = map(json.loads, result.stdout.splitlines())
    [expected] = bj.Detector.load(detector).explain([np.asarray(Image.open(files[0]))], words=3)
    assert why["nearest_class"] == expected.nearest_class
    assert np.isclose(why["score"], expected.score, rtol=1e-3, atol=1e-3)
    assert [word for word, _ in why["words"]] == [word for word, _ in expected.words]
    assert bad["error"]
    printed = run("explain", detector, files[0])
    assert printed.exit_code == 0
    assert f"nearest normal class: {expected.nearest_class}" in printed.stdout


@pytest.mark.slow
def test_names_on_standard_input_are_scored_as_they_arrive(own, detector):
    """The row of a name is printed before the next name is written."""
    names = [str(own / "new" / f"{i:02d}.png") for i in (1, 2, 4)]
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "bliss_jax.cli", "score", str(detector), "-", "--json", "--quiet"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    for name in names:
        child.stdin.write(name.encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["path"] == name
    child.stdin.close()
    assert child.stdout.read() == b""
    assert child.wait(60) == 0


def test_unusual_file_names_are_scored_and_printed_unchanged(own, detector, tmp_path):
    content = (own / "new" / "01.png").read_bytes()
    names = [
        b"new\nline.png",
        b"carriage\rreturn.png",
        b"\xff\xfe.png",
        b"-dash.png",
        b'quo"te, comma.png',
        b" blank .png",
    ]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(content)
    result = run("score", detector, tmp_path, "--quiet")
    assert result.exit_code == 0, result.output
    rows = list(csv.reader(io.StringIO(result.stdout_bytes.decode("utf-8", "surrogateescape"))))
    assert {os.fsencode(row[0].rpartition("/")[2]) for row in rows[1:]} == set(names)
    lines = run("score", detector, tmp_path, "--quiet", "--json").stdout.splitlines()
    found = {os.fsencode(json.loads(line)["path"].rpartition("/")[2]) for line in lines}
    assert found == set(names)
    null = b"\0".join(os.fsencode(tmp_path) + b"/" + name for name in names)
    piped = run("score", detector, "-", "--null", "--quiet", "--json", input=null)
    assert len(piped.stdout.splitlines()) == len(names)
    assert piped.exit_code == 0
    here = os.getcwd()  # noqa: PTH109
    try:
        os.chdir(tmp_path)
        dashed = run("score", detector, "--quiet", "--", "-dash.png")
    finally:
        os.chdir(here)
    assert dashed.exit_code == 0, dashed.output
    parquet = tmp_path.parent / "strange.parquet"
    assert run("score", detector, tmp_path, "--quiet", "-o", parquet).exit_code == 0


def test_errors_leave_an_earlier_output_file_unchanged(own, detector, tmp_path):
    out = tmp_path / "scores.csv"
    out.write_text("earlier")
    damaged = tmp_path / "det.safetensors"
    content = bytearray(detector.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    for wrong, message in [
        ([damaged, own / "new"], "det.safetensors is not a usable detector: it is damaged"),
        ([tmp_path / "none", own / "new"], "none: expected a detector that `bliss-jax fit` wrote"),
        (
            [detector, own / "new", "--alpha", 0.001],
            "needs at least 999 calibration images, got 4",
        ),
        ([detector, own / "new", "--model", "bliss-jax/tiny"], "weights_sha256: fitted with"),
    ]:
        result = run("score", *wrong, "-o", out, "--quiet")
        assert result.exit_code == 1, result.output
        assert message in result.stderr.replace("\n", " ")
        assert out.read_text() == "earlier"
    assert [file.name for file in tmp_path.glob(".*")] == []


def test_a_missing_file_gets_a_row_with_the_reason(detector, tmp_path):
    result = run("score", detector, tmp_path / "none.png", "--quiet")
    assert result.exit_code == 3
    assert rows_of(result.stdout)[0]["error"] == "No such file or directory"


def test_a_detector_of_another_score_is_fitted_described_and_used(own, tmp_path):
    words, file = own / "words.txt", tmp_path / "det.safetensors"
    (tmp_path / "mine.py").write_text(
        "def plain(embeddings, label_embeddings):\n    return -(embeddings @ label_embeddings.T).max(axis=1)\n"
    )
    place = f"{tmp_path / 'mine.py'}:plain"
    flat = own / "normal" / "red"
    result = run(
        "fit", "--images", flat, "--score", place, "--dictionary", words, *UNTRAINED, "-o", file
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(run("info", file, "--json").stdout)
    assert (facts["score"], facts["classes"][0]["name"]) == ("plain", "object")
    assert facts["provenance"]["score"]["function"] == place
    refused = run("score", file, flat, "--quiet")
    assert refused.exit_code != 0
    assert "--score MODULE:FUNCTION on the command line" in refused.output
    own_rows = rows_of(run("score", file, flat, "--quiet", "--score", place).stdout)
    assert len(own_rows) == 10
    result = run(
        "fit",
        "--images",
        flat,
        "--score",
        "max_cosine",
        "--dictionary",
        words,
        *UNTRAINED,
        "-o",
        file,
    )
    assert result.exit_code == 0, result.output
    same_rows = rows_of(run("score", file, flat, "--quiet").stdout)
    assert [float(row["score"]) for row in own_rows] == pytest.approx(
        [float(row["score"]) for row in same_rows], abs=1e-6
    )
    explained = run("explain", file, flat / "00.png")
    assert "max_cosine -" in explained.stdout
    assert "The parts do not add up to the score, which is max_cosine." in explained.stderr
    result = run("score", file, flat, "--report", tmp_path / "r", "--quiet")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "r" / "index.html").read_text()
    assert "<h1>Anomalies found by max_cosine</h1>" in page
    assert "The parts do not add up to the score, which is max_cosine." in page
    assert "BLISS score" not in page


def test_a_detector_is_fitted_to_labels_without_images(own, tmp_path):
    file = tmp_path / "det.safetensors"
    options = ["--dictionary", own / "words.txt", *UNTRAINED, "-o", file]
    assert "expected --images DIR, or --labels" in run("fit", *options).output
    result = run("fit", "--labels", "red,blue", *options)
    assert result.exit_code == 0, result.output
    facts = json.loads(run("info", file, "--json").stdout)
    assert [c["fitted"] for c in facts["classes"]] == [0, 0]
    rows = rows_of(run("score", file, own / "new" / "deep", "--quiet").stdout)
    assert all(row["score"] and row["nearest_class"] in ("red", "blue") for row in rows)
    explained = run("explain", file, own / "new" / "01.png")
    assert "cosine +" in explained.stdout
    assert "The score is internal + lambda external." in explained.stderr
    refused = run("explain", file, own / "new" / "01.png", "--map", tmp_path / "map.png")
    assert "--map: expected a detector that was fitted to images" in refused.stderr
    assert (
        "expected either --folders or --labels"
        in run("fit", "--images", own / "normal", *options).output
    )


def test_several_prompts_are_averaged_and_described(own, tmp_path):
    file = tmp_path / "det"
    prompts = ["--prompt", "a {label}", "--prompt", "clip-7"]
    result = run("fit", "--images", own / "normal", "--folders", "--dictionary", own / "words.txt",
                 *UNTRAINED, *prompts, "-o", file)  # fmt: skip
    assert result.exit_code == 0, result.output
    listed = "a {label}; itap of a {label}.; a bad photo of the {label}.; and 5 more"
    assert f"prompt       the mean of 8 templates: {listed}" in run("info", file).stdout
    assert len(json.loads(run("info", file, "--json").stdout)["prompt"]) == 8


@pytest.mark.slow
def test_fit_chooses_settings_from_the_normal_images_and_says_so(own, tmp_path):
    common = ["--images", own / "normal", "--folders", "--dictionary", own / "words.txt",
              "--model", "bliss-jax/untrained"]  # fmt: skip
    result = run("fit", *common, "--tune", "-o", tmp_path / "det")
    assert result.exit_code == 0, result.output
    facts = json.loads(run("info", tmp_path / "det", "--json").stdout)
    chosen = facts["provenance"]["tuning"]["chosen"]
    found = {"k": facts["k"], "weight": facts["lambda"], "shrinkage": facts["shrinkage"]}
    assert found == chosen
    assert f"tuned: k {facts['k']}, lambda {facts['lambda']:g}" in " ".join(result.stderr.split())
    for wrong in (["--score", "knn", *common], ["--labels", "red,blue", *common[3:]]):
        result = run("fit", *wrong, "--tune", "-o", tmp_path / "other")
        assert result.exit_code == 2
        assert "--tune chooses the settings of BLISS" in result.stderr
