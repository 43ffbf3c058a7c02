"""The commands evaluate and embed: results, messages, files and exit codes."""

import csv
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bliss_jax.cli import main

QUICK = ["--score", "bliss", "--score", "max_cosine"]
UNTRAINED = ["--model", "bliss-jax/untrained", "--dataset", "digits"]


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_text("\n".join(f"word {i}" for i in range(30)) + "\nzero\n")
    return file


@pytest.fixture(scope="module")
def embeddings(words, tmp_path_factory):
    file = tmp_path_factory.mktemp("embeddings") / "digits.npz"
    result = run("embed", *UNTRAINED, "--dictionary", words, "-o", file)
    assert result.exit_code == 0, result.output
    return file


@pytest.mark.slow
def test_the_default_model_and_data_set_need_no_download():
    result = run("evaluate", *QUICK, "--normal", "die face-1,die face-2")
    assert result.exit_code == 0, result.output
    assert "bliss-jax/tiny on glyphs; dictionary unicode-names" in result.stderr
    assert "--embeddings FILE.npz" in result.stderr
    assert "bliss" in result.stdout
    assert "are random" not in result.stdout


def test_the_table_says_that_the_weights_of_an_untrained_model_are_random(words):
    result = run("evaluate", *UNTRAINED, "--dictionary", words, *QUICK)
    assert result.exit_code == 0, result.output
    assert "are random, so these numbers only show that the program runs" in result.stdout
    assert "including 1 of the 10 labels" in result.stderr


def test_embed_and_evaluate_embeddings_equal_a_direct_evaluation(embeddings, words, tmp_path):
    direct, from_file = tmp_path / "direct.json", tmp_path / "file.json"
    result = run("evaluate", *UNTRAINED, "--dictionary", words, *QUICK, "--json", direct)
    assert result.exit_code == 0, result.output
    result = run("evaluate", "--embeddings", embeddings, *QUICK, "--json", from_file)
    assert result.exit_code == 0, result.output
    assert "are random" in result.stdout, "the provenance of the file names the model"
    rows = [json.loads(file.read_text())["rows"] for file in (direct, from_file)]
    assert rows[0] == rows[1]
    [provenance] = json.loads(from_file.read_text())["provenance"]["evaluations"]
    assert provenance["embeddings"]["model"]["name"] == "bliss-jax/untrained"
    assert provenance["embeddings"]["dictionary"]["labels_found"] == ["zero"]
    assert provenance["embeddings"]["dataset"]["name"] == "digits"


@pytest.mark.slow
def test_several_protocols_shots_and_a_protocol_file_are_evaluated_together(embeddings, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"name": "even", "splits": [[0, 2, 4, 6, 8]]}))
    out, table = tmp_path / "r.json", tmp_path / "r.csv"
    arguments = ["--protocol", own, "--protocol", "leave-one-out", "--shots", 2, "--shots", 5]
    result = run(
        "evaluate", "--embeddings", embeddings, *QUICK, *arguments,
        "--draws", 3, "--per-split", "--json", out, "--csv", table,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    found = [
        (row["protocol"], row["settings"]["shots"], row["score"], row["settings"].get("shrinkage"))
        for row in rows
    ]
    assert found == [
        (protocol, shots, score, n0)
        for protocol in ("even", "leave-one-out")
        for shots in (2, 5)
        for score, n0 in (("bliss", 0.0), ("bliss", 20.0), ("max_cosine", None))
    ]
    assert all(len(split["draws"]) == 3 for row in rows for split in row["splits"])
    with table.open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(row["splits"]) for row in rows)
    assert float(lines[0]["auroc"]) == rows[0]["splits"][0]["auroc"]
    assert "0,2,4,6,8" in result.stdout


def test_a_protocol_file_is_evaluated_and_its_name_printed_literally(embeddings, tmp_path):
    own, out, table = tmp_path / "own.json", tmp_path / "r.json", tmp_path / "r.csv"
    own.write_text(json.dumps({"name": "[bold]even[/odd] :cat:", "splits": [[0, 2, 4, 6, 8]]}))
    arguments = ["--protocol", own, "--per-split", "--json", out, "--csv", table]
    result = run("evaluate", "--embeddings", embeddings, *QUICK, *arguments)
    assert result.exit_code == 0, result.output
    assert "[bold]even[/odd] :cat: (family custom)" in result.stdout
    assert "0,2,4,6,8" in result.stdout
    rows = json.loads(out.read_text())["rows"]
    assert [row["score"] for row in rows] == ["bliss", "max_cosine"]
    with table.open() as file:
        lines = list(csv.DictReader(file))
    areas = [split["auroc"] for row in rows for split in row["splits"]]
    assert [float(line["auroc"]) for line in lines] == areas


def test_unreadable_images_are_listed_and_strict_makes_them_an_error(words, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                noise = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(noise).save(folder / f"{i}.png")
            (folder / "1.png").write_bytes(b"no image")
    out = tmp_path / "e.npz"
    arguments = ["embed", "--dataset", tmp_path / "images", *UNTRAINED[:2]]
    arguments += ["--dictionary", words, "--quiet", "-o", out]
    bad = [f"{split}/{name}/1.png" for split in ("train", "test") for name in ("a", "b")]

    strict = run(*arguments, "--strict")
    assert strict.exit_code == 1
    assert "4 images cannot be read" in strict.stderr
    assert all(name in strict.stderr for name in bad), "the error names the images of both sets"
    assert not out.exists()

    result = run(*arguments)
    assert result.exit_code == 3, result.output
    assert result.stderr.count("skipped: cannot read image") == 4, "also with --quiet"
    with np.load(out) as arrays:
        assert len(arrays["train_labels"]) == len(arrays["test_labels"]) == 4
        listed = json.loads(str(arrays["provenance"]))["dataset"]["unreadable"]
    assert [any(name in line for line in listed) for name in bad] == [True] * 4

    for file in (tmp_path / "images" / "test").rglob("*.png"):
        file.write_bytes(b"no image")
    none = run(*arguments)
    assert none.exit_code == 1, none.output
    assert "Traceback" not in none.output


def test_normal_accepts_class_names_and_ids(embeddings, tmp_path):
    out = tmp_path / "r.json"
    result = run(
        "evaluate", "--embeddings", embeddings, *QUICK, "--json", out,
        "--normal", "zero, two,#4",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert {row["protocol"] for row in rows} == {"command-line"}
    assert [split["normal"] for split in rows[0]["splits"]] == [[0, 2, 4]]
    assert "normal classes: zero (#0), two (#2), four (#4)" in result.stdout


@pytest.mark.slow
def test_normal_may_be_repeated_for_several_splits(embeddings):
    result = run(
        "evaluate", "--embeddings", embeddings, *QUICK, "--normal", "zero,#4", "--normal", "nine"
    )
    assert result.exit_code == 0, result.output
    assert "normal classes of split 1: zero (#0), four (#4)" in result.stdout
    assert "normal classes of split 2: nine (#9)" in result.stdout


def test_exclude_labels_removes_labels_from_the_dictionary(words, tmp_path):
    file = tmp_path / "e.npz"
    result = run("embed", *UNTRAINED, "--dictionary", words, "--exclude-labels", "-o", file)
    assert result.exit_code == 0, result.output
    with np.load(file) as arrays:
        assert "zero" not in arrays["dictionary"]
        assert len(arrays["dictionary"]) == 30
        found = json.loads(str(arrays["provenance"]))["dictionary"]
    assert found["labels_found"] == ["zero"]
    assert found["labels_excluded"]


def test_quiet_prints_only_the_result(embeddings, words):
    result = run("evaluate", *UNTRAINED, "--dictionary", words, "--quiet", *QUICK)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "bliss" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dataset", "cifar11"], 1, "did you mean cifar10"),
        (["--model", "no/such-dir", "--dataset", "digits"], 1, "no/such-dir"),
        (["--protocol", "zoc6"], 1, "did you mean zoc-6"),
        (["--protocol", "zoc-6"], 1, "has splits for cifar10, but not for 'digits'"),
        (["--score", "blis"], 1, "did you mean bliss"),
        (["--prompt", "a {labl}"], 1, "a prompt template must contain {label}"),
        (["--dictionary", "imagenet"], 1, "imagenet1k"),
        (["--embeddings", "missing.npz"], 1, "missing.npz"),
        (["--draws", "3"], 2, "--draws needs --shots"),
        (["--shots", "1", "--draws", "0"], 1, "--draws: expected at least 1, got 0"),
        (["--prompt", ""], 1, "a prompt template must contain {label}"),
        (["--prompt", "clip-9"], 1, "did you mean the set of templates 'clip-7'"),
        (
            ["--prompt", "{label}", "--prompt", "{label}"],
            1,
            "--prompt: expected different templates",
        ),
        (["--lambda", "nan"], 1, "--lambda: expected a finite number, got nan"),
        (["--json", "no/such/folder/r.json"], 1, "there is no folder no/such/folder"),
        (["--normal", "one,tow"], 2, "unknown class 'tow'; expected two"),
        (["--normal", "#10"], 2, "unknown class '#10'; expected"),
        (["--normal", "3"], 2, "or an id from #0 to #9"),
        (["--background", "black"], 2, "--background: only for a folder of images"),
        (["--normal", "one,one"], 1, "more than once"),
        (["--dtype", "float64"], 2, "float64"),
        (
            ["--embeddings", "x.npz", "--model", "m", "--k", "3"],
            2,
            "--model cannot be combined with --embeddings",
        ),
    ],
)
def test_invalid_arguments_end_with_a_message_and_an_exit_code(arguments, code, message):
    data = [] if {"--dataset", "--embeddings"} & {*arguments} else UNTRAINED[2:]
    result = run("evaluate", *data, *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_the_report_shows_the_scored_images(words, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(("anomalous", "normal")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(6):
                noise = rng.integers(0, 64, (8, 8, 3)) + 60 * number
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i}.png")
    page = tmp_path / "report" / "index.html"
    arguments = ["evaluate", "--dataset", tmp_path / "images", "--dictionary", words, *QUICK]
    arguments += ["--normal", "normal", "--report", page.parent]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert page.read_text().count('data-name="normal"') == 6
    assert page.read_text().count('data-name="anomalous"') == 6

    (tmp_path / "images" / "test" / "normal" / "0.png").write_bytes(b"no image")
    result = run(*arguments, "--strict")
    assert result.exit_code == 1
    assert "0.png" in result.stderr
    result = run(*arguments)
    assert result.exit_code == 3, result.output
    assert "skipped: cannot read image 'test/normal/0.png'" in result.stderr
    assert "the report has no gallery, because some test images could not be" in result.stderr
    assert 'id="gallery"' not in page.read_text()


@pytest.mark.slow
def test_the_report_of_a_protocol_with_some_of_the_classes_has_a_gallery(words, tmp_path):
    protocol = ("--protocol", "glyphs-leave-sibling-out")  # 53 of 259 classes
    arguments = ("evaluate", "--dictionary", words, *protocol, *QUICK, "--report", tmp_path)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "index.html").read_text().count('data-name="') == 24


def test_output_files_have_the_permissions_of_the_umask(embeddings, tmp_path):
    out = tmp_path / "r.json"
    mask = os.umask(0o022)
    try:
        assert run("evaluate", "--embeddings", embeddings, *QUICK, "--json", out).exit_code == 0
    finally:
        os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [out]


def test_an_output_file_that_cannot_be_written_is_an_error_before_the_work(embeddings, tmp_path):
    for command, option, name in [("evaluate", "--csv", "r.csv"), ("embed", "-o", "e.npz")]:
        result = run(command, option, tmp_path / "missing" / name)
        assert result.exit_code == 1
        assert "there is no folder" in result.stderr
        assert "done" not in result.stderr, "the error comes before the work"
    assert run("embed", "-o", tmp_path / "e.txt").exit_code == 2
    assert list(tmp_path.iterdir()) == []
