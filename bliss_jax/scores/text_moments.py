"""Mean and variance of the similarity of each class to each text, and variances of few images.

    mu_{c,t} = t . m_c        sigma^2_{c,t} = t^T C_c t

With few images a variance is noise. Shrinkage draws it toward the within-class variance pooled over the
normal classes, as if n0 images of it had been seen,

    v = (n_c v_c + n0 v_pooled) / (n_c + n0),    v_pooled(t) = sum n_c v_{c,t} / sum n_c,

and the v_pooled of a dictionary's text is itself drawn, with the weight of five images, toward its mean over
the dictionary (one class with two images has nothing else to lean on).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax._checks import Array
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.top_k import Carry, fold_chunks

EPSILON = 1e-8
"""Added to every standard deviation, as in the reference."""

PRIOR_IMAGES = 5.0
"""Weight, in images, of the mean over the dictionary in a pooled variance."""

_HIGHEST = lax.Precision.HIGHEST


def text_moments(
    texts: Float[jax.Array, "texts dim"], moments: ClassMoments
) -> tuple[Float[jax.Array, "texts classes"], Float[jax.Array, "texts classes"]]:
    """Mean t . m_c and variance t^T C_c t of the similarity of each class to each text."""
    mean = jnp.matmul(texts, moments.mean.T, precision=_HIGHEST)

    # One class at a time: the product of all texts with one covariance is as large as the texts.
    def class_variance(cov):
        return jnp.sum(jnp.matmul(texts, cov, precision=_HIGHEST) * texts, axis=1)

    variance = lax.map(class_variance, moments.cov).T
    return mean, jnp.maximum(variance, 0)


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
    prior = PRIOR_IMAGES * jnp.dot(dictionary_mean, weights)
    return (images * pooled + prior) / (images + PRIOR_IMAGES)


def shrinkage_is_on(shrinkage: float | Array) -> bool:
    """Whether shrinkage may be other than 0; a traced value may."""
    return not (isinstance(shrinkage, int | float) and shrinkage == 0)


def fold_nearest_texts(
    step: Callable[[Carry, jax.Array, jax.Array, jax.Array, jax.Array], Carry],
    carry: Carry,
    nearest: Int[jax.Array, "images k"],
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    *,
    mask: Bool[jax.Array, " classes"],
    shrinkage: float | Float[Array, ""],
    chunk_size: int,
) -> Carry:
    """Folds `carry = step(carry, mean, deviation, row, inside)` over chunks of the texts in `nearest`.

    Args:
        step: Takes the mean and standard deviation [chunk, classes] of each class's similarity to the
            texts of a chunk; the position [images, k] of each of the images' texts in the chunk, and
            whether it is there [images, k].
        carry: Its start.
        nearest: Positions in `texts` of each image's texts.
        texts: The dictionary.
        moments: Of the normal images.
        mask: The classes over which `shrinkage` pools.
        shrinkage: n0 of `bliss_score`.
        chunk_size: Texts handled at once; static.
    """
    prior = _dictionary_mean_variance(texts, moments) if shrinkage_is_on(shrinkage) else None
    if nearest.size < len(texts):
        # Fewer places than texts: go through the chosen texts, one for each place, not through all.
        chosen, length = nearest.reshape(-1), nearest.size
        nearest = jnp.arange(length, dtype=jnp.int32).reshape(nearest.shape)
    else:
        chosen, length = None, len(texts)

    def take(start, size):
        if chosen is None:
            return lax.dynamic_slice_in_dim(texts, start, size)
        return texts[lax.dynamic_slice_in_dim(chosen, start, size)]

    def add_chunk(carry, start, size):
        mean, variance = text_moments(take(start, size), moments)
        if prior is not None:
            pooled = pooled_dictionary_variance(variance, prior, moments.count, mask)
            share = shrinkage_share(moments.count, shrinkage, moments.mean.dtype)[None, :]
            variance = variance + share * (pooled[:, None] - variance)
        row = nearest - start
        inside = (row >= 0) & (row < size)
        return step(carry, mean, standard_deviation(variance), jnp.clip(row, 0, size - 1), inside)

    return fold_chunks(add_chunk, carry, length, min(chunk_size, length))


def _dictionary_mean_variance(
    texts: Float[jax.Array, "texts dim"], moments: ClassMoments
) -> Float[jax.Array, " classes"]:
    """Mean over the texts of t^T C_c t, which is the trace of C_c times their second moment."""
    second_moment = jnp.matmul(texts.T, texts, precision=_HIGHEST) / len(texts)
    return jnp.einsum("cde,de->c", moments.cov, second_moment, precision=_HIGHEST)
