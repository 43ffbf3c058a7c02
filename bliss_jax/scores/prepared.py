"""BLISS with the statistics of all texts computed beforehand, for streams of images and for many classes.

    prepare     mu_{c,t} = t . m_c,    sigma_{c,t} = sqrt(t^T C_c t) + 1e-8    for every class c and text t
    score       BLISS(x) of `bliss.py`, with mu and sigma read from the table

`bliss_score` computes the statistics of its nearest texts again for every batch. For all texts these are 2 texts
classes dim^2 operations, nearly all of the cost if there are many classes. Here they are computed once. A score
then costs the product with the dictionary, top-k, and k rows of the table for each image.

Memory, with n images and C classes: besides inputs and result, `bliss_score_prepared` takes that of `top_k_similar` and
at most 2 n C numbers, and a gradient takes up to 3 n k C numbers more besides its outputs (measured on CPUs).

Source of the score: Goodge et al., BMVC 2024, arXiv 2407.17083, section 4. The separation of an expensive preparation
from a cheap use follows the `init` and `compute` of linear solvers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int, Num

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision, compiled, rows
from bliss_jax.scores.chosen_texts import sum_of_z_scores
from bliss_jax.scores.moments import ClassMoments, check_moments
from bliss_jax.scores.parts import combine, nan_if_missing, nan_if_normal_is_empty
from bliss_jax.scores.reductions import nan_unless_finite
from bliss_jax.scores.shapes import row_mask, same_dim
from bliss_jax.scores.statistics import (
    TextStatistics,
    all_text_statistics,
    dictionary_pooling,
    in_dtype,
    label_statistics,
    shrinkage_is_on,
)
from bliss_jax.scores.top_k import (
    Axis,
    Nearest,
    check_chunk_size,
    check_search,
    local_rows,
    nearest_texts,
    similarity,
)

_SAME_COSINE = 1e-3
"""Largest accepted difference between a cosine in `nearest` and the cosine of its text. It allows for the rounding of
products in TF32 or bfloat16, but not for another text."""


class PreparedBliss(NamedTuple):
    """Texts, and the mean and standard deviation of every class's similarity to them; a pytree.

    If the dictionary is sharded over a mesh axis, `dictionary_embeddings`, `mean`, `deviation` and `where` are sharded
    by rows and the rest is replicated.
    """

    label_embeddings: Float[jax.Array, "*mapped classes dim"]
    """Embedding of each class's prompt."""
    label_mean: Float[jax.Array, "*mapped classes"]
    """mu_c of each class and its own prompt."""
    label_deviation: Float[jax.Array, "*mapped classes"]
    """sigma_c of each class and its own prompt."""
    dictionary_embeddings: Float[jax.Array, "*mapped texts dim"]
    """Embeddings of the dictionary's prompts."""
    mean: Float[jax.Array, "*mapped texts classes"]
    """mu_{c,d} of each text and class."""
    deviation: Float[jax.Array, "*mapped texts classes"]
    """sigma_{c,d} of each text and class."""
    count: Num[jax.Array, "*mapped classes"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of fitted images of each class."""
    normal: Bool[jax.Array, "*mapped classes"]
    """Mask of the normal classes that was given to `prepare_bliss`."""
    shrunk: Bool[jax.Array, "*mapped"]
    """Whether shrinkage pooled the variances over `normal`. The table is then valid for this mask only."""
    where: Bool[jax.Array, "*mapped texts"] | None = None
    """Mask of the texts that count. The others are padding; None stands for all."""

    def __repr__(self) -> str:
        texts, classes = jnp.shape(self.mean)[-2:]
        return f"PreparedBliss({texts} texts, {classes} classes, shrunk {self.shrunk})"


export.register_namedtuple_serialization(PreparedBliss, serialized_name="bliss_jax.PreparedBliss")


def prepare_bliss(
    label_embeddings: Float[Array, "classes dim"],
    dictionary_embeddings: Float[Array, "texts dim"],
    moments: ClassMoments,
    *,
    normal: Bool[Array, " classes"] | None = None,
    shrinkage: float | Float[Array, ""] = 0.0,
    where: Bool[Array, " texts"] | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> PreparedBliss:
    """Computes mu_{c,t} = t . m_c and sigma_{c,t} = sqrt(t^T C_c t) + 1e-8 of every class c and text t once.

    This takes 2 texts classes dim^2 operations. The table takes texts x classes x 2 x 4 bytes: 149 kB for 1,860 texts
    and 10 classes, and 640 MB for 80,000 texts and 1,000 classes. Memory besides the table is that of
    `text_statistics`, forward and in reverse mode.

    Args:
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        normal: Mask of the normal classes [classes]; all by default. Shrinkage pools over them.
        shrinkage: n0 >= 0 of `bliss_score`. Unless it is the Python number 0, the table is valid for this mask
            only, and `bliss_score_prepared` accepts no other mask.
        where: Texts that count [texts], see `top_k_similar`.
        dictionary_axis: Mapped axis over which the texts are sharded, see `top_k_similar`; static. Each device
            prepares its own texts.
        chunk_size: Largest number of texts per chunk; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        The table for `bliss_score_prepared`. Its statistics are at least float32, and the texts keep their dtype.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`, or the dictionary is empty.
    """
    checks = _checks.ValueChecks()
    labels = checks.embeddings("label_embeddings", label_embeddings)
    texts = checks.embeddings("dictionary_embeddings", dictionary_embeddings)
    moments = check_moments(checks, moments, labels=labels, texts=texts)
    _checks.scalar("shrinkage", shrinkage, minimum=0.0)
    mask = checks.normal_mask(normal, len(moments.count), moments.count)
    counted = row_mask("where", where, len(texts), "text")
    if not len(texts):
        raise ValueError("dictionary_embeddings: expected at least one text, got none")
    checks.run()
    return _prepare(
        labels,
        texts,
        moments,
        mask,
        shrinkage,
        counted,
        shrunk=shrinkage_is_on(shrinkage),
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


def _prepared_specs(
    labels: Any, texts: Any, moments: Any, mask: Any, shrinkage: Any, counted: Any
) -> PreparedBliss:
    of_texts: Any = rows(texts)  # the fields are typed as arrays
    whole: Any = PartitionSpec()
    where = None if counted is None else of_texts
    return PreparedBliss(
        whole, whole, whole, of_texts, of_texts, of_texts, whole, whole, whole, where
    )


@compiled(static=("shrunk", "dictionary_axis", "chunk_size", "precision"), out=_prepared_specs)
def _prepare(
    labels: jax.Array,
    texts: jax.Array,
    moments: ClassMoments,
    mask: jax.Array,
    shrinkage: Any,
    counted: jax.Array | None,
    *,
    shrunk: bool,
    dictionary_axis: Axis | None,
    chunk_size: int,
    precision: Precision,
) -> PreparedBliss:
    moments = in_dtype(moments, labels, texts)
    dtype = moments.mean.dtype
    pooling = dictionary_pooling(
        texts, moments, mask, shrinkage, counted, shrunk=shrunk, dictionary_axis=dictionary_axis
    )
    mean, deviation = all_text_statistics(texts, moments, pooling, chunk_size, precision)
    label_mean, label_deviation = label_statistics(
        labels, moments, mask=mask, shrinkage=shrinkage, shrunk=shrunk, precision=precision
    )
    return PreparedBliss(
        label_embeddings=labels.astype(dtype),
        label_mean=label_mean,
        label_deviation=label_deviation,
        dictionary_embeddings=texts,
        mean=mean,
        deviation=deviation,
        count=moments.count,
        normal=mask,
        shrunk=jnp.asarray(shrunk),
        where=counted,
    )


def bliss_score_prepared(
    embeddings: Float[Array, "images dim"],
    prepared: PreparedBliss,
    k: int = 10,
    *,
    weight: float | Float[Array, ""] = 0.5,
    normal: Bool[Array, " classes"] | None = None,
    nearest: Nearest | None = None,
    dictionary_axis: Axis | None = None,
    chunk_size: int | None = None,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes BLISS(x), as `bliss_score` does, from the table of `prepare_bliss`.

    The two scores agree within 1e-4 in float32. They differ only in the shapes of the products that give the
    variances, whose relative rounding error is about 1e-6. The docstring of this module describes the memory.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        prepared: Table from `prepare_bliss`.
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda; may be traced, so that a grid is a `vmap`.
        normal: Mask of the normal classes [classes]; by default the mask given to `prepare_bliss`. Without
            shrinkage any mask is allowed, and `vmap` over masks scores all splits. With shrinkage the table
            depends on its mask, so this argument must be None; another mask needs another table.
        nearest: Result of an earlier `top_k_similar` for the same images, texts and `where`, with at least k places;
            computed by default. With it the product with the dictionary is not repeated, and other labels, k, lambda,
            classes or shrinkage cost k dot products per image.
        dictionary_axis: Mapped axis over which `prepared` is sharded; static.
        chunk_size: Texts per chunk, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous; NaN and +inf as in `bliss_score`. 0 images give
        an empty array. Under tracing, an image also has NaN if `nearest` names a text that does not count or has
        another cosine, and all images have NaN if the table was made with shrinkage for another mask.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`; a mask is given with a table made with shrinkage; or
            `nearest` belongs to other images or another dictionary, names texts that do not count, or has fewer than
            k places.
    """
    a = check_prepared(
        embeddings,
        prepared,
        k,
        weight=weight,
        normal=normal,
        nearest=nearest,
        dictionary_axis=dictionary_axis,
    )
    return _bliss_prepared(
        *a,
        weight,
        k=k,
        places=k,
        dictionary_axis=dictionary_axis,
        chunk_size=check_chunk_size(chunk_size),
        precision=precision,
    )


class PreparedArguments(NamedTuple):
    """Checked arguments of the scores that read a prepared table."""

    x: jax.Array
    prepared: PreparedBliss
    normal: jax.Array | None
    nearest: tuple[jax.Array, jax.Array] | None


def check_prepared(
    embeddings: Any,
    prepared: Any,
    k: Any,
    *,
    weight: Any,
    normal: Any,
    nearest: Any = None,
    dictionary_axis: Axis | None = None,
) -> PreparedArguments:
    """Checks the arguments of `bliss_score_prepared` and returns its arrays.

    Raises:
        ValueError: One of the reasons listed in `bliss_score_prepared`.
    """
    if not isinstance(prepared, PreparedBliss):
        raise ValueError(
            f"prepared: expected PreparedBliss (from prepare_bliss), got a {type(prepared).__name__}"
        )
    if np.ndim(prepared.mean) != 2:
        raise ValueError(
            f"prepared: expected mean [texts, classes], got {list(np.shape(prepared.mean))}; map over stacked "
            "tables with jax.vmap"
        )
    _checks.scalar("weight", weight)
    if normal is not None and _checks.is_concrete(prepared.shrunk) and np.asarray(prepared.shrunk):
        raise ValueError(
            "normal: expected None, because shrinkage pooled the variances over the normal classes given to "
            f"prepare_bliss, got a mask of {np.shape(normal)[0]} classes; call prepare_bliss for another mask"
        )
    prepared = jax.tree.map(jnp.asarray, prepared)
    checks = _checks.ValueChecks()
    x = checks.embeddings("embeddings", embeddings)
    texts = prepared.dictionary_embeddings
    same_dim(embeddings=x, dictionary_embeddings=texts)
    mask = None
    if normal is not None:
        mask = checks.normal_mask(normal, len(prepared.count), prepared.count)
    check_search(checks, k, texts, prepared.where, dictionary_axis)
    if nearest is not None:
        nearest = _check_nearest(checks, nearest, x, prepared, k, dictionary_axis)
    checks.run()
    return PreparedArguments(x, prepared, mask, nearest)


def _check_nearest(
    checks: _checks.ValueChecks,
    nearest: Any,
    x: jax.Array,
    prepared: PreparedBliss,
    k: int,
    dictionary_axis: Axis | None,
) -> tuple[jax.Array, jax.Array]:
    cosines, texts = (_checks.as_array(f"nearest[{i}]", part) for i, part in enumerate(nearest))
    if cosines.shape != texts.shape or cosines.ndim != 2 or cosines.shape[0] != x.shape[0]:
        raise ValueError(
            f"nearest: expected cosines and positions [{x.shape[0]}, places], got {list(cosines.shape)} and "
            f"{list(texts.shape)}"
        )
    kinds = jnp.issubdtype(cosines.dtype, jnp.floating), jnp.issubdtype(texts.dtype, jnp.integer)
    if not all(kinds):
        raise ValueError(
            f"nearest: expected floating cosines and integer positions, got {cosines.dtype} and {texts.dtype}"
        )
    _checks.top_k_size(k, cosines.shape[1], "the places of `nearest`")
    texts = texts.astype(jnp.int32)
    if dictionary_axis is None and all(
        map(_checks.is_concrete, (x, cosines, texts, prepared.dictionary_embeddings))
    ):
        valid = _is_nearest(x, prepared, (cosines, texts))
        checks.add(
            "all",
            0,
            lambda valid: (
                "nearest: expected top_k_similar of the same images, dictionary and `where` as in `prepared`; "
                f"{(~valid).sum()} of {valid.size} rows name a text that does not count, is not in the "
                "dictionary, or has another cosine"
            ),
            valid,
        )
    return cosines, texts


def _valid_nearest(
    x: jax.Array,
    prepared: PreparedBliss,
    nearest: tuple[jax.Array, jax.Array],
    dictionary_axis: Axis | None = None,
) -> Bool[jax.Array, " images"]:
    """Returns whether the texts of each image count and have the given cosines, checked one place at a time."""
    cosines, positions = nearest
    texts = prepared.dictionary_embeddings
    number = len(texts)
    row, inside = local_rows(positions, number, dictionary_axis)
    if inside is None:
        inside = (positions >= 0) & (positions < number)
        row = jnp.where(inside, positions, 0)
    dtype = _checks.accumulation_dtype(x, texts, cosines)

    def of_place(place: tuple) -> jax.Array:
        cosine, row, inside = place
        found = jnp.sum(x.astype(dtype) * texts[row].astype(dtype), axis=1)
        fits = jnp.abs(found - cosine.astype(dtype)) <= _SAME_COSINE
        counts = True if prepared.where is None else prepared.where[row]
        return (inside & fits & counts).astype(jnp.int32)

    valid = lax.map(of_place, (cosines.T, row.T, inside.T))
    if dictionary_axis is not None:
        valid = lax.psum(valid, dictionary_axis)
    return jnp.all(valid > 0, axis=0)


_is_nearest = compiled(static=("dictionary_axis",), out=lambda x, *_: rows(x))(_valid_nearest)


class PreparedParts(NamedTuple):
    """The parts of each image's score, and the classes and texts from which they are computed."""

    internal: Float[jax.Array, "images classes"]
    external: Float[jax.Array, "images classes"]
    normal: Bool[jax.Array, " classes"]
    """Mask of the normal classes."""
    known: Bool[jax.Array, " images"]
    """Whether the score is valid. It is False if `nearest` or the mask does not belong to the table."""
    cosines: Float[jax.Array, "images places"]
    """Cosines of the nearest texts, in descending order."""
    texts: Int[jax.Array, "images places"]
    """Positions of the nearest texts in the dictionary."""


def prepared_parts(
    x: jax.Array,
    prepared: PreparedBliss,
    normal: jax.Array | None,
    nearest: tuple[jax.Array, jax.Array] | None,
    *,
    k: int,
    places: int,
    dictionary_axis: Axis | None,
    chunk_size: int,
    precision: Precision,
) -> PreparedParts:
    """Computes internal(x, c) and external(x, c), which are finite for every class if the inputs are finite.

    It finds the `places` >= k nearest texts, of which the first k count.
    """
    labels, texts = prepared.label_embeddings, prepared.dictionary_embeddings
    dtype = _checks.accumulation_dtype(x, labels, prepared.mean)
    if nearest is None:
        cosines, positions = nearest_texts(
            x,
            texts,
            prepared.where,
            k=places,
            dictionary_axis=dictionary_axis,
            chunk_size=chunk_size,
            precision=precision,
        )
        known = jnp.ones(x.shape[:1], bool)
    else:
        cosines, positions = nearest
        known = _valid_nearest(x, prepared, nearest, dictionary_axis)
    if normal is not None:
        known = known & ~(prepared.shrunk & jnp.any(normal != prepared.normal))
    cosines = nan_if_missing(cosines.astype(dtype))
    row, inside = local_rows(positions[:, :k], len(texts), dictionary_axis)
    if inside is None:
        row = jnp.clip(row, 0, len(texts) - 1)

    similar = similarity(x, labels, precision=precision).astype(dtype)
    label_mean, label_deviation = (
        part.astype(dtype)[None, :] for part in (prepared.label_mean, prepared.label_deviation)
    )
    statistics = TextStatistics(prepared.mean.astype(dtype), prepared.deviation.astype(dtype))
    total = sum_of_z_scores(cosines[:, :k], row, inside, statistics)
    if dictionary_axis is not None:
        total = lax.psum(total, dictionary_axis)
    return PreparedParts(
        internal=-(similar - label_mean) / label_deviation,
        external=total / k,
        normal=prepared.normal if normal is None else normal,
        known=known,
        cosines=cosines,
        texts=positions,
    )


@compiled(
    static=("k", "places", "dictionary_axis", "chunk_size", "precision"), out=lambda x, *_: rows(x)
)
def _bliss_prepared(
    x: jax.Array,
    prepared: PreparedBliss,
    normal: jax.Array | None,
    nearest: tuple[jax.Array, jax.Array] | None,
    weight: Any,
    **static: Any,
) -> jax.Array:
    parts = prepared_parts(x, prepared, normal, nearest, **static)
    score = combine(parts.internal, parts.external, weight, normal=parts.normal)
    score = nan_if_normal_is_empty(score, parts.normal, prepared.count)
    return nan_unless_finite(jnp.where(parts.known, score, jnp.nan), x)
