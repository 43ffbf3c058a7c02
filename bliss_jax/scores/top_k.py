"""Exact search for the k texts nearest to each image by cosine, without the images-by-texts matrix.

The dictionary is read in chunks, for a block of images at a time, and each chunk is merged into the k nearest texts
of the earlier chunks (`selection.py`). For any number of images and texts, memory besides inputs and result is at most

    2 min(images, block) (chunk_size + 8 k)    numbers of 4 bytes

with a block of 512 images on CPUs. Elsewhere a block has 4,096 images, or more if a chunk has few texts: as many as
take the memory of 4,096 images and 65,536 texts. The result is the same for every chunk size. Ties go to the text
that comes first.

A dictionary that is too large for one device is sharded over a mesh axis (`dictionary_axis`): each device finds
the k nearest of its own texts, and the k nearest of these candidates are the k nearest of all texts.

The gradient of a cosine is that of the dot product with the chosen text; the choice itself has no gradient. Besides
the gradients, reverse mode takes images x dim numbers more, because it runs through the k places one by one.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.blocks import fold_chunks, map_images, zeros_varying
from bliss_jax.scores.reductions import zero_like_inputs
from bliss_jax.scores.selection import TopK, merge_chunk, no_texts
from bliss_jax.scores.shapes import row_mask, same_dim

Axis = str | tuple[str, ...]
"""Name of a mapped axis, or names of several axes that are used as one."""

Nearest = tuple[Float[Array, "images places"], Int[Array, "images places"]]
"""Cosines in descending order, and the positions of the texts in the dictionary."""

_CPU_SIZES = 4096, 512
_ACCELERATOR_SIZES = 65536, 4096


def default_sizes() -> tuple[int, int]:
    """Returns the number of texts in a chunk and of images in a block.

    With these sizes a product fits a CPU's cache or keeps a GPU busy.
    """
    return _CPU_SIZES if jax.default_backend() == "cpu" else _ACCELERATOR_SIZES


def block_size(chunk_size: int, k: int) -> int:
    """Returns the number of images in a block.

    On accelerators small chunks get larger blocks: every block starts the same number of kernels, which takes longer
    than the search itself if a block has little work.
    """
    texts, images = default_sizes()
    if jax.default_backend() == "cpu":
        return images
    return max(images, texts * images // (chunk_size + 8 * k))


def check_chunk_size(chunk_size: Any) -> int:
    """Returns the chunk size; None stands for the backend's default.

    Raises:
        ValueError: The chunk size is traced, not an integer, or below 1.
    """
    if chunk_size is None:
        return default_sizes()[0]
    _checks.static_integer("chunk_size", chunk_size, 1)
    return chunk_size


def similarity(
    embeddings: Float[Array, "images dim"],
    texts: Float[Array, "texts dim"],
    *,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, "images texts"]:
    """Computes s(x, t) = x . t, the cosine of unit-norm embeddings.

    Products of two float16 or two bfloat16 arrays are accumulated in float32 without converting the arrays first.
    Other mixtures are promoted as by `jax.numpy`, to at least float32.

    Args:
        embeddings: Unit-norm embeddings [images, dim].
        texts: Unit-norm embeddings [texts, dim].
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Cosines [images, texts], at least float32.
    """
    x, texts = jnp.asarray(embeddings), jnp.asarray(texts)
    dtype = _checks.accumulation_dtype(x, texts)
    if x.dtype != texts.dtype:
        x, texts = x.astype(dtype), texts.astype(dtype)
    return lax.dot_general(
        x, texts, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=dtype
    )


def top_k_similar(
    embeddings: Float[Array, "images dim"],
    texts: Float[Array, "texts dim"],
    k: int,
    *,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> tuple[Float[jax.Array, "images k"], Int[jax.Array, "images k"]]:
    """Returns the k largest cosines s(x, t) = x . t of each image x to the texts t, and the positions of these texts.

    The docstring of this module bounds the memory, forward and in reverse mode.

    Args:
        embeddings: Unit-norm embeddings [images, dim].
        texts: Unit-norm embeddings [texts, dim] of texts, or of other items to be searched.
        k: Number of texts per image, 1 <= k <= texts; static.
        where: Rows of `texts` to search [texts]; False marks padding, which is never chosen. All by default.
            Under tracing, if fewer than k rows are left, the remaining places have a cosine of -inf.
        dictionary_axis: Name of the mapped axis (of `shard_map` or of `vmap`), or a tuple of names, over which the
            texts are sharded; static. Each device has the same number of rows, of which `where` may mark some as
            padding, and k is at most the number of texts of all devices. Every device gets the result that one
            device with all rows would compute. Positions count the rows of all devices, one device after the other.
        chunk_size: Texts per chunk; static. 4,096 by default on CPUs and 65,536 elsewhere.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Cosines [images, k] in descending order, at least float32, and positions of the texts [images, k], int32.
        0 images give arrays [0, k]. Under tracing, a row of `texts` that is not finite is never chosen, and an image
        that is not finite has cosines of -inf.

    Raises:
        ValueError: The arrays are not floating matrices of one dimension with finite rows of unit norm, k is not
            an integer in 1..texts, the mask does not fit or leaves fewer than k texts, or `chunk_size` is below 1.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    searched = checks.embeddings("texts", texts)
    same_dim(embeddings=x, texts=searched)
    counted = check_search(checks, k, searched, where, dictionary_axis)
    checks.run()
    return _top_k_similar(
        x,
        searched,
        counted,
        k=k,
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


def check_search(
    checks: _checks.ValueChecks,
    k: Any,
    texts: jax.Array,
    where: Any,
    dictionary_axis: Axis | None,
    of_what: str = "the texts of the dictionary",
) -> jax.Array | None:
    """Checks k, `where` and the number of texts of a search, and returns the mask.

    Raises:
        ValueError: k is not an integer in 1..texts, or the mask does not fit.
    """
    devices = 1 if dictionary_axis is None else lax.axis_size(dictionary_axis)
    _checks.top_k_size(k, devices * len(texts), of_what)
    counted = row_mask("where", where, len(texts), "text")
    if counted is not None and dictionary_axis is None:
        checks.add(
            "at least",
            k,
            lambda mask: (
                f"k: expected an integer in 1..{mask.sum()} (the texts that `where` leaves), got {k}"
            ),
            counted,
        )
    return counted


@compiled(
    static=("k", "dictionary_axis", "chunk_size", "precision"),
    out=lambda x, *_: (rows(x), rows(x)),
)
def _top_k_similar(
    x: jax.Array, texts: jax.Array, counted: jax.Array | None, **options: Any
) -> tuple[jax.Array, jax.Array]:
    return nearest_texts(x, texts, counted, **options)


def nearest_texts(
    x: Float[jax.Array, "images dim"],
    texts: Float[jax.Array, "texts dim"],
    counted: Bool[jax.Array, " texts"] | None,
    *,
    k: int,
    dictionary_axis: Axis | None,
    chunk_size: int,
    precision: Precision,
) -> tuple[Float[jax.Array, "images k"], Int[jax.Array, "images k"]]:
    """Computes `top_k_similar` inside a jitted function, without checks."""
    values, positions = _search(
        lax.stop_gradient(x),
        lax.stop_gradient(texts),
        counted,
        k=k,
        axis=dictionary_axis,
        chunk_size=chunk_size,
        precision=precision,
    )
    row, inside = local_rows(positions, len(texts), dictionary_axis)
    found = jnp.isfinite(values) if inside is None else jnp.isfinite(values) & inside
    return _with_gradient(values, x, texts, row, found, dictionary_axis), positions


def _search(
    x: jax.Array,
    texts: jax.Array,
    counted: jax.Array | None,
    *,
    k: int,
    axis: Axis | None,
    chunk_size: int,
    precision: Precision,
) -> tuple[Float[jax.Array, "images k"], Int[jax.Array, "images k"]]:
    own, size = min(k, len(texts)), min(chunk_size, len(texts))
    dtype = _checks.accumulation_dtype(x, texts)

    def of_images(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def add_chunk(best: TopK, start: jax.Array, size: int) -> TopK:
            chunk = lax.dynamic_slice_in_dim(texts, start, size)
            mask = None if counted is None else lax.dynamic_slice_in_dim(counted, start, size)
            return merge_chunk(best, similarity(chunk, x, precision=precision), start, mask)

        zero = zero_like_inputs(x, texts, *(() if counted is None else (counted,)))
        best = fold_chunks(add_chunk, no_texts(own, x.shape[0], dtype, zero), len(texts), size)
        return best.values.T, best.texts.T

    values, positions = map_images(of_images, x, block_size(size, own))
    if axis is None:
        return values, positions
    return _nearest_of_all(values, positions, len(texts), k, axis)


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def _with_gradient(
    values: jax.Array,
    x: jax.Array,
    texts: jax.Array,
    row: jax.Array,
    found: jax.Array,
    axis: Axis | None,
) -> jax.Array:
    """Returns the values, with the gradient of the dot products of images and chosen texts."""
    return values


@partial(_with_gradient.defjvp, symbolic_zeros=True)
def _with_gradient_jvp(
    axis: Axis | None, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    """Computes d s(x, t) = dx . t + x . dt, place by place, in images x dim numbers of memory."""
    values, x, texts, row, found = primals
    _, dx, dtexts, *_ = tangents

    @jax.checkpoint
    def of_place(row: jax.Array, found: jax.Array) -> jax.Array:
        total = zeros_varying(row.shape, values.dtype, x, texts, row)
        for moved, fixed in ((dx, texts[row]), (_rows_of(dtexts, row), x)):
            if not isinstance(moved, SymbolicZero):
                total = total + jnp.sum(moved.astype(values.dtype) * fixed.astype(values.dtype), 1)
        return jnp.where(found, total, 0)

    slope = lax.map(lambda place: of_place(*place), (row.T, found.T)).T
    return values, slope if axis is None else lax.psum(slope, axis)


def _rows_of(array: Any, row: jax.Array) -> Any:
    return array if isinstance(array, SymbolicZero) else array[row]


def local_rows(
    positions: Int[jax.Array, "images places"], texts: int, axis: Axis | None
) -> tuple[Int[jax.Array, "images places"], Bool[jax.Array, "images places"] | None]:
    """Returns positions as rows of this device, and whether it holds each of them; None stands for all."""
    if axis is None:
        return positions, None
    row = positions - lax.axis_index(axis) * texts
    inside = (row >= 0) & (row < texts)
    return jnp.where(inside, row, 0), inside


def _nearest_of_all(
    values: Float[jax.Array, "images own"],
    positions: Int[jax.Array, "images own"],
    texts: int,
    k: int,
    axis: Axis,
) -> tuple[Float[jax.Array, "images k"], Int[jax.Array, "images k"]]:
    """Returns the k largest of the candidates of all devices, each of which holds `texts` texts."""
    device = lax.axis_index(axis)
    # Gathered one device after the other, so that the first of equal values is the text that comes first.
    values = lax.all_gather(values, axis, axis=1, tiled=True)
    positions = lax.all_gather(positions + device * texts, axis, axis=1, tiled=True)
    values, place = lax.top_k(values, k)
    nearest = values, jnp.take_along_axis(positions, place, axis=1)
    # The values are equal on all devices, but JAX's types show this only for a sum over devices.
    return jax.tree.map(lambda leaf: lax.psum(jnp.where(device == 0, leaf, 0), axis), nearest)


def pad_dictionary(
    dictionary_embeddings: Float[Array, "texts dim"], multiple: int
) -> tuple[Float[jax.Array, "padded dim"], Bool[jax.Array, " padded"]]:
    """Pads a dictionary so that a mesh axis of `multiple` devices divides its rows.

    The added rows repeat the last text, so that all rows are unit-norm embeddings. The mask marks them as padding.

    Args:
        dictionary_embeddings: Unit-norm embeddings [texts, dim], at least one.
        multiple: Number of devices on the axis; static.

    Returns:
        The embeddings [padded, dim], padded to the next multiple, and the mask `where` [padded] that is False for
        the added rows.

    Raises:
        ValueError: The dictionary is empty, or the multiple is below 1.
    """
    texts = _checks.as_array("dictionary_embeddings", dictionary_embeddings)
    _checks.static_integer("multiple", multiple, 1)
    if len(texts) < 1:
        raise ValueError("dictionary_embeddings: expected at least one text, got none")
    numbers = jnp.arange(-(-len(texts) // multiple) * multiple)
    return texts[jnp.minimum(numbers, len(texts) - 1)], numbers < len(texts)
