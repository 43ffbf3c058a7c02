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

No function here jits, and none builds a classes-by-texts or images-by-texts table larger than a chunk.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.reductions import min_over_classes, zero_like_inputs
from bliss_jax.scores.text_moments import (
    fold_nearest_texts,
    pooling_weights,
    shrinkage_is_on,
    shrinkage_share,
    standard_deviation,
)
from bliss_jax.scores.top_k import CHUNK_SIZE, similarity, top_k_similar

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

    mean = jnp.einsum("cd,cd->c", labels, moments.mean, precision=_HIGHEST)
    product = jnp.einsum("cd,cde->ce", labels, moments.cov, precision=_HIGHEST)
    variance = jnp.maximum(jnp.einsum("ce,ce->c", product, labels, precision=_HIGHEST), 0)
    if shrinkage_is_on(shrinkage):
        weights = pooling_weights(moments.count, mask, moments.mean.dtype)
        cov = jnp.einsum("c,cde->de", weights, moments.cov, precision=_HIGHEST)
        product = jnp.matmul(labels, cov, precision=_HIGHEST)
        pooled = jnp.maximum(jnp.einsum("cd,cd->c", product, labels, precision=_HIGHEST), 0)
        variance = variance + shrinkage_share(moments.count, shrinkage, moments.mean.dtype) * (
            pooled - variance
        )
    score = -(similarity(x, labels) - mean[None, :]) / standard_deviation(variance)[None, :]
    return _nan_where_empty(score, moments)


def external_text_score(
    embeddings: Float[Array, "images dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    *,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
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
        chunk_size: Texts handled at once; static. Beside inputs and result, memory is bounded by a few
            arrays of images x chunk_size, images x k x classes and chunk_size x (dim + classes)
            numbers; the result is the same for every chunk size.

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

    values, indices = top_k_similar(x, texts, k, chunk_size=chunk_size)

    def add_chunk(total, mean, deviation, row, inside):
        z = (values[:, :, None] - mean[row]) / deviation[row]
        return total + jnp.where(inside[:, :, None], z, 0).sum(axis=1)

    zero = zero_like_inputs(x, texts, moments.mean)
    total = jnp.zeros((len(x), len(moments.count)), x.dtype) + zero
    total = fold_nearest_texts(
        add_chunk,
        total,
        indices,
        texts,
        moments,
        mask=mask,
        shrinkage=shrinkage,
        chunk_size=chunk_size,
    )
    return _nan_where_empty(total / k, moments)


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

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda; may be traced, so that a grid is a `vmap`.
        normal: Mask of the normal classes [classes]; all by default.
        shrinkage: n0 >= 0; 0 is the paper's score.
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
        chunk_size=chunk_size,
    )
    # Masked before the sum: what is unknown of other classes must not reach the gradient of the weight.
    internal = jnp.where(mask[None, :], internal, jnp.inf)
    external = jnp.where(mask[None, :], external, 0)
    return min_over_classes(internal + weight * external)


def _pooled_classes(
    normal: Bool[Array, " classes"] | None, moments: ClassMoments, shrinkage: float | Array
) -> Bool[jax.Array, " classes"]:
    _checks.scalar("shrinkage", shrinkage, minimum=0.0)
    return _checks.normal_mask(normal, len(moments.count))


def _nan_where_empty(
    scores: Float[jax.Array, "images classes"], moments: ClassMoments
) -> Float[jax.Array, "images classes"]:
    return jnp.where((moments.count > 0)[None, :], scores, jnp.nan)
