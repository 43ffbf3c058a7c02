"""Tests of SigLIP's towers: parity with transformers' PyTorch model, and the padding of texts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import (
    published_siglip_config,
    random_inputs,
    save_random_checkpoint,
    siglip_config,
    torch_embeddings,
    torch_model,
)
from record_oracles import TOWERS, recorded, tower_inputs

from bliss_jax.models import encode_image, encode_text
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.siglip import SiglipConfig
from bliss_jax.models.weights import flatten, load_params

jit_image = jax.jit(encode_image, static_argnums=1)
jit_text = jax.jit(encode_text, static_argnums=1)


def load(directory, config, dtype="float32"):
    save_random_checkpoint(directory, config)
    config = read_config(directory, dtype)
    assert isinstance(config, SiglipConfig)
    return load_params(directory, config)[0], config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config = siglip_config()
    params, loaded = load(tmp_path_factory.mktemp("tiny"), config)
    return params, loaded, *map(jnp.asarray, random_inputs(config, n=3))


def assert_close(found, expected, tolerance, dtype="float32"):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        if dtype == "float32":
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)
        else:
            assert np.sum(a * b, axis=1).min() > tolerance


def assert_equals_pytorch(config, directory, tolerance, dtype="float32"):
    pixels, tokens = random_inputs(config, n=2)
    params, loaded = load(directory, config, dtype)
    found = jit_image(params, loaded, pixels), jit_text(params, loaded, tokens)
    assert_close(found, torch_embeddings(torch_model(directory), pixels, tokens), tolerance, dtype)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "tolerance", "dtype"),
    [
        ("siglip", 2e-6, "float32"),
        ("siglip-text-width", 2e-6, "float32"),
        ("siglip-base-thin", 2e-5, "float32"),
        pytest.param("siglip-base-thin", 0.999, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_embeddings_equal_the_recorded_ones_of_pytorch(name, tolerance, dtype, tmp_path):
    """The tolerances are those of the live tests below."""
    pixels, tokens = tower_inputs(name)
    params, config = load(tmp_path, TOWERS[name], dtype)
    found = jit_image(params, config, pixels), jit_text(params, config, tokens)
    expected = [recorded("transformers")[f"{name}/{tower}"] for tower in ("image", "text")]
    assert_close(found, expected, tolerance, dtype)


@pytest.mark.parity
@pytest.mark.torch
@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({"image_size": 256}, {"vocab_size": 2048, "projection_size": 768}),
        # The layout of SigLIP So400m, which ignores a border of 6 pixels.
        (
            {"image_size": 384, "patch_size": 14, "hidden_size": 1152, "intermediate_size": 4304}
            | {"num_attention_heads": 16},
            {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
            | {"projection_size": 1152},
        ),
    ],
    ids=["base-256", "so400m-384"],
)
def test_equals_pytorch_at_the_published_widths(vision, text, tmp_path):
    assert_equals_pytorch(published_siglip_config(vision=vision, text=text), tmp_path, 2e-5)


@pytest.mark.parity
@pytest.mark.torch
def test_equals_pytorch_at_full_depth(tmp_path):
    config = published_siglip_config(layers=12)
    assert_equals_pytorch(config, tmp_path, 2e-5)
    assert_equals_pytorch(config, tmp_path, 0.999, "bfloat16")


@pytest.mark.parity
@pytest.mark.torch
def test_a_text_head_of_another_width_equals_pytorch(tmp_path):
    config = siglip_config(text={"hidden_size": 48, "projection_size": 32})
    assert_equals_pytorch(config, tmp_path, 2e-6)


def test_widths_of_both_embeddings_must_agree(tmp_path):
    config = siglip_config(text={"projection_size": 40})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match="image embedding has 32 dimensions, the text embedding 40"
    ):
        read_config(tmp_path, "float32")


def test_a_vision_tower_without_its_head_is_refused(tmp_path):
    config = siglip_config(vision={"vision_use_head": False})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="without its pooling head"):
        read_config(tmp_path, "float32")


def test_padding_is_part_of_the_input(tiny):
    params, config, _, tokens = tiny
    np.testing.assert_array_equal(config.used_lengths(np.asarray(tokens)), [16] * len(tokens))
    for length in (15, 17):
        cut = jnp.resize(tokens, (3, length))
        with pytest.raises(ValueError, match=f"{length} tokens per text.* padded to exactly 16"):
            encode_text(params, config, cut)


def test_no_position_can_be_dropped_or_shared(tiny):
    """Each position attends to all others, so padding changes the embedding and a prefix is refused."""
    params, config, _, tokens = tiny
    changed = jit_text(params, config, tokens.at[:, -2].set(tokens[:, -2] % 7 + 1))
    assert np.abs(changed - jit_text(params, config, tokens)).max() > 1e-3
    with pytest.raises(ValueError, match="prefix: SiglipConfig has no causal mask"):
        encode_text(params, config, tokens[:, 2:], tokens[0, :2])


@pytest.mark.slow
def test_every_parameter_matters(tiny):
    params, config, pixels, tokens = tiny
    probe = jax.random.normal(jax.random.key(0), (2, config.embedding_dim))

    def loss(params):
        image, text = encode_image(params, config, pixels), encode_text(params, config, tokens)
        return jnp.sum(image @ probe[0]) + jnp.sum(text @ probe[1])

    for name, gradient in flatten(jax.jit(jax.grad(loss))(params)).items():
        size = jnp.abs(gradient).max()
        if name.startswith("logit"):
            assert size == 0
        elif name.endswith("k_proj/bias"):
            assert size < 1e-5
        else:
            assert size > 1e-4, name


def test_embeddings_do_not_depend_on_the_batch(tiny):
    params, config, pixels, tokens = tiny
    image, text = jit_image(params, config, pixels), jit_text(params, config, tokens)
    np.testing.assert_allclose(jit_image(params, config, pixels[:2]), image[:2], atol=5e-7)
    np.testing.assert_allclose(jit_text(params, config, tokens[:0]), text[:0], atol=5e-7)
