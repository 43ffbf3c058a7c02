"""The encoders as pure functions of parameters, configuration and arrays.

They compose under `jit`, `vmap`, `grad` and sharding, and eager calls compile each of them once. A configuration is a
static pytree, so `jax.jit(encode_image)(params, config, pixels)` needs no static arguments.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, rows
from bliss_jax.models.cuda import with_compiler_options
from bliss_jax.models.families import ModelConfig
from bliss_jax.models.naflex import NaflexConfig, Patches
from bliss_jax.models.weights import Params


def encode_image(
    params: Params, config: ModelConfig, pixels: Float[Array, "images size size 3"] | Patches
) -> Float[jax.Array, "images dim"]:
    """Computes unit-norm float32 embeddings of preprocessed images.

    The matrix products run in `config.dtype` even if the kernels are stored in another dtype. All other parameters
    are float32.

    Args:
        params: The parameter tree of a checkpoint (`Model.params`).
        config: Its configuration (`Model.config`), which determines the architecture.
        pixels: Pixels [images, size, size, 3], as `preprocess` or `apply_preprocessing` return them. For a NaFlex
            model, `Patches`, as `NaflexPreprocessing.unpack` returns them.

    Returns:
        Embeddings [images, dim].

    Raises:
        ValueError: The pixels are not floating, or their size is not that of the tower.
    """
    check_pixels(config, pixels)
    return _encode_image(static_config(config), params, pixels)


def encode_patches(
    params: Params, config: ModelConfig, pixels: Float[Array, "images size size 3"] | Patches
) -> Float[jax.Array, "images patches dim"]:
    """Computes unit-norm float32 embeddings of the patches of preprocessed images, in the joint space.

    For CLIP, the last layer's attention is replaced by its values, without residual stream and MLP,

        patch embedding = unit_norm(projection(post_layernorm(out_proj(v_proj(layer_norm1(x))))))

    with x the input of the last layer (Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022, section 3.2).
    For SigLIP, whose head pools by attention, it is the head's result if its query attends to one patch alone.

    Args:
        params: The parameter tree of a checkpoint, as for `encode_image`.
        config: Its configuration, as for `encode_image`.
        pixels: Pixels, as for `encode_image`.

    Returns:
        Embeddings [images, patches, dim], the patches row by row.

    Raises:
        ValueError: One of the reasons listed in `encode_image`.
    """
    check_pixels(config, pixels)
    return _encode_patches(static_config(config), params, pixels)


def encode_text(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "texts length"],
    prefix: Int[Array, " prefix"] | None = None,
) -> Float[jax.Array, "texts dim"]:
    """Computes unit-norm float32 embeddings of token ids.

    Args:
        params: The parameter tree of a checkpoint (`Model.params`).
        config: Its configuration (`Model.config`), which determines the architecture.
        tokens: Token ids [texts, length], as `Model.tokenize` returns them. For CLIP any length up to the
            context gives the same embeddings, as long as it includes the end token of each text. For SigLIP
            the length is exactly the context. A text with an id outside the vocabulary, or a negative one, has the
            embedding NaN.
        prefix: Tokens that precede each row of `tokens`. The embeddings are those of the whole texts, and
            the prefix is encoded once. Only CLIP supports it.

    Returns:
        Embeddings [texts, dim].

    Raises:
        ValueError: The tokens are not an integer matrix, their length does not fit the context, or a prefix is given
            for SigLIP.
    """
    ids = _check_tokens("tokens", tokens, 2)
    if prefix is None:
        return _encode_text(static_config(config), ids, params, None)
    if not config.prefix_can_be_shared:
        raise ValueError(
            f"prefix: {type(config).__name__} has no causal mask, so the states of a prefix depend on the "
            "tokens after it; pass whole texts"
        )
    return _encode_text(static_config(config), ids, params, _check_tokens("prefix", prefix, 1))


def token_embeddings(
    params: Params, config: ModelConfig, tokens: Int[Array, "texts length"]
) -> Float[jax.Array, "texts length width"]:
    """Looks up the embeddings of token ids without position embeddings, e.g. as the start of a soft prompt.

    Args:
        params: The parameter tree of a checkpoint, as for `encode_text`.
        config: Its configuration, as for `encode_text`.
        tokens: Token ids [texts, length].

    Returns:
        Token embeddings [texts, length, width]; NaN for an id outside the vocabulary.

    Raises:
        ValueError: The tokens are not an integer matrix.
    """
    ids = _check_tokens("tokens", tokens, 2)
    table = params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    return _look_up(ids, jnp.asarray(table))


def encode_token_embeddings(
    params: Params,
    config: ModelConfig,
    embeddings: Float[Array, "texts length width"],
    end: Int[Array, " texts"],
) -> Float[jax.Array, "texts dim"]:
    """Computes unit-norm float32 embeddings of texts that are given as token embeddings, for prompt learning.

    `encode_token_embeddings(params, config, token_embeddings(params, config, tokens), end)` equals
    `encode_text(params, config, tokens)` if `end` contains the positions of the end tokens.

    Args:
        params: The parameter tree of a checkpoint, as for `encode_text`.
        config: Its configuration, as for `encode_text`.
        embeddings: Token embeddings [texts, length, width]. The length is as for the tokens of `encode_text`.
        end: Position of each text's end token [texts], at which CLIP pools. SigLIP pools at the last position.

    Returns:
        Embeddings [texts, dim].

    Raises:
        ValueError: The embeddings are not a floating array [texts, length, width], or the length does not fit the
            context.
    """
    states = _checks.as_array("embeddings", embeddings)
    width = config.text.hidden_size
    if states.ndim != 3 or states.shape[2] != width or not _is_floating(states):
        raise ValueError(
            f"embeddings: expected a floating [texts, length, {width}] array, got {states.dtype} "
            f"{list(states.shape)}"
        )
    return _encode_token_embeddings(
        static_config(config), states, params, _check_tokens("end", end, 1)
    )


def check_pixels(config: ModelConfig, pixels: Any) -> None:
    """Raises ValueError unless the pixels are floating. A NaFlex tower checks its patches itself."""
    if isinstance(config, NaflexConfig):
        return
    array = _checks.as_array("pixels", pixels)
    if not _is_floating(array):
        raise ValueError(
            f"pixels: expected floating pixels, preprocessed with the model's statistics, got {array.dtype} "
            f"{list(array.shape)}; pass bj.preprocess(images, size={config.vision.image_size})"
        )


def _check_tokens(name: str, tokens: Any, ndim: int) -> jax.Array:
    array = _checks.as_array(name, tokens)
    if array.ndim != ndim or not jnp.issubdtype(array.dtype, jnp.integer):
        shape = "[texts, length]" if ndim == 2 else "[n]"
        raise ValueError(
            f"{name}: expected an integer {shape} array, got {array.dtype} {list(array.shape)}"
        )
    return array


def _is_floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def static_config(config: ModelConfig) -> ModelConfig:
    """Returns the configuration, after its class is registered as a static pytree.

    The classes of this library are registered already. A class of a user may be any frozen dataclass.
    """
    if jax.tree.leaves(config) == [config]:
        jax.tree_util.register_static(type(config))
    return config


def apply_module(params: Params, config: ModelConfig, method: str, *inputs: Any) -> jax.Array:
    """Calls a method of the Flax module, without checks and without a jitted function of its own."""
    return cast(jax.Array, config.module().apply({"params": params}, *inputs, method=method))


def _rows_of_images(config: ModelConfig, params: Params, pixels: Any) -> Any:
    return rows(jax.tree.leaves(pixels)[0])


@with_compiler_options(compiled(static=(), out=_rows_of_images))
def _encode_image(config: ModelConfig, params: Params, pixels: Any) -> jax.Array:
    return apply_module(params, config, "encode_image", pixels)


@compiled(static=(), out=_rows_of_images)
def _encode_patches(config: ModelConfig, params: Params, pixels: Any) -> jax.Array:
    return apply_module(params, config, "encode_patches", pixels)


@compiled(static=(), out=lambda config, tokens, *_: rows(tokens))
def _encode_text(config: ModelConfig, tokens: Array, params: Params, prefix: Any) -> jax.Array:
    return apply_module(
        params, config, "encode_text", tokens, *(() if prefix is None else (prefix,))
    )


@compiled(static=(), out=lambda tokens, *_: rows(tokens))
def _look_up(tokens: Array, table: Array) -> jax.Array:
    outside = jnp.where(tokens < 0, table.shape[0], tokens)
    return jnp.take(table, outside, axis=0, mode="fill")


@compiled(static=(), out=lambda config, states, *_: rows(states))
def _encode_token_embeddings(
    config: ModelConfig, states: Array, params: Params, end: Array
) -> jax.Array:
    return apply_module(params, config, "encode_token_embeddings", states, end)
