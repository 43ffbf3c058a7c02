"""Files of embeddings without provenance are recognised by their class names."""

import json
from dataclasses import replace

import numpy as np
import pytest
import reference
from click.testing import CliRunner

from bliss_jax.cli import main
from bliss_jax.datasets import load_protocol
from bliss_jax.embedding import EmbeddingSet, save_embeddings

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
ORDER = [3, 7, 1, 0, 9, 2, 8, 6, 4, 5]


def cifar10_like(provenance=None) -> EmbeddingSet:
    """Returns random embeddings with the class names of CIFAR-10."""
    rng = np.random.default_rng(0)
    centres = reference.random_embeddings(rng, 10, 16)
    labels = np.arange(60) % 10

    def images():
        x = centres[labels] + 0.3 * rng.normal(size=(60, 16))
        return reference.unit(x).astype(np.float32), labels

    texts = reference.random_embeddings(rng, 12, 16)
    return EmbeddingSet(
        *images(), *images(), tuple(NAMES), reference.random_embeddings(rng, 10, 16),
        tuple(f"word {i}" for i in range(12)), texts, provenance=provenance or {},
    )  # fmt: skip


def permuted(e: EmbeddingSet) -> EmbeddingSet:
    """Returns the same embeddings with the classes in another order and spelling."""
    position = np.argsort(ORDER)
    return replace(
        e,
        class_names=tuple(NAMES[i].upper() for i in ORDER),
        label_embeddings=e.label_embeddings[ORDER],
        train_labels=position[e.train_labels],
        test_labels=position[e.test_labels],
    )


def run(tmp_path, e: EmbeddingSet, *arguments: str):
    file = tmp_path / "mine.npz"
    save_embeddings(e, file)
    options = ["--score", "max_cosine", "--json", str(tmp_path / "r.json"), *arguments]
    return CliRunner().invoke(main, ["evaluate", "--embeddings", str(file), *options])


def rows(tmp_path):
    return json.loads((tmp_path / "r.json").read_text())["rows"]


def test_splits_are_those_of_the_data_set_in_any_order_of_the_classes(tmp_path):
    e = cifar10_like()
    result = run(tmp_path, e, "--protocol", "zoc-6")
    assert result.exit_code == 0, result.output
    assert "mine.npz has the class names of cifar10 and is evaluated as cifar10" in result.stderr
    assert "another order" not in result.stderr
    [row] = rows(tmp_path)
    protocol = load_protocol("zoc-6", dataset="cifar10", num_classes=10)
    assert row["family"] == "zoc"
    assert [tuple(s["normal"]) for s in row["splits"]] == [s.normal for s in protocol.splits]

    result = run(tmp_path, permuted(e), "--protocol", "zoc-6")
    assert result.exit_code == 0, result.output
    assert "has the classes of cifar10 in another order" in result.stderr
    [other] = rows(tmp_path)
    for split, found in zip(row["splits"], other["splits"], strict=True):
        assert [ORDER[i] for i in found["normal"]] == split["normal"]
        assert found["auroc"] == pytest.approx(split["auroc"], abs=1e-6)

    quiet = run(tmp_path, permuted(e), "--protocol", "zoc-6", "--quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")


@pytest.mark.parametrize(
    ("names", "provenance", "arguments", "message"),
    [
        (NAMES, {}, ["--dataset", "mine"], "has splits for cifar10, but not for 'mine'"),
        ([*NAMES[:9], "lorry"], {}, [], "has splits for cifar10, but not for 'mine'"),
        ([*NAMES[2:], "ape", "car"], {}, ["--dataset", "cifar10"], "'bird' is class 2 of cifar10"),
        (NAMES, {"dataset": {"name": "digits"}}, [], "but not for 'digits'"),
    ],
)
def test_other_data_sets_are_not_taken_for_cifar10(tmp_path, names, provenance, arguments, message):
    e = replace(cifar10_like(provenance), class_names=tuple(names))
    result = run(tmp_path, e, "--protocol", "zoc-6", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_named_data_set_in_the_provenance_comes_before_the_class_names(tmp_path):
    recorded = cifar10_like({"dataset": {"name": "cifar10"}})
    result = run(tmp_path, recorded, "--protocol", "zoc-6")
    assert result.exit_code == 0, result.output
    assert "class names" not in result.stderr
    folder = cifar10_like({"dataset": {"name": "my-folder"}})
    result = run(tmp_path, folder, "--protocol", "zoc-6")
    assert result.exit_code == 0, result.output
    assert "is evaluated as cifar10" in result.stderr
