"""CLIP's two towers, after Radford et al. (2021), in the parameter layout of `FlaxCLIPModel`.

    image embedding = unit_norm(projection(post_layernorm(x[:, 0])))
    text embedding  = unit_norm(projection(final_layer_norm(x)[end of text]))

where x is the last layer's output: over a class token and patches in the vision tower, over
tokens under a causal mask in the text tower. The sizes are read from a checkpoint's `config.json`,
so OpenAI's models and those of LAION, DataComp and MetaCLIP differ in the configuration only.
"""

# ruff: noqa: D102 (what a Flax module's `setup` and `__call__` do, its class says)

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bliss_jax.models.layers import (
    Dense,
    Dtype,
    Encoder,
    PatchEmbedding,
    TextConfig,
    TextEmbeddings,
    VisionConfig,
    check_pixels,
    layer_norm,
    read_fields,
    unit_norm,
)


@dataclass(frozen=True)
class CLIPTextConfig(TextConfig):
    """A text tower and the token at which it is pooled.

    `eos_token_id` 2 is what early configurations say by mistake. It means: pool at the largest id
    of the row, which is the end of text in OpenAI's vocabulary. Any other value: pool at its first
    occurrence. Both are transformers' conventions.
    """

    eos_token_id: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.eos_token_id, int):
            raise ValueError(f"eos_token_id must be one integer, got {self.eos_token_id!r}")


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers, the size of the joint space, and the dtype of the matrix products.

    Frozen and hashable: a static argument under `jax.jit`. `dataclasses.replace(config,
    dtype="bfloat16")` switches to the fast path; see `bliss_jax.models.layers`.
    """

    vision: VisionConfig
    text: CLIPTextConfig
    projection_dim: int
    dtype: Dtype = "float32"

    @classmethod
    def from_transformers(cls, config: Any, dtype: Dtype = "float32") -> "CLIPConfig":
        """From transformers' `CLIPConfig`, which fills in what old checkpoints leave out."""
        return cls(
            vision=read_fields(VisionConfig, config.vision_config),
            text=read_fields(CLIPTextConfig, config.text_config),
            projection_dim=config.projection_dim,
            dtype=dtype,
        )

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.projection_dim

    def module(self) -> "CLIP":
        """The Flax module of this configuration."""
        return CLIP(self)

    def used_lengths(self, tokens: Int[np.ndarray, "n length"]) -> Int[np.ndarray, " n"]:
        """How many tokens of each row its embedding depends on: those up to the end of text.

        Under the causal mask no position sees a later one.
        """
        return np.asarray(end_of_text(jnp.asarray(tokens), self.text.eos_token_id)) + 1

    @property
    def prefix_can_be_shared(self) -> bool:
        """Whether what rows begin with has states of its own, whatever follows."""
        return True


def end_of_text(tokens: Int[Array, "n length"], eos_token_id: int) -> Int[Array, " n"]:
    """The position at which each row is pooled; position 0 where a row has no end-of-text token."""
    where = tokens if eos_token_id == 2 else tokens == eos_token_id
    return jnp.argmax(where, axis=1).astype(jnp.int32)


class VisionEmbeddings(nn.Module):
    """A class token before the patches, plus position embeddings."""

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "n size size 3"]) -> Float[Array, "n length width"]:
        config = self.config
        width, length = config.hidden_size, config.num_patches + 1
        patches = PatchEmbedding(config, self.dtype, use_bias=False, name="patch_embedding")(pixels)
        first = self.param("class_embedding", nn.initializers.normal(0.02), (width,))
        first = jnp.broadcast_to(first, (len(pixels), 1, width))
        position = nn.Embed(length, width, name="position_embedding")(jnp.arange(length))
        return jnp.concatenate([first, patches], axis=1) + position[None]


class VisionTower(nn.Module):
    """Pixels to the pooled class token, before projection."""

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "n size size 3"]) -> Float[Array, "n width"]:
        x = VisionEmbeddings(self.config, self.dtype, name="embeddings")(pixels)
        # Not our misspelling: the name in every published checkpoint.
        x = layer_norm(self.config, "pre_layrnorm")(x)
        class_token = jnp.zeros(len(x), jnp.int32)
        x = Encoder(self.config, self.dtype, name="encoder")(x, position=class_token)
        return layer_norm(self.config, "post_layernorm")(x[:, 0])


class TextTower(nn.Module):
    """Tokens to the state at the end of text, before projection."""

    config: CLIPTextConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "n length"], prefix: Int[Array, " prefix"] | None = None
    ) -> Float[Array, "n width"]:
        start = 0 if prefix is None else len(prefix)
        length = start + tokens.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"{length} tokens per text, but the context is {self.config.max_position_embeddings}"
            )
        embed = TextEmbeddings(self.config, name="embeddings")
        before = None if prefix is None else embed(prefix[None])
        end = end_of_text(tokens, self.config.eos_token_id)
        encoder = Encoder(self.config, self.dtype, causal=True, name="encoder")
        x = encoder(embed(tokens, start), before, end)
        return layer_norm(self.config, "final_layer_norm")(x[:, 0])


class CLIP(nn.Module):
    """Both towers with their projections; `logit_scale` is the log of the learned temperature."""

    config: CLIPConfig

    def setup(self) -> None:
        config, dtype = self.config, self.config.dtype
        self.vision_model = VisionTower(config.vision, dtype)
        self.text_model = TextTower(config.text, dtype)
        self.visual_projection = Dense(config.projection_dim, dtype, use_bias=False)
        self.text_projection = Dense(config.projection_dim, dtype, use_bias=False)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def encode_image(self, pixels: Float[Array, "n size size 3"]) -> Float[Array, "n dim"]:
        """Preprocessed pixels to unit-norm embeddings."""
        check_pixels(pixels, self.config.vision)
        return unit_norm(self.visual_projection(self.vision_model(pixels)))

    def encode_text(
        self, tokens: Int[Array, "n length"], prefix: Int[Array, " prefix"] | None = None
    ) -> Float[Array, "n dim"]:
        """Token ids, up to the context in length, to unit-norm embeddings; `prefix` precedes them all."""
        return unit_norm(self.text_projection(self.text_model(tokens, prefix)))

    def __call__(
        self, pixels: Float[Array, "images size size 3"], tokens: Int[Array, "texts length"]
    ) -> tuple[Float[Array, "images dim"], Float[Array, "texts dim"]]:
        """Both embeddings; what initialisation runs through."""
        return self.encode_image(pixels), self.encode_text(tokens)
