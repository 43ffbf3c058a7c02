"""k nearest neighbours: the negative mean of the k largest cosines to normal images.

    score(x) = - mean over the k normal images y nearest to x of s(x, y)

Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, applied
to CLIP's image embeddings. They use the distance to the k-th neighbour (`kth=True`); the mean of the k cosines is less
noisy, and the default. No text is used.

The k largest cosines to any union of classes are among the k largest to each class. The search is therefore done once
(`nearest_of_class`), and every split of a benchmark is scored from its result (`knn_score_from_nearest`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, row_axes, rows
from bliss_jax.scores.class_blocks import class_blocks
from bliss_jax.scores.parts import nan_if_missing
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite, zero_like_inputs
from bliss_jax.scores.selection import TopK, merge_chunk
from bliss_jax.scores.shapes import same_dim
from bliss_jax.scores.top_k import (
    Axis,
    check_chunk_size,
    check_search,
    nearest_texts,
    similarity,
)


def knn_score(
    embeddings: Float[Array, "images dim"],
    normal_embeddings: Float[Array, "bank dim"],
    k: int = 10,
    *,
    kth: bool = False,
    where: Bool[Array, " bank"] | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes minus the mean of s(x, y) over the k normal images y nearest to x.

    Memory is bounded as for `top_k_similar`, forward and in reverse mode (see `bliss_jax.scores.top_k`).

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        normal_embeddings: Unit-norm embeddings of the normal images [bank, dim].
        k: Neighbours, 1 <= k <= bank; static.
        kth: Whether the score is minus the cosine to the k-th neighbour instead of the mean of all k; static.
        where: Normal images that count [bank], see `top_k_similar`; all by default.
        dictionary_axis: Mapped axis over which the normal images are sharded, see `top_k_similar`; static.
        chunk_size: Normal images per chunk; static. It bounds the memory and does not change the result.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images] in [-1, 1], at least float32, higher = more anomalous. 0 images give an empty array. Under
        tracing, an image that is not finite has the score NaN, and all images have NaN if fewer than k normal images
        count.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, or k is not an
            integer in 1..bank.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    bank = checks.embeddings("normal_embeddings", normal_embeddings)
    same_dim(embeddings=x, normal_embeddings=bank)
    counted = check_search(checks, k, bank, where, dictionary_axis, "the normal images")
    checks.run()
    return _knn(
        x,
        bank,
        counted,
        k=k,
        kth=kth,
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


@compiled(
    static=("k", "kth", "dictionary_axis", "chunk_size", "precision"), out=lambda x, *_: rows(x)
)
def _knn(
    x: jax.Array, bank: jax.Array, counted: jax.Array | None, *, kth: bool, **static: Any
) -> jax.Array:
    cosines, _ = nearest_texts(x, bank, counted, **static)
    cosines = nan_if_missing(cosines)
    return nan_unless_finite(-(cosines[:, -1] if kth else cosines.mean(axis=1)), x)


def nearest_of_class(
    embeddings: Float[Array, "images dim"],
    bank_embeddings: Float[Array, "bank dim"],
    bank_labels: Int[Array, " bank"],
    k: int = 10,
    *,
    num_classes: int,
    block_size: int = 1024,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, "images classes k"]:
    """Returns the k largest cosines of each image to the bank's images of each class, in descending order.

    Besides inputs and result, the forward computation takes about 2 images x `block_size` numbers and a copy of the
    result. Reverse mode keeps the cosines of all blocks, several times images x bank numbers.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        bank_embeddings: Unit-norm embeddings of labelled images [bank, dim].
        bank_labels: Class of each image of the bank [bank], in 0..num_classes-1.
        k: Neighbours, 1 <= k <= bank; static.
        num_classes: C; static.
        block_size: Largest number of images of one class that are compared at once; static. It bounds the memory.
        precision: Precision of the product, see `jax.lax.dot_general`; static.

    Returns:
        Cosines [images, C, k], at least float32; -inf in places that a class with fewer than k images leaves empty.

    Raises:
        ValueError: One of the reasons listed in `knn_score`, or labels are out of range.
    """
    _checks.static_integer("num_classes", num_classes, 1)
    _checks.static_integer("block_size", block_size, 1)
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    bank = checks.embeddings("bank_embeddings", bank_embeddings)
    same_dim(embeddings=x, bank_embeddings=bank)
    _checks.top_k_size(k, len(bank), "the images of the bank")
    labels = checks.class_labels("bank_labels", bank_labels, len(bank), num_classes)
    checks.run()
    return _nearest_of_class(
        x, bank, labels, k=k, num_classes=num_classes, block_size=block_size, precision=precision
    )


@compiled(
    static=("k", "num_classes", "block_size", "precision"),
    out=lambda x, *_: PartitionSpec(row_axes(x)),
)
def _nearest_of_class(
    x: jax.Array,
    bank: jax.Array,
    labels: jax.Array,
    *,
    k: int,
    num_classes: int,
    block_size: int,
    precision: Precision,
) -> jax.Array:
    labels = jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    dtype = _checks.accumulation_dtype(x, bank)

    def add_block(nearest: jax.Array, block: tuple) -> tuple[jax.Array, None]:
        rows, valid, c = block
        cosines = similarity(bank[rows], x, precision=precision)
        best = TopK(nearest[c], jnp.zeros(nearest.shape[1:], jnp.int32))
        return nearest.at[c].set(merge_chunk(best, cosines, jnp.int32(0), valid).values), None

    nothing = jnp.full((num_classes, k, x.shape[0]), -jnp.inf, dtype)
    nothing = nothing + zero_like_inputs(x, bank, labels).astype(dtype)
    blocks = class_blocks(labels, num_classes, block_size)
    return jnp.transpose(lax.scan(add_block, nothing, blocks)[0], (2, 0, 1))


def knn_score_from_nearest(
    nearest: Float[Array, "images classes k"],
    *,
    normal: Bool[Array, " classes"] | None = None,
    kth: bool = False,
) -> Float[jax.Array, " images"]:
    """Computes `knn_score` over the images of the normal classes from the result of `nearest_of_class`.

    Args:
        nearest: Cosines [images, classes, k], -inf in places without a neighbour.
        normal: Mask of the normal classes [classes]; all by default.
        kth: Whether only the k-th neighbour counts, as in `knn_score`; static.

    Returns:
        Scores [images], higher = more anomalous; +inf if the normal classes together have fewer than
        k images.

    Raises:
        ValueError: The array has other axes, the mask does not fit, or no class is normal.
    """
    cosines = _checks.as_array("nearest", nearest)
    if cosines.ndim != 3:
        raise ValueError(
            f"nearest: expected cosines [images, classes, k], got {list(cosines.shape)}"
        )
    checks = _checks.ValueChecks()
    mask = checks.normal_mask(normal, cosines.shape[1])
    checks.run()
    return _from_nearest(cosines, mask, kth=kth)


@compiled(static=("kth",), out=lambda nearest, *_: rows(nearest))
def _from_nearest(nearest: jax.Array, mask: jax.Array, *, kth: bool) -> jax.Array:
    classes, k = nearest.shape[1:]
    nearest = jnp.where(mask[None, :, None], nearest, -jnp.inf)
    if classes > k:
        # The k nearest images belong to the k classes with the largest first cosine, so fewer cosines are sorted.
        _, few = lax.top_k(nearest[:, :, 0], k)
        nearest = jnp.take_along_axis(nearest, few[:, :, None], axis=1)
    flat = nearest.reshape(nearest.shape[0], nearest.shape[1] * k)
    cosines = lax.top_k(flat, k)[0]
    return -(cosines[:, -1] if kth else cosines.mean(axis=1))


def _of_split(nearest_images, normal) -> jax.Array:
    return knn_score_from_nearest(nearest_images, normal=normal)


def _kth_of_split(nearest_images, normal) -> jax.Array:
    return knn_score_from_nearest(nearest_images, normal=normal, kth=True)


class _Bank(NamedTuple):
    """The normal images of a detector; a pytree."""

    embeddings: Float[jax.Array, "*mapped bank dim"]
    where: Bool[jax.Array, "*mapped bank"]
    """Whether the class of each image is normal."""


def _prepare(train_embeddings, train_labels, normal) -> _Bank:
    return _Bank(train_embeddings, normal[train_labels])


def _from_bank(embeddings, prepared, neighbours) -> jax.Array:
    return knn_score(embeddings, prepared.embeddings, neighbours, where=prepared.where)


def _kth_from_bank(embeddings, prepared, neighbours) -> jax.Array:
    return knn_score(embeddings, prepared.embeddings, neighbours, kth=True, where=prepared.where)


_PAPER = "Sun et al., ICML 2022"
SCORES = (
    Score(
        "knn",
        _of_split,
        source=_PAPER,
        default=True,
        order=11,
        one_split_at_a_time=True,
        prepare=_prepare,
        from_prepared=_from_bank,
    ),
    Score(
        "knn_kth",
        _kth_of_split,
        source=_PAPER,
        order=27,
        one_split_at_a_time=True,
        prepare=_prepare,
        from_prepared=_kth_from_bank,
    ),
)
