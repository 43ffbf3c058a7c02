"""The k texts nearest to each image, exactly, without the images-by-texts matrix.

The dictionary goes by in chunks with a running top-k, for a block of images at a time, so that the
similarities stay in the cache. Memory beside inputs and result is bounded, whatever the number of images and
of texts, by

    2 min(images, 512) (chunk_size + 8 k)    numbers of 4 bytes,

and the result is the same for every chunk size. Ties go to the text that comes first.

Dictionaries that are too large for one device are spread over a mesh axis (`dictionary_axis`): each device
finds the k nearest of its own texts, and the k nearest of those candidates are the k nearest of all.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.blocks import map_blocks
from bliss_jax.scores.reductions import zero_like_inputs

CHUNK_SIZE = 4096
"""Texts per chunk by default."""

IMAGE_BLOCK = 512
"""Images whose similarities to a chunk are held at once: 8 MB of them by default."""

Carry = TypeVar("Carry")


def similarity(
    embeddings: Float[jax.Array, "images dim"], texts: Float[jax.Array, "texts dim"]
) -> Float[jax.Array, "images texts"]:
    """s(x, t) = x . t, the cosine of unit-norm embeddings, in full precision on every backend."""
    return jnp.matmul(embeddings, texts.T, precision=lax.Precision.HIGHEST)


def fold_chunks(
    step: Callable[[Carry, Int[jax.Array, ""], int], Carry],
    carry: Carry,
    length: int,
    chunk_size: int,
) -> Carry:
    """Folds `carry = step(carry, start, size)` over the chunks [start, start + size) of 0..length-1.

    A loop over the full chunks and one step for the rest, so that nothing is padded and `size` is static.

    Raises:
        ValueError: a chunk size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    full, rest = divmod(length, chunk_size)
    if full:
        starts = jnp.arange(full, dtype=jnp.int32) * chunk_size
        carry, _ = lax.scan(
            lambda carry, start: (step(carry, start, chunk_size), None), carry, starts
        )
    return step(carry, jnp.int32(full * chunk_size), rest) if rest else carry


def top_k_similar(
    embeddings: Float[Array, "images dim"],
    texts: Float[Array, "texts dim"],
    k: int,
    *,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: str | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Float[jax.Array, "images k"], Int[jax.Array, "images k"]]:
    """The k largest cosines of each image to the texts, and which texts they are.

    Args:
        embeddings: Unit-norm embeddings [images, dim].
        texts: Unit-norm embeddings [texts, dim] (of texts, or of anything else to be searched).
        k: How many, 1 <= k <= texts; static.
        where: Rows of `texts` to search [texts]; False marks padding, which is never chosen. All by
            default. While tracing, places for which fewer than k rows are left have a cosine of -inf.
        dictionary_axis: Name of the mapped axis (of `shard_map`, or of `vmap`) over which the texts are
            spread: each device gives equally many rows, of which `where` may mark some as padding, and
            k counts the texts of all. Every device gets the same result, as one device that holds all
            rows would: the positions are those in the rows of all devices, one device after the other.
            Static.
        chunk_size: Texts per chunk; static.

    Returns:
        Cosines [images, k] in descending order, and their indices [images, k].

    Raises:
        ValueError: k outside 1..texts, a mask that does not fit or leaves fewer than k texts, or a chunk
            size below 1.
    """
    devices = 1 if dictionary_axis is None else lax.axis_size(dictionary_axis)
    _checks.top_k_size(k, devices * len(texts), "the texts")
    x, texts = jnp.asarray(embeddings), jnp.asarray(texts)
    valid = check_where(where, len(texts))
    left = None
    if valid is not None and dictionary_axis is None:
        left = _checks.look_at(jnp.sum, valid)
    if left is not None:
        _checks.top_k_size(k, int(left), "the texts that `where` leaves")
    own = min(k, len(texts))

    def of_images(x):
        def add_chunk(best, start, size):
            cosines = similarity(x, lax.dynamic_slice_in_dim(texts, start, size))
            if valid is not None:
                rows = lax.dynamic_slice_in_dim(valid, start, size)
                cosines = jnp.where(rows[None, :], cosines, -jnp.inf)
            values, position = lax.top_k(cosines, min(own, size))
            # Earlier texts stand first, and top_k keeps the first of equals.
            values = jnp.concatenate([best[0], values], axis=1)
            return _largest(values, jnp.concatenate([best[1], start + position], axis=1), own)

        zero = zero_like_inputs(x, texts, *(() if valid is None else (valid,)))
        nothing = (
            jnp.full((len(x), own), -jnp.inf, x.dtype) + zero,
            jnp.zeros((len(x), own), jnp.int32) + zero.astype(jnp.int32),
        )
        return fold_chunks(add_chunk, nothing, len(texts), min(chunk_size, len(texts)))

    values, indices = map_blocks(of_images, x, rows=IMAGE_BLOCK)
    if dictionary_axis is None:
        return values, indices
    return _nearest_of_all(values, indices, len(texts), k, dictionary_axis)


def pad_dictionary(
    dictionary_embeddings: Float[Array, "texts dim"], multiple: int
) -> tuple[Float[jax.Array, "padded dim"], Bool[jax.Array, " padded"]]:
    """The dictionary with as many rows as a mesh axis of `multiple` devices divides, and which are its own.

    The rows added repeat the last text, so that they are embeddings like all others; `where` says that they
    do not count.

    Args:
        dictionary_embeddings: Unit-norm embeddings [texts, dim], at least one.
        multiple: Devices on the axis; static.

    Returns:
        The embeddings [padded, dim], padded the next multiple, and the mask `where` [padded].

    Raises:
        ValueError: an empty dictionary, or a multiple below 1.
    """
    length = len(dictionary_embeddings)
    if length < 1 or multiple < 1:
        raise ValueError(
            f"pad_dictionary: expected at least one text and a multiple of at least 1, got {length} texts "
            f"and {multiple}"
        )
    rows = jnp.arange(-(-length // multiple) * multiple)
    texts = jnp.asarray(dictionary_embeddings)
    return texts[jnp.minimum(rows, length - 1)], rows < length


def check_where(where: Array | None, texts: int) -> jax.Array | None:
    """Checks a mask of the rows of a dictionary that count.

    Raises:
        ValueError: not a boolean [texts] array.
    """
    if where is None:
        return None
    mask = jnp.asarray(where)
    if mask.shape != (texts,) or mask.dtype != jnp.bool_:
        raise ValueError(
            f"where: expected a bool [{texts}] array, one entry per text, got {mask.dtype} "
            f"{list(mask.shape)}"
        )
    return mask


def _largest(
    values: Float[jax.Array, "images candidates"],
    indices: Int[jax.Array, "images candidates"],
    k: int,
) -> tuple[Float[jax.Array, "images k"], Int[jax.Array, "images k"]]:
    values, position = lax.top_k(values, k)
    return values, jnp.take_along_axis(indices, position, axis=1)


def _nearest_of_all(
    values: Float[jax.Array, "images own"],
    indices: Int[jax.Array, "images own"],
    texts: int,
    k: int,
    axis: str,
) -> tuple[Float[jax.Array, "images k"], Int[jax.Array, "images k"]]:
    """The k largest among the candidates of all devices, of which each holds `texts` texts."""
    device = lax.axis_index(axis)
    # One device after the other: what stands first among equals is the text that comes first.
    values = lax.all_gather(values, axis, axis=1, tiled=True)
    indices = lax.all_gather(indices + device * texts, axis, axis=1, tiled=True)
    nearest = _largest(values, indices, k)
    # Equal on all devices, but only a sum over them has the type that says so.
    return jax.tree.map(lambda leaf: lax.psum(jnp.where(device == 0, leaf, 0), axis), nearest)
