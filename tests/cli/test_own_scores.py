"""`evaluate --score MODULE:FUNCTION`: results, provenance and messages."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import bliss_jax as bj
from bliss_jax.cli import main

MODULE = '''
import jax.numpy as jnp
import bliss_jax as bj

NUMBER = 3


def nearest_label(embeddings, label_embeddings, normal):
    """Minus the largest cosine to a normal label."""
    return bj.min_over_classes(-bj.similarity(embeddings, label_embeddings), normal=normal)


def of_texts(embeddings, texts):
    return embeddings[:, 0]


def bliss(embeddings):
    return embeddings[:, 0]


record = bj.Score("nearest", nearest_label, label="Nearest label", source="here")
'''


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    rng = np.random.default_rng(0)

    def unit(n):
        x = rng.normal(size=(n, 16))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    file = tmp_path_factory.mktemp("embeddings") / "random.npz"
    labels = np.arange(30, dtype=np.int32) % 3
    words = tuple(f"word {i}" for i in range(20))
    names = ("cat", "dog", "ship")
    made = bj.EmbeddingSet(unit(30), labels, unit(30), labels, names, unit(3), words, unit(20))
    bj.save_embeddings(made, file)
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Returns the current directory, with a module and a file; imports are forgotten after the test."""
    for name in ("own_scores_of_test.py", "a file.py"):
        (tmp_path / name).write_text(MODULE)
    (tmp_path / "broken_of_test.py").write_text("import json\n1 / 0\n")
    (tmp_path / "needs_of_test.py").write_text("import no_such_module\n")
    (tmp_path / "ends_of_test.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if name.endswith(("_of_test", ".py")):
            del sys.modules[name]


def run(*arguments: object):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_own_scores_are_evaluated_beside_the_library_s(embeddings, folder):
    result = run(
        "--embeddings", embeddings, "--protocol", "one-class", "--score", "max_cosine",
        "--score", "own_scores_of_test:nearest_label", "--score", "own_scores_of_test:record",
        "--json", "r.json", "--csv", "r.csv",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Nearest label" in result.stdout
    found = json.loads((folder / "r.json").read_text())
    aurocs = {row["score"]: row["auroc"] for row in found["rows"]}
    assert list(aurocs) == ["max_cosine", "nearest_label", "nearest"]
    np.testing.assert_allclose([*aurocs.values()], aurocs["max_cosine"], atol=1e-6)
    place = "own_scores_of_test:nearest_label"
    [made] = found["provenance"]["evaluations"]
    assert made["settings"]["own_scores"] == {"nearest_label": place, "nearest": place}
    with (folder / "r.csv").open() as file:
        assert {line["score"] for line in csv.DictReader(file)} == {*aurocs}


@pytest.mark.slow
def test_a_report_has_the_own_score_and_its_provenance(embeddings, folder):
    result = run(
        "--embeddings", embeddings, "--protocol", "one-class", "--score", "bliss",
        "--score", "own_scores_of_test:record", "--report", "report",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    page = (folder / "report" / "index.html").read_text()
    assert "Nearest label" in page
    assert "own_scores_of_test:nearest_label" in page


def test_a_score_in_a_file_is_named_by_the_path_and_replaces_no_module(embeddings, folder):
    arguments = ["--embeddings", embeddings, "--protocol", "one-class", "--json", "r.json"]
    result = run(*arguments, "--score", "a file.py:nearest_label", "--shots", 2, "--draws", 2)
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "r.json").read_text())
    [made] = found["provenance"]["evaluations"]
    assert made["settings"]["own_scores"] == {"nearest_label": "a file.py:nearest_label"}
    assert len(found["rows"][0]["splits"][0]["draws"]) == 2
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    ("score", "code", "message"),
    [
        (":f", 2, "--score: expected a score's name, MODULE:FUNCTION or FILE.py:FUNCTION, got ':f'"),
        ("m:", 2, "MODULE:FUNCTION or FILE.py:FUNCTION, got 'm:'"),
        ("no_such:f", 1, "--score no_such:f: there is no module 'no_such' in "),
        ("own_scores_of_test.part:f", 1, "there is no module 'own_scores_of_test.part' in "),
        ("..m:f", 1, "--score ..m:f: importing ..m failed: TypeError"),
        ("no.py:f", 1, "--score no.py:f: there is no file no.py"),
        ("own_scores_of_test:margin", 1, "own_scores_of_test.py) has no attribute 'margin'"),
        ("own_scores_of_test:NUMBER", 1, "expected a function or a bliss_jax.Score, got a int"),
        ("own_scores_of_test:of_texts", 1, "the parameter 'texts' of its function is not an input of an evaluation"),
        ("own_scores_of_test:bliss", 1, "'bliss' is the name of a score of the library"),
        ("needs_of_test:f", 1, "ModuleNotFoundError: No module named 'no_such_module' ("),
        ("broken_of_test:f", 1, "importing broken_of_test failed: ZeroDivisionError: division by zero ("),
        ("ends_of_test.py:f", 1, "importing ends_of_test.py failed: SystemExit: 0 ("),
    ],
)  # fmt: skip
def test_scores_that_cannot_be_used_are_named_in_one_line(embeddings, folder, score, code, message):
    result = run("--embeddings", embeddings, "--protocol", "one-class", "--score", score)
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == (1 if code == 1 else 4)
    assert "line 2)" in result.stderr or "broken" not in score, "the message names the failing line"


def test_one_score_given_twice_is_an_error(embeddings, folder):
    twice = ["--score", "own_scores_of_test:record", "--score", "a file.py:record"]
    result = run("--embeddings", embeddings, "--protocol", "one-class", *twice)
    assert result.exit_code == 1
    assert "--score: expected different names and labels, got twice: nearest" in result.stderr


def test_modules_are_imported_after_the_checks_of_arguments_and_folders(folder):
    (folder / "empty").mkdir()
    (folder / "loud_of_test.py").write_text("print('imported')\n")
    program = (
        "import sys\n"
        "from bliss_jax.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print('jax' in sys.modules)\n"
    )
    for arguments in (
        ["--lambda", "nan"],
        ["--embeddings", "missing.npz"],
        ["--dataset", "empty"],
        ["--dataset", "digits", "--json", "missing/r.json"],
    ):
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", program, "evaluate", "--score", "loud_of_test:f", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert done.stdout == "False\n"
