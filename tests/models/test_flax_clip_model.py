"""The same parameters and embeddings as transformers' own `FlaxCLIPModel`.

Releases after 4.57 have no Flax models: an environment with transformers 4.57 runs this file.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import clip_model, random_inputs

from bliss_jax.models import encode_image, encode_text
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.weights import flatten, load_params

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.flax_clip_model,
    pytest.mark.skipif(
        not hasattr(transformers, "FlaxCLIPModel"),
        reason=f"transformers {transformers.__version__} has no FlaxCLIPModel; 4.57 was the last",
    ),
]


@pytest.fixture(params=["B/32", "L/14"])
def saved(request, tmp_path):
    """One random model, as PyTorch and as Flax write it, and the Flax model itself."""
    model = clip_model(request.param)
    model.save_pretrained(tmp_path / "torch")
    # Its code relies on implicit promotion, which the other tests forbid.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        flax_model = transformers.FlaxCLIPModel.from_pretrained(tmp_path / "torch", from_pt=True)
    flax_model.save_pretrained(tmp_path / "flax")
    assert not list((tmp_path / "flax").glob("*.safetensors"))
    return tmp_path, flax_model, random_inputs(model, n=2)


def test_its_tree_is_our_tree_and_its_file_is_read(saved):
    directory, flax_model, _ = saved
    config = read_config(directory / "flax", "float32")
    params, digest = load_params(directory / "flax", config)
    expected = flatten(flax_model.params)
    assert flatten(params).keys() == expected.keys()
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, expected[name])
    assert load_params(directory / "torch", config)[1] == digest


def test_its_embeddings_are_our_embeddings(saved):
    directory, flax_model, (pixels, tokens) = saved
    config = read_config(directory / "flax", "float32")
    params, _ = load_params(directory / "flax", config)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = flax_model(input_ids=tokens, pixel_values=pixels.transpose(0, 3, 1, 2))
    found = encode_image(params, config, jnp.asarray(pixels))
    np.testing.assert_allclose(found, expected.image_embeds, atol=2e-5, rtol=0)
    found = encode_text(params, config, jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected.text_embeds, atol=2e-5, rtol=0)
