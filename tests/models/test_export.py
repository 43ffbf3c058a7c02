"""Tests of saving a checkpoint: this library and transformers read the saved parameters."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from random_checkpoints import torch_embeddings

from bliss_jax.models import Preprocessing, encode_image, encode_text
from bliss_jax.models.checkpoint import read_config, read_preprocessing
from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.export import save_checkpoint
from bliss_jax.models.layers import VisionConfig
from bliss_jax.models.preprocessing import STATS
from bliss_jax.models.weights import expected_shapes, flatten, load_params

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-4,
}
CONFIG = CLIPConfig(
    vision=VisionConfig(**TOWER, num_hidden_layers=2, image_size=24, patch_size=6),
    text=CLIPTextConfig(
        **TOWER, num_hidden_layers=1, vocab_size=50, max_position_embeddings=12, eos_token_id=49
    ),
    projection_dim=20,
)
PREPROCESSING = Preprocessing(24, mean=STATS["reference"][0], std=STATS["reference"][1])


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return unflatten_dict(
        {
            name: jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32)
            for name, shape in expected_shapes(CONFIG).items()
        },
        sep="/",
    )


def test_a_saved_checkpoint_loads_unchanged(params, tmp_path):
    save_checkpoint(tmp_path, CONFIG, params, PREPROCESSING)
    config = read_config(tmp_path, "float32")
    assert config == CONFIG
    assert read_preprocessing(tmp_path, config) == PREPROCESSING
    found, expected = flatten(load_params(tmp_path, config)[0]), flatten(params)
    assert set(found) == set(expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.parity
@pytest.mark.torch
def test_transformers_computes_the_same_embeddings(params, tmp_path):
    import torch
    from transformers import CLIPModel

    save_checkpoint(tmp_path, CONFIG, params, PREPROCESSING)
    model, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    # The logit scale belongs to the loss and not to the encoder.
    assert set(report["missing_keys"]) <= {"logit_scale"}
    assert not report["unexpected_keys"]
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(3, 24, 24, 3)).astype(np.float32)
    tokens = np.full((3, 12), 49, np.int32)
    tokens[:, :5] = rng.integers(0, 48, (3, 5))
    image, text = torch_embeddings(model.to(torch.float32).eval(), pixels, tokens)
    found = encode_image(params, CONFIG, jnp.asarray(pixels))
    np.testing.assert_allclose(found, image, atol=2e-6, rtol=0)
    found = encode_text(params, CONFIG, jnp.asarray(tokens))
    np.testing.assert_allclose(found, text, atol=2e-6, rtol=0)


def test_half_precision_only_rounds_the_parameters(params, tmp_path):
    save_checkpoint(tmp_path, CONFIG, params, PREPROCESSING, dtype="float16")
    for name, leaf in flatten(load_params(tmp_path, CONFIG)[0]).items():
        expected = np.asarray(flatten(params)[name]).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(leaf, expected, err_msg=name)


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_a_value_that_the_file_cannot_hold_is_refused_by_name(params, tmp_path, value):
    damaged = {**params, "damaged": jnp.full(2, value)}
    with pytest.raises(ValueError, match="damaged is not finite in float16"):
        save_checkpoint(tmp_path, CONFIG, damaged, PREPROCESSING, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_another_geometry_is_refused(params, tmp_path):
    with pytest.raises(ValueError, match="crops, got the geometry 'squash'"):
        save_checkpoint(tmp_path, CONFIG, params, replace(PREPROCESSING, geometry="squash"))
