"""Explanations of BLISS scores: the nearest normal class, the two parts, and the nearest texts with z-scores.

    c*(x)       = argmin over normal classes c of [ internal(x, c) + lambda external(x, c) ]
    BLISS(x)    = internal(x, c*) + lambda external(x, c*)
    z(x, d)     = (s(x, d) - mu_{c*,d}) / sigma_{c*,d}      for each text d of D_k(x)
    external(x, c*) = mean of z(x, d) over D_k(x)

A text with a large z is more similar to the image than to the normal images of the nearest class, which is evidence
of an anomaly. Source of the score: Goodge et al., BMVC 2024, arXiv 2407.17083, section 4; see `bliss.py`.

Memory is that of the score (see `bliss.py`), with max(k, num_texts) for k, plus n k C numbers for n images and C
classes (measured on CPUs).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.bliss import STATIC
from bliss_jax.scores.blocks import zeros_varying
from bliss_jax.scores.chosen_texts import chosen_texts, fold_class_blocks
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.parts import (
    check_bliss,
    external_scores,
    internal_scores,
    nan_if_normal_is_empty,
)
from bliss_jax.scores.prepared import PreparedBliss, check_prepared, prepared_parts
from bliss_jax.scores.reductions import nan_unless_finite, smallest_class
from bliss_jax.scores.statistics import TextStatistics, in_dtype, shrinkage_is_on
from bliss_jax.scores.top_k import Axis, Nearest, check_chunk_size, local_rows


class BlissExplanation(NamedTuple):
    """The parts of BLISS(x) of each image; a pytree."""

    score: Float[jax.Array, "*mapped images"]
    """BLISS(x), equal to `bliss_score` up to rounding."""
    nearest_class: Int[jax.Array, "*mapped images"]
    """c*, the normal class with the smallest sum of both parts."""
    internal: Float[jax.Array, "*mapped images"]
    """internal(x, c*)."""
    external: Float[jax.Array, "*mapped images"]
    """external(x, c*), without the factor lambda."""
    texts: Int[jax.Array, "*mapped images n"]
    """Positions of the nearest texts in the dictionary, by descending cosine; D_k(x) if n = k."""
    z_scores: Float[jax.Array, "*mapped images n"]
    """z(x, d) of these texts."""


def explain_bliss(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    k: int = 10,
    *,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    num_texts: int | None = None,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> BlissExplanation:
    """Computes the parts of BLISS(x) = internal(x, c*) + lambda external(x, c*) at the nearest normal class c*.

    The docstring of this module contains the equations and the memory.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda.
        normal: Mask of the normal classes [classes]; all by default.
        shrinkage: n0 >= 0 of `bliss_score`.
        num_texts: Number of nearest texts to return, 1 <= num_texts <= texts; by default the k of the score. Static.
        where: Texts that count, see `external_text_score`.
        dictionary_axis: Mapped axis over which the dictionary is sharded, see `external_text_score`; static.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Score, class, parts, texts and their z-scores; numbers are at least float32, class and texts int32. The first
        of several classes with the smallest score is returned. 0 images give arrays with 0 rows. Under tracing, when
        values cannot be checked, the score is NaN or +inf as that of `bliss_score`. An image whose score is NaN for
        a class has the first such class, and with an empty mask only the texts are defined.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`, or `num_texts` is out of range.
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
    named = _check_named(k, num_texts, len(a.texts), dictionary_axis)
    return _explain(
        *a,
        weight,
        shrinkage,
        k=k,
        named=named,
        shrunk=shrinkage_is_on(shrinkage),
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


def _check_named(k: int, num_texts: int | None, texts: int, axis: Axis | None) -> int:
    named = k if num_texts is None else num_texts
    devices = 1 if axis is None else jax.lax.axis_size(axis)
    _checks.top_k_size(named, devices * texts, "the texts of the dictionary", name="num_texts")
    return named


def _explanation_specs(x: Any, *_: Any) -> BlissExplanation:
    of_images: Any = rows(x)  # the fields are typed as arrays
    return BlissExplanation(*(of_images,) * len(BlissExplanation._fields))


@compiled(static=(*STATIC, "named"), out=_explanation_specs)
def _explain(
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    counted: jax.Array | None,
    weight: Any,
    shrinkage: Any,
    *,
    k: int,
    named: int,
    shrunk: bool,
    dictionary_axis: Axis | None,
    chunk_size: int,
    precision: Precision,
) -> BlissExplanation:
    moments = in_dtype(moments, x, labels, texts)
    internal = internal_scores(
        x, labels, moments, mask, shrinkage, shrunk=shrunk, precision=precision
    )
    found = external_scores(
        x,
        texts,
        moments,
        mask,
        shrinkage,
        counted,
        k=k,
        places=max(k, named),
        shrunk=shrunk,
        dictionary_axis=dictionary_axis,
        chunk_size=chunk_size,
        precision=precision,
    )
    both = internal + jnp.asarray(weight).astype(internal.dtype) * found.external
    nearest_class = smallest_class(both, mask)
    cosines, positions = found.cosines[:, :named], found.texts[:, :named]
    chosen = chosen_texts(positions, len(texts), dictionary_axis=dictionary_axis)

    def add_classes(z: jax.Array, first: jax.Array, statistics: TextStatistics) -> jax.Array:
        column = nearest_class - first
        classes = statistics.mean.shape[1]
        inside = ((column >= 0) & (column < classes))[:, None]
        if chosen.inside is not None:
            inside = inside & chosen.inside
        own = chosen.row, jnp.clip(column, 0, classes - 1)[:, None]
        return jnp.where(inside, (cosines - statistics.mean[own]) / statistics.deviation[own], z)

    z_scores = fold_class_blocks(
        add_classes,
        zeros_varying((x.shape[0], named), cosines.dtype, x, texts, moments.mean, mask),
        chosen,
        texts,
        moments,
        found.pooling,
        chunk_size=chunk_size,
        precision=precision,
    )
    if dictionary_axis is not None:
        z_scores = jax.lax.psum(z_scores, dictionary_axis)
    known = jnp.ones(x.shape[:1], bool)
    return _explanation(
        x, both, internal, found.external, nearest_class, mask, moments.count, known, positions,
        jnp.where(jnp.isnan(cosines), jnp.nan, z_scores),
    )  # fmt: skip


def explain_bliss_prepared(
    embeddings: Float[Array, "images dim"],
    prepared: PreparedBliss,
    k: int = 10,
    *,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    num_texts: int | None = None,
    nearest: Nearest | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> BlissExplanation:
    """Computes `explain_bliss` from the table of `prepare_bliss`.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        prepared: Table from `prepare_bliss`.
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda.
        normal: Mask of the normal classes, as for `bliss_score_prepared`.
        num_texts: Number of nearest texts to return, 1 <= num_texts <= texts; by default the k of the score. Static.
        nearest: Result of `top_k_similar`, as for `bliss_score_prepared`, with at least k and `num_texts` places.
        dictionary_axis: Mapped axis, as for `bliss_score_prepared`; static.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        The result of `explain_bliss`. Under tracing the score is also NaN as that of `bliss_score_prepared`.

    Raises:
        ValueError: One of the reasons listed in `bliss_score_prepared`, or `num_texts` is out of range.
    """
    named = k if num_texts is None else num_texts
    a = check_prepared(
        embeddings,
        prepared,
        max(k, named) if isinstance(named, int) and isinstance(k, int) else k,
        weight=weight,
        normal=normal,
        nearest=nearest,
        dictionary_axis=dictionary_axis,
    )
    _check_named(k, num_texts, len(a.prepared.dictionary_embeddings), dictionary_axis)
    return _explain_prepared(
        *a,
        weight,
        k=k,
        named=named,
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


@compiled(
    static=("k", "named", "dictionary_axis", "chunk_size", "precision"), out=_explanation_specs
)
def _explain_prepared(
    x: jax.Array,
    prepared: PreparedBliss,
    normal: jax.Array | None,
    nearest: tuple[jax.Array, jax.Array] | None,
    weight: Any,
    *,
    k: int,
    named: int,
    dictionary_axis: Axis | None,
    **static: Any,
) -> BlissExplanation:
    parts = prepared_parts(
        x,
        prepared,
        normal,
        nearest,
        k=k,
        places=max(k, named),
        dictionary_axis=dictionary_axis,
        **static,
    )
    both = parts.internal + jnp.asarray(weight).astype(parts.internal.dtype) * parts.external
    nearest_class = smallest_class(both, parts.normal)
    cosines, texts = parts.cosines[:, :named], parts.texts[:, :named]
    row, inside = local_rows(texts, len(prepared.dictionary_embeddings), dictionary_axis)
    own = row, nearest_class[:, None]
    dtype = cosines.dtype
    z = (cosines - prepared.mean.astype(dtype)[own]) / prepared.deviation.astype(dtype)[own]
    if inside is not None:
        z = jax.lax.psum(jnp.where(inside, z, 0), dictionary_axis)
    return _explanation(
        x, both, parts.internal, parts.external, nearest_class, parts.normal, prepared.count, parts.known,
        texts, z,
    )  # fmt: skip


def _explanation(
    x: jax.Array,
    both: Float[jax.Array, "images classes"],
    internal: Float[jax.Array, "images classes"],
    external: Float[jax.Array, "images classes"],
    nearest_class: Int[jax.Array, " images"],
    mask: Bool[jax.Array, " classes"],
    count: Float[jax.Array, " classes"],
    known: Bool[jax.Array, " images"],
    texts: Int[jax.Array, "images n"],
    z_scores: Float[jax.Array, "images n"],
) -> BlissExplanation:
    score = jnp.where(jnp.any(mask), _of_class(both, nearest_class), jnp.inf)
    score = nan_if_normal_is_empty(score, mask, count)
    return BlissExplanation(
        score=nan_unless_finite(jnp.where(known, score, jnp.nan), x),
        nearest_class=nearest_class,
        internal=_of_class(internal, nearest_class),
        external=_of_class(external, nearest_class),
        texts=texts,
        z_scores=z_scores,
    )


def _of_class(
    per_class: Float[jax.Array, "images classes"], chosen: Int[jax.Array, " images"]
) -> Float[jax.Array, " images"]:
    return jnp.take_along_axis(per_class, chosen[:, None], axis=1)[:, 0]
