"""The two towers of SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025), fixed resolution.

    image embedding = unit_norm(head(post_layernorm(x)))
    text embedding  = unit_norm(head(final_layer_norm(x)[:, last]))

where x is the output of the last layer. The vision head is attention pooling: one learned query, the
probe, attends to all patches, and a residual MLP follows. The text head is a linear map of the last
position. The text tower has neither a causal mask nor a padding mask, so each text must be padded to the
context as in training: the padding is part of the input. In transformers both generations have the model
type "siglip" and the same layout; "siglip2" is the variable-resolution model, another architecture.
"""

# ruff: noqa: D102 (the docstring of a Flax module's class describes `setup` and `__call__`)

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bliss_jax.models.layers import (
    MLP,
    Attention,
    Dense,
    Dtype,
    Encoder,
    PatchEmbedding,
    TextConfig,
    TextEmbeddings,
    TransformerConfig,
    VisionConfig,
    check_dtype,
    check_pixels,
    layer_norm,
    read_fields,
    unit_norm,
)


@dataclass(frozen=True)
class SiglipTextConfig(TextConfig):
    """Sizes of a text tower and the width of its head, which is the size of the joint space."""

    projection_size: int


@jax.tree_util.register_static
@dataclass(frozen=True)
class SiglipConfig:
    """Configuration of both towers and the dtype of the matrix products.

    The class is frozen, hashable and a static pytree, so jitted functions take it like any other argument.
    """

    vision: VisionConfig
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
    def from_transformers(cls, config: Any, dtype: Dtype = "float32") -> "SiglipConfig":
        """Reads transformers' `SiglipConfig`, which fills in fields that checkpoints omit."""
        # transformers 4.57 has this field only if config.json sets it.
        if not getattr(config.vision_config, "vision_use_head", True):
            raise ValueError("a SigLIP vision tower without its pooling head has no embedding")
        return cls(
            vision=read_fields(VisionConfig, config.vision_config),
            text=read_fields(SiglipTextConfig, config.text_config),
            dtype=dtype,
        )

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.text.projection_size

    def module(self) -> "Siglip":
        """Returns the Flax module of this configuration."""
        return Siglip(self)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Returns the shapes of one image and one text, for tracing the initialisation."""
        size, length = self.vision.image_size, self.text.max_position_embeddings
        return (
            jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
            jax.ShapeDtypeStruct((1, length), jnp.int32),
        )

    def used_lengths(self, tokens: Int[np.ndarray, "n length"]) -> Int[np.ndarray, " n"]:
        """Returns the number of tokens of each row that its embedding depends on: all, without a mask."""
        return np.full(len(tokens), tokens.shape[1])

    @property
    def prefix_can_be_shared(self) -> bool:
        """Whether a shared prefix can be encoded once (false: each position attends to all others)."""
        return False


class VisionEmbeddings(nn.Module):
    """The embeddings of the patches plus position embeddings. There is no class token."""

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "n size size 3"]) -> Float[Array, "n length width"]:
        width, length = self.config.hidden_size, self.config.num_patches
        embed = PatchEmbedding(self.config, self.dtype, use_bias=True, name="patch_embedding")
        position = nn.Embed(length, width, name="position_embedding")(jnp.arange(length))
        return embed(pixels) + position[None]


class AttentionPooling(nn.Module):
    """Attention of one learned query to all positions (or those in `mask`), and a residual MLP.

    With `each_alone` the result at each position is that of a query that attends to this position alone.
    """

    config: TransformerConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n length width"],
        mask: Bool[Array, "n 1 length"] | None = None,
        each_alone: bool = False,
    ) -> Float[Array, "n *length width"]:
        width = self.config.hidden_size
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        probe = jnp.broadcast_to(probe, (x.shape[0], 1, width))
        attention = Attention(self.config.num_attention_heads, self.dtype, name="attention")
        x = attention(probe, x, mask, values_only=each_alone)
        x = x + MLP(self.config, self.dtype, name="mlp")(layer_norm(self.config, "layernorm")(x))
        return x if each_alone else x[:, 0]


class VisionTower(nn.Module):
    """The vision tower. It maps pixels to the embedding of the image, or of its patches, before normalisation."""

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "n size size 3"], patches: bool = False
    ) -> Float[Array, "n *patches width"]:
        x = VisionEmbeddings(self.config, self.dtype, name="embeddings")(pixels)
        x = Encoder(self.config, self.dtype, name="encoder")(x)
        x = layer_norm(self.config, "post_layernorm")(x)
        return AttentionPooling(self.config, self.dtype, name="head")(x, None, patches)


class TextTower(nn.Module):
    """The text tower. It maps tokens, padded to the context, to the text embedding before normalisation."""

    config: SiglipTextConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "n length"] | None,
        embedded: Float[Array, "n length width"] | None = None,
    ) -> Float[Array, "n dim"]:
        length = (embedded if tokens is None else tokens).shape[1]  # pyright: ignore[reportOptionalMemberAccess]
        if length != self.config.max_position_embeddings:
            raise ValueError(
                f"{length} tokens per text: SigLIP's text tower has no mask, so texts are "
                f"padded to exactly {self.config.max_position_embeddings}"
            )
        x = TextEmbeddings(self.config, name="embeddings")(tokens, 0, embedded)
        last = jnp.full(x.shape[0], length - 1, jnp.int32)
        x = Encoder(self.config, self.dtype, name="encoder")(x, position=last)
        x = layer_norm(self.config, "final_layer_norm")(x[:, 0])
        return Dense(self.config.projection_size, self.dtype, name="head")(x)


class Siglip(nn.Module):
    """Both towers. Only the sigmoid loss uses `logit_scale` and `logit_bias`."""

    config: SiglipConfig

    def setup(self) -> None:
        self.vision_model = VisionTower(self.config.vision, self.config.dtype)
        self.text_model = TextTower(self.config.text, self.config.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(10.0)), (1,))
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), (1,))

    def encode_image(self, pixels: Float[Array, "n size size 3"]) -> Float[Array, "n dim"]:
        """Computes unit-norm embeddings of preprocessed pixels."""
        check_pixels(pixels, self.config.vision)
        return unit_norm(self.vision_model(pixels))

    def encode_patches(
        self, pixels: Float[Array, "n size size 3"]
    ) -> Float[Array, "n patches dim"]:
        """Computes unit-norm embeddings of the patches, each pooled alone."""
        check_pixels(pixels, self.config.vision)
        return unit_norm(self.vision_model(pixels, patches=True))

    def encode_text(self, tokens: Int[Array, "n length"]) -> Float[Array, "n dim"]:
        """Computes unit-norm embeddings of token ids that are padded to the context."""
        return unit_norm(self.text_model(tokens))

    def encode_token_embeddings(
        self, embedded: Float[Array, "n length width"], end: Int[Array, " n"]
    ) -> Float[Array, "n dim"]:
        """Computes unit-norm embeddings of token embeddings; the last position is pooled, whatever `end` is."""
        return unit_norm(self.text_model(None, embedded))

    def __call__(
        self, pixels: Float[Array, "images size size 3"], tokens: Int[Array, "texts length"]
    ) -> tuple[Float[Array, "images dim"], Float[Array, "texts dim"]]:
        """Computes both embeddings. Parameter initialisation runs this method."""
        return self.encode_image(pixels), self.encode_text(tokens)
