"""A few training steps of `bliss-jax/tiny`: a killed run can be resumed, and the files are written."""

import json

import click
import jax
import numpy as np
import pytest
from click.testing import CliRunner

from bliss_jax.models import load_model
from experiments.tiny_model import train as train_tiny
from experiments.tiny_model.train import Run, Settings, quick

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def promotion_as_in_a_script():
    """Allows type promotion, because optax computes with Python numbers."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_a_run_that_was_killed_ends_with_the_same_numbers(tmp_path, monkeypatch):
    settings = quick(Settings())
    whole = Run(settings, tmp_path / "whole")
    expected = whole.train()

    save = Run._save
    for calls in (1, 2, 1):  # in the first phase, in the second phase, at its end
        left = [calls]

        def killed(self, *state, left=left):
            save(self, *state)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(Run, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            Run(settings, tmp_path / "killed").train()
    monkeypatch.setattr(Run, "_save", save)
    resumed = Run(settings, tmp_path / "killed")
    found = resumed.train()
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [point["step"] for point in resumed.curves] == [point["step"] for point in whole.curves]
    with pytest.raises(click.ClickException, match="is from a run with other settings"):
        Run(quick(Settings(seed=1)), tmp_path / "killed").train()


def test_the_script_writes_a_model_with_its_settings_and_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(train_tiny, "load_glyphs", lambda split: _few(split))
    result = CliRunner().invoke(train_tiny.main, ["--quick", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    made = json.loads((tmp_path / "result.json").read_text())
    assert made["settings"]["seed"] == 0
    assert made["test"]["names"] == 259
    assert 0 <= made["test"]["zero_shot_accuracy"] < 0.1, (
        "three steps are too few to learn the symbols"
    )
    assert load_model(tmp_path / "model").embedding_dim == 64
    assert (tmp_path / "curves.png").stat().st_size > 5000


def _few(split):
    images = GLYPHS(split)
    return images.subset(np.arange(0, len(images), 10))


GLYPHS = train_tiny.load_glyphs
