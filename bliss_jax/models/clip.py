"""The two towers of CLIP (Radford et al. 2021) in the parameter layout of `FlaxCLIPModel`.

    image embedding = unit_norm(projection(post_layernorm(x[:, 0])))
    text embedding  = unit_norm(projection(final_layer_norm(x)[end of text]))

where x is the output of the last layer. The vision tower processes a class token and the patches; the
text tower processes tokens under a causal mask. The sizes are read from a checkpoint's `config.json`,
so the models of OpenAI, LAION, DataComp and MetaCLIP differ only in their configuration.
"""

# ruff: noqa: D102 (the docstring of a Flax module's class describes `setup` and `__call__`)

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
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
    check_dtype,
    check_pixels,
    layer_norm,
    read_fields,
    unit_norm,
)


@dataclass(frozen=True)
class CLIPTextConfig(TextConfig):
    """Sizes of a text tower and the id of the token at which it is pooled.

    Early configurations of CLIP contain `eos_token_id` 2 by mistake. With this value each row is pooled at
    its largest id, which is the end-of-text token in OpenAI's vocabulary. With any other value each row is
    pooled at the first occurrence of that id. transformers has the same two conventions.
    """

    eos_token_id: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.eos_token_id, int):
            raise ValueError(f"eos_token_id must be one integer, got {self.eos_token_id!r}")

    @property
    def pools_at_largest_id(self) -> bool:
        """Whether a text is pooled at its largest id instead of at the first `eos_token_id`."""
        return self.eos_token_id == 2

    def end_of_text(self, tokens: Int[Array, "n length"]) -> Int[Array, " n"]:
        """Returns the position at which each row is pooled; 0 for a row without an end-of-text token."""
        where = tokens if self.pools_at_largest_id else tokens == self.eos_token_id
        return jnp.argmax(where, axis=1).astype(jnp.int32)


@dataclass(frozen=True)
class FirstEosTextConfig(CLIPTextConfig):
    """A text tower that is pooled at the first `eos_token_id` even if that id is 2, as in MetaCLIP 2."""

    @property
    def pools_at_largest_id(self) -> bool:
        """Whether a text is pooled at its largest id: never."""
        return False


@jax.tree_util.register_static
@dataclass(frozen=True)
class CLIPConfig:
    """Configuration of both towers, the size of the joint space, and the dtype of the matrix products.

    The class is frozen, hashable and a static pytree, so jitted functions take it like any other argument.
    `dataclasses.replace(config, dtype="bfloat16")` selects the faster precision described in
    `bliss_jax.models.layers`.
    """

    vision: VisionConfig
    text: CLIPTextConfig
    projection_dim: int
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    @classmethod
    def from_transformers(cls, config: Any, dtype: Dtype = "float32") -> "CLIPConfig":
        """Reads transformers' `CLIPConfig` or `MetaClip2Config`, which fill in omitted fields."""
        metaclip_2 = config.model_type == "metaclip_2"
        return cls(
            vision=read_fields(VisionConfig, config.vision_config),
            text=read_fields(
                FirstEosTextConfig if metaclip_2 else CLIPTextConfig, config.text_config
            ),
            projection_dim=config.projection_dim,
            dtype=dtype,
        )

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.projection_dim

    def module(self) -> "CLIP":
        """Returns the Flax module of this configuration."""
        return CLIP(self)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Returns the shapes of one image and one text, for tracing the initialisation."""
        size, length = self.vision.image_size, self.text.max_position_embeddings
        return (
            jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
            jax.ShapeDtypeStruct((1, length), jnp.int32),
        )

    def used_lengths(self, tokens: Int[np.ndarray, "n length"]) -> Int[np.ndarray, " n"]:
        """Returns the number of tokens of each row that its embedding depends on.

        These are the tokens up to the end of text: the causal mask hides later ones.

        Raises:
            ValueError: A row has no end-of-text token. All such rows would have one embedding.
        """
        end = self.text.eos_token_id
        if not self.text.pools_at_largest_id and not (tokens == end).any(axis=1).all():
            raise ValueError(
                f"the token ids of a text do not contain eos_token_id {end}, so the text has no embedding: "
                "the tokenizer and config.json of this checkpoint do not match"
            )
        return np.asarray(self.text.end_of_text(jnp.asarray(tokens))) + 1

    @property
    def prefix_can_be_shared(self) -> bool:
        """Whether a shared prefix can be encoded once (true under a causal mask)."""
        return True


class VisionEmbeddings(nn.Module):
    """The embeddings of a class token and of the patches, plus position embeddings."""

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "n size size 3"]) -> Float[Array, "n length width"]:
        config = self.config
        width, length = config.hidden_size, config.num_patches + 1
        patches = PatchEmbedding(config, self.dtype, use_bias=False, name="patch_embedding")(pixels)
        first = self.param("class_embedding", nn.initializers.normal(0.02), (width,))
        first = jnp.broadcast_to(first, (pixels.shape[0], 1, width))
        position = nn.Embed(length, width, name="position_embedding")(jnp.arange(length))
        return jnp.concatenate([first, patches], axis=1) + position[None]


class VisionTower(nn.Module):
    """The vision tower. It maps pixels to the pooled class token, or to the patches, before the projection."""

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "n size size 3"], patches: bool = False
    ) -> Float[Array, "n *patches width"]:
        x = VisionEmbeddings(self.config, self.dtype, name="embeddings")(pixels)
        # Published checkpoints contain this misspelling.
        x = layer_norm(self.config, "pre_layrnorm")(x)
        encoder = Encoder(self.config, self.dtype, name="encoder")
        norm = layer_norm(self.config, "post_layernorm")
        if patches:
            return norm(encoder(x, values_only=True)[:, 1:])
        class_token = jnp.zeros(x.shape[0], jnp.int32)
        return norm(encoder(x, position=class_token)[:, 0])


class TextTower(nn.Module):
    """The text tower. It maps tokens to the state at the end of text before the projection."""

    config: CLIPTextConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "n length"] | None,
        prefix: Int[Array, " prefix"] | None = None,
        embedded: Float[Array, "n length width"] | None = None,
        end: Int[Array, " n"] | None = None,
    ) -> Float[Array, "n width"]:
        start = 0 if prefix is None else len(prefix)
        length = start + (embedded if tokens is None else tokens).shape[1]  # pyright: ignore[reportOptionalMemberAccess]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"{length} tokens per text, but the context is {self.config.max_position_embeddings}"
            )
        embed = TextEmbeddings(self.config, name="embeddings")
        before = None if prefix is None else embed(prefix[None])
        if tokens is not None:
            end = self.config.end_of_text(tokens)
        encoder = Encoder(self.config, self.dtype, causal=True, name="encoder")
        x = encoder(embed(tokens, start, embedded), before, end)
        return layer_norm(self.config, "final_layer_norm")(x[:, 0])


class CLIP(nn.Module):
    """Both towers with their projections. `logit_scale` is the logarithm of the loss's logit scale."""

    config: CLIPConfig

    def setup(self) -> None:
        config, dtype = self.config, self.config.dtype
        self.vision_model = VisionTower(config.vision, dtype)
        self.text_model = TextTower(config.text, dtype)
        self.visual_projection = Dense(config.projection_dim, dtype, use_bias=False)
        self.text_projection = Dense(config.projection_dim, dtype, use_bias=False)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def encode_image(self, pixels: Float[Array, "n size size 3"]) -> Float[Array, "n dim"]:
        """Computes unit-norm embeddings of preprocessed pixels."""
        check_pixels(pixels, self.config.vision)
        return unit_norm(self.visual_projection(self.vision_model(pixels)))

    def encode_patches(
        self, pixels: Float[Array, "n size size 3"]
    ) -> Float[Array, "n patches dim"]:
        """Computes unit-norm embeddings of the patches from the values of the last layer."""
        check_pixels(pixels, self.config.vision)
        return unit_norm(self.visual_projection(self.vision_model(pixels, patches=True)))

    def encode_text(
        self, tokens: Int[Array, "n length"], prefix: Int[Array, " prefix"] | None = None
    ) -> Float[Array, "n dim"]:
        """Computes unit-norm embeddings of token ids; `prefix`, if given, precedes each row."""
        return unit_norm(self.text_projection(self.text_model(tokens, prefix)))

    def encode_token_embeddings(
        self, embedded: Float[Array, "n length width"], end: Int[Array, " n"]
    ) -> Float[Array, "n dim"]:
        """Computes unit-norm embeddings of token embeddings, pooled at the position `end`."""
        return unit_norm(self.text_projection(self.text_model(None, None, embedded, end)))

    def __call__(
        self, pixels: Float[Array, "images size size 3"], tokens: Int[Array, "texts length"]
    ) -> tuple[Float[Array, "images dim"], Float[Array, "texts dim"]]:
        """Computes both embeddings. Parameter initialisation runs this method."""
        return self.encode_image(pixels), self.encode_text(tokens)
