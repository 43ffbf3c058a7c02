"""Tests against transformers' own `FlaxCLIPModel`: the same parameters and the same embeddings.

transformers 4.57 is the last release with Flax models, so this file runs in an environment with it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import (
    published_clip_config,
    random_inputs,
    save_random_checkpoint,
)

from bliss_jax.models import encode_image, encode_text
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.weights import flatten, load_params

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.flax_clip_model,
    pytest.mark.skipif(
        not hasattr(transformers, "FlaxCLIPModel"),
        reason=f"transformers {transformers.__version__} has no FlaxCLIPModel; 4.57 was the last",
    ),
]


@pytest.fixture(params=["B/32", "L/14"])
def saved(request, tmp_path):
    """Returns a directory with one random model as PyTorch and as Flax, the Flax model, and inputs."""
    config = published_clip_config(request.param)
    save_random_checkpoint(tmp_path / "torch", config)
    # The code of FlaxCLIPModel relies on implicit promotion, which conftest.py forbids.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        flax_model = transformers.FlaxCLIPModel.from_pretrained(tmp_path / "torch", from_pt=True)
    flax_model.save_pretrained(tmp_path / "flax")
    assert not list((tmp_path / "flax").glob("*.safetensors"))
    return tmp_path, flax_model, random_inputs(config, n=2)


def test_parameter_trees_are_equal_and_the_msgpack_file_loads(saved):
    directory, flax_model, _ = saved
    config = read_config(directory / "flax", "float32")
    params, digest = load_params(directory / "flax", config)
    expected = flatten(flax_model.params)
    assert flatten(params).keys() == expected.keys()
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, expected[name])
    assert load_params(directory / "torch", config)[1] == digest


def test_embeddings_are_equal(saved):
    directory, flax_model, (pixels, tokens) = saved
    config = read_config(directory / "flax", "float32")
    params, _ = load_params(directory / "flax", config)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = flax_model(input_ids=tokens, pixel_values=pixels.transpose(0, 3, 1, 2))
    found = encode_image(params, config, jnp.asarray(pixels))
    np.testing.assert_allclose(found, expected.image_embeds, atol=2e-5, rtol=0)
    found = encode_text(params, config, jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected.text_embeds, atol=2e-5, rtol=0)
