"""z-scores of the nearest texts of images, from the statistics of each distinct text, in blocks of classes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Bool, Float, Int

from bliss_jax._checks import Precision
from bliss_jax.scores.blocks import Carry, fold_chunks, zeros_varying
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.shapes import is_traced_shape
from bliss_jax.scores.statistics import (
    VARIANCE_CHUNK,
    Pooling,
    TextStatistics,
    dictionary_statistics,
)
from bliss_jax.scores.top_k import Axis, local_rows


class ChosenTexts(NamedTuple):
    """The distinct texts among the nearest of all images."""

    positions: Int[jax.Array, " places"]
    """Positions of the texts in the dictionary, ascending; 0 in places after the last text."""
    number: Int[jax.Array, ""]
    """Number of distinct texts."""
    row: Int[jax.Array, "images k"]
    """Row of `positions` that holds each text of each image."""
    inside: Bool[jax.Array, "images k"] | None
    """Whether this device holds the text; None if it holds all texts."""


def chosen_texts(
    nearest: Int[jax.Array, "images k"], num_texts: int, *, dictionary_axis: Axis | None = None
) -> ChosenTexts:
    """Returns the distinct texts in `nearest` among the `num_texts` texts that this device holds."""
    held, inside = local_rows(nearest, num_texts, dictionary_axis)
    outside = jnp.int32(num_texts)
    # A maximum, because devices that hold different images can compute it without exchanging the indices.
    used = jnp.zeros(num_texts, jnp.int32)
    places = held if inside is None else jnp.where(inside, held, outside)
    used = used.at[places].max(1, mode="drop")
    rank = jnp.cumsum(used, dtype=jnp.int32)
    symbolic = is_traced_shape(nearest.shape[0])
    length = num_texts if symbolic else min(num_texts, nearest.size)
    positions = jnp.zeros(length, jnp.int32)
    positions = positions.at[jnp.where(used > 0, rank - 1, outside)].set(
        jnp.arange(num_texts, dtype=jnp.int32), mode="drop"
    )
    row = jnp.maximum(rank[held] - 1, 0)
    return ChosenTexts(positions, rank[-1], row, inside)


def fold_class_blocks(
    step: Callable[[Carry, Int[jax.Array, ""], TextStatistics], Carry],
    carry: Carry,
    chosen: ChosenTexts,
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    pooling: Pooling | None,
    *,
    chunk_size: int,
    precision: Precision,
) -> Carry:
    """Folds `carry = step(carry, first, statistics)` over blocks of classes; `first` is the first class of a block.

    The statistics [rows, block] relate the chosen texts, in the rows that `chosen.row` names, to the classes of the
    block. The number of classes in a block is the largest for which a table is not larger than a chunk of texts, or
    than one number for each chosen text if this is more.

    Reverse mode computes the statistics of a block again, so that they are never kept for all blocks.

    Args:
        step: The function to fold.
        carry: The carry before the first block.
        chosen: The distinct texts.
        texts: The dictionary.
        moments: Moments of the normal images.
        pooling: Shrinkage, or None.
        chunk_size: Texts per chunk; static.
        precision: Precision of the products; static.
    """
    places, (classes, dim) = len(chosen.positions), moments.mean.shape
    if not places:
        return carry
    chunks = -(-places // min(chunk_size, VARIANCE_CHUNK))
    size = -(-places // chunks)
    positions = jnp.pad(chosen.positions, (0, chunks * size - places)).reshape(chunks, size)
    block = min(classes, max(1, chunk_size * dim // (chunks * size)))
    block = -(-classes // -(-classes // block))

    def add_block(carry: Carry, first: jax.Array, number: int) -> Carry:
        classes_in_block = None if number == classes else number
        tables = _tables(
            texts, moments, pooling, positions, chosen.number, first, classes_in_block, precision
        )
        return step(carry, first, tables)

    return fold_chunks(jax.checkpoint(add_block, static_argnums=2), carry, classes, block)


@partial(jax.custom_jvp, nondiff_argnums=(6, 7))
def _tables(
    texts: jax.Array,
    moments: ClassMoments,
    pooling: Pooling | None,
    positions: Int[jax.Array, "chunks size"],
    used: Int[jax.Array, ""],
    first: Int[jax.Array, ""],
    number: int | None,
    precision: Precision,
) -> TextStatistics:
    """Returns the statistics of a block of classes; rows after the first `used` are undefined."""
    chunks, size = positions.shape
    columns = len(moments.count) if number is None else number
    varying = *moments, *(() if pooling is None else (pooling.share, pooling.cov))
    shape = chunks * size, columns
    empty = zeros_varying(shape, moments.mean.dtype, texts, positions, *varying)

    def add_chunk(chunk: jax.Array, tables: TextStatistics) -> TextStatistics:
        rows = positions[chunk]
        found = _of_rows(texts, moments, pooling, rows, first, number, precision, False)
        return jax.tree.map(
            lambda table, new: lax.dynamic_update_slice_in_dim(table, new, chunk * size, axis=0),
            tables,
            found,
        )

    # Chunks after the last text in use are not computed.
    in_use = (used + size - 1) // size
    return lax.fori_loop(0, in_use, add_chunk, TextStatistics(empty, empty))


@partial(_tables.defjvp, symbolic_zeros=True)
def _tables_jvp(
    number: int | None, precision: Precision, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[TextStatistics, TextStatistics]:
    """Differentiates all chunks, because a loop of unknown length has no reverse mode."""
    positions, _, first = primals[3:]
    values = _tables(*primals, number, precision)
    leaves, structure = jax.tree.flatten(primals[:3])
    slopes = jax.tree.leaves(tangents[:3], is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    moving = [i for i, slope in enumerate(slopes) if not isinstance(slope, SymbolicZero)]
    if not moving:
        return values, jax.tree.map(jnp.zeros_like, values)

    def every_chunk(*moved: jax.Array) -> TextStatistics:
        given = list(leaves)
        for i, leaf in zip(moving, moved, strict=True):
            given[i] = leaf
        texts, moments, pooling = jax.tree.unflatten(structure, given)

        @jax.checkpoint
        def of_rows(rows: jax.Array) -> TextStatistics:
            return _of_rows(texts, moments, pooling, rows, first, number, precision, True)

        tables = lax.map(of_rows, positions)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), tables)

    _, slope = jax.jvp(every_chunk, [leaves[i] for i in moving], [slopes[i] for i in moving])
    return values, slope


def _of_rows(
    texts: jax.Array,
    moments: ClassMoments,
    pooling: Pooling | None,
    rows: jax.Array,
    first: jax.Array,
    number: int | None,
    precision: Precision,
    differentiable: bool,
) -> TextStatistics:
    of_classes = None if number is None else (first, number)
    return dictionary_statistics(
        texts[rows],
        moments,
        pooling,
        of_classes,
        precision=precision,
        differentiable=differentiable,
    )


def sum_of_z_scores(
    cosines: Float[jax.Array, "images k"],
    row: Int[jax.Array, "images k"],
    inside: Bool[jax.Array, "images k"] | None,
    statistics: TextStatistics,
) -> Float[jax.Array, "images classes"]:
    """Returns the sum of (s(x, d) - mu_{c,d}) / sigma_{c,d} over the k places, or over the places in `inside`.

    The places are added one after the other, several of them in one fused loop, so that a score builds no array
    [images, k, classes]. In reverse mode and in explanations XLA keeps up to 3 of them on CPUs (measured).
    """
    mean, deviation = statistics

    @jax.checkpoint
    def z_scores(cosine: jax.Array, row: jax.Array, inside: jax.Array | None) -> jax.Array:
        z = (cosine[:, None] - mean[row]) / deviation[row]
        return z if inside is None else jnp.where(inside[:, None], z, 0)

    def add_place(total: jax.Array, place: tuple) -> tuple[jax.Array, None]:
        return total + z_scores(*place), None

    varying = cosines, row, mean, deviation, *(() if inside is None else (inside,))
    total = zeros_varying((cosines.shape[0], mean.shape[1]), cosines.dtype, *varying)
    places = cosines.T, row.T, None if inside is None else inside.T
    return lax.scan(add_place, total, places, unroll=_places_at_once(cosines.shape[1]))[0]


def _places_at_once(k: int) -> int:
    """Returns the number of places that are added in one step of a loop: a divisor of k, at most k / 2 and 16.

    The loop keeps XLA's CPU backend from fusing the sum with the minimum over classes. It would then write the
    statistics of all places to memory: 888 instead of 80 MB with 10,000 images, 1,000 classes and k = 10.
    """
    return max(n for n in range(1, 17) if k % n == 0 and (2 * n <= k or n == 1))
