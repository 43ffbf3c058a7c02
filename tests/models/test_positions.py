"""Tests of interpolated position tables and of `load_model(..., image_size=...)`."""

import jax
import numpy as np
import pytest
from random_checkpoints import save_random_checkpoint, save_tiny_clip
from record_oracles import IMAGE_SIZES, INTERPOLATED, interpolated_pixels, recorded

from bliss_jax.models import Preprocessing, encode_image, load_model
from bliss_jax.models.checkpoint import read_config, with_image_size
from bliss_jax.models.positions import interpolate_positions
from bliss_jax.models.weights import load_params


@pytest.mark.parity
@pytest.mark.parametrize("size", IMAGE_SIZES)
@pytest.mark.parametrize("name", INTERPOLATED)
def test_embeddings_equal_the_recorded_ones_of_transformers(name, size, tmp_path):
    save_random_checkpoint(tmp_path, INTERPOLATED[name])
    config, _ = with_image_size(read_config(tmp_path, "float32"), Preprocessing(), size)
    params, digest = load_params(tmp_path, config, interpolate=True)
    found = jax.jit(encode_image, static_argnums=1)(params, config, interpolated_pixels(size))
    expected = recorded("transformers")[f"interpolated/{name}/{size}"]
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)
    assert digest == load_params(tmp_path, read_config(tmp_path, "float32"))[1]


def test_the_same_grid_is_unchanged():
    table = np.random.default_rng(0).normal(size=(17, 3)).astype(np.float32)
    np.testing.assert_allclose(interpolate_positions(table, 4, True), table, atol=1e-6)


def test_a_constant_table_and_its_class_token_stay():
    table = np.concatenate([np.full((1, 2), 7.0), np.full((9, 2), 3.0)]).astype(np.float32)
    found = interpolate_positions(table, 5, True)
    np.testing.assert_allclose(found[0], 7)
    np.testing.assert_allclose(found[1:], 3, atol=1e-6)


def test_tables_of_rectangles_are_refused():
    with pytest.raises(ValueError, match="12 patches does not belong to a square image"):
        interpolate_positions(np.zeros((12, 2), np.float32), 5, False)


def test_a_model_loads_at_another_size(tmp_path):
    save_tiny_clip(tmp_path)
    model = load_model(tmp_path, image_size=48)
    assert (model.image_size, model.preprocessing.size) == (48, 48)
    images = np.random.default_rng(0).integers(0, 256, (2, 60, 50, 3), np.uint8)
    assert model.encode_images(images).shape == (2, 24)
    assert model.weights_hash == load_model(tmp_path).weights_hash


@pytest.mark.parametrize("size", [0, 7, 32.0, True])
def test_impossible_sizes_are_refused(size, tmp_path, unchecked):
    save_tiny_clip(tmp_path)
    with pytest.raises(ValueError, match="image_size must be an int of at least one patch"):
        load_model(tmp_path, image_size=size)
