"""Maps of patches at the pixels of originals of many sizes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import bliss_jax as bj
from bliss_jax.models.float_preprocessing import apply_float_preprocessing
from bliss_jax.models.patch_maps import maps_at_pixels

SIZES = [(32, 32), (17, 40), (64, 24), (100, 31)]


@pytest.fixture(scope="module")
def tiny():
    return bj.load_model("bliss-jax/tiny")


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_map_of_places_gives_back_each_pixels_place(tiny, height, width):
    """The map of a patch is its mean coordinate, which the preprocessing itself computes from the original."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    given = np.stack([y, x, x], axis=-1)[None] * 2
    plain = tiny.preprocessing
    pixels = apply_float_preprocessing(jnp.asarray(given), plain)
    places = (np.asarray(pixels) * plain.std + plain.mean)[0] * 255 / 2
    patches = places.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)).reshape(16, 3)
    maps = maps_at_pixels(patches.T[:2].astype(np.float32), height, width, tiny.config, plain)
    assert maps.shape == (2, height, width)
    short = min(height, width)
    seen = np.isfinite(maps[0])
    assert (
        abs(seen.sum() - short * short) <= 2 * short
    )  # the square crop, up to half a pixel at each side
    inner = (
        seen
        & (np.abs(y - (height - 1) / 2) < short / 3)
        & (np.abs(x - (width - 1) / 2) < short / 3)
    )
    np.testing.assert_allclose(maps[0][inner], y[inner], atol=0.1 + 0.02 * height)
    np.testing.assert_allclose(maps[1][inner], x[inner], atol=0.1 + 0.02 * width)


def test_the_cropped_away_area_is_nan_and_the_rest_is_not(tiny):
    maps = maps_at_pixels(np.ones((1, 16), np.float32), 32, 64, tiny.config, tiny.preprocessing)
    assert np.isnan(maps[0, :, :16]).all()
    assert np.isnan(maps[0, :, 48:]).all()
    np.testing.assert_array_equal(maps[0, :, 16:48], 1)


def test_the_largest_patch_is_the_largest_place(tiny):
    for patch in range(16):
        one = np.eye(16, dtype=np.float32)[patch]
        found = maps_at_pixels(one, 64, 64, tiny.config, tiny.preprocessing)
        row, column = np.unravel_index(found.argmax(), found.shape)
        assert (row // 16, column // 16) == divmod(patch, 4)


def test_a_border_narrower_than_a_patch_is_not_seen(tiny):
    preprocessing = dataclasses.replace(tiny.preprocessing, size=37)
    maps = maps_at_pixels(np.ones(16, np.float32), 37, 37, tiny.config, preprocessing)
    assert np.isfinite(maps[:32, :32]).all()
    assert np.isnan(maps[32:]).all()
    assert np.isnan(maps[:, 32:]).all()


def test_the_number_of_patches_is_checked(tiny):
    with pytest.raises(ValueError, match="expected 16 patches"):
        maps_at_pixels(np.ones(15, np.float32), 8, 8, tiny.config, tiny.preprocessing)
