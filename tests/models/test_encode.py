"""Tests of the encoders as pure functions: patches, token embeddings, refused inputs, sharding, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import Compilations
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from random_checkpoints import (
    clip_config,
    random_inputs,
    random_tower,
    siglip_config,
    torch_model,
)

import bliss_jax as bj
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.preprocessing import STATS

CONFIGS = {"clip": clip_config, "siglip": siglip_config}


@pytest.fixture(scope="module", params=CONFIGS)
def tower(request, tmp_path_factory):
    """Directory, parameters, configuration, pixels and tokens of a random checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    made = CONFIGS[request.param]()
    params, config = random_tower(folder, made)
    return folder, params, config, *map(jnp.asarray, random_inputs(made, n=8))


def is_clip(config):
    return isinstance(config, CLIPConfig)


# --- Patches and token embeddings


@pytest.mark.parity
@pytest.mark.torch
def test_patches_equal_the_equations_on_pytorchs_modules(tower):
    """Patches are the values of the last layer for CLIP, and the head of each patch alone for SigLIP."""
    import torch

    folder, params, config, pixels, _ = tower
    vision = torch_model(folder).vision_model
    given = torch.from_numpy(np.asarray(pixels).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        states = vision(pixel_values=given, output_hidden_states=True).hidden_states
        if is_clip(config):
            last = vision.encoder.layers[-1]
            values = last.self_attn.v_proj(last.layer_norm1(states[-2]))[:, 1:]
            normed = vision.post_layernorm(last.self_attn.out_proj(values))
            patches = torch_model(folder).visual_projection(normed)
        else:
            head, tokens = vision.head, vision.post_layernorm(states[-1])
            n, length, width = tokens.shape
            alone = tokens.reshape(n * length, 1, width)
            pooled, _ = head.attention(head.probe.repeat(n * length, 1, 1), alone, alone)
            patches = (pooled + head.mlp(head.layernorm(pooled))).reshape(n, length, width)
        expected = torch.nn.functional.normalize(patches, dim=-1).numpy()
    found = bj.encode_patches(params, config, pixels)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


def test_patches_have_unit_norm_and_do_not_depend_on_the_batch(tower):
    """The patches of an image do not depend on the other images of the batch."""
    _, params, config, pixels, _ = tower
    patches = bj.encode_patches(params, config, pixels)
    np.testing.assert_allclose(jnp.linalg.norm(patches, axis=-1), 1, atol=1e-6)
    alone = bj.encode_patches(params, config, pixels[2:3])
    np.testing.assert_allclose(alone, patches[2:3], atol=1e-6)


def test_token_embeddings_give_the_embeddings_of_the_text(tower):
    _, params, config, _, tokens = tower
    embedded = bj.token_embeddings(params, config, tokens)
    expected = bj.encode_text(params, config, tokens)
    end = jnp.asarray(config.used_lengths(np.asarray(tokens)) - 1)
    found = bj.encode_token_embeddings(params, config, embedded, end)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_soft_prompt_has_the_gradient_of_finite_differences(tower):
    _, params, config, _, tokens = tower
    embedded = bj.token_embeddings(params, config, tokens[:1])
    end = jnp.asarray(config.used_lengths(np.asarray(tokens[:1])) - 1)
    direction = jax.random.normal(jax.random.key(0), embedded.shape)
    target = bj.encode_text(params, config, tokens[1:2])

    def cosine(step):
        found = bj.encode_token_embeddings(params, config, embedded + step * direction, end)
        return jnp.sum(found * target)

    slope = jax.grad(cosine)(0.0)
    step = 1e-2
    measured = (cosine(step) - cosine(-step)) / (2 * step)
    assert float(slope) == pytest.approx(float(measured), rel=2e-2, abs=1e-4)


# --- Refused inputs


@pytest.mark.usefixtures("unchecked")
def test_uint8_pixels_are_refused(tower):
    _, params, config, pixels, _ = tower
    for encode in (bj.encode_image, bj.encode_patches):
        with pytest.raises(ValueError, match=r"pixels: .*uint8.*preprocess"):
            encode(params, config, jnp.zeros(pixels.shape, jnp.uint8))


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_an_id_outside_the_vocabulary_gives_nan_for_its_text_only(tower, wrong):
    _, params, config, _, tokens = tower
    changed = tokens.at[1, 0].set(wrong)
    found = jax.jit(bj.encode_text)(params, config, changed)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[0], bj.encode_text(params, config, tokens)[0], atol=1e-6)
    assert np.isnan(bj.token_embeddings(params, config, changed)[1, 0]).all()


@pytest.mark.usefixtures("unchecked")
def test_a_wrong_dtype_is_refused_when_the_configuration_is_made(tower):
    with pytest.raises(ValueError, match=r"dtype.*float23.*float32.*bfloat16"):
        dataclasses.replace(tower[2], dtype="float23")


# --- Composition


def test_a_configuration_is_static_under_jit(tower):
    _, params, config, pixels, tokens = tower
    for encode, inputs in ((bj.encode_image, pixels), (bj.encode_text, tokens)):
        found = jax.jit(encode)(params, config, inputs)
        np.testing.assert_allclose(found, encode(params, config, inputs), atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_a_configuration_of_a_class_that_is_not_registered_is_accepted():
    @dataclasses.dataclass(frozen=True)
    class Sum:
        embedding_dim: int = 2
        prefix_can_be_shared = False

        def module(self):
            return self

        def apply(self, variables, tokens, method):
            assert method == "encode_text"
            return jnp.outer(jnp.sum(tokens, axis=1), variables["params"]["weight"])

    params, tokens = {"weight": jnp.ones(2, jnp.int32)}, jnp.ones((3, 4), jnp.int32)
    found = bj.encode_text(params, Sum(), tokens)
    np.testing.assert_array_equal(found, np.full((3, 2), 4))


def test_a_second_eager_call_compiles_nothing(tower):
    _, params, config, pixels, tokens = tower

    def all_of_them():
        bj.encode_image(params, config, pixels)
        bj.encode_text(params, config, tokens)
        bj.encode_patches(params, config, pixels)
        bj.token_embeddings(params, config, tokens)

    all_of_them()
    with Compilations() as compiled:
        all_of_them()
    assert compiled.count == 0


def placed(params, mesh, place):
    """Shards each parameter over the mesh axis `model`, along its first or last axis that can be divided."""

    def put(leaf):
        spec = [None] * leaf.ndim
        axes = range(leaf.ndim) if place == "first" else range(leaf.ndim - 1, -1, -1)
        for axis in axes:
            if leaf.shape[axis] % mesh.shape["model"] == 0:
                spec[axis] = "model"
                break
        return jax.device_put(leaf, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(put, params)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("place", ["last", "first"])
def test_parameters_and_batches_can_be_sharded(tower, kind, place):
    """Tensor parallelism shards the last axis, and fully sharded data parallelism the first axis."""
    _, params, config, pixels, tokens = tower
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    sharded = placed(params, mesh, place)
    by_rows = NamedSharding(mesh, P("data"))
    for encode, inputs in ((bj.encode_image, pixels), (bj.encode_text, tokens)):
        expected = encode(params, config, inputs)
        found = encode(sharded, config, jax.device_put(inputs, by_rows))
        np.testing.assert_allclose(found, expected, atol=2e-6)
        with jax.set_mesh(mesh):
            jitted = jax.jit(encode)(sharded, config, jax.device_put(inputs, by_rows))
        np.testing.assert_allclose(jitted, expected, atol=2e-6)


def test_encoders_and_preprocessing_are_exported_with_a_symbolic_batch(tower):
    _, params, config, pixels, _ = tower
    (n,) = export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n, *pixels.shape[1:]), jnp.float32)
    exported = export.export(jax.jit(lambda x: bj.encode_image(params, config, x)))(shape)
    for number in (1, 5):
        found = exported.call(pixels[:number])
        np.testing.assert_allclose(
            found, bj.encode_image(params, config, pixels[:number]), atol=1e-6
        )
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), np.uint8)
    shape = jax.ShapeDtypeStruct((n, 40, 30, 3), jnp.uint8)
    exported = export.export(jax.jit(lambda x: bj.preprocess(x, 32)))(shape)
    np.testing.assert_allclose(exported.call(images), bj.preprocess(images, 32), atol=1e-6)


# --- Floating preprocessing


def smooth_images():
    """Images without sharp edges, on which the bicubic filter stays inside 0..255."""
    y, x = np.mgrid[0:50, 0:40]
    waves = [128 + 90 * np.sin(0.2 * y + 0.1 * c) * np.cos(0.15 * x) for c in range(3)]
    return np.stack(waves, -1)[None].round().astype(np.uint8)


def test_floating_preprocessing_differs_from_the_exact_one_by_its_rounding():
    images = smooth_images()
    std = np.array(STATS["clip"][1])
    exact = np.asarray(bj.preprocess(images, 32))
    found = np.asarray(bj.preprocess_float(images.astype(np.float32), 32))
    assert np.abs((found - exact) * std * 255).max() < 1.1


def test_floating_preprocessing_is_linear_and_has_its_gradient():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.uniform(0, 255, (1, 20, 30, 3)), jnp.float32) for _ in range(2))
    preprocess = lambda x: bj.preprocess_float(x, 16)
    between = preprocess(0.25 * a + 0.75 * b)
    np.testing.assert_allclose(
        between, 0.25 * preprocess(a) + 0.75 * preprocess(b), atol=1e-5, rtol=1e-5
    )
    _, slope = jax.jvp(preprocess, (a,), (b,))
    np.testing.assert_allclose(slope, preprocess(a + b) - preprocess(a), atol=2e-5)


@pytest.mark.usefixtures("unchecked")
def test_floating_preprocessing_refuses_uint8():
    with pytest.raises(ValueError, match=r"expected a floating \[n, h, w, 3\] array, got uint8"):
        bj.preprocess_float(np.zeros((1, 8, 8, 3), np.uint8))
