"""OpenAI's four CLIP vision transformers with random weights: sizes, FLOPs, models, images."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int32, UInt8

from benchmarks.gpu.measuring import Timing, clock
from bliss_jax.models import Model, Preprocessing, encode_image
from bliss_jax.models.clip import CLIPConfig, CLIPTextConfig
from bliss_jax.models.layers import VisionConfig
from bliss_jax.models.preprocessing import apply_preprocessing
from bliss_jax.models.tokenize import Tokenizer
from bliss_jax.models.untrained import untrained_params
from bliss_jax.models.weights import as_params

_DISTINCT_IMAGES = 64


class Architecture(NamedTuple):
    """One of OpenAI's vision transformers, and the batch size at which it is measured."""

    config: CLIPConfig
    batch: int


def _architecture(width: int, depth: int, patch: int, size: int, batch: int) -> Architecture:
    """Returns an architecture with heads of 64 dimensions and MLPs of four widths.

    The text tower is the one that was published with it.
    """
    text_width = 512 if width == 768 else 768
    shared = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = VisionConfig(
        width, 4 * width, depth, width // 64, **shared, image_size=size, patch_size=patch
    )
    text = CLIPTextConfig(
        text_width, 4 * text_width, 12, text_width // 64, **shared,
        vocab_size=49_408, max_position_embeddings=77, eos_token_id=49_407,
    )  # fmt: skip
    return Architecture(CLIPConfig(vision, text, text_width, "bfloat16"), batch)


# Each batch takes a Hopper card about 10 to 60 ms, and its largest intermediate value about 3 GB.
ARCHITECTURES = {
    "B/32": _architecture(768, 12, 32, 224, 1024),
    "B/16": _architecture(768, 12, 16, 224, 512),
    "L/14": _architecture(1024, 24, 14, 224, 256),
    "L/14-336": _architecture(1024, 24, 14, 336, 128),
}


def architectures(quick: bool) -> dict[str, Architecture]:
    """Returns the four architectures, or shrunken ones under the same names.

    A shrunken architecture has two layers, width 64 and a quarter of the image size.
    """
    if not quick:
        return ARCHITECTURES
    small = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    shrunken = {}
    for name, (config, _) in ARCHITECTURES.items():
        size = math.isqrt(config.vision.num_patches) // 4 * config.vision.patch_size
        vision = dataclasses.replace(config.vision, **small, image_size=size)
        text = dataclasses.replace(config.text, **small)
        shrunken[name] = Architecture(CLIPConfig(vision, text, 64, config.dtype), 8)
    return shrunken


def vision_flops(config: CLIPConfig) -> int:
    """Returns the floating-point operations of the matrix products that embed one image.

    A multiply-add counts as two operations. With P patches of p x p pixels, L = P + 1 positions, width d,
    MLP width f, N layers and embeddings of e dimensions:

        2 P (3 p^2) d  +  N (8 L d^2 + 4 L^2 d + 4 L d f)  +  2 d e

    Norms, softmax and activations are not counted. This is the usual number of "model FLOPs".
    """
    v = config.vision
    embedding = 2 * v.num_patches * 3 * v.patch_size**2 * v.hidden_size
    layers = v.num_hidden_layers * _layer_flops(v, v.num_patches + 1)
    return embedding + layers + 2 * v.hidden_size * config.projection_dim


def computed_flops(config: CLIPConfig) -> int:
    """Returns the operations of `vision_flops` that the library computes.

    The library computes the last layer for the class token only.
    """
    v = config.vision
    return vision_flops(config) - _layer_flops(v, v.num_patches + 1) + _layer_flops(v, 1)


def _layer_flops(vision: VisionConfig, queries: int) -> int:
    """Returns the operations of one layer with L positions, of which q are queries.

    Keys and values are computed for all positions:

        4 L d^2  +  q (4 d^2 + 4 L d + 4 d f)
    """
    length, d, f = vision.num_patches + 1, vision.hidden_size, vision.intermediate_size
    return 4 * length * d**2 + queries * (4 * d**2 + 4 * length * d + 4 * d * f)


def text_flops(config: CLIPConfig, length: int, prefix: int = 0) -> int:
    """Returns the operations of the text tower for one text of `length` tokens after a shared prefix.

    All tokens are counted in every layer but the last, which computes one position. The encoding of the
    prefix itself is not counted.
    """
    t = config.text
    d, f, context = t.hidden_size, t.intermediate_size, prefix + length

    def layer(queries: int) -> int:
        return 4 * length * d**2 + queries * (4 * d**2 + 4 * context * d + 4 * d * f)

    return (t.num_hidden_layers - 1) * layer(length) + layer(1) + 2 * d * config.projection_dim


def random_tensors(
    config: CLIPConfig, towers: Sequence[str] = ("vision", "text")
) -> dict[str, Any]:
    """Returns random float32 parameters as NumPy arrays by name, e.g. `vision_model/embeddings/...`.

    The values depend on the name only, so that JAX and PyTorch receive the same weights in different
    processes. They are drawn on the host, because a program that initialises a whole model on the device
    takes long to compile.

    Args:
        config: Sizes of the model.
        towers: The towers to draw parameters for.
    """
    size = config.vision.image_size
    given = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(config.module().init, jax.random.key(0), *given)["params"]
    wanted = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = "/".join(key.key for key in path)
        if name == "logit_scale" or any(name.startswith(_TOWERS[tower]) for tower in towers):
            wanted[name] = leaf.shape
    with ThreadPoolExecutor() as pool:
        return dict(zip(wanted, pool.map(_draw, wanted, wanted.values()), strict=True))


_TOWERS = {
    "vision": ("vision_model/", "visual_projection/"),
    "text": ("text_model/", "text_projection/"),
}
"""Beginnings of the names of each tower's parameters."""


def _draw(name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Draws one parameter at the scale of a usual initialisation."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = np.asarray(rng.standard_normal(shape, np.float32))
    kind = name.rpartition("/")[2]
    if kind == "kernel":
        return x * np.float32(math.prod(shape[:-1]) ** -0.5)
    if kind == "embedding":
        return x * np.float32(shape[-1] ** -0.5)
    return np.asarray(1 + np.float32(0.1) * x if kind == "scale" else np.float32(0.02) * x)


class WordTokenizer(Tokenizer):
    """A tokenizer that needs no vocabulary: one token for each six letters of a word, from a hash.

    A prompt gets about as many tokens as OpenAI's tokenizer gives, which is all that the time depends on.
    """

    def __call__(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Int32[np.ndarray, "texts length"]:
        """Returns the token ids of each text: start, the words, and the end token as padding."""
        end = self.vocab_size - 1
        tokens = np.full((len(texts), self.context_length), end, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            parts = [word[i : i + 6] for word in text.split() for i in range(0, len(word), 6)]
            ids = [zlib.crc32(part.encode()) % (self.vocab_size - 2) for part in parts]
            row[0] = self.vocab_size - 2
            row[1 : len(ids) + 1] = ids[: self.context_length - 2]
        return tokens


def placement(mesh: Mesh | None = None) -> tuple[NamedSharding, NamedSharding]:
    """Returns the shardings of parameters and of batches that `embed_images` uses.

    Cases that place their arrays in the same way share their compiled programs with `embed_images`.
    """
    mesh = mesh or Mesh(np.array(jax.local_devices()), ("data",))
    return (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])),
    )


@functools.cache
def random_model(name: str, quick: bool) -> Model:
    """Returns a bfloat16 model of an architecture with random weights, on the devices of this process."""
    config = architectures(quick)[name].config
    params = as_params(random_tensors(config), "bfloat16")
    text = config.text
    return Model(
        name=f"{name} with random weights",
        config=config,
        params=jax.device_put(params, placement()[0]),
        tokenizer=WordTokenizer(None, text.max_position_embeddings, text.vocab_size),
        preprocessing=Preprocessing(config.vision.image_size),
        weights_hash="random",
    )


def random_images(number: int, size: int, seed: int = 0) -> UInt8[np.ndarray, "number size size 3"]:
    """Returns random images: blocks of 8 x 8 colours, which differ by more than noise of single pixels.

    Only 64 images are distinct, so that large batches are made quickly. The time does not depend on them.
    """
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (min(number, _DISTINCT_IMAGES), 8, 8, 3), np.uint8)
    place = np.arange(size) * 8 // size
    images = blocks[:, place][:, :, place]
    return np.resize(images, (number, size, size, 3))


def model_batch(name: str, quick: bool) -> tuple[Model, jax.Array, jax.Array]:
    """Returns a model, one batch of uint8 images at the model's size, and their pixels, all on the device.

    The pixels come from the library's own preprocessing program.
    """
    model = random_model(name, quick)
    batch = architectures(quick)[name].batch
    images = jax.device_put(random_images(batch, model.image_size), placement()[1])
    pixels = jax.jit(apply_preprocessing, static_argnums=1)(images, model.preprocessing)
    return model, images, jax.block_until_ready(pixels)


def encode(params: Any, config: Any, pixels: jax.Array) -> jax.Array:
    """Calls `encode_image` as `embed_images` does, so that the compiled program is shared."""
    with jax.set_mesh(cast(Any, pixels.sharding).mesh):
        return encode_image(params, config, pixels)


def image_encoder(config: Any, options: dict[str, Any] | None = None) -> Any:
    """Returns a newly jitted image encoder of this configuration.

    It is traced anew, so that replaced functions of `bliss_jax.models.layers` take effect. `encode_image` would
    reuse its own trace.

    Args:
        config: Configuration of the model.
        options: Options of the compiler. `encode_image` has those of `compiler_options`, unless it is called inside a
            jitted function.
    """
    module = config.module()
    return jax.jit(
        lambda params, pixels: module.apply({"params": params}, pixels, method="encode_image"),
        compiler_options=options,
    )


def time_untrained(name: str, batch: int, quick: bool = False) -> Timing:
    """Returns the time of one batch of an architecture with random weights in bfloat16, on the device."""
    config = architectures(quick)[name].config
    params = stored_in(untrained_params(config), "bfloat16")
    size = config.vision.image_size
    pixels = jax.random.normal(jax.random.key(batch), (batch, size, size, 3))
    encode = image_encoder(config)
    return clock(lambda: encode(params, pixels), quick)


def stored_in(params: Any, dtype: str) -> Any:
    """Returns the parameters with every kernel stored in `dtype` and all others unchanged."""

    def convert(path, leaf):
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(convert, params)
