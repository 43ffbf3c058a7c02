"""Scores that adapt to the images that they score (test-time adaptation): streams, and checks that they share.

An update is a pure function `update(state, *batch, where=mask) -> (state, scores)`, whose state is a pytree. One update
with all images is the whole-batch form. `scan_stream` applies it to one batch after the other.

The scores of an image depend on the other images (they are transductive). If normal images were held out for
calibration, their scores are not exchangeable with those of test images, so conformal p-values and thresholds are not
valid for these scores.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.reductions import finite_rows
from bliss_jax.scores.shapes import row_mask


def scan_stream(
    update: Callable[..., tuple[Any, Any]],
    state: Any,
    *arrays: Array,
    batch_size: int,
) -> tuple[Any, Float[jax.Array, " images"]]:
    """Applies an update to consecutive batches of a stream, with `lax.scan`.

    The order of the images matters: a batch is scored with the state after it and all earlier batches, and later
    images do not change earlier scores. Shuffle images that are sorted by class.

    Args:
        update: Function `update(state, *batch, where=mask) -> (state, scores)`. Pass the same function object at each
            call, because a new object, such as a new `functools.partial`, is compiled anew; static.
        state: State before the first image.
        arrays: Arrays with one row for each image, in the order of the stream, e.g. embeddings and static scores.
        batch_size: Images per batch; static. The last batch is padded, and `where` is False for the padding.

    Returns:
        The state after the last image, and the scores [images].

    Raises:
        ValueError: `batch_size` is below 1, no array is given, or the arrays have different numbers of rows.
    """
    _checks.static_integer("batch_size", batch_size, 1)
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ValueError(
            f"arrays: expected arrays of one length, got {[list(jnp.shape(a)) for a in arrays]}"
        )
    return _scan(state, tuple(map(jnp.asarray, arrays)), update=update, batch_size=batch_size)


@partial(jax.jit, static_argnames=("update", "batch_size"))
def _scan(
    state: Any, arrays: tuple[jax.Array, ...], *, update: Callable[..., Any], batch_size: int
) -> tuple[Any, jax.Array]:
    images = len(arrays[0])
    # A stream shorter than a batch is one batch of its own size.
    size = max(1, min(batch_size, images))
    batches = -(-images // size)
    row = jnp.arange(batches * size)

    def in_batches(array: jax.Array) -> jax.Array:
        # Padding repeats the last image, so that it is a valid embedding.
        padded = array[jnp.minimum(row, max(images - 1, 0))]
        return padded.reshape(batches, size, *array.shape[1:])

    def step(state: Any, batch: tuple) -> tuple[Any, jax.Array]:
        *of_images, where = batch
        return update(state, *of_images, where=where)

    if not images:
        return state, update(state, *arrays, where=jnp.zeros(0, bool))[1]
    counted = (row < images).reshape(batches, size)
    state, scores = lax.scan(step, state, (*map(in_batches, arrays), counted))
    return state, scores.reshape(-1)[:images]


def check_static_scores(scores: Any, images: int) -> jax.Array:
    """Checks the static scores of a batch and returns them.

    Raises:
        ValueError: The array is not a floating [images] array.
    """
    array = _checks.as_array("scores", scores)
    if array.shape != (images,) or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"scores: expected a floating [{images}] array, one score per image, got {array.dtype} "
            f"{list(array.shape)}"
        )
    return array


def check_counted(where: Any, x: jax.Array) -> jax.Array:
    """Checks the mask of the images that count, and returns it without images that are not finite.

    Raises:
        ValueError: The mask is not a bool [images] array.
    """
    mask = row_mask("where", where, len(x), "image")
    finite = finite_rows(x)
    return finite if mask is None else mask & finite
