"""Why BLISS judges an image as it does: the nearest normal class, its two parts, and the words.

    c*(x)       = argmin over normal classes c of [ internal(x, c) + lambda external(x, c) ]
    BLISS(x)    = internal(x, c*) + lambda external(x, c*)
    z(x, d)     = (s(x, d) - mu_{c*,d}) / sigma_{c*,d}      for each text d of D_k(x)
    external(x, c*) = mean of z(x, d) over D_k(x)

A word of large z is more like the image than it is like the normal images of the nearest class: it speaks for
an anomaly. Source of the score: Goodge et al., BMVC 2024, arXiv 2407.17083, section 4; see `bliss.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.bliss import external_text_score, internal_class_score
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.prepared import PreparedBliss, prepared_parts
from bliss_jax.scores.reductions import min_over_classes, zero_like_inputs
from bliss_jax.scores.text_statistics import chosen_texts, dictionary_pooling, fold_class_blocks
from bliss_jax.scores.top_k import CHUNK_SIZE, top_k_similar


class BlissExplanation(NamedTuple):
    """The parts of BLISS(x) of each image; a pytree."""

    score: Float[jax.Array, "*mapped images"]
    """BLISS(x), exactly that of `bliss_score`."""
    nearest_class: Int[jax.Array, "*mapped images"]
    """c*, the normal class that the score is of."""
    internal: Float[jax.Array, "*mapped images"]
    """internal(x, c*)."""
    external: Float[jax.Array, "*mapped images"]
    """external(x, c*), before it is weighted with lambda."""
    texts: Int[jax.Array, "*mapped images n"]
    """The nearest texts, D_k(x) where n = k: positions in the dictionary by falling cosine."""
    z_scores: Float[jax.Array, "*mapped images n"]
    """z(x, d) of those texts."""


def explain_bliss(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    *,
    num_texts: int | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> BlissExplanation:
    """The parts of `bliss_score`, at the normal class for which it is smallest.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda.
        normal: Mask of the normal classes [classes]; all by default.
        shrinkage: n0 >= 0 of `bliss_score`.
        num_texts: Nearest texts to name, 1 <= num_texts <= texts; by default the k of the score. Static.
        chunk_size: Texts handled at once, see `external_text_score`; static.

    Returns:
        Score, class, parts, texts and their z-scores. Of classes with the same score the first is named.
        While tracing, when values cannot be checked, an image whose score is NaN has the first class
        for which it is, and with an empty mask no field but the texts means anything.

    Raises:
        ValueError: as `bliss_score`, or `num_texts` out of range.
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
    both, nearest_class = _nearest_class(internal, external, weight, mask)

    x = _checks.embeddings_as_float("embeddings", embeddings)
    words = _checks.embeddings_as_float("dictionary_embeddings", dictionary_embeddings)
    named = k if num_texts is None else num_texts
    cosines, texts = top_k_similar(x, words, named, chunk_size=chunk_size)

    chosen = chosen_texts(texts, len(words))
    pooling = dictionary_pooling(words, moments, mask=mask, shrinkage=shrinkage)

    def add_classes(z_scores, first, mean, deviation):
        column = nearest_class - first
        inside = (column >= 0) & (column < mean.shape[1])
        own = chosen.row, jnp.clip(column, 0, mean.shape[1] - 1)[:, None]
        return jnp.where(inside[:, None], (cosines - mean[own]) / deviation[own], z_scores)

    zero = zero_like_inputs(x, words, moments.mean, mask) + jnp.zeros_like(cosines)
    z_scores = fold_class_blocks(
        add_classes, zero, chosen, words, moments, pooling, chunk_size=chunk_size
    )
    return BlissExplanation(
        score=min_over_classes(both),
        nearest_class=nearest_class,
        internal=_of_class(internal, nearest_class),
        external=_of_class(external, nearest_class),
        texts=texts,
        z_scores=z_scores,
    )


def explain_bliss_prepared(
    embeddings: Float[Array, "images dim"],
    prepared: PreparedBliss,
    k: int = 10,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    *,
    num_texts: int | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> BlissExplanation:
    """`explain_bliss` from what `prepare_bliss` made; its score is that of `bliss_score_prepared`, exactly.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        prepared: From `prepare_bliss`, the whole dictionary on one device.
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda.
        normal: As `bliss_score_prepared`.
        num_texts: Nearest texts to name, 1 <= num_texts <= texts; by default the k of the score. Static.
        chunk_size: Texts handled at once, see `external_text_score`; static.

    Raises:
        ValueError: as `bliss_score_prepared`, or `num_texts` out of range.
    """
    named = k if num_texts is None else num_texts
    _checks.top_k_size(named, len(prepared.dictionary_embeddings), "texts in the dictionary")
    parts = prepared_parts(
        embeddings, prepared, k, weight, normal, places=max(k, named), chunk_size=chunk_size
    )
    both, nearest_class = _nearest_class(parts.internal, parts.external, weight, parts.normal)
    cosines, texts = parts.cosines[:, :named], parts.texts[:, :named]
    own = texts, nearest_class[:, None]
    return BlissExplanation(
        score=min_over_classes(both),
        nearest_class=nearest_class,
        internal=_of_class(parts.internal, nearest_class),
        external=_of_class(parts.external, nearest_class),
        texts=texts,
        z_scores=(cosines - prepared.mean[own]) / prepared.deviation[own],
    )


def _nearest_class(
    internal: Float[jax.Array, "images classes"],
    external: Float[jax.Array, "images classes"],
    weight: float | Float[Array, ""],
    mask: Bool[jax.Array, " classes"],
) -> tuple[Float[jax.Array, "images classes"], Int[jax.Array, " images"]]:
    """The sum internal + lambda external of the normal classes, and the class for which it is smallest."""
    both = jnp.where(mask[None, :], internal + weight * external, jnp.inf)
    return both, jnp.argmin(both, axis=1).astype(jnp.int32)


def _of_class(
    per_class: Float[jax.Array, "images classes"], chosen: Int[jax.Array, " images"]
) -> Float[jax.Array, " images"]:
    return jnp.take_along_axis(per_class, chosen[:, None], axis=1)[:, 0]
