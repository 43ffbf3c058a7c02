"""Tests of the comparison of rules that choose settings from normal images."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from clusters import clusters

from bliss_jax.datasets import load_protocol
from bliss_jax.embedding import save_embeddings
from experiments.tuning import compare, texts

ROOT = Path(__file__).parents[2]
SHAPE = len(compare.WEIGHTS), len(compare.SHRINKAGES), len(compare.KS)


def evidence(gain, noise=0.0):
    """Evidence of ten groups in which one setting is better than all others by `gain`, up to noise."""
    aurocs = np.full((5, 10, *SHAPE), 0.8)
    aurocs[:, :, 2, 1, 0] += gain + noise * np.linspace(-1, 1, 10)
    return compare.Evidence(aurocs, np.array([0.0, 2.0, 1.0, 0.5]))


def test_a_setting_is_chosen_if_its_gain_exceeds_the_standard_errors():
    best, default = (2, 1, 0), compare.DEFAULT
    assert compare.by_classes(evidence(0.01), 1) == best
    assert compare.by_classes(evidence(-0.01), 1) == default
    error = 0.1 * np.linspace(-1, 1, 10).std(ddof=1) / np.sqrt(10)
    assert compare.by_classes(evidence(1.9 * error, 0.1), 1) == best
    assert compare.by_classes(evidence(1.9 * error, 0.1), 2) == default


def test_the_likelihood_chooses_the_shrinkage_alone():
    default = compare.DEFAULT
    assert compare.by_likelihood(evidence(0.01)) == (default[0], 1, default[2])
    assert compare.by_both(evidence(0.01), 1) == (2, 1, 0)
    assert compare.by_both(evidence(0.01)._replace(aurocs=None), 1) == (default[0], 1, default[2])


def test_some_splits_are_at_equal_distances():
    protocol = load_protocol("leave-one-out", dataset="mine", num_classes=259)
    places = [protocol.splits.index(split) for split in compare.some_splits(protocol, 10).splits]
    assert (len(places), places[0], places[-1]) == (10, 0, 258)
    assert np.ptp(np.diff(places)) <= 1
    assert compare.some_splits(protocol, 1000) == protocol


@pytest.mark.slow
def test_the_table_has_a_row_for_every_rule(tmp_path, monkeypatch):
    file = tmp_path / "clusters.npz"
    save_embeddings(clusters(), file)
    arguments = ["--embeddings", str(file), "--output", str(tmp_path / "out")]
    arguments += ["--protocol", "leave-one-out", "--protocol", "one-class"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "experiments/tuning/compare.py"), *arguments])
    monkeypatch.setattr(compare, "SPLITS", 2)
    result = CliRunner().invoke(compare.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ") for line in result.output.splitlines() if line.startswith("| ")]
    named = [row[0].strip("| ") for row in rows]
    assert named[2:] == [
        "defaults, AUROC", *compare.RULES, "best of the grid", "lambda, n0, k of", "---", *compare.RULES,
    ]  # fmt: skip
    bound = rows[named.index("best of the grid")]
    assert all(float(cell) >= 0 for cell in bound[1:3])
    assert all(float(rows[2 + place][2]) == 0 for place in (1, 2, 3)), (
        "one class has nothing to leave out"
    )


@pytest.mark.slow
def test_texts_that_are_unrelated_to_the_images_have_a_smaller_estimate():
    e = clusters()
    labels = np.stack([e.train_embeddings[e.train_labels == c].mean(axis=0) for c in range(6)])
    labels /= np.linalg.norm(labels, axis=1, keepdims=True)
    others = np.roll(labels, 3, axis=0)
    protocol = load_protocol("leave-one-out", dataset="mine", num_classes=6)
    protocol = compare.some_splits(protocol, 2)
    sets = [replace(e, label_embeddings=rows.astype(np.float32)) for rows in (labels, others)]
    found = texts.of_protocol(sets, protocol)
    assert {name: array.shape for name, array in found.items()} == dict.fromkeys(found, (2, 2))
    assert (found["estimates"][0] > found["estimates"][1]).all()
