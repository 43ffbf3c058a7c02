"""BLISS for few normal images: class means drawn toward a prior from the texts, and pooled variances.

    p_c  = |m_c| unit( mean of the normal classes' means + beta (t_c - mean of the normal classes' labels) )
    m'_c = (n_c m_c + n0 p_c) / (n_c + n0)
    score(x) = BLISS(x) with the means m'_c instead of m_c, and with shrunk variances

n_c is the number of images of class c, m_c their mean embedding, and t_c the prompt's embedding. The mean of one image
is noise, but classes differ in their images much as they differ in their labels. The prior of a class is therefore the
centre of all normal classes, moved by beta along the difference between its label and the mean label. It has the weight
of n0 images. With one normal class the prior is the class's own mean, and nothing changes. Higher is more anomalous.

This score is an option of this library and is not in the paper of BLISS. beta = 0.3 and n0 = 2 lie on a broad plateau
of validation renders of `glyphs`; `docs/methods.md` has the few-shot results.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.parts import bliss_scores, check_bliss
from bliss_jax.scores.prepared import PreparedBliss, bliss_score_prepared, prepare_bliss
from bliss_jax.scores.record import Score
from bliss_jax.scores.statistics import in_dtype, shrinkage_is_on, unit
from bliss_jax.scores.top_k import Axis, check_chunk_size
from bliss_jax.scores.within_class import normal_centre

PRIOR_IMAGES = 2.0
"""Weight n0 of the prior, in images."""

PRIOR_STEP = 0.3
"""Step beta from the centre of the normal classes along a label's difference from the mean label."""

SHRINKAGE = 20.0
"""Default weight n0 of the pooled variances, in images."""


def text_prior_bliss_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    *,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    prior_images: float | Float[Array, ""] = PRIOR_IMAGES,
    step: float | Float[Array, ""] = PRIOR_STEP,
    shrinkage: float | Float[Array, ""] = SHRINKAGE,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes BLISS with class means that are drawn toward a prior from the labels, for few normal images.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda; may be traced.
        normal: Mask of the normal classes [classes]; all by default.
        prior_images: Weight n0 >= 0 of the prior of a mean, in images; may be traced. 0 gives BLISS.
        step: beta; may be traced.
        shrinkage: n0 of `bliss_score`, for the variances.
        where: Texts that count, see `external_text_score`.
        dictionary_axis: Mapped axis over which the dictionary is sharded, see `external_text_score`; static.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], as those of `bliss_score`.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`, or `prior_images` is negative or `step` is not finite.
    """
    _checks.scalar("prior_images", prior_images, minimum=0.0)
    _checks.scalar("step", step)
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
    return _text_prior_bliss(
        *a,
        weight,
        shrinkage,
        prior_images,
        step,
        k=k,
        shrunk=shrinkage_is_on(shrinkage),
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


@compiled(
    static=("k", "shrunk", "dictionary_axis", "chunk_size", "precision"),
    out=lambda x, *_: rows(x),
)
def _text_prior_bliss(
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    counted: jax.Array | None,
    weight: Any,
    shrinkage: Any,
    prior_images: Any,
    step: Any,
    **static: Any,
) -> jax.Array:
    moments = in_dtype(moments, x, labels, texts)
    mean = drawn_means(moments, labels, mask, prior_images, step)
    moments = moments._replace(mean=mean)
    return bliss_scores(x, labels, texts, moments, mask, counted, weight, shrinkage, **static)


def drawn_means(
    moments: ClassMoments,
    labels: Float[jax.Array, "classes dim"],
    mask: Bool[jax.Array, " classes"],
    prior_images: Any,
    step: Any,
) -> Float[jax.Array, "classes dim"]:
    """Returns m'_c of every class. Masked classes do not affect those of the normal classes."""
    dtype = moments.mean.dtype
    labels = labels.astype(dtype)
    n0, beta = (jnp.asarray(value).astype(dtype) for value in (prior_images, step))
    number = jnp.maximum(mask.sum(), 1).astype(dtype)
    mean_label = jnp.where(mask[:, None], labels, 0).sum(axis=0) / number
    direction = unit(normal_centre(moments, mask) + beta * (labels - mean_label[None, :]))
    length = jnp.sqrt(jnp.maximum(jnp.sum(moments.mean**2, axis=1), jnp.finfo(dtype).tiny))
    share = (n0 / (moments.count + jnp.where(moments.count > 0, n0, 1)))[:, None]
    return moments.mean + share * (length[:, None] * direction - moments.mean)


def _of_split(
    embeddings, label_embeddings, dictionary_embeddings, moments, k, weight, normal
) -> jax.Array:
    return text_prior_bliss_score(
        embeddings, label_embeddings, dictionary_embeddings, moments, k,
        weight=weight, normal=normal,
    )  # fmt: skip


def _prepare(label_embeddings, dictionary_embeddings, moments, normal) -> PreparedBliss:
    moments = in_dtype(moments, label_embeddings, dictionary_embeddings)
    mean = drawn_means(moments, label_embeddings, normal, PRIOR_IMAGES, PRIOR_STEP)
    return prepare_bliss(
        label_embeddings,
        dictionary_embeddings,
        moments._replace(mean=mean),
        normal=normal,
        shrinkage=SHRINKAGE,
    )


def _from_prepared(embeddings, prepared, k, weight) -> jax.Array:
    return bliss_score_prepared(embeddings, prepared, k, weight=weight)


SCORE = Score(
    "text_prior_bliss",
    _of_split,
    order=19,
    one_split_at_a_time=True,
    settings={"shrinkage": SHRINKAGE, "prior_images": PRIOR_IMAGES, "step": PRIOR_STEP},
    prepare=_prepare,
    from_prepared=_from_prepared,
)
