"""What the towers of CLIP and SigLIP share: a pre-norm transformer after Dosovitskiy et al. (2021).

Each layer computes, with one residual stream x [n, length, width] that stays in float32,

    x <- x + attention(layer_norm(x))          x <- x + mlp(layer_norm(x))

Parameters carry the names of transformers' Flax models (`kernel` [in, out], `scale`, `bias`,
`embedding`), so that their checkpoints are our parameter trees.

Precision is one word, `dtype`, which concerns the matrix products and nothing else:

- `"float32"` is the reference: float32 operands, `precision=HIGHEST`, on every kind of device.
- `"bfloat16"` is the fast path: both operands in bfloat16, accumulation and result in float32.

Layer norms, softmax, activations and the residual stream are float32 in both.
"""

# ruff: noqa: D102 (what a Flax module's `setup` and `__call__` do, its class says)

from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Dtype = Literal["float32", "bfloat16"]


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The activation of OpenAI's CLIP: x sigmoid(1.702 x), an approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


# The names are transformers' `hidden_act`.
ACTIVATIONS = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one transformer; the field names are those of a checkpoint's `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            near = get_close_matches(self.hidden_act, ACTIVATIONS) or sorted(ACTIVATIONS)
            raise ValueError(f"unknown hidden_act {self.hidden_act!r}; did you mean {near}?")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )


@dataclass(frozen=True)
class VisionConfig(TransformerConfig):
    """A vision transformer on square images cut into square patches."""

    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "patch_size"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be one integer, got {getattr(self, name)!r}")

    @property
    def num_patches(self) -> int:
        """Patches per image; a border narrower than a patch is left out, as in transformers."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig(TransformerConfig):
    """A text transformer over a vocabulary of tokens and a fixed longest context."""

    vocab_size: int
    max_position_embeddings: int


Config = TypeVar("Config", bound=TransformerConfig)


def read_fields(kind: type[Config], config: Any) -> Config:
    """The configuration of one tower, read from the fields of transformers' of the same names."""
    return kind(**{field.name: getattr(config, field.name) for field in fields(kind)})


def contract(equation: str, x: Float[Array, "..."], y: Float[Array, "..."], dtype: Dtype):
    """`einsum(equation, x, y)` with operands in `dtype`, accumulated and returned in float32."""
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT
    return jnp.einsum(
        equation,
        x.astype(dtype),
        y.astype(dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def unit_norm(x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
    """Rows divided by their Euclidean norm."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def layer_norm(config: TransformerConfig, name: str | None = None) -> nn.LayerNorm:
    """Layer norm in float32, with the variance as a mean of squares of deviations."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, name=name)


class Dense(nn.Module):
    """x kernel + bias, the product in `dtype`, the result in float32."""

    features: int
    dtype: Dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch features"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = contract("...i,io->...o", x, kernel, self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + jnp.broadcast_to(bias, y.shape)
        return y


def attend(
    query: Float[Array, "n queries heads head_dim"],
    key: Float[Array, "n keys heads head_dim"],
    value: Float[Array, "n keys heads head_dim"],
    mask: Bool[Array, "#n queries keys"] | None,
    dtype: Dtype,
) -> Float[Array, "n queries heads head_dim"]:
    """softmax(query key^T / sqrt(head_dim)) value, for each head (Vaswani et al. 2017, section 3.2.1).

    Where `mask` is False a query does not see that key.
    """
    # Heads before positions: both products are then batches of plain matrices. Left to itself, XLA's
    # CPU backend takes more than twice as long over the small ones.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    logits = contract("nhqd,nhkd->nhqk", query, key, dtype) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1)
    return contract("nhqk,nhkd->nhqd", weights, value, dtype).transpose(0, 2, 1, 3)


class Attention(nn.Module):
    """Attention with several heads between two linear maps (Vaswani et al. 2017, section 3.2.2).

    Queries come from `x`; keys and values from `prefix`, which all rows share, and from `context`. See
    `attend` for `mask`, whose keys are those of the prefix and then those of the context.
    """

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n queries width"],
        context: Float[Array, "n length width"],
        mask: Bool[Array, "#n queries keys"] | None = None,
        prefix: Float[Array, "1 prefix width"] | None = None,
    ) -> Float[Array, "n queries width"]:
        n, _, width = x.shape

        def heads(name: str, own: Array, shared: Array | None = None) -> Array:
            dense = Dense(width, self.dtype, name=name)
            y = dense(own)
            if shared is not None:
                # Projected once, then repeated: it is the projections that take time.
                once = jnp.broadcast_to(dense(shared), (n, shared.shape[1], width))
                y = jnp.concatenate([once, y], axis=1)
            return y.reshape(n, y.shape[1], self.num_heads, width // self.num_heads)

        query = heads("q_proj", x)
        key, value = heads("k_proj", context, prefix), heads("v_proj", context, prefix)
        mixed = attend(query, key, value, mask, self.dtype)
        return Dense(width, self.dtype, name="out_proj")(mixed.reshape(x.shape))


class MLP(nn.Module):
    """fc2(activation(fc1(x)))."""

    config: TransformerConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "n length width"]) -> Float[Array, "n length width"]:
        x = Dense(self.config.intermediate_size, self.dtype, name="fc1")(x)
        x = ACTIVATIONS[self.config.hidden_act](x)
        return Dense(self.config.hidden_size, self.dtype, name="fc2")(x)


def at_position(
    x: Float[Array, "n length width"], position: Int[Array, " n"]
) -> Float[Array, "n 1 width"]:
    """One position of each row."""
    return jnp.take_along_axis(x, position[:, None, None], axis=1)


class EncoderLayer(nn.Module):
    """Attention and MLP, each behind a layer norm and beside the residual stream.

    Every position sees all of its row and of `prefix`, or, if `causal`, nothing that comes after it. With
    `position` the result is that of one position of each row, [n, 1, width].
    """

    config: TransformerConfig
    dtype: Dtype
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n length width"],
        prefix: Float[Array, "1 prefix width"] | None = None,
        position: Int[Array, " n"] | None = None,
    ) -> Float[Array, "n queries width"]:
        norm = layer_norm(self.config, "layer_norm1")
        context = query = norm(x)
        before = None if prefix is None else norm(prefix)
        mask = None
        if self.causal:
            length, start = x.shape[1], 0 if prefix is None else prefix.shape[1]
            mask = jnp.tril(jnp.ones((1, length, start + length), bool), start)
        if position is not None:
            x, query = at_position(x, position), at_position(context, position)
            mask = None if mask is None else mask[0, position][:, None]
        attention = Attention(self.config.num_attention_heads, self.dtype, name="self_attn")
        x = x + attention(query, context, mask, before)
        return x + MLP(self.config, self.dtype, name="mlp")(
            layer_norm(self.config, "layer_norm2")(x)
        )


class Layers(nn.Module):
    """The layers in sequence, named "0", "1", ..."""

    config: TransformerConfig
    dtype: Dtype
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n length width"],
        prefix: Float[Array, "1 prefix width"] | None,
        position: Int[Array, " n"] | None,
    ) -> Float[Array, "n queries width"]:
        last = self.config.num_hidden_layers - 1
        for index in range(last):
            layer = EncoderLayer(self.config, self.dtype, self.causal, name=str(index))
            following = None if prefix is None else layer(prefix)
            x, prefix = layer(x, prefix), following
        layer = EncoderLayer(self.config, self.dtype, self.causal, name=str(last))
        return layer(x, prefix, position)


class Encoder(nn.Module):
    """`Layers` under the name "layers": one more level in the parameter tree, as in transformers.

    Two things may be left out that change no result. Where one position of each row is pooled, `position`
    names it, and the last layer computes no other. Where all rows begin alike and no position sees a later
    one (`causal`), that `prefix` is one row by itself, and `x` is what follows it.
    """

    config: TransformerConfig
    dtype: Dtype
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n length width"],
        prefix: Float[Array, "1 prefix width"] | None = None,
        position: Int[Array, " n"] | None = None,
    ) -> Float[Array, "n queries width"]:
        return Layers(self.config, self.dtype, self.causal, name="layers")(x, prefix, position)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches times one matrix: a convolution with stride = patch size.

    Written as a reshape and a product; the kernel keeps the convolution's shape [p, p, 3, width].
    """

    config: VisionConfig
    dtype: Dtype
    use_bias: bool

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "n height width 3"]
    ) -> Float[Array, "n patches hidden_size"]:
        n, p, grid = (
            len(pixels),
            self.config.patch_size,
            self.config.image_size // self.config.patch_size,
        )
        width = self.config.hidden_size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, 3, width))
        pixels = pixels[:, : grid * p, : grid * p].reshape(n, grid, p, grid, p, 3)
        patches = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(n, grid**2, p * p * 3)
        x = contract("nli,io->nlo", patches, kernel.reshape(p * p * 3, width), self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (width,))
            x = x + jnp.broadcast_to(bias, x.shape)
        return x


class TextEmbeddings(nn.Module):
    """Token embedding plus position embedding, of tokens that begin at position `start`."""

    config: TextConfig

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "n length"], start: int = 0
    ) -> Float[Array, "n length width"]:
        config = self.config
        token = nn.Embed(config.vocab_size, config.hidden_size, name="token_embedding")
        position = nn.Embed(
            config.max_position_embeddings, config.hidden_size, name="position_embedding"
        )
        return token(tokens) + position(start + jnp.arange(tokens.shape[1]))[None]


def check_pixels(pixels: Float[Array, "..."], config: VisionConfig) -> None:
    """Refuses pixels of another shape than [n, image_size, image_size, 3]."""
    expected = (config.image_size, config.image_size, 3)
    if pixels.ndim != 4 or pixels.shape[1:] != expected:
        raise ValueError(
            f"pixels must have shape [n, {', '.join(map(str, expected))}], got {list(pixels.shape)}"
        )
