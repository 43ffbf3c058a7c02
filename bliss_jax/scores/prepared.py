"""BLISS with the statistics of all texts computed beforehand, for streams of images and for many classes.

    prepare     mu_{c,t} = t . m_c,    sigma_{c,t} = sqrt(t^T C_c t) + 1e-8    for every class c and text t
    score       BLISS(x) of `bliss.py`, with mu and sigma read from the table

`bliss_score` computes the statistics of the texts it meets again for every batch: 2 texts classes dim^2
operations, nearly all of its cost if there are many classes. Here they are computed once. A score then
costs the product with the dictionary, top-k, and k rows of the table for each image.

Source of the score: Goodge et al., BMVC 2024, arXiv 2407.17083, section 4. The division into an expensive preparation
and a cheap use follows a linear solver's `init` and `compute`.
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
"""Largest difference between a cosine in `nearest` and the cosine of the text it names: enough for products in
TF32 or bfloat16, too little for another text."""


class PreparedBliss(NamedTuple):
    """Texts, and the mean and standard deviation of every class's similarity to them; a pytree.

    With the dictionary over a mesh axis, `dictionary_embeddings`, `mean`, `deviation` and `where` are sharded
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
    """Images fitted of each class."""
    normal: Bool[jax.Array, "*mapped classes"]
    """The normal classes given at preparation."""
    shrunk: Bool[jax.Array, "*mapped"]
    """Whether shrinkage pooled variances over `normal`, which is then part of the table."""
    where: Bool[jax.Array, "*mapped texts"] | None = None
    """Texts that count, the others being padding; None stands for all."""

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
    """mu_{c,t} and sigma_{c,t} of every class c and text t: 2 texts classes dim^2 operations, once.

    The table takes texts x classes x 2 x 4 bytes: 149 kB for 1,860 texts and 10 classes, 640 MB for 80,000
    and 1,000. While it is made, `chunk_size` texts are handled at once.

    Args:
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        dictionary_embeddings: Unit-norm embeddings of the dictionary's prompts [texts, dim].
        moments: Fitted on normal images of the same classes (`fit_moments`).
        normal: Mask of the normal classes [classes]; all by default. Shrinkage pools over them.
        shrinkage: n0 >= 0 of `bliss_score`. If it is not the number 0, the mask is part of the table,
            and `bliss_score_prepared` takes no other.
        where: Texts that count [texts], see `top_k_similar`.
        dictionary_axis: Mapped axis over which the texts are spread, see `top_k_similar`; each device
            prepares its own. Static.
        chunk_size: Texts handled at once; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        The arguments of `bliss_score_prepared` beside the images.

    Raises:
        ValueError: as `bliss_score`, or the dictionary is empty.
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
    pooling = None
    if shrunk:
        pooling = dictionary_pooling(
            texts,
            moments,
            mask=mask,
            shrinkage=shrinkage,
            where=counted,
            dictionary_axis=dictionary_axis,
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
    """`bliss_score` from the table that `prepare_bliss` made: equal to it within 1e-4 in float32.

    The two differ only in the shapes of the products that give the variances, whose relative rounding
    error is then about 1e-6.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        prepared: From `prepare_bliss`.
        k: Texts per image, 1 <= k <= texts; static.
        weight: lambda; may be traced, so that a grid is a `vmap`.
        normal: Mask of the normal classes [classes]; by default that given at preparation. Without
            shrinkage any mask is allowed, and `vmap` over masks scores all splits. With shrinkage the table
            depends on the mask, so none may be given here: `prepare_bliss` makes another table.
        nearest: `top_k_similar` of the same images, texts and `where`, with at least k places, kept from
            an earlier call: the product with the dictionary is then not done again, and other labels, k, lambda,
            classes or shrinkage cost k dot products per image. Computed by default.
        dictionary_axis: Mapped axis over which `prepared` is spread; static.
        chunk_size: Texts handled at once, see `external_text_score`; static.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], higher = more anomalous; NaN and +inf as in `bliss_score`. Under tracing, `nearest` of
        another dictionary or of texts that do not count, and a mask beside a table made with shrinkage, give NaN.

    Raises:
        ValueError: as `bliss_score`; a mask is given beside a table made with shrinkage; or `nearest` is of other
            images, of another dictionary, of texts that do not count, or of fewer than k places.
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
        ValueError: as `bliss_score_prepared`.
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
            "normal: expected None, because shrinkage pooled the variances over the classes that were given to "
            f"prepare_bliss; prepare again for others (got a mask of {np.shape(normal)[0]} classes)"
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
        map(_checks.is_concrete, (x, cosines, texts, *prepared[3:4]))
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
    """Whether each named text counts and has the cosine that is given, one place after the other."""
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
    """The parts of each image's score, and what they were computed from."""

    internal: Float[jax.Array, "images classes"]
    external: Float[jax.Array, "images classes"]
    normal: Bool[jax.Array, " classes"]
    """The normal classes in use."""
    known: Bool[jax.Array, " images"]
    """Whether the score means anything: False for a wrong `nearest` or mask."""
    cosines: Float[jax.Array, "images places"]
    """Cosines of the nearest texts, in descending order."""
    texts: Int[jax.Array, "images places"]
    """Their positions in the dictionary."""


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
    """internal(x, c) and external(x, c) of every class, finite for finite inputs; finds `places` >= k texts."""
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
