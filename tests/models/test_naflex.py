"""Tests of SigLIP 2 NaFlex: parity with transformers, packing of images, and padding."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import save_random_checkpoint, save_siglip_tokenizer
from record_oracles import NAFLEX, naflex_images, naflex_inputs, recorded

from bliss_jax.datasets import ImageDataset
from bliss_jax.embedding import embed_images
from bliss_jax.models import (
    attribute_patches,
    encode_image,
    encode_text,
    load_model,
    maps_at_pixels,
    resize_on_host,
)
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.naflex import NaflexPreprocessing, Patches, grid_of
from bliss_jax.models.weights import load_params

HALF = (0.5, 0.5, 0.5)
PREPROCESSING = NaflexPreprocessing(32, "squash", "bilinear", HALF, HALF, 8, 20)

jit_image = jax.jit(encode_image, static_argnums=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("naflex")
    save_random_checkpoint(directory, NAFLEX)
    save_siglip_tokenizer(directory, ["a cat", "a dog", "the photo"] * 9, 24)
    fields = {
        "image_processor_type": "Siglip2ImageProcessor",
        "patch_size": 8,
        "max_num_patches": 20,
        "resample": 2,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(fields))
    return directory


@pytest.fixture(scope="module")
def model(saved):
    return load_model(saved)


@pytest.mark.parity
def test_embeddings_equal_the_recorded_ones_of_transformers(saved):
    config = read_config(saved, "float32")
    params, _ = load_params(saved, config)
    values, grid, tokens = naflex_inputs()
    expected = recorded("transformers")
    found = jit_image(params, config, Patches(jnp.asarray(values), jnp.asarray(grid)))
    np.testing.assert_allclose(found, expected["naflex/image"], atol=2e-6, rtol=0)
    found = jax.jit(encode_text, static_argnums=1)(params, config, jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected["naflex/text"], atol=2e-6, rtol=0)


@pytest.mark.parity
def test_patches_equal_the_recorded_ones_of_transformers():
    expected = recorded("transformers")
    for index, image in enumerate(naflex_images()):
        packed = PREPROCESSING.pack(image)
        grid = expected[f"naflex/grid{index}"]
        patches = PREPROCESSING.unpack(packed[None])
        np.testing.assert_array_equal(patches.grid[0], grid)
        pixels = packed[: int(grid.prod())].reshape(int(grid.prod()), -1)
        np.testing.assert_array_equal(pixels, expected[f"naflex/patches{index}"])
        normalised = (pixels / 127.5) - 1
        np.testing.assert_allclose(patches.values[0, : len(pixels)], normalised, atol=1e-6)
        assert not patches.values[0, len(pixels) :].any()


def test_padding_changes_no_embedding(model):
    values, grid, _ = naflex_inputs()
    short = Patches(jnp.asarray(values[1:2, :6]), jnp.asarray(grid[1:2]))
    junk = values[1:2].copy()
    junk[:, 6:] = 100.0
    found = jit_image(model.params, model.config, Patches(jnp.asarray(junk), short.grid))
    expected = jit_image(model.params, model.config, short)
    np.testing.assert_allclose(found, expected, atol=5e-7)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(100, 100, (4, 4)), (100, 400, (2, 8)), (5, 1000, (1, 20))]
)
def test_grids_keep_the_aspect_ratio_within_the_bound(height, width, expected):
    assert grid_of(height, width, 8, 20) == expected


def test_images_lists_and_packed_images_give_the_same_embeddings(model):
    images = naflex_images()
    found = model.encode_images(images)
    assert found.shape == (4, 32)
    packed = np.stack([resize_on_host(image, model.preprocessing) for image in images])
    assert packed.shape == (4, *model.preprocessing.packed_shape)
    np.testing.assert_array_equal(model.encode_images(packed), found)
    np.testing.assert_array_equal(model.encode_images(jnp.asarray(packed)), found)
    alone = model.encode_images(images[1][None])
    np.testing.assert_allclose(alone[0], found[1], atol=5e-7)
    assert model.encode_images([]).shape == (0, 32)
    assert model.encode_images(np.zeros((0, 9, 9, 3), np.uint8)).shape == (0, 32)


def test_a_data_set_of_several_sizes_is_embedded(model):
    images = naflex_images()
    dataset = ImageDataset("noise", images, np.zeros(4, np.int32), ("noise",), "random")
    found = embed_images(model, dataset, batch_size=8).embeddings
    np.testing.assert_allclose(found, model.encode_images(images), atol=5e-7)


def test_provenance_names_the_geometry():
    described = json.loads(json.dumps(PREPROCESSING.describe()))
    assert described["geometry"] == "naflex"
    assert (described["patch_size"], described["max_patches"]) == (8, 20)
    assert isinstance(PREPROCESSING.with_stats("clip"), NaflexPreprocessing)


def test_other_inputs_are_refused(model, saved, unchecked):
    with pytest.raises(ValueError, match=r"takes Patches with values \[n, patches, 192\]"):
        encode_image(model.params, model.config, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="a NaFlex model takes images of any size"):
        load_model(saved, image_size=48)


@pytest.mark.slow
def test_padding_has_no_attribution_and_maps_have_the_shape_of_the_image(model):
    images = [np.random.default_rng(0).integers(0, 256, (30, 90, 3), np.uint8)] * 2
    packed = np.stack([resize_on_host(image, PREPROCESSING) for image in images])
    patches = PREPROCESSING.unpack(packed)
    w = np.random.default_rng(1).normal(size=(2, 1, model.embedding_dim)).astype(np.float32)
    found = np.asarray(attribute_patches(model.params, model.config, patches, w))
    rows, columns = grid_of(30, 90, 8, 20)
    assert rows * columns < 20
    assert (found[:, :, rows * columns :] == 0).all()
    assert (found[:, :, : rows * columns] != 0).all()
    maps = maps_at_pixels(found[0], 30, 90, model.config, PREPROCESSING)
    assert maps.shape == (1, 30, 90)
    assert np.isfinite(maps).all()
