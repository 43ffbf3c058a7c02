"""OpenAI's four vision transformers with random weights: sizes, FLOPs, inputs, jitted encoders."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import bliss_jax as bj
from benchmarks.gpu.measuring import Found, Settings, Timing, clock
from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.layers import VisionConfig
from bliss_jax.models.siglip import SiglipConfig
from bliss_jax.models.untrained import untrained_params


class Architecture(NamedTuple):
    """One of OpenAI's vision transformers, with the batches at which it is tried."""

    config: CLIPConfig
    batches: tuple[int, ...]


def _architecture(
    width: int, depth: int, patch: int, size: int, batches: tuple[int, ...]
) -> Architecture:
    """Heads of 64 dimensions, MLPs of four widths; text towers as published beside them."""
    text_width = 512 if width == 768 else 768
    shared = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = VisionConfig(
        width, 4 * width, depth, width // 64, **shared, image_size=size, patch_size=patch
    )
    text = CLIPTextConfig(
        text_width, 4 * text_width, 12, text_width // 64, **shared,
        vocab_size=49_408, max_position_embeddings=77, eos_token_id=49_407,
    )  # fmt: skip
    return Architecture(CLIPConfig(vision, text, text_width, "bfloat16"), batches)


ARCHITECTURES = {
    "B/32": _architecture(768, 12, 32, 224, (256, 1024, 2048)),
    "B/16": _architecture(768, 12, 16, 224, (256, 1024)),
    "L/14": _architecture(1024, 24, 14, 224, (128, 512)),
    "L/14-336": _architecture(1024, 24, 14, 336, (64, 256)),
}


def architectures(quick: bool) -> dict[str, Architecture]:
    """The four; or B/32 and L/14 shrunk to two layers, width 64 and few patches, under the same names."""
    if not quick:
        return ARCHITECTURES
    small = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    shrunk = {}
    for name in ("B/32", "L/14"):
        config = ARCHITECTURES[name].config
        size = math.isqrt(config.vision.num_patches) // 4 * config.vision.patch_size
        vision = dataclasses.replace(config.vision, **small, image_size=size)
        text = dataclasses.replace(config.text, **small)
        shrunk[name] = Architecture(CLIPConfig(vision, text, 64, config.dtype), (4, 16))
    return shrunk


def vision_flops(config: CLIPConfig) -> int:
    """Floating-point operations of the matrix products that embed one image, two a multiply-add.

    With P patches of p x p pixels, L = P + 1 positions, width d, MLP width f, N layers and embeddings of e:

        2 P (3 p^2) d  +  N (8 L d^2 + 4 L^2 d + 4 L d f)  +  2 d e

    Norms, softmax and activations are not counted: the usual "model FLOPs".
    """
    v = config.vision
    embedding = 2 * v.num_patches * 3 * v.patch_size**2 * v.hidden_size
    layers = v.num_hidden_layers * _layer_flops(v, v.num_patches + 1)
    return embedding + layers + 2 * v.hidden_size * config.projection_dim


def computed_flops(config: CLIPConfig) -> int:
    """Those of `vision_flops` that the library computes: of the last layer, what the class token needs."""
    v = config.vision
    return vision_flops(config) - _layer_flops(v, v.num_patches + 1) + _layer_flops(v, 1)


def _layer_flops(vision: VisionConfig, queries: int) -> int:
    """Of one layer that is asked for so many of its L positions: keys and values are those of all.

    4 L d^2  +  q (4 d^2 + 4 L d + 4 d f)
    """
    length, d, f = vision.num_patches + 1, vision.hidden_size, vision.intermediate_size
    return 4 * length * d**2 + queries * (4 * d**2 + 4 * length * d + 4 * d * f)


def stored_in(params: Any, dtype: str) -> Any:
    """The parameters with every kernel stored in `dtype`, all others left in float32."""

    def convert(path, leaf):
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(convert, params)


def pixels_for(config: CLIPConfig, batch: int) -> jax.Array:
    """Random images that differ by more than the noise of their pixels: noise of 8 x 8, enlarged."""
    size = config.vision.image_size
    noise = jax.random.normal(jax.random.key(batch), (batch, 8, 8, 3))
    return jax.block_until_ready(jax.image.resize(noise, (batch, size, size, 3), "linear"))


def image_encoder(config: CLIPConfig | SiglipConfig) -> Callable:
    """A newly jitted `encode_image` of this configuration: traced anew, so that patches of `layers` count."""
    return jax.jit(lambda params, pixels: bj.encode_image(params, config, pixels))


def float32_embeddings(config: CLIPConfig, params: Any, pixels: jax.Array) -> np.ndarray:
    """The reference: the same weights, products in float32 at highest precision."""
    config = dataclasses.replace(config, dtype="float32")
    return np.asarray(image_encoder(config)(params, pixels))


def best_batch(found: Found, name: str, architecture: Architecture) -> int:
    """The best measured batch of a model; the second that would be tried, if that section did not run."""
    measured = found.get("encoders", {}).get(name, {}).get("best_batch")
    return measured or architecture.batches[min(1, len(architecture.batches) - 1)]


def time_encoder(config: CLIPConfig, params: Any, batch: int, settings: Settings) -> Timing:
    """Times one batch of images that are on the device."""
    encode, pixels = image_encoder(config), pixels_for(config, batch)
    return clock(lambda: encode(params, pixels), settings.quick)


def time_untrained(name: str, batch: int, settings: Settings) -> Timing:
    """Times one batch of an architecture with weights of its own."""
    config = architectures(settings.quick)[name].config
    return time_encoder(config, stored_in(untrained_params(config), "bfloat16"), batch, settings)
