"""SigLIP's towers: equal to transformers' PyTorch model; texts must be padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import random_inputs, siglip_model, tiny_siglip_model, torch_embeddings

from bliss_jax.models import encode_image, encode_text
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.siglip import SiglipConfig
from bliss_jax.models.weights import flatten, load_params

jit_image = jax.jit(encode_image, static_argnums=1)
jit_text = jax.jit(encode_text, static_argnums=1)


def load(model, directory, dtype="float32"):
    model.save_pretrained(directory)
    config = read_config(directory, dtype)
    return load_params(directory, config)[0], config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model = tiny_siglip_model()
    params, config = load(model, tmp_path_factory.mktemp("tiny"))
    return params, config, *map(jnp.asarray, random_inputs(model, n=5))


def assert_equals_pytorch(model, directory, tolerance, dtype="float32"):
    pixels, tokens = random_inputs(model, n=2)
    params, config = load(model, directory, dtype)
    assert isinstance(config, SiglipConfig)
    found = jit_image(params, config, pixels), jit_text(params, config, tokens)
    for a, b in zip(found, torch_embeddings(model, pixels, tokens), strict=True):
        assert a.dtype == jnp.float32
        if dtype == "float32":
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)
        else:
            assert np.sum(a * b, axis=1).min() > tolerance


@pytest.mark.parity
@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({"image_size": 256}, {"vocab_size": 2048, "projection_size": 768}),
        # The layout of SigLIP So400m: a border of 6 pixels is left out.
        (
            {"image_size": 384, "patch_size": 14, "hidden_size": 1152, "intermediate_size": 4304}
            | {"num_attention_heads": 16},
            {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16},
        ),
    ],
    ids=["base-256", "so400m-384"],
)
def test_equals_pytorch_at_the_published_widths(vision, text, tmp_path):
    assert_equals_pytorch(siglip_model(vision=vision, text=text), tmp_path, 2e-5)


@pytest.mark.parity
@pytest.mark.slow
def test_equals_pytorch_at_full_depth(tmp_path):
    model = siglip_model(layers=12)
    assert_equals_pytorch(model, tmp_path, 2e-5)
    assert_equals_pytorch(model, tmp_path, 0.999, "bfloat16")


@pytest.mark.parity
def test_a_text_head_of_another_width(tmp_path):
    model = tiny_siglip_model(text={"hidden_size": 48, "projection_size": 32})
    assert_equals_pytorch(model, tmp_path, 2e-6)


def test_widths_must_agree(tmp_path):
    tiny_siglip_model(text={"projection_size": 40}).config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="image embedding has 32 dimensions, the text embedding 40"
    ):
        read_config(tmp_path, "float32")


def test_a_tower_without_its_head_is_refused(tmp_path):
    tiny_siglip_model(vision={"vision_use_head": False}).config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="without its pooling head"):
        read_config(tmp_path, "float32")


def test_padding_is_part_of_the_input(tiny):
    params, config, _, tokens = tiny
    np.testing.assert_array_equal(config.used_lengths(np.asarray(tokens)), [16] * len(tokens))
    for length in (15, 17):
        cut = jnp.resize(tokens, (5, length))
        with pytest.raises(ValueError, match=f"{length} tokens per text.* padded to exactly 16"):
            encode_text(params, config, cut)


def test_no_position_can_be_left_out_or_shared(tiny):
    """Every position sees every other: the last tokens move the embedding, and so would a prefix's."""
    params, config, _, tokens = tiny
    changed = encode_text(params, config, tokens.at[:, -2].set(tokens[:, -2] % 7 + 1))
    assert np.abs(changed - encode_text(params, config, tokens)).max() > 1e-3
    with pytest.raises(ValueError, match="prefix: SiglipConfig has no causal mask"):
        encode_text(params, config, tokens[:, 2:], tokens[0, :2])


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
    for n in (0, 3):
        np.testing.assert_allclose(jit_image(params, config, pixels[:n]), image[:n], atol=5e-7)
        np.testing.assert_allclose(jit_text(params, config, tokens[:n]), text[:n], atol=5e-7)
