"""BLISS with the statistics of all texts computed beforehand, for streams of images and for many classes.

    prepare     mu_{c,t} = t . m_c,    sigma_{c,t} = sqrt(t^T C_c t) + 1e-8    for every class c and text t
    score       BLISS(x) of `bliss.py`, with mu and sigma read from the table

`bliss_score` computes the statistics of the texts it meets, for every batch again: 2 texts classes dim^2
operations, nearly all of its cost where there are many classes. Here they are computed once. What a score
costs then is the product with the dictionary, top-k, and k rows of the table for each image.

Source of the score: Goodge et al., BMVC 2024, arXiv 2407.17083, section 4. The division into dear preparation
and cheap use is that of a linear solver's `init` and `compute`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import _checks
from bliss_jax._checks import Array
from bliss_jax.scores.bliss import combine, label_moments, nan_where_empty, unknown_where_missing
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.reductions import zero_like_inputs
from bliss_jax.scores.text_statistics import (
    VARIANCE_CHUNK,
    dictionary_moments,
    dictionary_pooling,
    shrinkage_is_on,
    sum_of_z_scores,
)
from bliss_jax.scores.top_k import CHUNK_SIZE, check_where, fold_chunks, similarity, top_k_similar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PreparedBliss:
    """Texts, and the mean and standard deviation of every class's similarity to them; a pytree.

    With the dictionary over a mesh axis, `dictionary_embeddings`, `mean`, `deviation` and `where` are sharded
    by rows and the rest is replicated.
    """

    label_embeddings: Float[jax.Array, "*mapped classes dim"]
    """Embedding of each class's prompt."""
    label_mean: Float[jax.Array, "*mapped classes"]
    """mu_c of each class and its own prompt."""
    label_deviation: Float[jax.Array, "*mapped classes"]
    """sigma_c, likewise."""
    dictionary_embeddings: Float[jax.Array, "*mapped texts dim"]
    """Embeddings of the dictionary's prompts."""
    mean: Float[jax.Array, "*mapped texts classes"]
    """mu_{c,d}."""
    deviation: Float[jax.Array, "*mapped texts classes"]
    """sigma_{c,d}."""
    count: Int[jax.Array, "*mapped classes"]
    """Images fitted of each class."""
    normal: Bool[jax.Array, "*mapped classes"]
    """The normal classes given at preparation."""
    where: Bool[jax.Array, "*mapped texts"] | None = None
    """Texts that count, the others being padding; all where None."""
    shrunk: bool = field(default=False, metadata={"static": True})
    """Whether shrinkage may have pooled variances over `normal`, which is then part of the table. Static."""


def prepare_bliss(
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    *,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: str | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> PreparedBliss:
    """Mu and sigma of every class and text: 2 texts classes dim^2 operations, once.

    The table takes texts x classes x 2 x 4 bytes: 149 kB for 1,860 texts and 10 classes, 640 MB for 80,000
    and 1,000. While it is made, `chunk_size` texts are handled at once.

    Args:
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        normal: Mask of the normal classes [classes]; all by default. Shrinkage pools over them.
        shrinkage: n0 >= 0 of `bliss_score`. Where it is not the number 0, the mask is part of the table,
            and `bliss_score_prepared` takes no other.
        where: Texts that count [texts], see `top_k_similar`.
        dictionary_axis: Mapped axis over which the texts are spread, see `top_k_similar`; each device
            prepares its own. Static.
        chunk_size: Texts handled at once; static.

    Returns:
        What `bliss_score_prepared` needs beside the images.

    Raises:
        ValueError: as `bliss_score`.
    """
    labels = _checks.embeddings_as_float("label_embeddings", label_embeddings)
    texts = _checks.embeddings_as_float("dictionary_embeddings", dictionary_embeddings)
    check_moments(moments, labels=labels, embeddings=labels, texts=texts)
    _checks.scalar("shrinkage", shrinkage, minimum=0.0)
    mask = _checks.normal_mask(normal, len(moments.count), moments.count)
    counted = check_where(where, len(texts))
    if not len(texts):
        raise ValueError("dictionary_embeddings: expected at least one text, got none")
    pooling = dictionary_pooling(
        texts,
        moments,
        mask=mask,
        shrinkage=shrinkage,
        where=counted,
        dictionary_axis=dictionary_axis,
    )

    def add_chunk(tables, start, size):
        chunk = lax.dynamic_slice_in_dim(texts, start, size)
        return tuple(
            lax.dynamic_update_slice_in_dim(table, rows, start, axis=0)
            for table, rows in zip(tables, dictionary_moments(chunk, moments, pooling), strict=True)
        )

    empty = jnp.zeros((len(texts), len(moments.count)), texts.dtype)
    varying = (moments.mean, mask) if pooling is None else (moments.mean, mask, pooling.share)
    empty = empty + zero_like_inputs(texts, *varying)
    size = min(chunk_size, VARIANCE_CHUNK, len(texts))
    mean, deviation = fold_chunks(add_chunk, (empty, empty), len(texts), size)
    label_mean, label_deviation = label_moments(labels, moments, mask=mask, shrinkage=shrinkage)
    return PreparedBliss(
        label_embeddings=labels,
        label_mean=label_mean,
        label_deviation=label_deviation,
        dictionary_embeddings=texts,
        mean=mean,
        deviation=deviation,
        count=jnp.asarray(moments.count),
        normal=mask,
        where=counted,
        shrunk=shrinkage_is_on(shrinkage),
    )


def bliss_score_prepared(
    embeddings: Float[Array, "images dim"],
    prepared: PreparedBliss,
    k: int = 10,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    *,
    nearest: tuple[Float[Array, "images places"], Int[Array, "images places"]] | None = None,
    dictionary_axis: str | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Float[jax.Array, " images"]:
    """`bliss_score` from what `prepare_bliss` made: equal to it within 1e-4 in float32.

    The two differ only in the shapes of the products that give the variances, whose relative rounding
    error is then about 1e-6.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        prepared: From `prepare_bliss`.
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda; may be traced, so that a grid is a `vmap`.
        normal: Mask of the normal classes [classes]; by default that given at preparation. Without
            shrinkage any mask will do, and `vmap` over masks scores all splits. With shrinkage the table
            depends on the mask, so that none may be given here: `prepare_bliss` makes another.
        nearest: `top_k_similar` of the same images, texts and `where`, with at least k places, kept from
            before: the product with the dictionary is then not done again, and other labels, k, lambda,
            classes or shrinkage cost milliseconds. Computed by default.
        dictionary_axis: Mapped axis over which `prepared` was spread; static.
        chunk_size: Texts handled at once, see `external_text_score`; static.

    Returns:
        Scores [images], higher = more anomalous; NaN and +inf as in `bliss_score`.

    Raises:
        ValueError: as `bliss_score`; a mask beside a table made with shrinkage; `nearest` of other images
            or of fewer than k places.
    """
    parts = prepared_parts(
        embeddings,
        prepared,
        k,
        weight,
        normal,
        nearest=nearest,
        dictionary_axis=dictionary_axis,
        chunk_size=chunk_size,
    )
    return combine(parts.internal, parts.external, weight, parts.normal)


class PreparedParts(NamedTuple):
    """What the score of each image is the minimum of, and what it was computed from."""

    internal: Float[jax.Array, "images classes"]
    external: Float[jax.Array, "images classes"]
    normal: Bool[jax.Array, " classes"]
    """The normal classes in use."""
    cosines: Float[jax.Array, "images places"]
    """Of the nearest texts, falling."""
    texts: Int[jax.Array, "images places"]
    """Their positions in the dictionary."""


def prepared_parts(
    embeddings: Float[Array, "images dim"],
    prepared: PreparedBliss,
    k: int = 10,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    *,
    places: int | None = None,
    nearest: tuple[Float[Array, "images places"], Int[Array, "images places"]] | None = None,
    dictionary_axis: str | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> PreparedParts:
    """internal(x, c) and external(x, c) of every class, NaN for a class of which no image was fitted.

    Arguments and errors are those of `bliss_score_prepared`; `places` >= k texts per image are found, k by
    default.
    """
    _checks.scalar("weight", weight)
    if normal is not None and prepared.shrunk:
        raise ValueError(
            "normal: expected None, since shrinkage pooled the variances over the classes that were given to "
            f"prepare_bliss; prepare again for others (got a mask of {np.shape(normal)[0]} classes)"
        )
    x = _checks.embeddings_as_float("embeddings", embeddings)
    labels, texts = prepared.label_embeddings, prepared.dictionary_embeddings
    _checks.same_dim(embeddings=x, dictionary_embeddings=texts)
    mask = _checks.normal_mask(
        prepared.normal if normal is None else normal, len(prepared.count), prepared.count
    )
    if nearest is None:
        nearest = top_k_similar(
            x,
            texts,
            k if places is None else places,
            where=prepared.where,
            dictionary_axis=dictionary_axis,
            chunk_size=chunk_size,
        )
    elif nearest[0].shape != nearest[1].shape or len(nearest[0]) != len(x):
        raise ValueError(
            f"nearest: expected cosines and indices [{len(x)}, places], got {list(nearest[0].shape)} and "
            f"{list(nearest[1].shape)}"
        )
    _checks.top_k_size(k, nearest[0].shape[1], "the places of `nearest`")
    cosines = unknown_where_missing(jnp.asarray(nearest[0]))
    positions = jnp.asarray(nearest[1])
    row, inside = positions[:, :k], None
    if dictionary_axis is not None:
        row = row - lax.axis_index(dictionary_axis) * len(texts)
        inside = (row >= 0) & (row < len(texts))
        row = jnp.clip(row, 0, len(texts) - 1)

    internal = -(similarity(x, labels) - prepared.label_mean[None, :])
    internal = internal / prepared.label_deviation[None, :]
    total = sum_of_z_scores(cosines[:, :k], row, inside, prepared.mean, prepared.deviation)
    if dictionary_axis is not None:
        total = lax.psum(total, dictionary_axis)
    return PreparedParts(
        internal=nan_where_empty(internal, prepared.count),
        external=nan_where_empty(total / k, prepared.count),
        normal=mask,
        cosines=cosines,
        texts=positions,
    )
