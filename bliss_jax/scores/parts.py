"""The two parts of BLISS as functions for use inside jitted functions, and the checks of their arguments.

`bliss.py` contains the equations. The two parts do not check arguments and do not mark classes without images. Their
values are finite for finite inputs, so that no NaN of a masked class reaches gradients or debugging flags.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array, Precision
from bliss_jax.scores.blocks import zeros_varying
from bliss_jax.scores.chosen_texts import chosen_texts, fold_class_blocks, sum_of_z_scores
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.reductions import min_over_classes, nan_unless_finite
from bliss_jax.scores.statistics import (
    Pooling,
    TextStatistics,
    dictionary_pooling,
    label_statistics,
)
from bliss_jax.scores.top_k import Axis, check_search, nearest_texts, similarity


class BlissArguments(NamedTuple):
    """Checked arguments that scores with labels, a dictionary and moments share."""

    x: jax.Array
    labels: jax.Array
    texts: jax.Array
    moments: ClassMoments
    mask: jax.Array
    counted: jax.Array | None


def check_bliss(
    embeddings: Any,
    label_embeddings: Any,
    dictionary_embeddings: Any,
    moments: Any,
    k: Any,
    *,
    weight: Any,
    normal: Any,
    shrinkage: Any = 0.0,
    where: Any = None,
    dictionary_axis: Axis | None = None,
) -> BlissArguments:
    """Checks the arguments of `bliss_score` and returns its arrays.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`.
    """
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    labels = checks.embeddings("label_embeddings", label_embeddings)
    texts = checks.embeddings("dictionary_embeddings", dictionary_embeddings)
    moments = check_moments(checks, moments, labels=labels, texts=texts, embeddings=x)
    _checks.scalar("weight", weight)
    _checks.scalar("shrinkage", shrinkage, minimum=0.0)
    counted = check_search(checks, k, texts, where, dictionary_axis)
    mask = checks.normal_mask(normal, len(moments.count), moments.count)
    checks.run()
    return BlissArguments(x, labels, texts, moments, mask, counted)


def internal_scores(
    x: jax.Array,
    labels: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    shrinkage: Any,
    *,
    shrunk: bool,
    precision: Precision,
) -> Float[jax.Array, "images classes"]:
    """Computes internal(x, c), which is finite for every class if the inputs are finite."""
    mean, deviation = label_statistics(
        labels, moments, mask=mask, shrinkage=shrinkage, shrunk=shrunk, precision=precision
    )
    cosines = similarity(x, labels, precision=precision).astype(mean.dtype)
    return -(cosines - mean[None, :]) / deviation[None, :]


class External(NamedTuple):
    """The external score of every class, and the nearest texts and the shrinkage from which it is computed."""

    external: Float[jax.Array, "images classes"]
    cosines: Float[jax.Array, "images k"]
    texts: Int[jax.Array, "images k"]
    pooling: Pooling | None


def external_scores(
    x: jax.Array,
    texts: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    shrinkage: Any,
    counted: jax.Array | None,
    *,
    k: int,
    places: int | None = None,
    shrunk: bool,
    dictionary_axis: Axis | None,
    chunk_size: int,
    precision: Precision,
) -> External:
    """Computes external(x, c), which is finite for every class if the inputs are finite.

    It finds the `places` >= k nearest texts (by default k), of which the first k count.
    """
    dtype = moments.mean.dtype
    cosines, positions = nearest_texts(
        x,
        texts,
        counted,
        k=k if places is None else places,
        dictionary_axis=dictionary_axis,
        chunk_size=chunk_size,
        precision=precision,
    )
    cosines = nan_if_missing(cosines.astype(dtype))
    chosen = chosen_texts(positions[:, :k], len(texts), dictionary_axis=dictionary_axis)
    pooling = dictionary_pooling(
        texts, moments, mask, shrinkage, counted, shrunk=shrunk, dictionary_axis=dictionary_axis
    )

    def add_classes(total: jax.Array, first: jax.Array, statistics: TextStatistics) -> jax.Array:
        z = sum_of_z_scores(cosines[:, :k], chosen.row, chosen.inside, statistics)
        return lax.dynamic_update_slice_in_dim(total, z, first, axis=1)

    shape = x.shape[0], len(moments.count)
    total = zeros_varying(shape, dtype, x, texts, moments.mean, mask)
    total = fold_class_blocks(
        add_classes,
        total,
        chosen,
        texts,
        moments,
        pooling,
        chunk_size=chunk_size,
        precision=precision,
    )
    if dictionary_axis is not None:
        total = lax.psum(total, dictionary_axis)
    return External(total / k, cosines, positions, pooling)


def bliss_scores(
    x: jax.Array,
    labels: jax.Array,
    texts: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    counted: jax.Array | None,
    weight: Any,
    shrinkage: Any,
    *,
    shrunk: bool,
    precision: Precision,
    **static: Any,
) -> Float[jax.Array, " images"]:
    """Computes BLISS(x) from moments in the dtype of the computation."""
    internal = internal_scores(
        x, labels, moments, mask, shrinkage, shrunk=shrunk, precision=precision
    )
    found = external_scores(
        x, texts, moments, mask, shrinkage, counted, shrunk=shrunk, precision=precision, **static
    )
    score = combine(internal, found.external, weight, normal=mask)
    return nan_unless_finite(nan_if_normal_is_empty(score, mask, moments.count), x)


def combine(
    internal: Float[Array, "images classes"],
    external: Float[Array, "images classes"],
    weight: float | Float[Array, ""],
    *,
    normal: Bool[Array, " classes"] | None = None,
) -> Float[jax.Array, " images"]:
    """Combines the two parts: min over normal classes c of [ internal(x, c) + lambda external(x, c) ].

    Args:
        internal: internal(x, c) [images, classes], from `internal_class_score`.
        external: external(x, c) [images, classes], from `external_text_score`.
        weight: lambda.
        normal: Mask of the normal classes [classes]; all by default. Scores of other classes are ignored, also if
            they are NaN.

    Returns:
        Scores [images]; +inf if no class is normal.
    """
    internal, external = jnp.asarray(internal), jnp.asarray(external)
    if normal is not None:
        # Masked before the sum, so that NaN of other classes does not reach the gradient of the weight.
        mask = jnp.asarray(normal)[None, :]
        internal, external = jnp.where(mask, internal, 0), jnp.where(mask, external, 0)
    both = internal + jnp.asarray(weight).astype(internal.dtype) * external
    return min_over_classes(both, normal=normal)


def nan_if_missing(cosines: Float[jax.Array, "images k"]) -> Float[jax.Array, "images k"]:
    """Returns the cosines, with NaN in places without a text (if fewer than k rows of the dictionary count)."""
    return jnp.where(jnp.isneginf(cosines), jnp.nan, cosines)


def nan_if_empty(
    scores: Float[jax.Array, "images classes"], count: Float[jax.Array, " classes"]
) -> Float[jax.Array, "images classes"]:
    """Returns the scores, with NaN for classes without fitted images."""
    return jnp.where((count > 0)[None, :], scores, jnp.nan)


def nan_if_normal_is_empty(
    scores: Float[jax.Array, " images"],
    mask: Bool[jax.Array, " classes"],
    count: Float[jax.Array, " classes"],
) -> Float[jax.Array, " images"]:
    """Returns the scores, or NaN for all images if a normal class has no fitted images."""
    return jnp.where(jnp.any(mask & ~(count > 0)), jnp.nan, scores)
