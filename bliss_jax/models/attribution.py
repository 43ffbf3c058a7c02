"""Attribution of a linear function of the image embedding to the patches of an image.

    f(x)            unit-norm embedding of image x
    w . f(x)        the function to explain, e.g. a part of BLISS (`bliss_jax.scores.directions`)
    v_{l,p}         value of patch p in attention l, all heads
    A_p(x, w)     = sum over the last B attentions l of v_{l,p} . d(w . f(x)) / d v_{l,p}

An attention is linear in its values, so for the last one, which pools the patches, the A_p and the same term of CLIP's
class token add up to o . d(w . f(x)) / d o with o the pooled state. A patch with a positive A_p raises w . f(x).
The attentions are those of CLIP's layers, and for SigLIP that of the head and those of the layers before it. A is
linear in w.

Source: gradient x input (Shrikumar et al., "Learning Important Features Through Propagating Activation Differences",
ICML 2017, section 2) at the values of the attention, whose sum over patches is the decomposition of Gandelsman et al.,
"Interpreting CLIP's Image Representation via Text-Based Decomposition", ICLR 2024, section 3.

Memory: the forward pass keeps the states of the last B attentions, and the directions are computed one after the other,
so it is that of one gradient through the last B layers for the images of the call. Batches bound it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, rows
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.encode import check_pixels, static_config
from bliss_jax.models.families import ModelConfig
from bliss_jax.models.naflex import Patches
from bliss_jax.models.weights import Params

BLOCKS = 3
"""Default number of attentions, B. It was chosen on the validation scenes of `experiments/maps`."""

_Path = tuple[str, ...]


def attribute_patches(
    params: Params,
    config: ModelConfig,
    pixels: Float[Array, "images size size 3"] | Patches,
    directions: Float[Array, "images directions dim"],
    *,
    blocks: int = BLOCKS,
) -> Float[jax.Array, "images directions patches"]:
    """Computes A_p = sum over the last B attentions of v_p . d(w . f(x)) / d v_p for directions w of each image.

    Args:
        params: The parameter tree of a checkpoint, as for `encode_image`.
        config: Its configuration, as for `encode_image`.
        pixels: Pixels, as for `encode_image`.
        directions: Directions w of the embedding space, e.g. from `bliss_directions`.
        blocks: B, the number of attentions, at least 1; all if the tower has fewer. Static.

    Returns:
        Attributions in float32, the patches row by row as in `encode_patches`.

    Raises:
        ValueError: The directions are not floating [images, directions, dim], `blocks` is below 1, or one of the
            reasons listed in `encode_image`.
    """
    check_pixels(config, pixels)
    w = _checks.as_array("directions", directions)
    images = jax.tree.leaves(pixels)[0].shape[0]
    dim = config.embedding_dim
    if w.ndim != 3 or w.shape[::2] != (images, dim) or not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(
            f"directions: expected a floating [{images}, directions, {dim}] array, got {w.dtype} {list(w.shape)}"
        )
    _checks.static_integer("blocks", blocks, 1)
    return _attribute(static_config(config), w, params, pixels, blocks=blocks)


@compiled(static=("blocks",), out=lambda config, w, *_: rows(w))
def _attribute(
    config: ModelConfig, w: Array, params: Params, pixels: Any, *, blocks: int
) -> jax.Array:
    paths = attention_paths(config)[-blocks:]

    def embed(nudges: Mapping[_Path, jax.Array]) -> tuple[jax.Array, dict[_Path, jax.Array]]:
        return encode_with_values(config, params, pixels, nudges)

    _, shapes = jax.eval_shape(embed, {})
    zeros = {path: jnp.zeros(shapes[path].shape, shapes[path].dtype) for path in paths}
    _, pull_back, values = jax.vjp(embed, zeros, has_aux=True)

    def of_direction(direction: jax.Array) -> jax.Array:
        (gradients,) = pull_back(direction)
        return sum(
            (jnp.sum(values[path] * gradients[path], axis=-1) for path in paths), jnp.zeros(())
        )

    found = jnp.moveaxis(jax.lax.map(of_direction, jnp.moveaxis(w.astype(jnp.float32), 1, 0)), 0, 1)
    return found[:, :, 1:] if isinstance(config, CLIPConfig) else found  # without the class token


def attention_paths(config: ModelConfig) -> list[_Path]:
    """Returns the module paths of the vision tower's attentions, of which the last one pools the patches."""
    layers = range(config.vision.num_hidden_layers)
    paths = [("vision_model", "encoder", "layers", str(layer), "self_attn") for layer in layers]
    return (
        paths if isinstance(config, CLIPConfig) else [*paths, ("vision_model", "head", "attention")]
    )


def encode_with_values(
    config: ModelConfig, params: Params, pixels: Any, nudges: Mapping[_Path, jax.Array]
) -> tuple[jax.Array, dict[_Path, jax.Array]]:
    """Computes unit-norm embeddings and the values of the vision tower's attentions.

    Args:
        config: Configuration.
        params: Parameters.
        pixels: Pixels.
        nudges: Arrays that are added to the values of the attentions at these module paths.

    Returns:
        Embeddings [images, dim], and values [images, length, width] by the module path of their attention.
    """
    values: dict[_Path, jax.Array] = {}

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        result, path = call(*args, **kwargs), context.module.path
        if path[:1] != ("vision_model",) or path[-1:] != ("v_proj",):
            return result
        attention = path[:-1]
        values[attention] = result + nudges[attention] if attention in nudges else result
        return values[attention]

    with nn.intercept_methods(intercept):
        embedded = config.module().apply({"params": params}, pixels, method="encode_image")
    return embedded, values  # pyright: ignore[reportReturnType]
