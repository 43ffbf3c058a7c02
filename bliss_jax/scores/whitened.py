"""BLISS with texts as matched filters, an option of this library that is not in the paper.

    S            = sum_c n_c C_c / sum_c n_c + ridge (trace / dim) I        over the normal classes c
    f(x, t, c)   = t^T S^-1 (x - m_c) / sqrt(t^T S^-1 t)
    w(x)         = mean of the k texts of the dictionary nearest to x by raw cosine
    score(x)     = min over normal classes c of [ -f(x, t_c, c) + lambda f(x, w(x), c) ]

BLISS measures the distance of x from the class mean along a text t, in standard deviations of that direction:
t^T (x - m_c) / sqrt(t^T C_c t). But images of a class vary together along many directions, and the component of t
along those directions is noise. If the images of a class are Gaussian with covariance S, then for a shift by
a > 0 along t against no shift, N(m_c + a t, S) against N(m_c, S), the logarithm of the likelihood ratio is
a t^T S^-1 (x - m_c) plus a constant. By the lemma of Neyman and Pearson no test is more powerful than a
threshold on t^T S^-1 (x - m_c), the matched filter of t, for every a > 0; f is this quantity in units of its
standard deviation. One S serves all classes, because one class alone rarely has enough images. The ridge regularises
S for few images, as in Friedman, "Regularized Discriminant Analysis", JASA 84 (1989), with equal covariances.

Higher is more anomalous.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.blocks import zeros_varying
from bliss_jax.scores.mahalanobis import one_image_per_class
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.parts import check_bliss, combine, nan_if_normal_is_empty
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.statistics import in_dtype, unit
from bliss_jax.scores.top_k import Axis, check_chunk_size, local_rows, nearest_texts
from bliss_jax.scores.within_class import normal_centre, whiten, whitening_within_classes

WHITENING_RIDGE = 10.0
"""Default relative ridge. Of 0.1, 1 and 10 it was chosen 19 times of 20, see `whitened_bliss_score`."""


def whitened_bliss_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    *,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    ridge: float | Float[Array, ""] = WHITENING_RIDGE,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes min_c [ -f(x, t_c, c) + lambda f(x, w(x), c) ] over the normal classes c.

    Here f(x, t, c) = t^T S^-1 (x - m_c) / sqrt(t^T S^-1 t), and w(x) is the mean of the k nearest texts. The docstring
    of this module defines S.

    As ridge -> infinity, S becomes a multiple of the identity. The score times sqrt(ridge trace / dim) then is
    min_c [ -t_c . (x - m_c) + lambda w . (x - m_c) / |w| ], which corrects means and uses no variances.

    The AUROC x 100 was measured on CLIP ViT-B/32 embeddings of 500 images of CIFAR-10, as the mean of 5 shots, 10
    shots and about 25 images per class, with the ridge chosen on other splits and images
    (`experiments/score_variants/README.md`). It is 1.07 above BLISS (95 % interval 0.46 to 1.71; 0.02 to 2.11
    simultaneously for all variants that were compared), and 0.48 (-0.08 to 1.04) above BLISS with shrinkage 20. With
    one normal class it does not help (-0.16, -0.52 to 0.14), so it is not the default.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda; may be traced.
        normal: Mask of the normal classes [classes]; all by default.
        ridge: Term >= 0 added to the diagonal of the covariance, as a share of its mean eigenvalue; may be traced.
        where: Texts that count, see `external_text_score`.
        dictionary_axis: Mapped axis over which the dictionary is sharded, see `external_text_score`; static.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the product with the dictionary, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous. 0 images give an empty array. Scores are NaN if S
        is singular: with one image per class for every ridge, and with fewer images than dimensions for a ridge of 0.
        Under tracing, when values cannot be checked, an image that is not finite has the score NaN, and all images
        have NaN if a normal class has no images.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`, or the ridge is negative.
    """
    _checks.scalar("ridge", ridge, minimum=0.0)
    a = check_bliss(
        embeddings,
        label_embeddings,
        dictionary_embeddings,
        moments,
        k,
        weight=weight,
        normal=normal,
        where=where,
        dictionary_axis=dictionary_axis,
    )
    return _whitened(
        *a,
        weight,
        ridge,
        k=k,
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


@compiled(static=("k", "dictionary_axis", "chunk_size", "precision"), out=lambda x, *_: rows(x))
def _whitened(
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    counted: jax.Array | None,
    weight: Any,
    ridge: Any,
    **static: Any,
) -> jax.Array:
    moments = in_dtype(moments, x, labels, texts)
    return _from_whitened(
        x, texts, _statistics(labels, moments, mask, ridge), counted, weight, **static
    )


class WhitenedStatistics(NamedTuple):
    """Everything in the score that does not depend on images; a pytree."""

    inverse: Float[jax.Array, "*mapped dim dim"]
    """L^-1 with S = L L^T."""
    centre: Float[jax.Array, "*mapped 1 dim"]
    """Mean of the means of the normal classes, which is subtracted from images and means."""
    means: Float[jax.Array, "*mapped classes dim"]
    """Whitened mean of each class."""
    labels: Float[jax.Array, "*mapped classes dim"]
    """Whitened label of each class, of unit norm."""
    normal: Bool[jax.Array, "*mapped classes"]
    """Mask of the normal classes."""
    count: Float[jax.Array, "*mapped classes"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of fitted images of each class."""


def _statistics(
    labels: jax.Array, moments: ClassMoments, mask: jax.Array, ridge: Any
) -> WhitenedStatistics:
    inverse = whitening_within_classes(moments, mask, ridge)
    centre = normal_centre(moments, mask)
    return WhitenedStatistics(
        inverse,
        centre,
        means=whiten(moments.mean - centre, inverse),
        labels=unit(whiten(labels.astype(moments.mean.dtype), inverse)),
        normal=mask,
        count=moments.count,
    )


def _from_whitened(
    x: jax.Array,
    texts: jax.Array,
    statistics: WhitenedStatistics,
    counted: jax.Array | None,
    weight: Any,
    **static: Any,
) -> jax.Array:
    s, dtype = statistics, statistics.means.dtype
    images = whiten(x.astype(dtype) - s.centre, s.inverse)
    word = unit(whiten(_mean_of_nearest(x, texts, counted, dtype, **static), s.inverse))

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)

    internal = jnp.sum(s.labels * s.means, axis=1)[None, :] - product(images, s.labels)
    external = jnp.sum(word * images, axis=1)[:, None] - product(word, s.means)
    score = combine(internal, external, weight, normal=s.normal)
    return nan_unless_finite(nan_if_normal_is_empty(score, s.normal, s.count), x)


def _mean_of_nearest(
    x: Float[jax.Array, "images dim"],
    texts: Float[jax.Array, "texts dim"],
    counted: Bool[jax.Array, " texts"] | None,
    dtype: Any,
    *,
    k: int,
    dictionary_axis: Axis | None,
    **static: Any,
) -> Float[jax.Array, "images dim"]:
    """Returns w(x). The k texts are added one after the other, so that no array [images, k, dim] is built."""
    cosines, nearest = nearest_texts(
        x, texts, counted, k=k, dictionary_axis=dictionary_axis, **static
    )
    row, inside = local_rows(nearest, len(texts), dictionary_axis)
    here = jnp.ones(row.shape, bool) if inside is None else inside

    def add(total: jax.Array, place: tuple) -> tuple[jax.Array, None]:
        row, here = place
        return total + jnp.where(here[:, None], texts[row].astype(dtype), 0), None

    start = zeros_varying((x.shape[0], texts.shape[1]), dtype, x, texts, row)
    total, _ = lax.scan(add, start, (row.T, here.T))
    if dictionary_axis is not None:
        total = lax.psum(total, dictionary_axis)
    missing = jnp.any(jnp.isneginf(cosines), axis=1)[:, None]
    return jnp.where(missing, jnp.nan, total / k)


def _prepare(label_embeddings, dictionary_embeddings, moments, normal) -> WhitenedStatistics:
    moments = in_dtype(moments, label_embeddings, dictionary_embeddings)
    return _statistics(label_embeddings, moments, normal, WHITENING_RIDGE)


def _from_prepared(embeddings, dictionary_embeddings, prepared, k, weight) -> jax.Array:
    return _from_whitened(
        embeddings, dictionary_embeddings, prepared, None, weight,
        k=k, dictionary_axis=None, chunk_size=check_chunk_size(None), precision=HIGHEST,
    )  # fmt: skip


SCORE = Score(
    "whitened_bliss",
    whitened_bliss_score,
    order=20,
    one_split_at_a_time=True,
    settings={"ridge": WHITENING_RIDGE},
    unavailable=one_image_per_class,
    prepare=_prepare,
    from_prepared=_from_prepared,
)
