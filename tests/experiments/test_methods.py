"""Tests of the comparison of all scores with BLISS."""

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from clusters import clusters

from bliss_jax.embedding import save_embeddings
from bliss_jax.scores import score_table
from experiments.methods import compare, few_images, test_time

ROOT = Path(__file__).parents[2]


def test_the_interval_of_a_difference_is_that_of_the_mean_over_splits():
    """With one half and one protocol, the bootstrap is that of the mean of the splits' differences."""
    rng = np.random.default_rng(0)
    one, other = rng.uniform(0.8, 1, (1, 200)), rng.uniform(0.8, 1, (1, 200))
    mean, low, high = compare.difference([one], [other])
    paired = 100 * (one - other)[0]
    assert mean == pytest.approx(paired.mean())
    error = 1.96 * paired.std() / np.sqrt(200)
    assert low == pytest.approx(mean - error, abs=0.15 * error)
    assert high == pytest.approx(mean + error, abs=0.15 * error)


def test_equal_scores_have_a_difference_of_zero():
    areas = [np.random.default_rng(0).uniform(0.5, 1, (3, 4))] * 2
    assert compare.difference(areas, areas) == (0, 0, 0)


@pytest.mark.slow
def test_the_table_has_a_row_for_every_score(tmp_path, monkeypatch):
    file = tmp_path / "clusters.npz"
    save_embeddings(clusters(), file)
    arguments = ["--embeddings", str(file), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "experiments/methods/compare.py"), *arguments])
    result = CliRunner().invoke(compare.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ") for line in result.output.splitlines() if line.startswith("| ")][2:]
    named = {row[0].strip("|* ") for row in rows}
    assert named == set(score_table()) - {"clip_ad"}  # the file has no embedding of "something"
    assert all(0 <= float(row[1]) <= 100 for row in rows)


@pytest.mark.slow
def test_the_few_shot_table_has_a_row_for_every_prior(tmp_path, monkeypatch):
    file = tmp_path / "clusters.npz"
    save_embeddings(clusters(), file)
    arguments = ["--embeddings", str(file), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "experiments/methods/few_images.py"), *arguments])
    monkeypatch.setattr(few_images, "SHOTS", (1, 2, 10_000))
    result = CliRunner().invoke(few_images.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    headings, _, *rows = [line for line in result.output.splitlines() if line.startswith("| ")]
    assert headings == "| score | 1 | 2 |"
    assert len(rows) == 2 + len(few_images.PRIORS)


@pytest.mark.slow
def test_the_table_of_adapting_scores_has_a_row_for_every_setting(tmp_path, monkeypatch):
    file = tmp_path / "clusters.npz"
    save_embeddings(clusters(), file)
    arguments = ["--embeddings", str(file), "--output", str(tmp_path / "out"), "--quick"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "experiments/methods/test_time.py"), *arguments])
    monkeypatch.setattr(test_time, "HIGHS", (1.5,))
    monkeypatch.setattr(test_time, "QUEUES", ((0.1, 0.2),))
    monkeypatch.setattr(test_time, "BATCHES", (32,))
    result = CliRunner().invoke(test_time.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ") for line in result.output.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 2 * (1 + len(test_time.WEIGHTS) + 4)
    assert all(0 <= float(row[1]) <= 100 for row in rows)
