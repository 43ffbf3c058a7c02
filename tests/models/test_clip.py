"""CLIP's towers: equal to transformers' PyTorch model, exact under cutting, batching, jit, vmap."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import clip_model, random_inputs, tiny_clip_model, torch_embeddings

from bliss_jax.models import encode_image, encode_text
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.layers import VisionConfig
from bliss_jax.models.weights import as_params, flatten, load_params

# Between evaluations of one float32 sum in different orders, for embeddings of norm 1.
ROUNDING = 5e-7

jit_image = jax.jit(encode_image, static_argnums=1)
jit_text = jax.jit(encode_text, static_argnums=1)


def load(model, directory, dtype="float32"):
    model.save_pretrained(directory)
    config = read_config(directory, dtype)
    return load_params(directory, config)[0], config


def embeddings(params, config, pixels, tokens):
    return jit_image(params, config, pixels), jit_text(params, config, tokens)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model = tiny_clip_model()
    params, config = load(model, tmp_path_factory.mktemp("tiny"))
    return params, config, *map(jnp.asarray, random_inputs(model, n=5))


@pytest.mark.parity
@pytest.mark.parametrize("size", ["B/32", "B/16", "L/14", "L/14-336", "H/14"])
def test_equals_pytorch_at_the_published_widths(size, tmp_path):
    act = {"hidden_act": "gelu" if size == "H/14" else "quick_gelu"}
    model = clip_model(size, text=act, vision=act, layers=1 if size in ("L/14-336", "H/14") else 2)
    pixels, tokens = random_inputs(model, n=2)
    expected = torch_embeddings(model, pixels, tokens)
    found = embeddings(*load(model, tmp_path), pixels, tokens)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-5, rtol=0)
    np.testing.assert_allclose(found[1], expected[1], atol=2e-5, rtol=0)


@pytest.mark.parity
@pytest.mark.slow
def test_equals_pytorch_at_full_depth(tmp_path):
    model = clip_model("B/32", layers=12, text={"vocab_size": 49408, "eos_token_id": 49407})
    pixels, tokens = random_inputs(model, n=4)
    expected = torch_embeddings(model, pixels, tokens)
    params, config = load(model, tmp_path)
    for found, reference in zip(embeddings(params, config, pixels, tokens), expected, strict=True):
        np.testing.assert_allclose(found, reference, atol=2e-5, rtol=0)

    fast = dataclasses.replace(config, dtype="bfloat16")
    for found, reference in zip(embeddings(params, fast, pixels, tokens), expected, strict=True):
        assert found.dtype == jnp.float32
        assert np.sum(found * reference, axis=1).min() > 0.999


@pytest.mark.parity
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
def test_configuration_is_obeyed(change, tmp_path):
    model = tiny_clip_model(text=change, vision=change, projection_dim=40)
    inputs = random_inputs(model)
    found = embeddings(*load(model, tmp_path), *inputs)
    for a, b in zip(found, torch_embeddings(model, *inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=0)


@pytest.mark.parity
def test_a_border_narrower_than_a_patch_is_left_out(tmp_path):
    model = tiny_clip_model(vision={"image_size": 37})
    inputs = random_inputs(model)
    found, _ = embeddings(*load(model, tmp_path), *inputs)
    np.testing.assert_allclose(found, torch_embeddings(model, *inputs)[0], atol=2e-6, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize("end", [2, 7])
def test_both_conventions_of_the_end_of_text(end, tmp_path):
    model = tiny_clip_model(text={"eos_token_id": end})
    pixels, tokens = random_inputs(model)
    # Convention 2 pools at the largest id, 63; convention 7 at the first 7, of two.
    tokens[:, 3] = tokens[:, 9] = 7
    found = jit_text(*load(model, tmp_path), tokens)
    np.testing.assert_allclose(found, torch_embeddings(model, pixels, tokens)[1], atol=2e-6, rtol=0)
    after_seven = tokens.copy()
    after_seven[:, 4:-1] = np.minimum(tokens[:, 4:-1], 5)
    moved = np.abs(jit_text(*load(model, tmp_path), after_seven) - found).max()
    assert moved > 0.1 if end == 2 else moved < 1e-6


def test_padding_can_be_cut(tiny):
    params, config, _, tokens = tiny
    tokens = tokens.at[:, 20:].set(config.text.eos_token_id)
    whole = jit_text(params, config, tokens)
    for length in (21, 32, 50):
        found = jit_text(params, config, tokens[:, :length])
        np.testing.assert_allclose(found, whole, atol=ROUNDING, rtol=0)
    assert config.used_lengths(np.asarray(tokens)).max() == 21


@pytest.mark.parametrize("start", [1, 4, 15])
def test_a_shared_prefix_can_be_computed_once(tiny, start):
    params, config, _, tokens = tiny
    shared = jnp.arange(start) + 10
    tokens = tokens.at[:, :start].set(shared).at[:, 20:].set(config.text.eos_token_id)
    whole = jit_text(params, config, tokens)
    found = jit_text(params, config, tokens[:, start:21], shared)
    np.testing.assert_allclose(found, whole, atol=ROUNDING, rtol=0)
    # It does take part.
    other = jit_text(params, config, tokens[:, start:21], shared + 1)
    assert np.abs(other - whole).max() > 1e-3


def test_a_prefix_counts_towards_the_context(tiny):
    params, config, _, tokens = tiny
    context = config.text.max_position_embeddings
    with pytest.raises(ValueError, match=f"{context + 3} tokens per text"):
        encode_text(params, config, tokens, tokens[0, :3])


def test_what_follows_the_end_of_text_is_not_seen(tiny):
    params, config, _, tokens = tiny
    tokens = tokens.at[:, 20].set(config.text.eos_token_id)
    changed = tokens.at[:, 21:].set(5)
    np.testing.assert_array_equal(
        jit_text(params, config, changed), jit_text(params, config, tokens)
    )


def test_a_text_is_used_up_to_its_end():
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


def test_texts_beyond_the_context_are_refused(tiny):
    params, config, _, tokens = tiny
    with pytest.raises(ValueError, match=r"78 tokens per text, but the context is 77"):
        encode_text(params, config, jnp.pad(tokens, ((0, 0), (0, 1))))


def test_ids_outside_the_vocabulary_are_not_mistaken_for_others(tiny):
    params, config, _, tokens = tiny
    found = jit_text(params, config, tokens.at[1, 0].set(config.text.vocab_size))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[jnp.array([0, 2, 3, 4])]).all()


def test_pixels_of_another_size_are_refused(tiny, unchecked):
    params, config, pixels, _ = tiny
    with pytest.raises(ValueError, match=r"\[n, 32, 32, 3\], got \[5, 24, 32, 3\]"):
        encode_image(params, config, pixels[:, :24])


def test_every_parameter_matters(tiny):
    params, config, pixels, tokens = tiny
    # The first text ends at the last position, so that all positions matter.
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
            # A key bias adds the same to all logits of a query: softmax does not see it.
            assert size < 1e-5
        else:
            assert size > 1e-4, name


def test_embeddings_do_not_depend_on_the_batch(tiny):
    params, config, pixels, tokens = tiny
    image, text = embeddings(params, config, pixels, tokens)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-6)
    for n in (0, 1, 2):
        np.testing.assert_allclose(jit_image(params, config, pixels[:n]), image[:n], atol=ROUNDING)
        np.testing.assert_allclose(jit_text(params, config, tokens[:n]), text[:n], atol=ROUNDING)
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        jit_image(params, config, pixels[order]), image[order], atol=ROUNDING
    )


def test_eager_jit_and_vmap_agree(tiny):
    params, config, pixels, tokens = tiny
    image, text = embeddings(params, config, pixels, tokens)
    np.testing.assert_allclose(encode_image(params, config, pixels), image, atol=ROUNDING)
    np.testing.assert_allclose(encode_text(params, config, tokens), text, atol=ROUNDING)
    mapped = jax.jit(jax.vmap(lambda x: encode_image(params, config, x[None])[0]))(pixels)
    np.testing.assert_allclose(mapped, image, atol=ROUNDING)
    mapped = jax.jit(jax.vmap(lambda x: encode_text(params, config, x[None])[0]))(tokens)
    np.testing.assert_allclose(mapped, text, atol=ROUNDING)


def products(jaxpr):
    """All matrix products of a jaxpr, inner ones included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_product_has_the_asked_operands_and_float32_results(tiny, dtype):
    params, config, pixels, tokens = tiny
    config = dataclasses.replace(config, dtype=dtype)
    found = []
    for function, inputs in ((encode_image, pixels), (encode_text, tokens)):
        closed = jax.make_jaxpr(function, static_argnums=1)(params, config, inputs)
        found += products(closed.jaxpr)
    # Per tower and layer: query, key, value, logits, mix, out, two of the MLP; patches; projections.
    assert len(found) == 2 * 2 * 8 + 1 + 2
    for equation in found:
        assert {operand.aval.dtype.name for operand in equation.invars} == {dtype}
        assert equation.outvars[0].aval.dtype == jnp.float32
        assert equation.params["preferred_element_type"] == jnp.float32
        highest = jax.lax.Precision.HIGHEST
        assert dtype == "bfloat16" or equation.params["precision"] == (highest, highest)


def test_precision_belongs_to_the_configuration_not_to_the_parameters(tiny):
    params, config, pixels, _ = tiny
    stored = as_params(flatten(params), "bfloat16")
    fast = dataclasses.replace(config, dtype="bfloat16")
    exact = jit_image(params, config, pixels)
    np.testing.assert_array_equal(jit_image(stored, fast, pixels), jit_image(params, fast, pixels))
    # Only the stored kernels are coarse: the arithmetic on them is not.
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
def test_impossible_configurations_are_refused(tiny, unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny[1].vision, **change)


def test_several_end_tokens_are_refused(tiny, unchecked):
    with pytest.raises(ValueError, match=r"eos_token_id must be one integer, got \[2, 3\]"):
        dataclasses.replace(tiny[1].text, eos_token_id=[2, 3])
