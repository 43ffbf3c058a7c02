"""A protocol run on embeddings: moments fitted, every split scored in one jitted call, AUROC and company.

The scores of `SCORES` are computed for all splits of a protocol at once, by mapping over the masks of
normal classes; what does not depend on the split (moments, the nearest texts, the nearest images of each
class) is computed once. Few-shot draws are mapped over in the same call.

Protocol: Goodge et al. 2024 (arXiv 2407.17083): AUROC with the anomaly positive, the whole test set, mean
and population standard deviation over the splits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import metrics, scores
from bliss_jax.datasets import Protocol, Split
from bliss_jax.embedding_set import EmbeddingSet
from bliss_jax.results import Evaluation, Row, SplitResult
from bliss_jax.scores.block_map import block_map
from bliss_jax.scores.neglabel import NEGATIVE_FRACTION
from bliss_jax.scores.reductions import min_over_classes
from bliss_jax.scores.whitened import RIDGE as WHITENING_RIDGE
from bliss_jax.versions import versions

SCORES = (
    "bliss",
    "internal",
    "external",
    "max_cosine",
    "msp",
    "mcm",
    "max_logit",
    "energy",
    "entropy",
    "clip_ad",
    "mahalanobis",
    "knn",
    "neglabel",
)
"""Names of the scores, in the order of tables."""

ON_REQUEST = ("whitened_bliss",)
"""Names of the scores that are computed where they are named, and not by default."""


@dataclass(frozen=True)
class Settings:
    """The choices of an evaluation, apart from data and protocol.

    Raises:
        ValueError: a value out of range or an unknown score; the field is named.
    """

    scores: tuple[str, ...] = SCORES
    k: int = 10
    """Dictionary texts per image, of `bliss`, `external` and `whitened_bliss`."""
    weight: float = 0.5
    """lambda of `bliss` and `whitened_bliss`."""
    shrinkages: tuple[float, ...] = (0.0,)
    """n0 of `bliss`, one row each; 0 is the reference."""
    neighbours: int = 10
    """k of `knn`; fewer for all splits where one has fewer normal images, and the result says so."""
    shots: int | None = None
    """Normal images per class, drawn at random; all by default."""
    draws: int = 1
    """Few-shot draws."""
    seed: int = 0
    """Of the few-shot draws and of NegLabel's groups."""

    def __post_init__(self):
        for name in self.scores:
            known = SCORES + ON_REQUEST
            if name not in known:
                near = get_close_matches(name, known)
                hint = f" (did you mean {' or '.join(near)}?)" if near else ""
                raise ValueError(f"scores: unknown score {name!r}{hint}; known: {', '.join(known)}")
        if not np.isfinite(self.weight):
            raise ValueError(f"weight: expected a finite number, got {self.weight}")
        if not self.scores or not self.shrinkages:
            raise ValueError("scores, shrinkages: expected at least one of each")
        for name in ("k", "neighbours", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.shots is not None and self.shots < 1:
            raise ValueError(f"shots: expected at least 1, got {self.shots}")
        if self.shots is None and self.draws > 1:
            raise ValueError(f"draws: {self.draws} draws of all images are one; give shots")
        if not all(0 <= n0 < float("inf") for n0 in self.shrinkages):
            raise ValueError(f"shrinkages: expected finite numbers >= 0, got {self.shrinkages}")


def evaluate(
    embeddings: EmbeddingSet, protocol: Protocol, settings: Settings | None = None
) -> Evaluation:
    """Scores every split of a protocol.

    Moments and neighbours come from the training images of each split's normal classes, the AUROC from
    the test images of its normal and anomalous classes; test images of other classes take no part.

    Args:
        embeddings: Of a data set and a dictionary, by one model.
        protocol: Splits of the same classes.
        settings: Scores and their parameters; the paper's by default.

    Returns:
        One row per score (`bliss` has one per shrinkage), with provenance.

    Raises:
        ValueError: a split with a class that the embeddings do not have, or of which there are no
            images (fewer training images than shots); k larger than the dictionary.
    """
    settings = settings or Settings()
    normal, anomalous = class_masks(protocol, embeddings)
    rows = training_rows(
        embeddings,
        np.any(normal, axis=0, keepdims=True)[0],
        shots=settings.shots,
        draws=settings.draws,
        seed=settings.seed,
    )
    left_out = _left_out(embeddings, rows, settings)
    names = tuple(name for name in settings.scores if name not in left_out)
    if not names:
        raise ValueError(f"scores: none of {settings.scores} can be computed: {left_out}")
    neighbours = _neighbours(embeddings, normal, rows, settings)
    measured_columns = _evaluate_draws(
        _arrays(embeddings),
        jnp.asarray(rows),
        jnp.asarray(normal),
        jnp.asarray(anomalous),
        settings.weight,
        jax.random.key(settings.seed),
        _Choices(names, embeddings.num_classes, settings.k, settings.shrinkages, neighbours),
    )
    values = {metric: np.asarray(array) for metric, array in measured_columns.items()}
    table = []
    for column, (name, n0) in enumerate(_columns(names, settings.shrinkages)):
        own = {"shots": settings.shots, "draws": settings.draws}
        if name in ("bliss", "external", "whitened_bliss"):
            own["k"] = settings.k
        if name == "bliss":
            own |= {"lambda": settings.weight, "shrinkage": n0}
        if name == "whitened_bliss":
            own |= {"lambda": settings.weight, "ridge": WHITENING_RIDGE}
        if name == "knn":
            own["k"] = neighbours
        if name == "mcm":
            own["prompt"] = "mcm" if embeddings.mcm_label_embeddings is not None else "labels"
        measured = {metric: array[:, column] for metric, array in values.items()}
        splits = _split_results(protocol, measured)
        table.append(Row(protocol.name, protocol.family, name, own, splits))
    made_with = provenance(embeddings, protocol, _describe(settings))
    return Evaluation(made_with, tuple(table), left_out)


class SplitScores(NamedTuple):
    """Every score of the test images that take part in one split."""

    rows: Int[np.ndarray, " images"]
    """Their positions in the test set, ascending."""
    is_anomaly: Bool[np.ndarray, " images"]
    scores: dict[str, Float[np.ndarray, " images"]]
    """By name; `bliss` with shrinkage is `"bliss, shrinkage 20"`."""


def score_split(
    embeddings: EmbeddingSet, split: Split, settings: Settings | None = None
) -> SplitScores:
    """The scores behind one split's AUROCs: those of `evaluate`, image by image.

    With `settings.shots` they are of the first few-shot draw for this split alone.

    Args:
        embeddings: Of a data set and a dictionary, by one model.
        split: Normal and anomalous classes.
        settings: Scores and their parameters; what cannot be computed is not in the result.

    Raises:
        ValueError: as `evaluate`.
    """
    settings = settings or Settings()
    normal, anomalous = class_masks(Protocol("split", "custom", None, (split,)), embeddings)
    rows = training_rows(embeddings, normal[0], shots=settings.shots, draws=1, seed=settings.seed)
    left_out = _left_out(embeddings, rows, settings)
    names = tuple(name for name in settings.scores if name not in left_out)
    if not names:
        raise ValueError(f"scores: none of {settings.scores} can be computed: {left_out}")
    neighbours = _neighbours(embeddings, normal, rows, settings)
    counted = np.flatnonzero((normal | anomalous)[0][embeddings.test_labels])
    arrays, own = _arrays(embeddings), np.flatnonzero(normal[0])
    # The normal classes alone: the others have no part in a split's scores.
    columns = _scores_of_splits(
        arrays._replace(
            train=arrays.train[rows[0]],
            train_labels=jnp.asarray(np.searchsorted(own, embeddings.train_labels[rows[0]])),
            test=arrays.test[counted],
            test_labels=arrays.test_labels[counted],
            labels=arrays.labels[own],
            mcm_labels=arrays.mcm_labels[own],
        ),
        jnp.ones((1, len(own)), bool),
        settings.weight,
        jax.random.key(settings.seed),
        _Choices(names, len(own), settings.k, settings.shrinkages, neighbours),
    )
    named = [
        f"{name}, shrinkage {n0:g}" if n0 else name
        for name, n0 in _columns(names, settings.shrinkages)
    ]
    by_name = dict(zip(named, np.asarray(columns)[:, 0], strict=True))
    return SplitScores(counted, anomalous[0][embeddings.test_labels[counted]], by_name)


class _Choices(NamedTuple):
    """What is static under jit."""

    names: tuple[str, ...]
    num_classes: int
    k: int
    shrinkages: tuple[float, ...]
    neighbours: int


class _Arrays(NamedTuple):
    train: Float[jax.Array, "train dim"]
    train_labels: Int[jax.Array, " train"]
    test: Float[jax.Array, "test dim"]
    test_labels: Int[jax.Array, " test"]
    labels: Float[jax.Array, "classes dim"]
    dictionary: Float[jax.Array, "texts dim"]
    mcm_labels: Float[jax.Array, "classes dim"]
    something: Float[jax.Array, " dim"] | None


def _arrays(e: EmbeddingSet) -> _Arrays:
    mcm = e.label_embeddings if e.mcm_label_embeddings is None else e.mcm_label_embeddings
    arrays = (
        e.train_embeddings,
        e.train_labels.astype(np.int32),
        e.test_embeddings,
        e.test_labels.astype(np.int32),
        e.label_embeddings,
        e.dictionary_embeddings,
        mcm,
        e.something_embedding,
    )
    return _Arrays(*(None if array is None else jnp.asarray(array) for array in arrays))  # pyright: ignore[reportArgumentType]


@partial(jax.jit, static_argnames="choices")
def _evaluate_draws(
    arrays: _Arrays,
    rows: Int[jax.Array, "draws chosen"],
    normal: Bool[jax.Array, "splits classes"],
    anomalous: Bool[jax.Array, "splits classes"],
    weight: Float[jax.Array, ""] | float,
    key: jax.Array,
    choices: _Choices,
) -> dict[str, Float[jax.Array, "draws columns splits"]]:
    """The metrics of every column (see `_columns`), for every draw and split."""
    is_anomaly = anomalous[:, arrays.test_labels]
    counted = is_anomaly | normal[:, arrays.test_labels]

    def one_draw(chosen):
        columns = _score_splits(
            arrays._replace(train=arrays.train[chosen], train_labels=arrays.train_labels[chosen]),
            normal,
            weight,
            key,
            choices,
        )
        # All columns as one array: the metrics are compiled once, not once for each score.
        of_splits = jax.vmap(_measure)
        return jax.vmap(of_splits, in_axes=(0, None, None))(columns, is_anomaly, counted)

    return lax.map(one_draw, rows)


def _measure(
    score: Float[jax.Array, " test"],
    is_anomaly: Bool[jax.Array, " test"],
    counted: Bool[jax.Array, " test"],
) -> dict[str, Float[jax.Array, ""]]:
    low, high = metrics.auroc_interval(score, is_anomaly, where=counted)
    return {
        "auroc": metrics.auroc(score, is_anomaly, where=counted),
        "auroc_low": low,
        "auroc_high": high,
        "aupr_anomaly": metrics.aupr(score, is_anomaly, where=counted),
        "aupr_normal": metrics.aupr(score, is_anomaly, where=counted, positive="normal"),
        "fpr95": metrics.fpr_at_tpr(score, is_anomaly, where=counted),
    }


def _score_splits(
    a: _Arrays,
    normal: Bool[jax.Array, "splits classes"],
    weight: Float[jax.Array, ""] | float,
    key: jax.Array,
    choices: _Choices,
) -> Float[jax.Array, "columns splits test"]:
    """Every column of `_columns`: one score for all splits."""
    x, labels = a.test, a.labels
    names, num_classes, k, shrinkages, neighbours = choices
    moments = scores.fit_moments(a.train, a.train_labels, num_classes=num_classes)

    # Computed when a score first asks for them, and once for all that do.
    @cache
    def internal():
        return scores.internal_class_score(x, labels, moments)

    @cache
    def external():
        return scores.external_text_score(x, a.dictionary, moments, k)

    def of_splits(score):
        """`score(mask)` for the normal classes of each split."""
        return block_map(score, normal, size=len(x) * num_classes)

    def nearest_class(per_class):
        return of_splits(lambda n: min_over_classes(jnp.where(n[None, :], per_class, jnp.inf)))

    def bliss(n0):
        if n0 == 0:
            return nearest_class(internal() + weight * external())
        # Shrinkage pools over the split's own classes, so nothing is shared: one split at a time.
        return lax.map(
            lambda n: scores.bliss_score(
                x, labels, a.dictionary, moments, k, weight, normal=n, shrinkage=n0
            ),
            normal,
        )

    def neighbour_score():
        nearest = scores.nearest_of_class(
            x, a.train, a.train_labels, neighbours, num_classes=num_classes
        )
        return lax.map(lambda n: scores.knn_score_from_nearest(nearest, n), normal)

    def of_labels(score, labels=labels, **options):
        return of_splits(lambda n: score(x, labels, normal=n, **options))

    compute = {
        "internal": lambda: nearest_class(internal()),
        "external": lambda: nearest_class(external()),
        "max_cosine": lambda: of_labels(scores.max_cosine_score),
        "msp": lambda: of_labels(scores.msp_score),
        "mcm": lambda: of_labels(scores.mcm_score, a.mcm_labels),
        "max_logit": lambda: of_labels(scores.max_logit_score),
        "energy": lambda: of_labels(scores.energy_score),
        "entropy": lambda: of_labels(scores.entropy_score),
        "clip_ad": lambda: of_labels(scores.clip_ad_score, something_embedding=a.something),
        "mahalanobis": lambda: lax.map(lambda n: scores.mahalanobis_score(x, moments, n), normal),
        "knn": neighbour_score,
        "neglabel": lambda: lax.map(
            lambda n: scores.neglabel_score(x, labels, a.dictionary, key, n), normal
        ),
        "whitened_bliss": lambda: lax.map(
            lambda n: scores.whitened_bliss_score(x, labels, a.dictionary, moments, k, weight, n),
            normal,
        ),
    }
    columns = [
        bliss(n0) if name == "bliss" else compute[name]()
        for name, n0 in _columns(names, shrinkages)
    ]
    return jnp.stack(columns)


_scores_of_splits = jax.jit(_score_splits, static_argnames="choices")


def _columns(names: Sequence[str], shrinkages: Sequence[float]) -> list[tuple[str, float]]:
    """(score, shrinkage) of each row of the result."""
    return [(name, n0) for name in names for n0 in (shrinkages if name == "bliss" else (0.0,))]


def class_masks(
    protocol: Protocol, embeddings: EmbeddingSet
) -> tuple[Bool[np.ndarray, "splits classes"], Bool[np.ndarray, "splits classes"]]:
    """The normal and the anomalous classes of each split.

    Raises:
        ValueError: a class that the embeddings do not have, or a side without test images.
    """
    classes = np.arange(embeddings.num_classes)
    largest = max(max(split.normal + split.anomalous) for split in protocol.splits)
    if largest >= len(classes):
        raise ValueError(
            f"protocol {protocol.name!r} names class {largest}, but the embeddings have "
            f"{len(classes)} classes"
        )
    normal = np.stack([np.isin(classes, split.normal) for split in protocol.splits])
    anomalous = np.stack([np.isin(classes, split.anomalous) for split in protocol.splits])
    in_test = np.bincount(embeddings.test_labels, minlength=len(classes)) > 0
    for side, mask in (("normal", normal), ("anomalous", anomalous)):
        if not (mask & in_test).any(axis=1).all():
            split = int(np.argmin((mask & in_test).any(axis=1)))
            raise ValueError(
                f"protocol {protocol.name!r}, split {split}: no {side} image in the test set"
            )
    return normal, anomalous


def training_rows(
    embeddings: EmbeddingSet,
    ever_normal: Bool[np.ndarray, " classes"],
    *,
    shots: int | None,
    draws: int,
    seed: int,
) -> Int[np.ndarray, "draws chosen"]:
    """Rows of the training set to fit on: all of the classes in use, or `shots` of each per draw.

    With shots, the rows of one class follow each other, classes ascending.

    Raises:
        ValueError: a class with fewer training images.
    """
    labels, wanted = embeddings.train_labels, shots or 1
    of_class = [np.flatnonzero(labels == c) for c in np.flatnonzero(ever_normal)]
    for c, rows in zip(np.flatnonzero(ever_normal), of_class, strict=True):
        if len(rows) < wanted:
            raise ValueError(
                f"normal class {c} ({embeddings.class_names[c]}): expected at least {wanted} "
                f"training images, got {len(rows)}"
            )
    if shots is None:
        return np.sort(np.concatenate(of_class)).astype(np.int32)[None, :]
    rng = np.random.default_rng(seed)
    drawn = [
        np.concatenate([rng.choice(rows, shots, replace=False) for rows in of_class])
        for _ in range(draws)
    ]
    return np.stack(drawn).astype(np.int32)


def _neighbours(
    embeddings: EmbeddingSet,
    normal: Bool[np.ndarray, "splits classes"],
    rows: Int[np.ndarray, "draws chosen"],
    settings: Settings,
) -> int:
    """The k of `knn`, no larger than the normal images of the smallest split."""
    count = np.bincount(embeddings.train_labels[rows[0]], minlength=embeddings.num_classes)
    return int(min(settings.neighbours, (normal @ count).min()))


def _left_out(
    embeddings: EmbeddingSet, rows: Int[np.ndarray, "draws chosen"], settings: Settings
) -> dict[str, str]:
    reasons = {}
    if "clip_ad" in settings.scores and embeddings.something_embedding is None:
        reasons["clip_ad"] = "the embeddings lack something_embedding"
    if np.bincount(embeddings.train_labels[rows[0]]).max() == 1:
        for name in ("mahalanobis", "whitened_bliss"):
            if name in settings.scores:
                reasons[name] = "one image per class has no covariance"
    if "neglabel" in settings.scores and int(NEGATIVE_FRACTION * len(embeddings.dictionary)) < 1:
        reasons["neglabel"] = "its share of the dictionary is less than one text"
    return reasons


def _split_results(
    protocol: Protocol, measured: Mapping[str, Float[np.ndarray, "draws splits"]]
) -> tuple[SplitResult, ...]:
    results = []
    for i, split in enumerate(protocol.splits):
        of_split = {name: values[:, i].astype(float) for name, values in measured.items()}
        draws = of_split["auroc"]
        if len(draws) > 1:
            interval = tuple(np.quantile(draws, [0.025, 0.975]).tolist())
        else:
            interval = (of_split["auroc_low"].item(), of_split["auroc_high"].item())
        results.append(
            SplitResult(
                normal=split.normal,
                auroc=float(draws.mean()),
                interval=interval,
                aupr_anomaly=float(of_split["aupr_anomaly"].mean()),
                aupr_normal=float(of_split["aupr_normal"].mean()),
                fpr95=float(of_split["fpr95"].mean()),
                draws=tuple(draws.tolist()) if len(draws) > 1 else (),
            )
        )
    return tuple(results)


def _describe(settings: Settings) -> dict[str, Any]:
    return {
        "k": settings.k,
        "lambda": settings.weight,
        "shrinkages": list(settings.shrinkages),
        "neighbours": settings.neighbours,
        "shots": settings.shots,
        "draws": settings.draws,
        "seed": settings.seed,
        "neglabel_lexicon": "the dictionary",
    }


def provenance(
    embeddings: EmbeddingSet, protocol: Protocol, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that produced a result: embeddings, protocol, dictionary, settings, versions."""
    from bliss_jax.text import dictionary_hash

    return {
        "embeddings": dict(embeddings.provenance),
        "protocol": {
            "name": protocol.name,
            "family": protocol.family,
            "dataset": protocol.dataset,
            "splits": len(protocol.splits),
        },
        "dictionary": {
            "texts": len(embeddings.dictionary),
            "sha256": dictionary_hash(embeddings.dictionary),
        },
        "settings": dict(settings),
        "class_names": list(embeddings.class_names),
        "images": {
            "train": len(embeddings.train_labels),
            "test": len(embeddings.test_labels),
        },
        "versions": versions(),
    }
