"""The measurement of maps: closed forms of its metrics, windows and training scenes."""

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from bliss_jax.datasets import odd_glyphs
from experiments.maps import compare, encoder, methods


def test_the_box_itself_is_the_best_map_and_its_negative_the_worst():
    scenes = odd_glyphs.draw_odd_scenes("validation", 18, odd=True)
    box = scenes.masks.astype(np.float32)
    best = compare.measured(box, scenes)
    assert {name: best[name] for name in ("pointing", "auroc", "aupr")} == pytest.approx(
        {"pointing": 1, "auroc": 1, "aupr": 1}
    )
    assert all(best[f"size {size}"] == 1 for size in odd_glyphs.SIZES)
    worst = compare.measured(-box, scenes)
    assert worst["pointing"] == worst["auroc"] == 0
    assert compare.measured(np.zeros_like(box), scenes)["auroc"] == pytest.approx(0.5)


def test_windows_cover_every_pixel_and_spread_the_mean_of_their_scores():
    masks = methods.windows(96, methods.WINDOW, methods.STRIDE)
    assert masks.shape == (81, 96, 96)
    assert (masks.sum(axis=(1, 2)) == methods.WINDOW**2).all()
    assert masks.any(axis=0).all()
    scores = np.arange(81, dtype=np.float32)[:, None]
    found = np.asarray(methods.spread(scores, masks))[0]
    assert found[0, 0] == 0
    assert found[95, 95] == 80
    np.testing.assert_allclose(
        found[40, 50], scores[np.asarray(masks)[:, 40, 50], 0].mean(), rtol=1e-5
    )
    assert methods.windows(96, methods.SQUARE, methods.STEP).any(axis=0).all()


def test_the_windows_of_images_are_in_the_order_of_the_masks():
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    masks = np.asarray(methods.windows(96, methods.WINDOW, methods.STRIDE))
    cut = methods.window_images(images)
    for window in (0, 10, 80):
        expected = images[1][masks[window]].reshape(methods.WINDOW, methods.WINDOW, 3)
        np.testing.assert_array_equal(cut[1, window], expected)


def test_captions_of_training_scenes_name_each_kind_of_symbol_equally_often():
    table = odd_glyphs.symbol_masks(encoder.SYMBOLS[:1], "train").repeat(len(encoder.SYMBOLS), 0)
    drawn = encoder.scenes((0, 1), 8, table)
    assert drawn["images"].shape == (8, 96, 96, 3)
    np.testing.assert_allclose(drawn["shares"].sum(axis=1), 1, rtol=1e-6)
    for shares in drawn["shares"]:
        assert len(set(shares[shares > 0].tolist())) == 1
        assert (shares > 0).sum() <= 3


@pytest.mark.slow
def test_the_encoder_is_trained_and_written(tmp_path):
    options = ["--output", str(tmp_path), "--steps", "2", "--batch", "2"]
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        result = CliRunner().invoke(encoder.main, options)
    assert result.exit_code == 0, result.output
    from bliss_jax.models import load_model

    assert load_model(tmp_path / "model").config.vision.num_patches == 144
