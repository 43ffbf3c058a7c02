"""Candidate maps of anomalies, for `compare.py`. The library keeps the default, `attribute_patches`.

    gradient x token   sum over the last B layers of x_p . d(w . f) / d x_p, x the layer's input
    Grad-ECLIP         relu(lambda_p sum over channels of v_p d(w . f) / d o), lambda_p the cosine of the pooling
                       query and the key of p, scaled to [0, 1] (Zhao et al., ICML 2024, section 3.2)
    LeGrad             sum over the last B layers of the mean over heads and queries of relu(d(w . f) / d a_{q,p}),
                       a the weights of the attention (Bousselham et al., 2024, arXiv 2404.03214), with the gradient
                       of the final embedding in every layer
    integrated         (x - mean colour) . mean over alpha of d(w . f) / d x at mean + alpha (x - mean), summed over
                       channels (Sundararajan et al., ICML 2017, equation 3)
    occlusion          w . f(x) - w . f(x without a square), averaged over the squares that contain a pixel
                       (Zeiler and Fergus, ECCV 2014); squares have the image's mean colour
    windows            score of each window of 32 x 32 pixels alone, averaged over the windows that contain a pixel,
                       in the manner of WinCLIP (Jeong et al., CVPR 2023, section 4)

Each function takes one batch and returns maps [images, side, side] of any side.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import bliss_jax as bj
from bliss_jax.models.attribution import attribute_patches
from bliss_jax.models.layers import Dense, EncoderLayer

WINDOW, STRIDE = 32, 8
"""Side and stride of the windows of the window score, in pixels."""
SQUARE, STEP = 16, 8
"""Side and stride of the occluding squares, in pixels."""


def seen_in(config: Any, params: Any, pixels: Any, nudges: dict) -> tuple[Any, dict]:
    """Computes embeddings, the inputs of layers and output projections, and queries, keys and values, by path."""
    seen: dict[tuple[str, ...], Any] = {}

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module, path = context.module, context.module.path
        if path[:1] != ("vision_model",) or not isinstance(module, EncoderLayer | Dense):
            return call(*args, **kwargs)
        if isinstance(module, EncoderLayer) or path[-1] == "out_proj":
            seen[path] = args[0] + nudges[path] if path in nudges else args[0]
            return call(seen[path], *args[1:], **kwargs)
        seen[path] = call(*args, **kwargs)
        return seen[path]

    with nn.intercept_methods(intercept):
        embedded = config.module().apply({"params": params}, pixels, method="encode_image")
    return embedded, seen


def with_gradients(model: bj.Model, pixels: Any, w: Any, paths: list) -> tuple[dict, dict]:
    """Returns the arrays of `seen_in`, and the gradients of w . f(x) at some of their paths."""
    forward = partial(seen_in, model.config, model.params, pixels)
    shapes = jax.eval_shape(forward, {})[1]
    zeros = {path: jnp.zeros(shapes[path].shape) for path in paths}
    _, back, seen = jax.vjp(forward, zeros, has_aux=True)
    return seen, back(w)[0]


def layer_paths(model: bj.Model, blocks: int, *below: str) -> list[tuple[str, ...]]:
    """Returns the paths of the last layers, or of modules in them."""
    last = model.config.vision.num_hidden_layers
    return [
        ("vision_model", "encoder", "layers", str(i), *below) for i in range(last - blocks, last)
    ]


def square(per_token: jax.Array) -> jax.Array:
    """Returns values of the patches [n, side, side] from those of the class token and the patches [n, 1 + patches]."""
    side = round((per_token.shape[1] - 1) ** 0.5)
    return per_token[:, 1:].reshape(-1, side, side)


def values_x_gradient(model: bj.Model, images: Any, w: Any, *, blocks: int) -> jax.Array:
    """The library's attribution."""
    pixels = bj.preprocess(images, size=model.image_size)
    found = attribute_patches(model.params, model.config, pixels, w[:, None], blocks=blocks)
    side = round(found.shape[2] ** 0.5)
    return found.reshape(-1, side, side)


def tokens_x_gradient(model: bj.Model, images: Any, w: Any, *, blocks: int) -> jax.Array:
    """Gradient x token of the inputs of the last layers."""
    paths = layer_paths(model, blocks)
    seen, gradient = with_gradients(model, bj.preprocess(images, size=model.image_size), w, paths)
    return square(jnp.stack([(seen[p] * gradient[p]).sum(-1) for p in paths]).sum(0))


def grad_eclip(model: bj.Model, images: Any, w: Any) -> jax.Array:
    """Grad-ECLIP at the last layer."""
    [path] = layer_paths(model, 1, "self_attn")
    out = (*path, "out_proj")
    seen, gradient = with_gradients(model, bj.preprocess(images, size=model.image_size), w, [out])
    query, key, value = (seen[(*path, name)] for name in ("q_proj", "k_proj", "v_proj"))
    cosine = jnp.einsum("nqc,npc->np", query, key) / jnp.linalg.norm(key, axis=-1)
    low, high = cosine.min(1, keepdims=True), cosine.max(1, keepdims=True)
    return square(jax.nn.relu((cosine - low) / (high - low) * (value * gradient[out]).sum(-1)))


def legrad(model: bj.Model, images: Any, w: Any, *, blocks: int) -> jax.Array:
    """LeGrad over the last layers."""
    paths = layer_paths(model, blocks, "self_attn")
    outs = [(*path, "out_proj") for path in paths]
    seen, gradient = with_gradients(model, bj.preprocess(images, size=model.image_size), w, outs)
    heads = model.config.vision.num_attention_heads

    def of_layer(path: tuple[str, ...]) -> jax.Array:
        value, slope = seen[(*path, "v_proj")], gradient[(*path, "out_proj")]
        value, slope = (a.reshape(*a.shape[:2], heads, -1) for a in (value, slope))
        return jax.nn.relu(jnp.einsum("nphd,nqhd->nhqp", value, slope)).mean((1, 2))

    return square(jnp.stack([of_layer(path) for path in paths]).sum(0))


def pixel_gradient(model: bj.Model, images: Any, w: Any) -> jax.Array:
    """Norm over the channels of the gradient of w . f by the pixels."""
    return jnp.linalg.norm(_by_pixels(model, images.astype(jnp.float32), w), axis=-1)


def integrated_gradients(model: bj.Model, images: Any, w: Any, *, steps: int = 8) -> jax.Array:
    """Integrated gradients from an image of the mean colour."""
    x = images.astype(jnp.float32)
    mean = x.mean((1, 2), keepdims=True)
    shares = (jnp.arange(steps) + 0.5) / steps
    slopes = jax.lax.map(lambda share: _by_pixels(model, mean + share * (x - mean), w), shares)
    return (slopes.mean(0) * (x - mean)).sum(-1)


def _by_pixels(model: bj.Model, x: jax.Array, w: Any) -> jax.Array:
    def total(x: jax.Array) -> jax.Array:
        pixels = bj.preprocess_float(x, size=model.image_size)
        return jnp.sum(bj.encode_image(model.params, model.config, pixels) * w)

    return jax.grad(total)(x)


def occlusion(model: bj.Model, images: Any, w: Any) -> jax.Array:
    """Occlusion by squares of the mean colour."""
    x = images.astype(jnp.float32)
    mean = x.mean((1, 2), keepdims=True)
    squares = windows(x.shape[1], SQUARE, STEP)

    def value(x: jax.Array) -> jax.Array:
        pixels = bj.preprocess_float(x, size=model.image_size)
        return (bj.encode_image(model.params, model.config, pixels) * w).sum(-1)

    without = jax.lax.map(lambda s: value(jnp.where(s[None, :, :, None], mean, x)), squares)
    return spread(value(x)[None] - without, squares)


def windows(side: int, window: int, stride: int) -> jax.Array:
    """Returns masks [windows, side, side] of all square windows."""
    starts = np.arange(0, side - window + 1, stride)
    inside = (np.arange(side) >= starts[:, None]) & (np.arange(side) < starts[:, None] + window)
    masks = inside[:, None, :, None] & inside[None, :, None, :]
    return jnp.asarray(masks.reshape(-1, side, side))


def spread(scores: jax.Array, masks: jax.Array) -> jax.Array:
    """Returns the mean score [images, side, side] of the windows that contain a pixel, from [windows, images]."""
    masks = masks.astype(jnp.float32)
    return jnp.einsum("wn,wyx->nyx", scores, masks) / masks.sum(0)[None]


def window_images(images: np.ndarray) -> np.ndarray:
    """Returns all windows of the images, uint8 [images, windows, 32, 32, 3], in the order of `windows`."""
    view = np.lib.stride_tricks.sliding_window_view(images, (WINDOW, WINDOW), axis=(1, 2))
    view = view[:, ::STRIDE, ::STRIDE].transpose(0, 1, 2, 4, 5, 3)
    return view.reshape(len(images), -1, WINDOW, WINDOW, 3)
