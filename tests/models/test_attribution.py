"""Attribution to patches: gradients against finite differences and PyTorch, equivariance, memory, refused inputs."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import (
    clip_config,
    random_inputs,
    random_tower,
    siglip_config,
    torch_model,
)

import bliss_jax as bj
from bliss_jax.models.attribution import attention_paths, attribute_patches, encode_with_values
from bliss_jax.models.clip import CLIPConfig

CONFIGS = {"clip": clip_config, "siglip": siglip_config}
N = 3


@pytest.fixture(scope="module", params=CONFIGS)
def tower(request, tmp_path_factory):
    """Directory, parameters, configuration, pixels and directions of a random checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    made = CONFIGS[request.param]()
    params, config = random_tower(folder, made)
    pixels = jnp.asarray(random_inputs(made, n=N)[0])
    w = np.random.default_rng(0).normal(size=(N, 2, config.embedding_dim)).astype(np.float32)
    return folder, params, config, pixels, w


def assert_close(found, expected, relative):
    np.testing.assert_allclose(found, expected, atol=relative * np.abs(expected).max())


def class_tokens(config):
    return 1 if isinstance(config, CLIPConfig) else 0


@pytest.mark.parametrize("blocks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_attributions_are_the_slopes_of_scaled_values(tower, blocks):
    """A_p is the derivative of w . f by a factor on the values of patch p, here by central differences."""
    _, params, config, pixels, w = tower
    found = attribute_patches(params, config, pixels, w, blocks=blocks)
    paths = attention_paths(config)[-blocks:]
    _, values = encode_with_values(config, params, pixels, {})
    run = jax.jit(lambda nudges: encode_with_values(config, params, pixels, nudges)[0])
    epsilon = 0.05
    for patch in (0, 3):
        one = np.zeros(values[paths[0]].shape[1], np.float32)
        one[patch + class_tokens(config)] = epsilon
        nudges = {path: values[path] * one[None, :, None] for path in paths}
        step = run(nudges) - run(jax.tree.map(jnp.negative, nudges))
        slopes = np.einsum("nd,nmd->nm", step, w) / (2 * epsilon)
        np.testing.assert_allclose(found[:, :, patch], slopes, atol=2e-3 * np.abs(found).max())


@pytest.mark.slow
def test_the_values_are_those_of_the_encoder(tower):
    _, params, config, pixels, _ = tower
    embedded, values = encode_with_values(config, params, pixels, {})
    np.testing.assert_allclose(embedded, bj.encode_image(params, config, pixels), atol=1e-6)
    assert set(values) == set(attention_paths(config))


@pytest.mark.slow
def test_attributions_are_linear_in_the_direction_and_do_not_depend_on_the_batch(tower):
    _, params, config, pixels, w = tower
    found = attribute_patches(params, config, pixels, w)
    both = attribute_patches(params, config, pixels, 2 * w[:, :1] - 3 * w[:, 1:])
    assert_close(both[:, 0], 2 * found[:, 0] - 3 * found[:, 1], 1e-5)
    one = attribute_patches(params, config, pixels[1:2], w[1:2])
    assert_close(one, found[1:2], 1e-5)


@pytest.mark.slow
def test_attribution_composes_with_jit_and_vmap(tower):
    _, params, config, pixels, w = tower
    found = attribute_patches(params, config, pixels, w, blocks=1)
    attribute = partial(attribute_patches, blocks=1)
    assert_close(jax.jit(attribute)(params, config, pixels, w), found, 1e-5)
    mapped = jax.vmap(lambda x, v: attribute(params, config, x[None], v[None])[0])
    assert_close(mapped(pixels, w), found, 1e-5)


@pytest.mark.slow
def test_bfloat16_gives_nearly_the_same_maps(tower):
    _, params, config, pixels, w = tower
    half = dataclasses.replace(config, dtype="bfloat16")
    found = attribute_patches(params, half, pixels, w)
    assert found.dtype == jnp.float32
    expected = attribute_patches(params, config, pixels, w)
    assert np.corrcoef(np.ravel(found), np.ravel(expected))[0, 1] > 0.99


def test_an_image_shifted_by_whole_patches_shifts_its_map(tower):
    """Without position embeddings the tower does not know where a patch is, so the shift is exact."""
    _, params, config, pixels, w = tower
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    params = jax.tree.unflatten(
        tree,
        [
            jnp.zeros_like(x) if "position_embedding" in jax.tree_util.keystr(p) else x
            for p, x in flat
        ],
    )
    side = config.vision.image_size // config.vision.patch_size
    found = attribute_patches(params, config, pixels, w, blocks=2).reshape(N, 2, side, side)
    shifted = jnp.roll(pixels, (config.vision.patch_size, -config.vision.patch_size), axis=(1, 2))
    moved = attribute_patches(params, config, shifted, w, blocks=2).reshape(N, 2, side, side)
    assert_close(moved, np.roll(found, (1, -1), axis=(2, 3)), 1e-4)


@pytest.mark.slow
def test_memory_does_not_grow_with_directions_but_for_their_arrays(tower):
    _, params, config, pixels, w = tower

    def temporaries(directions):
        many = jnp.zeros((N, directions, w.shape[2]))
        lowered = jax.jit(partial(attribute_patches, blocks=2)).lower(params, config, pixels, many)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    patches = config.vision.num_patches + 1
    grown = temporaries(40) - temporaries(4)
    assert grown <= 4 * 36 * N * 4 * (w.shape[2] + patches)


@pytest.mark.parity
@pytest.mark.torch
def test_attributions_equal_those_of_pytorchs_gradients(tower):
    import torch

    folder, params, config, pixels, w = tower
    model = torch_model(folder)
    vision = model.vision_model
    head = [] if isinstance(config, CLIPConfig) else [vision.head.attention]
    attentions = [layer.self_attn for layer in vision.encoder.layers]
    values = []

    def keep(module, given, result):
        result.retain_grad()
        values.append(result)

    for attention in attentions[-2 + len(head) :]:
        attention.v_proj.register_forward_hook(keep)
    given = torch.from_numpy(np.asarray(pixels).transpose(0, 3, 1, 2).copy())
    pooled = vision(pixel_values=given).pooler_output
    if isinstance(config, CLIPConfig):
        pooled = model.visual_projection(pooled)
    embedded = pooled / pooled.norm(dim=-1, keepdim=True)
    (embedded * torch.from_numpy(w[:, 0].copy())).sum().backward()
    found = attribute_patches(params, config, pixels, w[:, :1], blocks=2)[:, 0]
    expected = sum((v * v.grad).sum(-1) for v in values)
    if (
        head
    ):  # torch.nn.MultiheadAttention has no module for its values, so the head's share is ours
        expected = expected.detach() + torch.from_numpy(
            np.array(attribute_patches(params, config, pixels, w[:, :1], blocks=1)[:, 0])
        )
    assert_close(found, expected.detach().numpy()[:, class_tokens(config) :], 1e-4)


@pytest.mark.usefixtures("unchecked")
def test_other_directions_and_blocks_are_refused(tower):
    _, params, config, pixels, w = tower
    for wrong in (w[:, 0], w[:2], w.astype(np.int32), w[..., 1:]):
        with pytest.raises(ValueError, match="directions: expected a floating"):
            attribute_patches(params, config, pixels, wrong)
    with pytest.raises(ValueError, match="blocks"):
        attribute_patches(params, config, pixels, w, blocks=0)
