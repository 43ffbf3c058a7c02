"""`evaluate --ood` and `--suite`: a suite from end to end offline, sets of several kinds, and refused options."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from suite_folders import write_openood_cifar10

import bliss_jax as bj
from bliss_jax.cli import main
from bliss_jax.cli.ood import _CONVENTIONS
from bliss_jax.metrics import CONVENTIONS

QUICK = ["--score", "bliss", "--score", "max_cosine", "--k", "3", "--quiet"]
UNTRAINED = ["--model", "bliss-jax/untrained"]


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_openood_cifar10(tmp_path_factory.mktemp("data"))
    (root / "words.txt").write_text("\n".join(f"word {i}" for i in range(12)))
    return root


@pytest.mark.slow
def test_a_suite_runs_from_its_lists_to_tables_and_files(data, tmp_path):
    result = run("evaluate", "--suite", "openood-cifar10", "--suite-dir", data, *QUICK, *UNTRAINED,
                 "--dictionary", data / "words.txt", "--json", tmp_path / "x.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    for text in (
        "AUROC x 100",
        "FPR95 x 100 (openood)",
        "cifar100",
        "places365",
        "mean of near",
        "mean of far",
    ):
        assert text in result.stdout
    document = json.loads((tmp_path / "x.json").read_text())
    row = document["rows"][0]
    assert (row["protocol"], row["family"], row["settings"]["convention"]) == (
        "openood-cifar10",
        "ood",
        "openood",
    )
    assert [s["group"] for s in row["splits"]] == ["near"] * 2 + ["far"] * 4
    ood = document["provenance"]["evaluations"][0]["ood"]
    assert ood[0]["source"] == "cifar100, image list test_cifar100.txt (3 files)"
    missing = run(
        "evaluate", "--suite", "openood-cifar100", "--suite-dir", data, *QUICK, *UNTRAINED
    )
    assert missing.exit_code != 0
    assert "Its files come from OpenOOD v1.5" in missing.output


def test_folders_lists_and_data_sets_are_sets_in_groups(data, tmp_path):
    images = data / "images_classic"
    folder = images / "cifar10"  # train/CLASS and test/CLASS
    (images / "svhn.txt").write_text("svhn/test/0.png -1\nsvhn/test/1.png -1\n")
    result = run("evaluate", "--dataset", folder, "--ood", f"near={images / 'tin'}", "--ood",
                 f"far={images / 'svhn.txt'}", "--ood", "digits", "--convention", "mcm", *QUICK, *UNTRAINED,
                 "--dictionary", data / "words.txt", "--json", tmp_path / "x.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    row = json.loads((tmp_path / "x.json").read_text())["rows"][1]
    assert row["score"] == "max_cosine"
    found = [(s["name"], s.get("group")) for s in row["splits"]]
    assert found == [("tin", "near"), ("svhn", "far"), ("digits", None)]
    assert row["settings"]["convention"] == "mcm"


def test_embeddings_of_a_file_equal_those_of_python(tmp_path):
    rng = np.random.default_rng(0)
    unit = lambda *shape: (
        lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    )(rng.normal(size=shape))
    common = {"class_names": ("a", "b"), "label_embeddings": unit(2, 8), "provenance": {},
              "dictionary": tuple("vwxyz"), "dictionary_embeddings": unit(5, 8)}  # fmt: skip
    labels = np.arange(20) % 2
    one, two = (
        bj.EmbeddingSet(unit(20, 8), labels, unit(20, 8), labels, **common) for _ in range(2)
    )
    for name, e in (("one", one), ("two", two)):
        bj.save_embeddings(e, tmp_path / f"{name}.npz")
    file = tmp_path / "x.json"
    result = run("evaluate", "--embeddings", tmp_path / "one.npz", "--ood", tmp_path / "two.npz", *QUICK,
                 "--json", file, "--csv", tmp_path / "x.csv")  # fmt: skip
    assert result.exit_code == 0, result.output
    settings = bj.Settings(scores=("bliss", "max_cosine"), k=3)
    expected = bj.evaluate_ood(one, [bj.OodSet("two", two.test_embeddings)], settings)
    rows = json.loads(file.read_text())["rows"]
    assert [r["auroc"] for r in rows] == pytest.approx([r.auroc for r in expected.rows], abs=1e-6)
    assert "two" in (tmp_path / "x.csv").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ood", "nothing"], "--ood: expected a data set (cifar10"),
        (["--ood", "=x"], "--ood: expected [GROUP=]NAME, DIR or FILE, got '=x'"),
        (
            ["--ood", "digits", "--protocol", "one-class"],
            "--protocol cannot be combined with --ood or --suite",
        ),
        (["--suite", "openood-cifar10"], "--suite has its own data set: omit --dataset"),
        (
            ["--ood", "b.npz", "--embeddings", "a.npz", "--dtype", "bfloat16"],
            "cannot be combined with --embeddings",
        ),
    ],
)
def test_wrong_options_are_refused(options, message):
    result = run("evaluate", "--dataset", "digits", *options, *QUICK, *UNTRAINED)
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())


def test_the_options_name_all_conventions():
    assert {*_CONVENTIONS} == {*CONVENTIONS}
