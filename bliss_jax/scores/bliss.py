"""BLISS: Bias-corrected Language Image Similarity Scoring.

    internal(x, c) = -(s(x, t_c) - mu_c) / sigma_c
    external(x, c) = mean over d in D_k(x) of (s(x, d) - mu_{c,d}) / sigma_{c,d}
    BLISS(x)       = min over normal classes c of [ internal(x, c) + lambda external(x, c) ]

s is the cosine; t_c the prompt of class c; D_k(x) the k texts of the dictionary nearest to x by raw
cosine; mu and sigma the mean and standard deviation (ddof 0, plus 1e-8) of the similarity to that text
over the normal images of class c, computed from `ClassMoments` (mu = t . m_c, sigma^2 = t^T C_c t).
Higher is more anomalous.

Source: Goodge, Hooi, Ng, "When Text and Images Don't Mix: Bias-Correcting Language-Image Similarity
Scores for Anomaly Detection", BMVC 2024, arXiv 2407.17083, section 4.

Memory. There are n images, T texts and C classes, L = min(chunk_size, T) texts in a chunk, B = min(n, block) images in
a block (512 on CPUs; elsewhere see `top_k.py`), P = min(T, n k) places for distinct texts, and S =
min(P C, max(P, L dim)) numbers in a table of their statistics. Besides inputs and result, the external score takes at
most

    2 B (L + 8 k) + 4 n k + 3 T + n C + 2 S + 4 min(L, 2048) (dim + C) + 4 dim^2

numbers of 4 bytes, and BLISS at most 3 n C + 2 C dim more. No term grows with images x texts or texts x classes. A
gradient takes at most three times as much plus 3 n k C numbers besides its outputs (measured on CPUs), because reverse
mode computes statistics again instead of keeping them; the gradient by the moments takes two copies of the moments
more. Its time is about four times that of the score. `vmap` over masks with shrinkage multiplies the tables and the
products by the number of masks.
"""

from typing import Any

import jax
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.parts import (
    bliss_scores,
    check_bliss,
    combine,
    external_scores,
    internal_scores,
    nan_if_empty,
)
from bliss_jax.scores.record import Score
from bliss_jax.scores.reductions import min_over_classes, nan_unless_finite
from bliss_jax.scores.statistics import in_dtype, shrinkage_is_on
from bliss_jax.scores.top_k import Axis, check_chunk_size, check_search

STATIC = "k", "shrunk", "dictionary_axis", "chunk_size", "precision"
"""Static arguments of the jitted functions."""


def internal_class_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    moments: ClassMoments,
    *,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, "images classes"]:
    """Computes internal(x, c) = -(s(x, t_c) - mu_c) / sigma_c (arXiv 2407.17083, section 4).

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        moments: Fitted on normal images of the same classes.
        normal: Mask of the classes over which `shrinkage` pools [classes]; not used without shrinkage.
        shrinkage: n0 of `bliss_score`.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images, classes], at least float32. A class without fitted images has NaN. 0 images give
        [0, classes]. Under tracing, an image that is not finite has NaN.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    labels = checks.embeddings("label_embeddings", label_embeddings)
    moments = check_moments(checks, moments, labels=labels, embeddings=x)
    _checks.scalar("shrinkage", shrinkage, minimum=0.0)
    mask = checks.normal_mask(normal, len(labels))
    checks.run()
    shrunk = shrinkage_is_on(shrinkage)
    return _internal(x, labels, moments, mask, shrinkage, shrunk=shrunk, precision=precision)


def external_text_score(
    embeddings: Float[Array, "images dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    *,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, "images classes"]:
    """Computes external(x, c) = mean over d in D_k(x) of (s(x, d) - mu_{c,d}) / sigma_{c,d}.

    D_k(x), the k texts with the largest raw cosine, is chosen once per image (arXiv 2407.17083, section 4).
    Duplicated texts count as often as they occur. The docstring of this module bounds the memory, forward and in
    reverse mode.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images.
        k: Texts per image, 1 <= k <= texts; static.
        normal: Mask of the classes over which `shrinkage` pools [classes]; not used without shrinkage.
        shrinkage: n0 of `bliss_score`.
        where: Texts that count [texts]; False marks padding, which is never chosen. All by default. See
            `top_k_similar`.
        dictionary_axis: Name of the mapped axis, or a tuple of names, over which the dictionary is sharded; static.
            Each device has the same number of texts (see `pad_dictionary`) and the whole moments. The k texts are
            the nearest among those of all devices, and each device adds the z-scores of its own texts. All devices
            get the result that one device would compute, up to the order of a sum of k numbers.
        chunk_size: Texts per chunk; static. It bounds the memory and changes the result by rounding only. 4,096 by
            default on CPUs and 65,536 elsewhere.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images, classes], at least float32. A class without fitted images has NaN. 0 images give
        [0, classes]. Under tracing, an image that is not finite has NaN, and all images have NaN if fewer than k
        texts count.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    texts = checks.embeddings("dictionary_embeddings", dictionary_embeddings)
    moments = check_moments(checks, moments, texts=texts, embeddings=x)
    counted = check_search(checks, k, texts, where, dictionary_axis)
    _checks.scalar("shrinkage", shrinkage, minimum=0.0)
    mask = checks.normal_mask(normal, len(moments.count))
    checks.run()
    return _external(
        x,
        texts,
        moments,
        mask,
        shrinkage,
        counted,
        k=k,
        shrunk=shrinkage_is_on(shrinkage),
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


def bliss_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    *,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes BLISS(x) = min over normal classes c of [ internal(x, c) + lambda external(x, c) ].

    `vmap` over masks `normal` scores all splits of a benchmark in one call. Without shrinkage only the minimum
    depends on the mask, so everything else is computed once.

    Shrinkage is for few normal images. It moves each class variance toward the within-class variance pooled over
    the normal classes, with the weight of n0 images:

        v = (n_c v_c + n0 v_pooled) / (n_c + n0),    v_pooled(t) = sum n_c t^T C_c t / sum n_c

    For dictionary texts, v_pooled is itself moved toward its mean over the dictionary, with the weight of five
    images, because one class with two images has nothing else to pool with.

    The docstring of this module bounds the memory, forward and in reverse mode. For a stream of batches, or for
    many classes, `prepare_bliss` computes the statistics of the texts once.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda; may be traced, so that a grid is a `vmap`.
        normal: Mask of the normal classes [classes]; all by default.
        shrinkage: n0 >= 0; 0 is the paper's score.
        where: Texts that count, see `external_text_score`.
        dictionary_axis: Mapped axis over which the dictionary is sharded, see `external_text_score`; static.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous. 0 images give an empty array. Under tracing,
        when values cannot be checked, an image that is not finite has the score NaN. All images have NaN if a
        normal class has no images or fewer than k texts count, and +inf if no class is normal.

    Raises:
        ValueError: Shapes or dtypes do not fit, embeddings are not finite or not of unit norm, the moments are
            not those of unit-norm embeddings, k is not an integer in 1..texts, shrinkage is negative, weight
            is not one finite number, no class is normal, or no image of a normal class was fitted.
    """
    a = check_bliss(
        embeddings,
        label_embeddings,
        dictionary_embeddings,
        moments,
        k,
        weight=weight,
        normal=normal,
        shrinkage=shrinkage,
        where=where,
        dictionary_axis=dictionary_axis,
    )
    return _bliss(
        *a,
        weight,
        shrinkage,
        k=k,
        shrunk=shrinkage_is_on(shrinkage),
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


@compiled(static=("shrunk", "precision"), out=lambda x, *_: rows(x))
def _internal(
    x: jax.Array,
    labels: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    shrinkage: Any,
    *,
    shrunk: bool,
    precision: Precision,
) -> jax.Array:
    moments = in_dtype(moments, x, labels)
    score = internal_scores(x, labels, moments, mask, shrinkage, shrunk=shrunk, precision=precision)
    return nan_unless_finite(nan_if_empty(score, moments.count), x)


@compiled(static=STATIC, out=lambda x, *_: rows(x))
def _external(
    x: jax.Array,
    texts: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    shrinkage: Any,
    counted: jax.Array | None,
    **static: Any,
) -> jax.Array:
    moments = in_dtype(moments, x, texts)
    found = external_scores(x, texts, moments, mask, shrinkage, counted, **static)
    return nan_unless_finite(nan_if_empty(found.external, moments.count), x)


@compiled(static=STATIC, out=lambda x, *_: rows(x))
def _bliss(
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    counted: jax.Array | None,
    weight: Any,
    shrinkage: Any,
    **static: Any,
) -> jax.Array:
    moments = in_dtype(moments, x, labels, texts)
    return bliss_scores(x, labels, texts, moments, mask, counted, weight, shrinkage, **static)


def _bliss_of_split(
    embeddings, label_embeddings, dictionary_embeddings, moments, internal, external,
    k, weight, normal, shrinkage,
) -> jax.Array:  # fmt: skip
    """Computes `bliss_score`; without shrinkage, from parts that all splits share."""
    if not shrinkage_is_on(shrinkage):
        return combine(internal, external, weight, normal=normal)
    return bliss_score(
        embeddings,
        label_embeddings,
        dictionary_embeddings,
        moments,
        k,
        weight=weight,
        normal=normal,
        shrinkage=shrinkage,
    )


def _internal_of_split(internal, normal) -> jax.Array:
    return min_over_classes(internal, normal=normal)


def _external_of_split(external, normal) -> jax.Array:
    return min_over_classes(external, normal=normal)


_PAPER = "Goodge et al., BMVC 2024, section 4"
SCORES = (
    Score("bliss", _bliss_of_split, source=_PAPER, default=True, order=0),
    Score("internal", _internal_of_split, source=_PAPER, default=True, order=1),
    Score("external", _external_of_split, source=_PAPER, default=True, order=2),
)
