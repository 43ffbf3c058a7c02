"""Tests of CLIP's towers: parity with transformers' PyTorch model, and invariances."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import (
    clip_config,
    published_clip_config,
    random_inputs,
    save_random_checkpoint,
    torch_embeddings,
    torch_model,
)
from record_oracles import TOWERS, recorded, tower_inputs

from bliss_jax.models import encode_image, encode_text
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.layers import ACTIVATIONS, VisionConfig
from bliss_jax.models.weights import as_params, flatten, load_params

# Difference between evaluations of one float32 sum in different orders, for embeddings of norm 1.
ROUNDING = 5e-7

jit_image = jax.jit(encode_image, static_argnums=1)
jit_text = jax.jit(encode_text, static_argnums=1)


def load(directory, config, dtype="float32"):
    save_random_checkpoint(directory, config)
    config = read_config(directory, dtype)
    return load_params(directory, config)[0], config


def embeddings(params, config, pixels, tokens):
    return jit_image(params, config, pixels), jit_text(params, config, tokens)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config = clip_config()
    params, loaded = load(tmp_path_factory.mktemp("tiny"), config)
    return params, loaded, *map(jnp.asarray, random_inputs(config, n=3))


# --- Parity with PyTorch -------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in TOWERS if name.startswith(("clip", "metaclip"))])
def test_embeddings_equal_the_recorded_ones_of_pytorch(name, tmp_path):
    """The tolerances are those of the live tests below."""
    pixels, tokens = tower_inputs(name)
    params, config = load(tmp_path, TOWERS[name])
    atol = 2e-5 if "b32" in name else 2e-6
    if "eos" not in name:
        found = jit_image(params, config, pixels)
        np.testing.assert_allclose(
            found, recorded("transformers")[f"{name}/image"], atol=atol, rtol=0
        )
    found = jit_text(params, config, tokens)
    np.testing.assert_allclose(found, recorded("transformers")[f"{name}/text"], atol=atol, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("encode", "index"), [(jit_image, 0), pytest.param(jit_text, 1, marks=pytest.mark.slow)]
)
def test_bfloat16_stays_close_to_the_recorded_float32(encode, index, tmp_path):
    pixels, tokens = tower_inputs("clip-b32-thin")
    found = encode(*load(tmp_path, TOWERS["clip-b32-thin"], "bfloat16"), (pixels, tokens)[index])
    expected = recorded("transformers")[f"clip-b32-thin/{('image', 'text')[index]}"]
    assert found.dtype == jnp.float32
    assert np.sum(found * expected, axis=1).min() > 0.999


@pytest.mark.parity
@pytest.mark.torch
@pytest.mark.parametrize("size", ["B/32", "B/16", "L/14", "L/14-336", "H/14"])
def test_equals_pytorch_at_the_published_widths(size, tmp_path):
    act = {"hidden_act": "gelu" if size == "H/14" else "quick_gelu"}
    layers = 1 if size in ("L/14-336", "H/14") else 2
    config = published_clip_config(size, text=act, vision=act, layers=layers)
    pixels, tokens = random_inputs(config, n=2)
    found = embeddings(*load(tmp_path, config), pixels, tokens)
    for a, b in zip(found, torch_embeddings(torch_model(tmp_path), pixels, tokens), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=0)


@pytest.mark.parity
@pytest.mark.torch
def test_equals_pytorch_at_full_depth(tmp_path):
    words = {"vocab_size": 49408, "eos_token_id": 49407}
    config = published_clip_config("B/32", layers=12, text=words)
    pixels, tokens = random_inputs(config, n=4)
    params, loaded = load(tmp_path, config)
    expected = torch_embeddings(torch_model(tmp_path), pixels, tokens)
    for found, reference in zip(embeddings(params, loaded, pixels, tokens), expected, strict=True):
        np.testing.assert_allclose(found, reference, atol=2e-5, rtol=0)

    fast = dataclasses.replace(loaded, dtype="bfloat16")
    for found, reference in zip(embeddings(params, fast, pixels, tokens), expected, strict=True):
        assert found.dtype == jnp.float32
        assert np.sum(found * reference, axis=1).min() > 0.999


@pytest.mark.parity
@pytest.mark.torch
@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu"},
        {"hidden_act": "silu"},
        {"layer_norm_eps": 0.1},
    ],
    ids=str,
)
def test_every_option_of_the_configuration_equals_pytorch(change, tmp_path):
    config = clip_config(text=change, vision=change, projection_dim=40)
    inputs = random_inputs(config)
    found = embeddings(*load(tmp_path, config), *inputs)
    for a, b in zip(found, torch_embeddings(torch_model(tmp_path), *inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=0)


def test_activations_equal_their_formulas():
    x = np.linspace(-6, 6, 101)
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    expected = {
        "quick_gelu": x / (1 + np.exp(-1.702 * x)),
        "gelu": x * np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x]),
        "gelu_new": tanh,
        "gelu_pytorch_tanh": tanh,
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        found = ACTIVATIONS[name](jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(found, values, atol=2e-6, err_msg=name)


@pytest.mark.parity
@pytest.mark.torch
def test_a_border_narrower_than_a_patch_is_ignored(tmp_path):
    config = clip_config(vision={"image_size": 37})
    inputs = random_inputs(config)
    found, _ = embeddings(*load(tmp_path, config), *inputs)
    expected = torch_embeddings(torch_model(tmp_path), *inputs)[0]
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["clip-eos-2", "clip-eos-7"])
def test_text_after_the_first_seven_matters_only_if_seven_is_not_the_end(name, tmp_path):
    _, tokens = tower_inputs(name)
    params, config = load(tmp_path, TOWERS[name])
    after_seven = tokens.copy()
    after_seven[:, 4:-1] = np.minimum(tokens[:, 4:-1], 5)
    moved = np.abs(jit_text(params, config, after_seven) - jit_text(params, config, tokens)).max()
    assert moved > 0.1 if name == "clip-eos-2" else moved < 1e-6


# --- Invariances ---------------------------------------------------------------------------------


def test_dropping_the_padding_changes_no_embedding(tiny):
    params, config, _, tokens = tiny
    tokens = tokens.at[:, 20:].set(config.text.eos_token_id)
    whole = jit_text(params, config, tokens)
    for length in (21,):
        found = jit_text(params, config, tokens[:, :length])
        np.testing.assert_allclose(found, whole, atol=ROUNDING, rtol=0)
    assert config.used_lengths(np.asarray(tokens)).max() == 21


@pytest.mark.parametrize(
    "start", [4, pytest.param(1, marks=pytest.mark.slow), pytest.param(15, marks=pytest.mark.slow)]
)
def test_a_shared_prefix_can_be_encoded_once(tiny, start):
    params, config, _, tokens = tiny
    shared = jnp.arange(start) + 10
    tokens = tokens.at[:, :start].set(shared).at[:, 20:].set(config.text.eos_token_id)
    whole = jit_text(params, config, tokens)
    found = jit_text(params, config, tokens[:, start:21], shared)
    np.testing.assert_allclose(found, whole, atol=ROUNDING, rtol=0)
    # The prefix does affect the embeddings.
    other = jit_text(params, config, tokens[:, start:21], shared + 1)
    assert np.abs(other - whole).max() > 1e-3


def test_a_prefix_counts_towards_the_context(tiny):
    params, config, _, tokens = tiny
    context = config.text.max_position_embeddings
    with pytest.raises(ValueError, match=f"{context + 3} tokens per text"):
        encode_text(params, config, tokens, tokens[0, :3])


def test_tokens_after_the_end_of_text_change_nothing(tiny):
    params, config, _, tokens = tiny
    tokens = tokens.at[:, 20].set(config.text.eos_token_id)
    changed = tokens.at[:, 21:].set(5)
    np.testing.assert_array_equal(
        jit_text(params, config, changed), jit_text(params, config, tokens)
    )


def test_the_used_length_ends_at_the_end_of_text():
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), 8)
    tower = {**sizes, "num_hidden_layers": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    for convention in (2, 99):
        config = CLIPConfig(
            VisionConfig(**tower, image_size=8, patch_size=4),
            CLIPTextConfig(
                **tower, vocab_size=100, max_position_embeddings=77, eos_token_id=convention
            ),
            projection_dim=8,
        )
        for end in (0, 15, 16, 40, 76):
            tokens = np.zeros((3, 77), np.int32)
            tokens[0, 5], tokens[1, 0], tokens[2, end] = 99, 99, 99
            np.testing.assert_array_equal(config.used_lengths(tokens), [6, 1, end + 1])


def test_a_text_without_its_end_of_text_is_refused(tiny):
    """All such texts would be pooled at position 0 and have one embedding."""
    _, config, _, tokens = tiny
    with pytest.raises(ValueError, match=r"do not contain eos_token_id 63.*do not match"):
        config.used_lengths(np.where(np.asarray(tokens) == 63, 5, np.asarray(tokens)))


def test_texts_longer_than_the_context_are_refused(tiny):
    params, config, _, tokens = tiny
    with pytest.raises(ValueError, match=r"78 tokens per text, but the context is 77"):
        encode_text(params, config, jnp.pad(tokens, ((0, 0), (0, 1))))


def test_ids_outside_the_vocabulary_give_nan(tiny):
    params, config, _, tokens = tiny
    found = jit_text(params, config, tokens.at[1, 0].set(config.text.vocab_size))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[jnp.array([0, 2])]).all()


def test_pixels_of_another_size_are_refused(tiny, unchecked):
    params, config, pixels, _ = tiny
    with pytest.raises(ValueError, match=r"\[n, 32, 32, 3\], got \[3, 24, 32, 3\]"):
        encode_image(params, config, pixels[:, :24])


@pytest.mark.slow
def test_every_parameter_matters(tiny, tmp_path):
    shallow = {"num_hidden_layers": 1}
    params, config = load(tmp_path, clip_config(text=shallow, vision=shallow))
    pixels, tokens = tiny[2:]
    # The first text ends at the last position, so all positions matter.
    end = config.text.eos_token_id
    tokens = tokens.at[0].set(jnp.minimum(tokens[0], end - 1)).at[0, -1].set(end)
    probe = jax.random.normal(jax.random.key(0), (2, config.embedding_dim))

    def loss(params):
        image, text = encode_image(params, config, pixels), encode_text(params, config, tokens)
        return jnp.sum(image @ probe[0]) + jnp.sum(text @ probe[1])

    for name, gradient in flatten(jax.jit(jax.grad(loss))(params)).items():
        size = jnp.abs(gradient).max()
        if name == "logit_scale":
            assert size == 0
        elif name.endswith("k_proj/bias"):
            # A key bias adds the same value to all logits of a query, which cancels in the softmax.
            assert size < 1e-5
        else:
            assert size > 1e-4, name


def test_embeddings_do_not_depend_on_the_batch(tiny):
    params, config, pixels, tokens = tiny
    image, text = embeddings(params, config, pixels, tokens)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-6)
    for n in (0, 2):
        np.testing.assert_allclose(jit_image(params, config, pixels[:n]), image[:n], atol=ROUNDING)
    np.testing.assert_allclose(jit_text(params, config, tokens[:2]), text[:2], atol=ROUNDING)
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(
        jit_image(params, config, pixels[order]), image[order], atol=ROUNDING
    )


@pytest.mark.parametrize(
    ("encode", "tower"), [(encode_image, 0), pytest.param(encode_text, 1, marks=pytest.mark.slow)]
)
def test_eager_jit_and_vmap_agree(tiny, encode, tower):
    params, config, *inputs = tiny
    expected = jax.jit(encode, static_argnums=1)(params, config, inputs[tower])
    np.testing.assert_allclose(encode(params, config, inputs[tower]), expected, atol=ROUNDING)
    mapped = jax.jit(jax.vmap(lambda x: encode(params, config, x[None])[0]))(inputs[tower])
    np.testing.assert_allclose(mapped, expected, atol=ROUNDING)


def products(jaxpr):
    """Yields all matrix products of a jaxpr, including those of inner jaxprs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_product_has_operands_of_the_dtype_and_a_float32_result(tiny, dtype):
    params, config, pixels, tokens = tiny
    config = dataclasses.replace(config, dtype=dtype)
    found = []
    for function, inputs in ((encode_image, pixels), (encode_text, tokens)):
        closed = jax.make_jaxpr(function, static_argnums=1)(params, config, inputs)
        found += products(closed.jaxpr)
    # Each layer of each tower has eight: query, key, value, logits, weighted values, output and two of the
    # MLP. The patches and the two projections add three.
    assert len(found) == 2 * 2 * 8 + 1 + 2
    for equation in found:
        assert {operand.aval.dtype.name for operand in equation.invars} == {dtype}
        assert equation.outvars[0].aval.dtype == jnp.float32
        assert equation.params["preferred_element_type"] == jnp.float32
        highest = jax.lax.Precision.HIGHEST
        assert dtype == "bfloat16" or equation.params["precision"] == (highest, highest)


@pytest.mark.slow
def test_the_configuration_sets_the_precision_not_the_stored_parameters(tiny):
    params, config, pixels, _ = tiny
    stored = as_params(flatten(params), "bfloat16")
    fast = dataclasses.replace(config, dtype="bfloat16")
    exact = jit_image(params, config, pixels)
    np.testing.assert_array_equal(jit_image(stored, fast, pixels), jit_image(params, fast, pixels))
    # Only the stored kernels are rounded; the arithmetic is float32.
    coarse, fastest = jit_image(stored, config, pixels), jit_image(stored, fast, pixels)
    assert coarse.dtype == fastest.dtype == jnp.float32
    assert np.abs(coarse - exact).max() < np.abs(fastest - exact).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hidden_act": "quick_gelo"},
            "unknown hidden_act 'quick_gelo'; did you mean .*quick_gelu",
        ),
        ({"num_attention_heads": 3}, "32 is not a multiple of num_attention_heads 3"),
        ({"image_size": (32, 32)}, r"image_size must be one integer, got \(32, 32\)"),
    ],
)
def test_invalid_configurations_are_refused(tiny, unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny[1].vision, **change)


def test_several_end_tokens_are_refused(tiny, unchecked):
    with pytest.raises(ValueError, match=r"eos_token_id must be one integer, got \[2, 3\]"):
        dataclasses.replace(tiny[1].text, eos_token_id=[2, 3])
