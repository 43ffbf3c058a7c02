"""SigLIP 2 NaFlex (Tschannen et al. 2025): images keep their aspect ratio, and their patches vary in number.

An image is resized to the largest grid of h x w patches with h w <= max_patches that keeps its aspect ratio.
The position table of the tower, a square grid, is resized bilinearly (with antialiasing) to h x w:

    position[i, j] = sum over a, b of R_h[i, a] R_w[j, b] table[a, b]

Patches beyond h w are padding, which attention excludes. The text tower is that of SigLIP.

On the host an image becomes a packed uint8 array [max_patches + 1, patch_size^2, 3]: one row per patch, and
a last row that holds a signature, h and w. Packed images have one shape, so batches, caches and shards treat
them like images of one size. `unpack` converts them to the tower's input on the device.
"""

# ruff: noqa: D102 (the docstring of a Flax module's class describes `setup` and `__call__`)

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt8

from bliss_jax.models.layers import (
    Dense,
    Dtype,
    Encoder,
    TransformerConfig,
    check_dtype,
    layer_norm,
    read_fields,
    unit_norm,
)
from bliss_jax.models.preprocessing import Preprocessing
from bliss_jax.models.siglip import AttentionPooling, SiglipTextConfig, TextTower

SIGNATURE = b"BLISS-JAX NaFlex"


@dataclass(frozen=True)
class NaflexVisionConfig(TransformerConfig):
    """Sizes of a vision tower for a variable number of patches.

    Attributes:
        patch_size: Side of a patch in pixels.
        num_patches: Rows of the position table, a square number.
    """

    patch_size: int
    num_patches: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isqrt(self.num_patches) ** 2 != self.num_patches:
            raise ValueError(f"num_patches must be a square number, got {self.num_patches}")

    @property
    def image_size(self) -> int:
        """Side in pixels of a square image whose grid is that of the position table."""
        return self.patch_size * math.isqrt(self.num_patches)


@jax.tree_util.register_static
@dataclass(frozen=True)
class NaflexConfig:
    """Configuration of both towers and the dtype of the matrix products.

    The class is frozen, hashable and a static pytree, so jitted functions take it like any other argument.
    """

    vision: NaflexVisionConfig
    text: SiglipTextConfig
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if self.vision.hidden_size != self.text.projection_size:
            raise ValueError(
                f"the image embedding has {self.vision.hidden_size} dimensions, the text embedding "
                f"{self.text.projection_size}: they must agree"
            )

    @classmethod
    def from_transformers(cls, config: Any, dtype: Dtype = "float32") -> "NaflexConfig":
        """Reads transformers' `Siglip2Config`, which fills in omitted fields."""
        if not getattr(config.vision_config, "vision_use_head", True):
            raise ValueError("a SigLIP vision tower without its pooling head has no embedding")
        return cls(
            vision=read_fields(NaflexVisionConfig, config.vision_config),
            text=read_fields(SiglipTextConfig, config.text_config),
            dtype=dtype,
        )

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.text.projection_size

    def module(self) -> "Naflex":
        """Returns the Flax module of this configuration."""
        return Naflex(self)

    def example_inputs(self) -> tuple["Patches", jax.ShapeDtypeStruct]:
        """Returns the shapes of one image and one text, for tracing the initialisation."""
        values = (1, self.vision.num_patches, 3 * self.vision.patch_size**2)
        patches = Patches(
            jax.ShapeDtypeStruct(values, jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32)
        )
        length = self.text.max_position_embeddings
        return patches, jax.ShapeDtypeStruct((1, length), jnp.int32)

    def used_lengths(self, tokens: Int[np.ndarray, "n length"]) -> Int[np.ndarray, " n"]:
        """Returns the number of tokens of each row that its embedding depends on: all, without a mask."""
        return np.full(len(tokens), tokens.shape[1])

    @property
    def prefix_can_be_shared(self) -> bool:
        """Whether a shared prefix can be encoded once (false: each position attends to all others)."""
        return False


class Patches(NamedTuple):
    """Input of the vision tower; a pytree."""

    values: Any
    """Normalised patches, float32 [n, patches, 3 patch_size^2]. Padding is zero."""
    grid: Any
    """Rows and columns of patches of each image, int32 [n, 2]."""


@dataclass(frozen=True)
class NaflexPreprocessing(Preprocessing):
    """Preprocessing for NaFlex.

    `size` is the side of a square image with `max_patches` patches, and `geometry` has no effect.

    Attributes:
        patch_size: Side of a patch in pixels.
        max_patches: Number of patches of an image at most.
    """

    patch_size: int = 16
    max_patches: int = 256

    def describe(self) -> dict[str, Any]:
        """Returns all settings as JSON values, for the provenance of a result."""
        own = {"patch_size": self.patch_size, "max_patches": self.max_patches}
        return super().describe() | {"geometry": "naflex"} | own

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """Shape of a packed image."""
        return self.max_patches + 1, self.patch_size**2, 3

    def pack(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "rows pixels 3"]:
        """Resizes an image and cuts it into patches. A packed image is returned unchanged."""
        if self.is_packed(image):
            return image
        from PIL import Image

        p = self.patch_size
        rows, columns = grid_of(image.shape[0], image.shape[1], p, self.max_patches)
        resample = Image.Resampling[self.resample.upper()]
        # One call for each axis, as in `resize_on_host`.
        resized = Image.fromarray(image).resize((columns * p, image.shape[0]), resample)
        pixels = np.asarray(resized.resize((columns * p, rows * p), resample))
        patches = pixels.reshape(rows, p, columns, p, 3).transpose(0, 2, 1, 3, 4)
        packed = np.zeros(self.packed_shape, np.uint8)
        packed[: rows * columns] = patches.reshape(rows * columns, p * p, 3)
        header = SIGNATURE + rows.to_bytes(2, "little") + columns.to_bytes(2, "little")
        packed[-1].reshape(-1)[: len(header)] = np.frombuffer(header, np.uint8)
        return packed

    def is_packed(self, image: UInt8[np.ndarray, "h w 3"]) -> bool:
        """Whether an image is the result of `pack`."""
        if image.shape != self.packed_shape:
            return False
        return image[-1].reshape(-1)[: len(SIGNATURE)].tobytes() == SIGNATURE

    def unpack(
        self, images: UInt8[Array, "n rows pixels 3"] | UInt8[np.ndarray, "n rows pixels 3"]
    ) -> Patches:
        """Converts packed images to the input of the vision tower: (x / 255 - mean) / std per patch."""
        images = jnp.asarray(images)
        start = len(SIGNATURE)
        header = images[:, -1].reshape(len(images), 3 * self.patch_size**2)
        header = header[:, start : start + 4].astype(jnp.int32)
        grid = jnp.stack([header[:, 0] + 256 * header[:, 1], header[:, 2] + 256 * header[:, 3]], 1)
        mean, std = (
            jnp.asarray(stats, jnp.float32).reshape(1, 1, 1, 3) for stats in (self.mean, self.std)
        )
        values = (images[:, :-1].astype(jnp.float32) / 255 - mean) / std
        values = jnp.where(visible_patches(grid, self.max_patches)[..., None, None], values, 0.0)
        width = 3 * self.patch_size**2
        return Patches(values.reshape(len(images), self.max_patches, width), grid)


def grid_of(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Returns the rows and columns of patches to which an image is resized.

    The sides are rounded up to whole patches, and the scale is the largest that a bisection to 1e-5 finds
    with at most `max_patches` patches. The bounds and the tolerance are those of transformers'
    `Siglip2ImageProcessor`.
    """

    def patches(side: int, scale: float) -> int:
        return max(1, math.ceil(side * scale / patch_size))

    low, high, tolerance = 1e-6, 100.0, 1e-5
    while high - low >= tolerance:
        scale = (low + high) / 2
        if patches(height, scale) * patches(width, scale) <= max_patches:
            low = scale
        else:
            high = scale
    return patches(height, low), patches(width, low)


def visible_patches(grid: Int32[Array, "n 2"], length: int):
    """Returns whether each of `length` patches belongs to the image, bool [n, length]."""
    return jnp.arange(length)[None] < (grid[:, :1] * grid[:, 1:])


def position_weights(grid: Int32[Array, "n 2"], length: int, side: int) -> Float[Array, "n p s"]:
    """Returns the weights [n, length, side^2] of the position table's rows for each patch.

    They are those of PyTorch's bilinear `interpolate` with `align_corners=False` and `antialias=True`.
    """
    columns = grid[:, 1:]
    index = jnp.broadcast_to(jnp.arange(length)[None], (len(grid), length))
    index = jnp.where(visible_patches(grid, length), index, 0)
    place = jnp.stack([index // columns, index % columns], -1).astype(jnp.float32)
    scale = side / grid.astype(jnp.float32)[:, None]
    center = (place + 0.5) * scale - 0.5
    source = jnp.arange(side, dtype=jnp.float32).reshape(1, 1, 1, side)
    support = jnp.maximum(scale, 1.0)[..., None]
    weights = jnp.maximum(1.0 - jnp.abs(source - center[..., None]) / support, 0.0)
    weights = weights / weights.sum(-1, keepdims=True)
    rows, across = weights[:, :, 0], weights[:, :, 1]
    return (rows[..., :, None] * across[..., None, :]).reshape(len(grid), length, side * side)


class NaflexEmbeddings(nn.Module):
    """The embeddings of the patches plus resized position embeddings."""

    config: NaflexVisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, patches: Patches) -> Float[Array, "n length width"]:
        config = self.config
        x = Dense(config.hidden_size, self.dtype, name="patch_embedding")(patches.values)
        table = nn.Embed(
            config.num_patches, config.hidden_size, name="position_embedding"
        ).embedding
        side = math.isqrt(config.num_patches)
        weights = position_weights(patches.grid, patches.values.shape[1], side)
        return x + jnp.einsum("nps,sw->npw", weights, table, precision="highest")


class NaflexVisionTower(nn.Module):
    """The vision tower. It maps patches to the image embedding before normalisation."""

    config: NaflexVisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, patches: Patches, each_alone: bool = False
    ) -> Float[Array, "n *patches width"]:
        x = NaflexEmbeddings(self.config, self.dtype, name="embeddings")(patches)
        mask = visible_patches(patches.grid, x.shape[1])[:, None]
        x = Encoder(self.config, self.dtype, name="encoder")(x, None, None, mask)
        x = layer_norm(self.config, "post_layernorm")(x)
        return AttentionPooling(self.config, self.dtype, name="head")(x, mask, each_alone)


class Naflex(nn.Module):
    """Both towers. Only the sigmoid loss uses `logit_scale` and `logit_bias`."""

    config: NaflexConfig

    def setup(self) -> None:
        self.vision_model = NaflexVisionTower(self.config.vision, self.config.dtype)
        self.text_model = TextTower(self.config.text, self.config.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(10.0)), (1,))
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), (1,))

    def encode_image(self, patches: Patches) -> Float[Array, "n dim"]:
        """Computes unit-norm embeddings of patches."""
        self._check(patches)
        return unit_norm(self.vision_model(patches))

    def encode_patches(self, patches: Patches) -> Float[Array, "n patches dim"]:
        """Computes unit-norm embeddings of the patches, each pooled alone."""
        self._check(patches)
        return unit_norm(self.vision_model(patches, each_alone=True))

    def _check(self, patches: Patches) -> None:
        width = 3 * self.config.vision.patch_size**2
        if not isinstance(patches, Patches) or patches.values.shape[-1] != width:
            raise ValueError(
                f"a NaFlex tower takes Patches with values [n, patches, {width}], as "
                "NaflexPreprocessing.unpack returns them"
            )

    def encode_text(self, tokens: Int[Array, "n length"]) -> Float[Array, "n dim"]:
        """Computes unit-norm embeddings of token ids that are padded to the context."""
        return unit_norm(self.text_model(tokens))

    def encode_token_embeddings(
        self, embedded: Float[Array, "n length width"], end: Int[Array, " n"]
    ) -> Float[Array, "n dim"]:
        """Computes unit-norm embeddings of token embeddings; the last position is pooled, whatever `end` is."""
        return unit_norm(self.text_model(None, embedded))

    def __call__(
        self, patches: Patches, tokens: Int[Array, "texts length"]
    ) -> tuple[Float[Array, "images dim"], Float[Array, "texts dim"]]:
        """Computes both embeddings. Parameter initialisation runs this method."""
        return self.encode_image(patches), self.encode_text(tokens)


def naflex_preprocessing(
    stats: Preprocessing, patch_size: int, patches: int
) -> NaflexPreprocessing:
    """Returns the preprocessing with the filter and statistics of `stats` and a bound on patches."""
    return NaflexPreprocessing(
        size=patch_size * math.isqrt(patches),
        geometry="squash",
        resample=stats.resample,
        mean=stats.mean,
        std=stats.std,
        patch_size=patch_size,
        max_patches=patches,
    )
