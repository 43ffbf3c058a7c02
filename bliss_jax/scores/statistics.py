"""Mean and standard deviation of the similarity of each class to each text, from the moments of the images.

    mu_{c,t} = t . m_c        sigma_{c,t} = sqrt(t^T C_c t) + 1e-8

With few images a variance is noise. Shrinkage moves it toward the within-class variance pooled over the normal
classes, with the weight of n0 images:

    v = (n_c v_c + n0 v_pooled) / (n_c + n0),    v_pooled(t) = sum n_c v_{c,t} / sum n_c

For a text of the dictionary, v_pooled is itself moved toward its mean over the dictionary, with the weight of five
images, because one class with two images has nothing else to pool with.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.blocks import fold_chunks, zeros_varying
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.shapes import row_mask
from bliss_jax.scores.top_k import Axis, check_chunk_size

EPSILON = 1e-8
"""Added to every standard deviation, as in the reference."""

PRIOR_IMAGES = 5.0
"""Weight, in images, of the mean over the dictionary in a pooled variance."""

VARIANCE_CHUNK = 2048
"""Largest number of texts whose variances are computed at once. Larger products are not faster."""

_HIGHEST = lax.Precision.HIGHEST


class TextStatistics(NamedTuple):
    """Mean and standard deviation of the similarity of each class to each text; a pytree."""

    mean: Float[jax.Array, "*mapped texts classes"]
    """mu_{c,t}."""
    deviation: Float[jax.Array, "*mapped texts classes"]
    """sigma_{c,t}, at least 1e-8."""


def text_statistics(
    texts: Float[Array, "texts dim"],
    moments: ClassMoments,
    *,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> TextStatistics:
    """Computes mu_{c,t} = t . m_c and sigma_{c,t} = sqrt(t^T C_c t) + 1e-8 of every class c and text t.

    BLISS standardises a similarity with them: (s(x, t) - mu_{c,t}) / sigma_{c,t} (arXiv 2407.17083, section 4).

    Memory, with T texts, C classes and L = min(chunk_size, T, 2048): besides inputs and result, at most
    4 L (dim + C) + 4 dim^2 numbers. A gradient takes at most 8 T C + 2 T dim + 4 C dim^2 numbers more besides its
    outputs (measured on CPUs). The products of all texts and classes, T x C x dim numbers, are never kept.

    Args:
        texts: Unit-norm embeddings of a dictionary's texts [texts, dim].
        moments: Fitted on normal images (`fit_moments`).
        normal: Mask of the normal classes [classes], over which shrinkage pools; all by default.
        shrinkage: n0 >= 0, see the docstring of this module; 0 is the paper's score.
        where: Texts that count in the mean over the dictionary [texts]; all by default.
        dictionary_axis: Mapped axis over which the texts are sharded, see `top_k_similar`; static.
        chunk_size: Largest number of texts per chunk; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Mean and deviation [texts, classes], at least float32. 0 texts give [0, classes]. Without
        shrinkage, a class without images has mean 0 and deviation 1e-8. Under tracing, a text that is not finite has
        a mean that is not finite.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`.
    """
    checks = _checks.ValueChecks()
    t = checks.embeddings("texts", texts)
    moments = check_moments(checks, moments, texts=t)
    _checks.scalar("shrinkage", shrinkage, minimum=0.0)
    mask = checks.normal_mask(normal, len(moments.count), moments.count)
    counted = row_mask("where", where, len(t), "text")
    checks.run()
    return _text_statistics(
        t,
        moments,
        mask,
        shrinkage,
        counted,
        shrunk=shrinkage_is_on(shrinkage),
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


@compiled(
    static=("shrunk", "dictionary_axis", "chunk_size", "precision"), out=lambda t, *_: rows(t)
)
def _text_statistics(
    texts: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    shrinkage: Any,
    counted: jax.Array | None,
    *,
    shrunk: bool,
    dictionary_axis: Axis | None,
    chunk_size: int,
    precision: Precision,
) -> TextStatistics:
    moments = in_dtype(moments, texts)
    pooling = dictionary_pooling(
        texts, moments, mask, shrinkage, counted, shrunk=shrunk, dictionary_axis=dictionary_axis
    )
    return all_text_statistics(texts, moments, pooling, chunk_size, precision)


def all_text_statistics(
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    pooling: "Pooling | None",
    chunk_size: int,
    precision: Precision,
) -> TextStatistics:
    """Returns the statistics of a whole dictionary, computed chunk by chunk."""

    def add_chunk(tables: TextStatistics, start: jax.Array, size: int) -> TextStatistics:
        chunk = lax.dynamic_slice_in_dim(texts, start, size)
        found = dictionary_statistics(chunk, moments, pooling, precision=precision)
        return jax.tree.map(
            lambda table, rows: lax.dynamic_update_slice_in_dim(table, rows, start, axis=0),
            tables,
            found,
        )

    varying = moments.mean, *(() if pooling is None else (pooling.share, pooling.cov))
    shape = len(texts), len(moments.count)
    empty = zeros_varying(shape, moments.mean.dtype, texts, *varying)
    size = max(1, min(chunk_size, VARIANCE_CHUNK, len(texts)))
    return fold_chunks(add_chunk, TextStatistics(empty, empty), len(texts), size)


def in_dtype(moments: ClassMoments, *arrays: jax.Array) -> ClassMoments:
    """Returns the moments in the dtype in which a score of these arrays is computed."""
    dtype = _checks.accumulation_dtype(moments.mean, *arrays)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), moments)


def text_moments(
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    classes: tuple[Int[jax.Array, ""], int] | None = None,
    *,
    precision: Precision = HIGHEST,
    differentiable: bool = True,
) -> tuple[Float[jax.Array, "texts block"], Float[jax.Array, "texts block"]]:
    """Returns mean t . m_c and variance t^T C_c t of the similarity of each class to each text.

    Args:
        texts: Embeddings of texts.
        moments: Moments of the normal images, in the dtype of the computation.
        classes: First class of a block, and the (static) number of its classes; all classes by default.
        precision: Precision of the products.
        differentiable: Whether reverse mode computes the products again instead of keeping them.
    """
    texts = texts.astype(moments.mean.dtype)
    class_mean = moments.mean
    if classes is not None:
        class_mean = lax.dynamic_slice_in_dim(class_mean, *classes)
    mean = jnp.matmul(texts, class_mean.T, precision=precision)

    # One class at a time, because the product of all texts with one covariance is as large as the texts.
    def of_class(cov: jax.Array) -> jax.Array:
        return _quadratic_form(texts, cov, precision)

    def of_number(c: jax.Array) -> jax.Array:
        return of_class(moments.cov[c])

    # Reverse mode computes the product again. The products of all classes would take texts x classes x dim numbers.
    again = jax.checkpoint if differentiable else lambda function: function
    if classes is None:
        variance = lax.map(again(of_class), moments.cov)
    else:
        # Classes are indexed, because a slice of the covariances would be a copy, larger than all other arrays here.
        numbers = classes[0] + jnp.arange(classes[1], dtype=jnp.int32)
        variance = lax.map(again(of_number), numbers)
    return mean, jnp.maximum(variance.T, 0)


def _quadratic_form(
    texts: Float[jax.Array, "texts dim"], cov: Float[jax.Array, "dim dim"], precision: Precision
) -> Float[jax.Array, " texts"]:
    """Returns t^T C t of each text."""
    return jnp.sum(jnp.matmul(texts, cov, precision=precision) * texts, axis=1)


def standard_deviation(variance: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """Returns sqrt(variance) + 1e-8, with the gradient 0 (not infinity) if the variance is 0; NaN stays NaN."""
    positive = variance > 0
    rest = jnp.where(jnp.isnan(variance), variance, 0)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), rest) + EPSILON


def unit(vectors: Float[jax.Array, "rows dim"]) -> Float[jax.Array, "rows dim"]:
    """Returns the rows divided by their length, with a finite gradient if a row is 0 (texts that cancel out)."""
    return vectors / standard_deviation(jnp.sum(vectors**2, axis=1))[:, None]


def pooling_weights(
    count: Float[jax.Array, " classes"], mask: Bool[jax.Array, " classes"]
) -> Float[jax.Array, " classes"]:
    """Returns the share of each normal class in the images of all normal classes."""
    normal = jnp.where(mask, count, 0)
    return normal / jnp.maximum(normal.sum(), 1)


def pooled_covariance(
    moments: ClassMoments, mask: Bool[jax.Array, " classes"]
) -> Float[jax.Array, "dim dim"]:
    """Returns sum n_c C_c / sum n_c over the normal classes: v_pooled(t) = t^T C t."""
    weights = pooling_weights(moments.count, mask)
    return jnp.einsum("c,cde->de", weights, moments.cov, precision=_HIGHEST)


def shrinkage_share(
    count: Float[jax.Array, " classes"], shrinkage: float | Float[Array, ""]
) -> Float[jax.Array, " classes"]:
    """Returns n0 / (n_c + n0), the weight of the pooled variance."""
    images = jnp.maximum(count, 1)
    return 1 - images / (images + jnp.asarray(shrinkage).astype(count.dtype))


def pooled_dictionary_variance(
    variance: Float[jax.Array, "texts classes"],
    dictionary_mean: Float[jax.Array, " classes"],
    count: Float[jax.Array, " classes"],
    mask: Bool[jax.Array, " classes"],
) -> Float[jax.Array, " texts"]:
    """Returns the variance pooled over the normal classes, moved toward its mean over the dictionary."""
    weights = pooling_weights(count, mask)
    images = jnp.sum(jnp.where(mask, count, 0))
    pooled = jnp.matmul(variance, weights, precision=_HIGHEST)
    return _toward_prior(pooled, jnp.dot(dictionary_mean, weights), images)


def _toward_prior(
    pooled: Float[jax.Array, " texts"],
    prior: Float[jax.Array, ""],
    images: Float[jax.Array, ""],
) -> Float[jax.Array, " texts"]:
    """Moves pooled variances, with the weight of `PRIOR_IMAGES`, toward their mean over the dictionary."""
    return (images * pooled + PRIOR_IMAGES * prior) / (images + PRIOR_IMAGES)


def shrinkage_is_on(shrinkage: float | Array) -> bool:
    """Returns whether shrinkage may differ from 0, which is assumed of arrays and traced values."""
    return not (isinstance(shrinkage, int | float) and shrinkage == 0)


class Pooling(NamedTuple):
    """Statistics of the normal classes and of the whole dictionary that shrinkage needs."""

    share: Float[jax.Array, " classes"]
    """n0 / (n_c + n0)."""
    cov: Float[jax.Array, "dim dim"]
    """Covariance pooled over the normal classes: v_pooled(t) = t^T cov t."""
    images: Float[jax.Array, ""]
    """Images of the normal classes."""
    prior: Float[jax.Array, ""]
    """Mean of v_pooled over the dictionary."""

    def variance(self, texts: Float[jax.Array, "texts dim"]) -> Float[jax.Array, " texts"]:
        """Returns v_pooled of each text, moved toward its mean over the dictionary."""
        pooled = jnp.maximum(_quadratic_form(texts, self.cov, _HIGHEST), 0)
        return _toward_prior(pooled, self.prior, self.images)


def dictionary_pooling(
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    mask: Bool[jax.Array, " classes"],
    shrinkage: float | Float[Array, ""],
    where: Bool[jax.Array, " texts"] | None = None,
    *,
    shrunk: bool,
    dictionary_axis: Axis | None = None,
) -> Pooling | None:
    """Computes the statistics of the normal classes and of the whole dictionary that shrinkage needs.

    They are None without shrinkage (`shrunk` is False).

    The mean over the texts of t^T C t is the trace of C times their second moment. Texts that are not finite, which
    are never chosen, do not count.
    """
    if not shrunk:
        return None
    dtype, dim = moments.mean.dtype, texts.shape[1]

    # Chunk by chunk, because the texts with zeros in place of those that do not count would be a copy.
    @partial(jax.checkpoint, static_argnums=2)
    def add_chunk(sums: tuple, start: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        chunk = lax.dynamic_slice_in_dim(texts, start, size)
        counts = jnp.isfinite(chunk).all(axis=1)
        if where is not None:
            counts &= lax.dynamic_slice_in_dim(where, start, size)
        counted = jnp.where(counts[:, None], chunk, 0)
        products = lax.dot_general(
            counted,
            counted,
            (((0,), (0,)), ((), ())),
            precision=_HIGHEST,
            preferred_element_type=dtype,
        )
        return sums[0] + products, sums[1] + counts.sum(dtype=dtype)

    varying = texts, *(() if where is None else (where,))
    empty = zeros_varying((dim, dim), dtype, *varying), zeros_varying((), dtype, *varying)
    size = max(1, min(VARIANCE_CHUNK, len(texts)))
    second_moment, number = fold_chunks(add_chunk, empty, len(texts), size)
    if dictionary_axis is not None:
        number = lax.psum(number, dictionary_axis)
        second_moment = lax.psum(second_moment, dictionary_axis)
    cov = pooled_covariance(moments, mask)
    return Pooling(
        shrinkage_share(moments.count, shrinkage),
        cov,
        jnp.sum(jnp.where(mask, moments.count, 0)),
        jnp.sum(cov * second_moment) / jnp.maximum(number, 1),
    )


def dictionary_statistics(
    texts: Float[jax.Array, "texts dim"],
    moments: ClassMoments,
    pooling: Pooling | None,
    classes: tuple[Int[jax.Array, ""], int] | None = None,
    *,
    precision: Precision = HIGHEST,
    differentiable: bool = True,
) -> TextStatistics:
    """Returns the statistics of some texts of a dictionary, for all classes or a block of them."""
    mean, variance = text_moments(
        texts, moments, classes, precision=precision, differentiable=differentiable
    )
    if pooling is not None:
        share = pooling.share
        if classes is not None:
            share = lax.dynamic_slice_in_dim(share, *classes)
        pooled = pooling.variance(texts.astype(mean.dtype))[:, None]
        variance = variance + share[None, :] * (pooled - variance)
    return TextStatistics(mean, standard_deviation(variance))


def label_statistics(
    labels: Float[jax.Array, "classes dim"],
    moments: ClassMoments,
    *,
    mask: Bool[jax.Array, " classes"],
    shrinkage: float | Float[Array, ""],
    shrunk: bool,
    precision: Precision = HIGHEST,
) -> tuple[Float[jax.Array, " classes"], Float[jax.Array, " classes"]]:
    """Returns mu_c and sigma_c of each class's similarity to its own prompt."""
    labels = labels.astype(moments.mean.dtype)
    mean = jnp.einsum("cd,cd->c", labels, moments.mean, precision=precision)
    product = jnp.einsum("cd,cde->ce", labels, moments.cov, precision=precision)
    variance = jnp.maximum(jnp.einsum("ce,ce->c", product, labels, precision=precision), 0)
    if shrunk:
        pooled = _quadratic_form(labels, pooled_covariance(moments, mask), precision)
        share = shrinkage_share(moments.count, shrinkage)
        variance = variance + share * (jnp.maximum(pooled, 0) - variance)
    return mean, standard_deviation(variance)
