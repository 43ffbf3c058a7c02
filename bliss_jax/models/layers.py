"""Layers shared by the towers of CLIP and SigLIP: a pre-norm transformer (Dosovitskiy et al. 2021).

Each layer updates one residual stream x [n, length, width], which stays in float32:

    x <- x + attention(layer_norm(x))          x <- x + mlp(layer_norm(x))

Parameters have the names of transformers' Flax models (`kernel` [in, out], `scale`, `bias`,
`embedding`), so checkpoints of those models are parameter trees of this library.

The option `dtype` sets the precision of the matrix products and of nothing else:

- `"float32"` is the reference: float32 operands and `precision=HIGHEST` on every kind of device.
- `"bfloat16"` is faster: both operands are bfloat16, accumulation and result are float32.

Layer norms, softmax, activations and the residual stream are float32 with either option. On NVIDIA GPUs, results of
bfloat16 products are written in bfloat16, and attention without a mask is computed by cuDNN (`cuda.py`).
"""

# ruff: noqa: D102 (the docstring of a Flax module's class describes `setup` and `__call__`)

from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bliss_jax.models.cuda import can_fuse_attention, fused_attention, on_cuda

Dtype = Literal["float32", "bfloat16"]


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes x sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP uses."""
    return x * jax.nn.sigmoid(1.702 * x)


# The keys are the values of transformers' `hidden_act`.
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
    """Sizes of one transformer. The fields have the names used in a checkpoint's `config.json`."""

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
    """Sizes of a vision transformer for square images that are cut into square patches."""

    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "patch_size"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be one integer, got {getattr(self, name)!r}")

    @property
    def num_patches(self) -> int:
        """Patches per image. A border narrower than a patch is ignored, as in transformers."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig(TransformerConfig):
    """Sizes of a text transformer, its vocabulary and its context (the maximum number of tokens)."""

    vocab_size: int
    max_position_embeddings: int


Config = TypeVar("Config", bound=TransformerConfig)


def read_fields(kind: type[Config], config: Any) -> Config:
    """Returns the configuration of one tower, read from transformers' fields of the same names."""
    return kind(**{field.name: getattr(config, field.name) for field in fields(kind)})


def contract(equation: str, x: Float[Array, "..."], y: Float[Array, "..."], dtype: Dtype):
    """Computes `einsum(equation, x, y)` with operands in `dtype`, accumulated and returned in float32.

    With `dtype` "bfloat16", NVIDIA GPUs write the result in bfloat16, and it is read as float32 by the next operation.
    """

    def product(result: Any, x: Array, y: Array) -> Array:
        precision = jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT
        product = jnp.einsum(equation, x, y, precision=precision, preferred_element_type=result)
        return product.astype(jnp.float32)

    x, y = x.astype(dtype), y.astype(dtype)
    if dtype == "float32":
        return product(jnp.float32, x, y)
    return on_cuda(partial(product, jnp.bfloat16), partial(product, jnp.float32), x, y)


def unit_norm(x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    """Divides each vector along the last axis by its Euclidean norm."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def layer_norm(config: TransformerConfig, name: str | None = None) -> nn.LayerNorm:
    """Returns a layer norm in float32 that computes the variance as the mean squared deviation.

    Flax's default, E[x^2] - E[x]^2, is faster and less accurate.
    """
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, name=name)


class Dense(nn.Module):
    """The linear map x kernel + bias. The product is computed in `dtype`, the result is float32.

    With `rounds_next` the next operation rounds the result to `dtype`. NVIDIA GPUs then add the bias inside the product
    instead of in a second pass over its result.
    """

    features: int
    dtype: Dtype
    use_bias: bool = True
    rounds_next: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch features"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = contract("...i,io->...o", x, kernel, self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            if self.rounds_next and self.dtype == "bfloat16":
                rounded = partial(add_bias, dtype=jnp.bfloat16)
                return on_cuda(rounded, add_bias, y, jnp.asarray(bias))
            y = add_bias(y, bias)
        return y


def add_bias(
    y: Float[Array, "*batch features"], bias: Float[Array, " features"], dtype: Any = jnp.float32
) -> Float[Array, "*batch features"]:
    """Computes y + bias in `dtype` and returns it in float32."""
    y = y.astype(dtype)
    return (y + jnp.broadcast_to(bias.astype(dtype), y.shape)).astype(jnp.float32)


def attend(
    query: Float[Array, "n queries heads head_dim"],
    key: Float[Array, "n keys heads head_dim"],
    value: Float[Array, "n keys heads head_dim"],
    mask: Bool[Array, "#n #queries keys"] | None,
    dtype: Dtype,
) -> Float[Array, "n queries heads head_dim"]:
    """Computes softmax(query key^T / sqrt(head_dim)) value for each head.

    Source: Vaswani et al. 2017, section 3.2.1. A query does not attend to keys whose `mask` is False.
    """

    def definition(query: Array, key: Array, value: Array) -> Array:
        # With heads before positions, both products are batches of plain matrices. Without this transposition
        # XLA's CPU backend takes more than twice as long for small products.
        query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
        logits = contract("nhqd,nhkd->nhqk", query, key, dtype) * query.shape[-1] ** -0.5
        if mask is not None:
            logits = jnp.where(mask[:, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1)
        return contract("nhqk,nhkd->nhqd", weights, value, dtype).transpose(0, 2, 1, 3)

    if dtype == "bfloat16" and mask is None and can_fuse_attention(query, key.shape[1]):
        return fused_attention(definition, query, key, value)
    return definition(query, key, value)


class Attention(nn.Module):
    """Multi-head attention with its input and output projections (Vaswani et al. 2017, section 3.2.2).

    Queries are computed from `x`. Keys and values are computed from `prefix`, which all rows share, and
    from `context`. The keys of `mask` (see `attend`) are those of the prefix, then those of the context.
    With `values_only` the result at each position of the context is that of a query that attends to this position
    alone: its value, projected.
    """

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n queries width"],
        context: Float[Array, "n length width"],
        mask: Bool[Array, "#n #queries keys"] | None = None,
        prefix: Float[Array, "1 prefix width"] | None = None,
        values_only: bool = False,
    ) -> Float[Array, "n _ width"]:
        n, _, width = x.shape
        if values_only:
            value = Dense(width, self.dtype, name="v_proj")(context)
            return Dense(width, self.dtype, name="out_proj")(value)

        def heads(name: str, own: Array, shared: Array | None = None) -> Array:
            # Attention multiplies queries, keys and weights with values in `dtype`.
            dense = Dense(width, self.dtype, rounds_next=True, name=name)
            y = dense(own)
            if shared is not None:
                # Project once, then broadcast: most of the time goes into the projections.
                once = jnp.broadcast_to(dense(shared), (n, shared.shape[1], width))
                y = jnp.concatenate([once, y], axis=1)
            return y.reshape(n, y.shape[1], self.num_heads, width // self.num_heads)

        query = heads("q_proj", x)
        key, value = heads("k_proj", context, prefix), heads("v_proj", context, prefix)
        mixed = attend(query, key, value, mask, self.dtype)
        return Dense(width, self.dtype, name="out_proj")(mixed.reshape(x.shape))


class MLP(nn.Module):
    """The two-layer perceptron fc2(activation(fc1(x)))."""

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
    """Selects one position of each row."""
    return jnp.take_along_axis(x, position[:, None, None], axis=1)


class EncoderLayer(nn.Module):
    """One transformer layer: attention and MLP, each after a layer norm and added to the residual stream.

    Each position attends to its whole row and to `prefix`. If `causal` is true, it does not attend to
    later positions. If `position` is given, the result has one position of each row, [n, 1, width]. In an
    encoder that is not causal, `mask` may exclude positions, e.g. those of padding. With `values_only` the
    result is the values of the attention, projected, without the residual stream and the MLP.
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
        mask: Bool[Array, "n #queries length"] | None = None,
        values_only: bool = False,
    ) -> Float[Array, "n queries width"]:
        norm = layer_norm(self.config, "layer_norm1")
        context = query = norm(x)
        attention = Attention(self.config.num_attention_heads, self.dtype, name="self_attn")
        if values_only:
            return attention(query, context, values_only=True)
        before = None if prefix is None else norm(prefix)
        if self.causal:
            length, start = x.shape[1], 0 if prefix is None else prefix.shape[1]
            mask = jnp.tril(jnp.ones((1, length, start + length), bool), start)
        if position is not None:
            x, query = at_position(x, position), at_position(context, position)
            mask = mask[0, position][:, None] if self.causal and mask is not None else mask
        x = x + attention(query, context, mask, before)
        return x + MLP(self.config, self.dtype, name="mlp")(
            layer_norm(self.config, "layer_norm2")(x)
        )


class Layers(nn.Module):
    """The sequence of layers, named "0", "1", ..."""

    config: TransformerConfig
    dtype: Dtype
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n length width"],
        prefix: Float[Array, "1 prefix width"] | None,
        position: Int[Array, " n"] | None,
        mask: Bool[Array, "n #queries length"] | None,
        values_only: bool,
    ) -> Float[Array, "n queries width"]:
        last = self.config.num_hidden_layers - 1
        for index in range(last):
            layer = EncoderLayer(self.config, self.dtype, self.causal, name=str(index))
            following = None if prefix is None else layer(prefix)
            x, prefix = layer(x, prefix, None, mask), following
        layer = EncoderLayer(self.config, self.dtype, self.causal, name=str(last))
        return layer(x, prefix, position, mask, values_only)


class Encoder(nn.Module):
    """A stack of layers. They have the parameter path "layers", which transformers also uses.

    Two arguments avoid work without changing the result. If only one position of each row is pooled,
    `position` gives that position, and the last layer computes no other. If all rows begin with the same
    tokens and the encoder is `causal`, `prefix` holds their states as a single row, and `x` holds the rest.
    With `values_only` the last layer returns its values (see `EncoderLayer`).
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
        mask: Bool[Array, "n #queries length"] | None = None,
        values_only: bool = False,
    ) -> Float[Array, "n queries width"]:
        layers = Layers(self.config, self.dtype, self.causal, name="layers")
        return layers(x, prefix, position, mask, values_only)


class PatchEmbedding(nn.Module):
    """A linear map of non-overlapping patches, equal to a convolution whose stride is the patch size.

    It is computed by a reshape and a product. The kernel has the convolution's shape [p, p, 3, width].
    """

    config: VisionConfig
    dtype: Dtype
    use_bias: bool

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "n height width 3"]
    ) -> Float[Array, "n patches hidden_size"]:
        n, p, grid = (
            pixels.shape[0],
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
    """Token embedding plus position embedding. The first token has the position `start`.

    An id outside the vocabulary has the embedding NaN. `embedded`, if given, takes the place of the token embeddings.
    """

    config: TextConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "n length"] | None,
        start: int = 0,
        embedded: Float[Array, "n length width"] | None = None,
    ) -> Float[Array, "n length width"]:
        config = self.config
        token = nn.Embed(config.vocab_size, config.hidden_size, name="token_embedding")
        position = nn.Embed(
            config.max_position_embeddings, config.hidden_size, name="position_embedding"
        )
        if tokens is not None:
            # Negative indices would count from the end of the vocabulary.
            embedded = token(jnp.where(tokens < 0, config.vocab_size, tokens))
        if embedded is None:
            raise ValueError("expected token ids or token embeddings, got neither")
        return embedded + position(start + jnp.arange(embedded.shape[1]))[None]


def check_dtype(dtype: str) -> None:
    """Raises ValueError unless `dtype` is a name that a configuration may have."""
    if dtype not in get_args(Dtype):
        raise ValueError(f"unknown dtype {dtype!r}, expected one of {list(get_args(Dtype))}")


def check_pixels(pixels: Float[Array, "..."], config: VisionConfig) -> None:
    """Raises ValueError unless the pixels have the shape [n, image_size, image_size, 3]."""
    expected = (config.image_size, config.image_size, 3)
    if pixels.ndim != 4 or pixels.shape[1:] != expected:
        raise ValueError(
            f"pixels must have shape [n, {', '.join(map(str, expected))}], got {list(pixels.shape)}"
        )
