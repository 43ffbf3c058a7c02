"""Mean and variance of the similarity of each class to each text, and variances of few images.

    mu_{c,t} = t . m_c        sigma^2_{c,t} = t^T C_c t

With few images a variance is noise. Shrinkage draws it toward the within-class variance pooled over the
normal classes, as if n0 images of it had been seen,

    v = (n_c v_c + n0 v_pooled) / (n_c + n0),    v_pooled(t) = sum n_c v_{c,t} / sum n_c,

and the v_pooled of a dictionary's text is itself drawn, with the weight of five images, toward its mean over
the dictionary (one class with two images has nothing else to lean on).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax._checks import Array
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.reductions import zero_like_inputs
from bliss_jax.scores.top_k import Carry, fold_chunks

EPSILON = 1e-8
"""Added to every standard deviation, as in the reference."""

PRIOR_IMAGES = 5.0
"""Weight, in images, of the mean over the dictionary in a pooled variance."""

VARIANCE_CHUNK = 2048
"""Texts whose variances are computed at once, at most: larger products are not faster."""

_HIGHEST = lax.Precision.HIGHEST


def text_moments(
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    classes: tuple[Int[jax.Array, ""], int] | None = None,
) -> tuple[Float[jax.Array, "texts block"], Float[jax.Array, "texts block"]]:
    """Mean t . m_c and variance t^T C_c t of the similarity of each class to each text.

    Args:
        texts: Texts.
        moments: Of the normal images.
        classes: The first of a block of classes, and their (static) number; all by default.
    """
    class_mean = moments.mean
    if classes is not None:
        class_mean = lax.dynamic_slice_in_dim(class_mean, *classes)
    mean = jnp.matmul(texts, class_mean.T, precision=_HIGHEST)

    # One class at a time: the product of all texts with one covariance is as large as the texts.
    if classes is None:
        variance = lax.map(lambda cov: _quadratic_form(texts, cov), moments.cov)
    else:
        # By their numbers: a slice of the covariances would be a copy, larger than all else here.
        numbers = classes[0] + jnp.arange(classes[1], dtype=jnp.int32)
        variance = lax.map(lambda c: _quadratic_form(texts, moments.cov[c]), numbers)
    return mean, jnp.maximum(variance.T, 0)


def _quadratic_form(
    texts: Float[jax.Array, "texts dim"], cov: Float[jax.Array, "dim dim"]
) -> Float[jax.Array, " texts"]:
    """t^T C t of each text."""
    return jnp.sum(jnp.matmul(texts, cov, precision=_HIGHEST) * texts, axis=1)


def standard_deviation(variance: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """sqrt(variance) + 1e-8, with a finite gradient (0) where the variance is 0."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0) + EPSILON


def pooling_weights(
    count: Int[jax.Array, " classes"], mask: Bool[jax.Array, " classes"], dtype
) -> Float[jax.Array, " classes"]:
    """Share of each normal class in the images of all normal classes."""
    normal = jnp.where(mask, count, 0).astype(dtype)
    return normal / jnp.maximum(normal.sum(), 1)


def pooled_covariance(
    moments: ClassMoments, mask: Bool[jax.Array, " classes"]
) -> Float[jax.Array, "dim dim"]:
    """Sum n_c C_c / sum n_c over the normal classes: v_pooled(t) = t^T C t."""
    weights = pooling_weights(moments.count, mask, moments.cov.dtype)
    return jnp.einsum("c,cde->de", weights, moments.cov, precision=_HIGHEST)


def shrinkage_share(
    count: Int[jax.Array, " classes"], shrinkage: float | Float[Array, ""], dtype
) -> Float[jax.Array, " classes"]:
    """n0 / (n_c + n0), the weight of the pooled variance."""
    images = jnp.maximum(count, 1).astype(dtype)
    return 1 - images / (images + shrinkage)


def pooled_dictionary_variance(
    variance: Float[jax.Array, "texts classes"],
    dictionary_mean: Float[jax.Array, " classes"],
    count: Int[jax.Array, " classes"],
    mask: Bool[jax.Array, " classes"],
) -> Float[jax.Array, " texts"]:
    """The variance pooled over the normal classes, drawn toward its mean over the dictionary."""
    weights = pooling_weights(count, mask, variance.dtype)
    images = jnp.sum(jnp.where(mask, count, 0)).astype(variance.dtype)
    pooled = jnp.matmul(variance, weights, precision=_HIGHEST)
    return _toward_prior(pooled, jnp.dot(dictionary_mean, weights), images)


def _toward_prior(
    pooled: Float[jax.Array, " texts"],
    prior: Float[jax.Array, ""],
    images: Float[jax.Array, ""],
) -> Float[jax.Array, " texts"]:
    """Pooled variances, drawn with the weight of `PRIOR_IMAGES` toward their mean over the dictionary."""
    return (images * pooled + PRIOR_IMAGES * prior) / (images + PRIOR_IMAGES)


def shrinkage_is_on(shrinkage: float | Array) -> bool:
    """Whether shrinkage may be other than 0; a traced value may."""
    return not (isinstance(shrinkage, int | float) and shrinkage == 0)


class Pooling(NamedTuple):
    """What draws the variances of dictionary texts toward the normal classes' common one."""

    share: Float[jax.Array, " classes"]
    """n0 / (n_c + n0)."""
    cov: Float[jax.Array, "dim dim"]
    """Covariance pooled over the normal classes: v_pooled(t) = t^T cov t."""
    images: Float[jax.Array, ""]
    """Images of the normal classes."""
    prior: Float[jax.Array, ""]
    """Mean of v_pooled over the dictionary."""

    def variance(self, texts: Float[jax.Array, "texts dim"]) -> Float[jax.Array, " texts"]:
        """v_pooled of each text, drawn toward its mean over the dictionary."""
        pooled = jnp.maximum(_quadratic_form(texts, self.cov), 0)
        return _toward_prior(pooled, self.prior, self.images)


def dictionary_pooling(
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    *,
    mask: Bool[jax.Array, " classes"],
    shrinkage: float | Float[Array, ""],
    where: Bool[jax.Array, " texts"] | None = None,
    dictionary_axis: str | None = None,
) -> Pooling | None:
    """What `shrinkage` needs of the whole dictionary; None without shrinkage.

    The mean over the texts of t^T C t is the trace of C times their second moment.
    """
    if not shrinkage_is_on(shrinkage):
        return None
    dtype = moments.mean.dtype
    counted = texts if where is None else jnp.where(where[:, None], texts, 0)
    number = jnp.asarray(len(texts) if where is None else where.sum(), dtype)
    second_moment = jnp.matmul(counted.T, counted, precision=_HIGHEST)
    if dictionary_axis is not None:
        number = lax.psum(number + zero_like_inputs(texts), dictionary_axis)
        second_moment = lax.psum(second_moment, dictionary_axis)
    cov = pooled_covariance(moments, mask)
    return Pooling(
        shrinkage_share(moments.count, shrinkage, dtype),
        cov,
        jnp.sum(jnp.where(mask, moments.count, 0)).astype(dtype),
        jnp.sum(cov * second_moment) / jnp.maximum(number, 1),
    )


def dictionary_moments(
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    pooling: Pooling | None,
    classes: tuple[Int[jax.Array, ""], int] | None = None,
) -> tuple[Float[jax.Array, "texts block"], Float[jax.Array, "texts block"]]:
    """Mean and standard deviation of the similarity of each class to each text of a dictionary."""
    mean, variance = text_moments(texts, moments, classes)
    if pooling is not None:
        share = pooling.share
        if classes is not None:
            share = lax.dynamic_slice_in_dim(share, *classes)
        variance = variance + share[None, :] * (pooling.variance(texts)[:, None] - variance)
    return mean, standard_deviation(variance)


class ChosenTexts(NamedTuple):
    """The distinct texts among the nearest of all images."""

    positions: Int[jax.Array, " places"]
    """Their positions in the dictionary, ascending; zeros after the last of them."""
    number: Int[jax.Array, ""]
    """How many there are."""
    row: Int[jax.Array, "images k"]
    """Where in `positions` each image's texts stand."""
    inside: Bool[jax.Array, "images k"]
    """Whether they are there: not where another device holds the text."""


def chosen_texts(
    nearest: Int[jax.Array, "images k"], num_texts: int, *, dictionary_axis: str | None = None
) -> ChosenTexts:
    """The distinct texts in `nearest`, of the `num_texts` that this device holds."""
    if dictionary_axis is not None:
        nearest = nearest - lax.axis_index(dictionary_axis) * num_texts
    inside = (nearest >= 0) & (nearest < num_texts)
    outside = jnp.int32(num_texts)
    used = jnp.zeros(num_texts, bool)
    used = used.at[jnp.where(inside, nearest, outside)].set(True, mode="drop")
    rank = jnp.cumsum(used, dtype=jnp.int32)
    places = min(num_texts, nearest.size)
    positions = jnp.zeros(places, jnp.int32)
    positions = positions.at[jnp.where(used, rank - 1, outside)].set(
        jnp.arange(num_texts, dtype=jnp.int32), mode="drop"
    )
    row = jnp.maximum(rank[jnp.clip(nearest, 0, num_texts - 1)] - 1, 0)
    return ChosenTexts(positions, rank[-1], row, inside)


def fold_class_blocks(
    step: Callable[[Carry, Int[jax.Array, ""], jax.Array, jax.Array], Carry],
    carry: Carry,
    chosen: ChosenTexts,
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    pooling: Pooling | None,
    *,
    chunk_size: int,
) -> Carry:
    """Folds `carry = step(carry, first, mean, deviation)` over blocks of classes, `first` being the first.

    Mean and deviation [rows, block] are those of the block's classes to the chosen texts, in the rows that
    `chosen.row` names. A block has so many classes that neither table is larger than a chunk of texts, or
    than one number for each chosen text.

    Args:
        step: See above.
        carry: Its start.
        chosen: Texts in use.
        texts: The dictionary.
        moments: Of the normal images.
        pooling: Shrinkage, or None.
        chunk_size: Texts handled at once; static.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    places, (classes, dim) = len(chosen.positions), moments.mean.shape
    chunks = -(-places // min(chunk_size, VARIANCE_CHUNK))
    size = -(-places // chunks)
    positions = jnp.pad(chosen.positions, (0, chunks * size - places)).reshape(chunks, size)
    starts = jnp.arange(chunks, dtype=jnp.int32) * size
    block = min(classes, max(1, chunk_size * dim // (chunks * size)))
    block = -(-classes // -(-classes // block))

    varying = [moments.count, moments.mean, moments.cov]
    if pooling is not None:
        varying += [pooling.share, pooling.cov]

    def add_block(carry, first, number):
        of_classes = None if number == classes else (first, number)

        def of_chunk(entry):
            start, rows = entry
            # Chunks after the last text in use are not computed.
            return lax.cond(
                start < chosen.number,
                lambda: dictionary_moments(texts[rows], moments, pooling, of_classes),
                lambda: (unused, unused),
            )

        unused = jnp.zeros((size, number), texts.dtype)
        unused = unused + zero_like_inputs(texts, positions, *varying)
        mean, deviation = lax.map(of_chunk, (starts, positions))
        table = chunks * size, number
        return step(carry, first, mean.reshape(table), deviation.reshape(table))

    return fold_chunks(add_block, carry, classes, block)


def sum_of_z_scores(
    cosines: Float[jax.Array, "images k"],
    row: Int[jax.Array, "images k"],
    inside: Bool[jax.Array, "images k"] | None,
    mean: Float[jax.Array, "rows classes"],
    deviation: Float[jax.Array, "rows classes"],
) -> Float[jax.Array, "images classes"]:
    """Sum over the k places of (s(x, d) - mu_{c,d}) / sigma_{c,d}, of those inside.

    One place at a time, many of them in one fused loop: no images x k x classes array is built.
    """

    def add_place(total, place):
        cosine, row, inside = place
        z = (cosine[:, None] - mean[row]) / deviation[row]
        return total + (z if inside is None else jnp.where(inside[:, None], z, 0)), None

    total = jnp.zeros((len(cosines), mean.shape[1]), cosines.dtype)
    total = total + zero_like_inputs(
        cosines, row, mean, deviation, *(() if inside is None else (inside,))
    )
    places = cosines.T, row.T, None if inside is None else inside.T
    return lax.scan(add_place, total, places, unroll=min(cosines.shape[1], 16))[0]
