"""BLISS: Bias-corrected Language Image Similarity Scoring.

    internal(x, c) = -(s(x, t_c) - mu_c) / sigma_c
    external(x, c) = mean over d in D_k(x) of (s(x, d) - mu_{c,d}) / sigma_{c,d}
    BLISS(x)       = min over normal classes c of [ internal(x, c) + lambda external(x, c) ]

s is the cosine; t_c the prompt of class c; D_k(x) the k texts of the dictionary nearest to x by raw
cosine; mu and sigma the mean and standard deviation (ddof 0, plus 1e-8) of the similarity to that text
over the normal images of class c, here computed from `ClassMoments` (mu = t . m_c, sigma^2 = t^T C_c t).
Higher is more anomalous.

Source: Goodge, Hooi, Ng, "When Text and Images Don't Mix: Bias-Correcting Language-Image Similarity
Scores for Anomaly Detection", BMVC 2024, arXiv 2407.17083, section 4.

No function here jits, and none builds a classes-by-texts or images-by-texts table larger than a chunk
(`prepared.py` keeps the former, where it is used again and again).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.reductions import min_over_classes, zero_like_inputs
from bliss_jax.scores.text_statistics import (
    chosen_texts,
    dictionary_pooling,
    fold_class_blocks,
    pooled_covariance,
    shrinkage_is_on,
    shrinkage_share,
    standard_deviation,
    sum_of_z_scores,
)
from bliss_jax.scores.top_k import CHUNK_SIZE, check_where, similarity, top_k_similar

_HIGHEST = lax.Precision.HIGHEST


def internal_class_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    moments: ClassMoments,
    *,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
) -> Float[jax.Array, "images classes"]:
    """internal(x, c) = -(s(x, t_c) - mu_c) / sigma_c (arXiv 2407.17083, section 4).

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        moments: Fitted on normal images of the same classes.
        normal: The classes over which `shrinkage` pools [classes]; not used without shrinkage.
        shrinkage: n0 of `bliss_score`.

    Returns:
        Scores [images, classes]; NaN for a class of which no image was fitted.

    Raises:
        ValueError: as `bliss_score`.
    """
    x = _checks.embeddings_as_float("embeddings", embeddings)
    labels = _checks.embeddings_as_float("label_embeddings", label_embeddings)
    check_moments(moments, labels=labels, embeddings=x)
    mask = _pooled_classes(normal, moments, shrinkage)

    mean, deviation = label_moments(labels, moments, mask=mask, shrinkage=shrinkage)
    score = -(similarity(x, labels) - mean[None, :]) / deviation[None, :]
    return nan_where_empty(score, moments.count)


def external_text_score(
    embeddings: Float[Array, "images dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    *,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: str | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Float[jax.Array, "images classes"]:
    """external(x, c) = mean over d in D_k(x) of (s(x, d) - mu_{c,d}) / sigma_{c,d}.

    D_k(x), the k texts of the largest raw cosine, is chosen once per image (arXiv 2407.17083,
    section 4). Duplicated texts count as often as they occur.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images.
        k: Texts per image, 1 <= k <= texts; static.
        normal: The classes over which `shrinkage` pools [classes]; not used without shrinkage.
        shrinkage: n0 of `bliss_score`.
        where: Texts that count [texts]; False marks padding, which is never chosen. All by default. See
            `top_k_similar`.
        dictionary_axis: Name of the mapped axis over which the texts are spread, each device holding
            equally many (`pad_dictionary`). The k texts are the nearest of all devices', each device adds
            the z-scores of its own, and all get the result that one device would, up to the order of a
            sum of k numbers. The moments are whole on each. Static.
        chunk_size: Texts handled at once; static. The result is the same for every chunk size.

    With n images, T texts and C classes, L = min(chunk_size, T) texts in a chunk, P = min(T, n k) places for
    distinct texts and S = min(P C, max(P, L dim)) numbers in a table of their statistics, memory beside
    inputs and result is at most

        min(n, 512) (L + 8 k) + 4 n k + 3 T + n C + 2 S + 4 min(L, 2048) (dim + C) + 4 dim^2

    numbers of 4 bytes: nothing that grows with images x texts or texts x classes.

    Returns:
        Scores [images, classes]; NaN for a class of which no image was fitted.

    Raises:
        ValueError: as `bliss_score`.
    """
    x = _checks.embeddings_as_float("embeddings", embeddings)
    texts = _checks.embeddings_as_float("dictionary_embeddings", dictionary_embeddings)
    check_moments(moments, texts=texts, embeddings=x)
    _checks.top_k_size(k, len(texts), "the texts of the dictionary")
    mask = _pooled_classes(normal, moments, shrinkage)

    nearest = top_k_similar(
        x, texts, k, where=where, dictionary_axis=dictionary_axis, chunk_size=chunk_size
    )
    cosines = unknown_where_missing(nearest[0])
    chosen = chosen_texts(nearest[1], len(texts), dictionary_axis=dictionary_axis)
    pooling = dictionary_pooling(
        texts,
        moments,
        mask=mask,
        shrinkage=shrinkage,
        where=check_where(where, len(texts)),
        dictionary_axis=dictionary_axis,
    )
    inside = None if dictionary_axis is None else chosen.inside

    def add_classes(total, first, mean, deviation):
        z = sum_of_z_scores(cosines, chosen.row, inside, mean, deviation)
        return lax.dynamic_update_slice_in_dim(total, z, first, axis=1)

    total = jnp.zeros((len(x), len(moments.count)), x.dtype)
    total = total + zero_like_inputs(x, texts, moments.mean, mask)
    total = fold_class_blocks(
        add_classes, total, chosen, texts, moments, pooling, chunk_size=chunk_size
    )
    if dictionary_axis is not None:
        total = lax.psum(total, dictionary_axis)
    return nan_where_empty(total / k, moments.count)


def bliss_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    *,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: str | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Float[jax.Array, " images"]:
    """BLISS(x) = min over normal classes c of [ internal(x, c) + lambda external(x, c) ].

    `vmap` over masks `normal` scores all splits of a benchmark in one call: without shrinkage only the
    minimum depends on the mask, so nothing else is computed twice.

    Shrinkage, for few normal images: each class variance is drawn toward the within-class variance
    pooled over the normal classes, as if n0 images of it had been seen,

        v = (n_c v_c + n0 v_pooled) / (n_c + n0),    v_pooled(t) = sum n_c t^T C_c t / sum n_c,

    and for dictionary texts v_pooled is itself drawn, with the weight of five images, toward its mean
    over the dictionary (one class with two images has nothing else to lean on).

    Memory is bounded as in `external_text_score`, and by 3 images x classes + 2 classes x dim numbers more.
    For a stream of batches, or many classes, `prepare_bliss` computes the statistics of the texts once.

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
        dictionary_axis: Mapped axis over which the dictionary is spread, see `external_text_score`; static.
        chunk_size: Texts handled at once, see `external_text_score`; static.

    Returns:
        Scores [images], higher = more anomalous. While tracing, when values cannot be checked, a
        normal class without images gives NaN and an empty mask +inf.

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit
            norm, moments of embeddings that were not, k outside 1..texts, negative shrinkage, a weight
            that is not finite, no normal class, or a normal class of which no image was fitted.
    """
    _checks.scalar("weight", weight)
    mask = _checks.normal_mask(normal, len(moments.count), moments.count)
    internal = internal_class_score(
        embeddings, label_embeddings, moments, normal=mask, shrinkage=shrinkage
    )
    external = external_text_score(
        embeddings,
        dictionary_embeddings,
        moments,
        k,
        normal=mask,
        shrinkage=shrinkage,
        where=where,
        dictionary_axis=dictionary_axis,
        chunk_size=chunk_size,
    )
    return combine(internal, external, weight, mask)


def combine(
    internal: Float[jax.Array, "images classes"],
    external: Float[jax.Array, "images classes"],
    weight: float | Float[Array, ""],
    mask: Bool[jax.Array, " classes"],
) -> Float[jax.Array, " images"]:
    """Min over normal classes c of [ internal(x, c) + lambda external(x, c) ]."""
    # Masked before the sum: what is unknown of other classes must not reach the gradient of the weight.
    internal = jnp.where(mask[None, :], internal, jnp.inf)
    external = jnp.where(mask[None, :], external, 0)
    return min_over_classes(internal + weight * external)


def _pooled_classes(
    normal: Bool[Array, " classes"] | None, moments: ClassMoments, shrinkage: float | Array
) -> Bool[jax.Array, " classes"]:
    _checks.scalar("shrinkage", shrinkage, minimum=0.0)
    return _checks.normal_mask(normal, len(moments.count))


def label_moments(
    labels: Float[jax.Array, "classes dim"],
    moments: ClassMoments,
    *,
    mask: Bool[jax.Array, " classes"],
    shrinkage: float | Float[Array, ""],
) -> tuple[Float[jax.Array, " classes"], Float[jax.Array, " classes"]]:
    """mu_c and sigma_c: of each class's similarity to its own prompt."""
    mean = jnp.einsum("cd,cd->c", labels, moments.mean, precision=_HIGHEST)
    product = jnp.einsum("cd,cde->ce", labels, moments.cov, precision=_HIGHEST)
    variance = jnp.maximum(jnp.einsum("ce,ce->c", product, labels, precision=_HIGHEST), 0)
    if shrinkage_is_on(shrinkage):
        product = jnp.matmul(labels, pooled_covariance(moments, mask), precision=_HIGHEST)
        pooled = jnp.maximum(jnp.einsum("cd,cd->c", product, labels, precision=_HIGHEST), 0)
        variance = variance + shrinkage_share(moments.count, shrinkage, moments.mean.dtype) * (
            pooled - variance
        )
    return mean, standard_deviation(variance)


def unknown_where_missing(cosines: Float[jax.Array, "images k"]) -> Float[jax.Array, "images k"]:
    """NaN in places that no text fills (fewer than k rows of the dictionary count)."""
    return jnp.where(jnp.isneginf(cosines), jnp.nan, cosines)


def nan_where_empty(
    scores: Float[jax.Array, "images classes"], count: Int[jax.Array, " classes"]
) -> Float[jax.Array, "images classes"]:
    """NaN for classes of which no image was fitted."""
    return jnp.where((count > 0)[None, :], scores, jnp.nan)
