"""BLISS with texts as matched filters: an option of this library, not of the paper.

    S            = sum_c n_c C_c / sum_c n_c + ridge (trace / dim) I        over the normal classes c
    f(x, t, c)   = t^T S^-1 (x - m_c) / sqrt(t^T S^-1 t)
    w(x)         = mean of the k texts of the dictionary nearest to x by raw cosine
    score(x)     = min over normal classes c of [ -f(x, t_c, c) + lambda f(x, w(x), c) ]

BLISS asks how far x has moved from the class mean along a text t, in standard deviations of that direction:
t^T (x - m_c) / sqrt(t^T C_c t). But images of a class vary together along many directions, and what t has in
common with those is noise. If the images of a class are Gaussian with covariance S, then of a shift by some
a > 0 along t against none, N(m_c + a t, S) against N(m_c, S), the logarithm of the likelihood ratio is
a t^T S^-1 (x - m_c) and a constant: by the lemma of Neyman and Pearson no test is more powerful than a
threshold on t^T S^-1 (x - m_c), the matched filter of t, whatever a, and f is this in its own standard
deviations. One S serves all classes, since one class alone rarely has images enough. The ridge stands for
what few images cannot say of S, as in Friedman, "Regularized Discriminant Analysis", JASA 84 (1989), with
equal covariances.

Higher is more anomalous.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.reductions import min_over_classes, zero_like_inputs
from bliss_jax.scores.text_statistics import standard_deviation
from bliss_jax.scores.top_k import CHUNK_SIZE, top_k_similar
from bliss_jax.scores.within_class import cholesky_within_classes, whiten

WHITENING_RIDGE = 10.0
"""Relative ridge by default: of 0.1, 1 and 10 the one chosen 19 times of 20, see `whitened_bliss_score`."""


def whitened_bliss_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    *,
    ridge: float | Float[Array, ""] = WHITENING_RIDGE,
    chunk_size: int = CHUNK_SIZE,
) -> Float[jax.Array, " images"]:
    """min_c [ -f(x, t_c, c) + lambda f(x, w(x), c) ], f(x, t, c) = t^T S^-1 (x - m_c) / sqrt(t^T S^-1 t).

    As ridge -> infinity S is a multiple of the identity, and the score, times sqrt(ridge trace / dim), is
    min_c [ -t_c . (x - m_c) + lambda w . (x - m_c) / |w| ]: means corrected, no variances at all.

    Measured on CLIP ViT-B/32 embeddings of 500 images of CIFAR-10, the ridge chosen on other splits and
    images than it is reported on (`experiments/score_variants/README.md`), AUROC x 100, mean of 5 shots,
    10 shots and about 25 images per class: 1.07 above BLISS (95 % interval 0.46 to 1.71; 0.02 to 2.11 if
    it is to hold for all variants that were compared at once), and 0.48 (-0.08 to 1.04) above BLISS with
    shrinkage 20. With one normal class it does not help (-0.16, -0.52 to 0.14). So it is no default.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda; may be traced.
        normal: Mask of the normal classes [classes]; all by default.
        ridge: >= 0, added to the covariance as a share of its mean eigenvalue; may be traced.
        chunk_size: Texts handled at once, see `external_text_score`; static.

    Returns:
        Scores [images], higher = more anomalous. NaN where S is singular: with one image per class,
        whatever the ridge, and with a ridge of 0 where images are fewer than dimensions. While tracing,
        when values cannot be checked, a normal class without images gives NaN and an empty mask +inf.

    Raises:
        ValueError: shapes or dtypes that do not fit, embeddings that are not finite or not of unit norm,
            moments of embeddings that were not, k outside 1..texts, a negative ridge, a weight that is
            not finite, no normal class, or a normal class of which no image was fitted.
    """
    _checks.scalar("weight", weight)
    _checks.scalar("ridge", ridge, minimum=0.0)
    x = _checks.embeddings_as_float("embeddings", embeddings)
    labels = _checks.embeddings_as_float("label_embeddings", label_embeddings)
    texts = _checks.embeddings_as_float("dictionary_embeddings", dictionary_embeddings)
    check_moments(moments, embeddings=x, labels=labels, texts=texts)
    _checks.top_k_size(k, len(texts), "the texts of the dictionary")
    mask = _checks.normal_mask(normal, len(moments.count), moments.count)

    factor = cholesky_within_classes(moments, mask, ridge)
    centre = jnp.mean(moments.mean, axis=0, where=mask[:, None])[None, :]
    images, means = whiten(x - centre, factor), whiten(moments.mean - centre, factor)
    label = _unit(whiten(labels, factor))
    word = _unit(whiten(_mean_of_nearest(x, texts, k, chunk_size), factor))

    def product(a, b):
        return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)

    internal = jnp.sum(label * means, axis=1)[None, :] - product(images, label)
    external = jnp.sum(word * images, axis=1)[:, None] - product(word, means)
    per_class = jnp.where((moments.count > 0)[None, :], internal + weight * external, jnp.nan)
    return min_over_classes(jnp.where(mask[None, :], per_class, jnp.inf))


def _mean_of_nearest(
    x: Float[jax.Array, "images dim"], texts: Float[jax.Array, "texts dim"], k: int, chunk_size: int
) -> Float[jax.Array, "images dim"]:
    """w(x), one place of the k after the other: images x k x dim numbers would be many."""
    _, nearest = top_k_similar(x, texts, k, chunk_size=chunk_size)

    def add(total, chosen: Int[jax.Array, " images"]):
        return total + texts[chosen], None

    total, _ = lax.scan(add, jnp.zeros_like(x) + zero_like_inputs(x, texts), nearest.T)
    return total / k


def _unit(vectors: Float[jax.Array, "rows dim"]) -> Float[jax.Array, "rows dim"]:
    """Rows divided by their length, with a finite gradient where a row is 0 (texts that cancel out)."""
    return vectors / standard_deviation(jnp.sum(vectors**2, axis=1))[:, None]
