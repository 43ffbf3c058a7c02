"""Evaluation of scores on all splits of a protocol, in one jitted call.

The call fits the moments, computes the scores of every split, and measures AUROC, AUPR and FPR at 95 % TPR.
It maps over few-shot draws as well.

Protocol: Goodge et al. 2024 (arXiv 2407.17083). The anomaly is the positive class, the whole test set is
used, and the AUROC is reported as the mean and the population standard deviation over the splits.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from bliss_jax import metrics
from bliss_jax.datasets import Protocol, Split
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation.results import Evaluation, Row, SplitResult, auroc_fields
from bliss_jax.evaluation.score_table import (
    Arrays,
    Choices,
    arrays_of,
    columns_of,
    jitted_scores,
    left_out_of,
    neighbours_of,
    row_settings,
    score_splits,
)
from bliss_jax.evaluation.settings import Settings, describe_settings
from bliss_jax.evaluation.splits import class_masks, training_rows
from bliss_jax.storage import package_versions


def evaluate(
    embeddings: EmbeddingSet, protocol: Protocol, settings: Settings | None = None
) -> Evaluation:
    """Evaluates scores on every split of a protocol.

    For each split, moments and nearest neighbours are computed from the training images of the normal
    classes. The AUROC is computed from the test images of the normal and the anomalous classes. Test images
    of other classes are ignored.

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
        protocol: Splits of the classes of this data set.
        settings: Scores and their parameters. The default is the paper's settings.

    Returns:
        One row per score (`bliss` has one row per shrinkage), with provenance.

    Raises:
        ValueError: A split names a class that the embeddings do not have, a normal class has no training images or
            fewer than `shots`, a split has no normal or no anomalous test images, k is larger than the dictionary,
            or no score can be computed.
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
    choices, left_out = choices_of(embeddings, normal, rows, settings)
    measured_columns = _evaluate_draws(
        arrays_of(embeddings),
        jnp.asarray(rows),
        jnp.asarray(normal),
        jnp.asarray(anomalous),
        settings.weight,
        jax.random.key(settings.seed),
        choices,
    )
    values = {metric: np.asarray(array) for metric, array in measured_columns.items()}
    table = []
    for column, (score, n0) in enumerate(columns_of(choices.scores, settings.shrinkages)):
        own = row_settings(score, n0, settings, choices, embeddings)
        measured = {metric: array[:, column] for metric, array in values.items()}
        splits = _split_results(protocol, measured)
        table.append(Row(protocol.name, protocol.family, score.name, own, splits, score.label))
    made_with = provenance(embeddings, protocol, describe_settings(settings))
    return Evaluation(made_with, tuple(table), left_out)


def choices_of(
    embeddings: EmbeddingSet,
    normal: Bool[np.ndarray, "splits classes"],
    rows: Int[np.ndarray, "draws chosen"],
    settings: Settings,
) -> tuple[Choices, dict[str, str]]:
    """Returns the static arguments of an evaluation, and the scores left out with the reasons."""
    left_out = left_out_of(embeddings, rows, settings)
    records = tuple(score for score in settings.records if score.name not in left_out)
    if not records:
        names = ", ".join(score.name for score in settings.records)
        raise ValueError(f"scores: none of {names} can be computed: {left_out}")
    neighbours = neighbours_of(embeddings, normal, rows, settings)
    classes, shrinkages = embeddings.num_classes, settings.shrinkages
    return Choices(records, classes, settings.k, shrinkages, neighbours), left_out


class SplitScores(NamedTuple):
    """Scores of the test images of one split's normal and anomalous classes."""

    rows: Int[np.ndarray, " images"]
    """Positions of these images in the test set, in ascending order."""
    is_anomaly: Bool[np.ndarray, " images"]
    """Whether each image belongs to an anomalous class."""
    scores: dict[str, Float[np.ndarray, " images"]]
    """Scores by name. `bliss` with a shrinkage of 20 has the name `"bliss, shrinkage 20"`."""


def score_split(
    embeddings: EmbeddingSet, split: Split, settings: Settings | None = None
) -> SplitScores:
    """Computes the scores of single images on one split, from which `evaluate` computes AUROCs.

    With `settings.shots`, the scores are those of the first few-shot draw for this split alone.

    Args:
        embeddings: Embeddings of a data set, its labels and a dictionary, from one model.
        split: Normal and anomalous classes.
        settings: Scores and their parameters. The default is the paper's settings. Scores that cannot be
            computed are missing from the result.

    Raises:
        ValueError: One of the reasons listed in `evaluate`.
    """
    settings = settings or Settings()
    normal, anomalous = class_masks(Protocol("split", "custom", None, (split,)), embeddings)
    rows = training_rows(embeddings, normal[0], shots=settings.shots, draws=1, seed=settings.seed)
    choices, _ = choices_of(embeddings, normal, rows, settings)
    counted = np.flatnonzero((normal | anomalous)[0][embeddings.test_labels])
    arrays, own = arrays_of(embeddings), np.flatnonzero(normal[0])
    # Only the normal classes are passed on, because the scores of a split do not depend on the others.
    columns = jitted_scores(
        arrays._replace(
            train=arrays.train[rows[0]],
            train_labels=jnp.asarray(np.searchsorted(own, embeddings.train_labels[rows[0]])),
            test=arrays.test[counted],
            test_labels=arrays.test_labels[counted],
            labels=arrays.labels[own],
            mcm_labels=arrays.mcm_labels[own],
        ),
        jnp.ones((1, len(own)), bool),
        jnp.ones((1, len(counted)), bool),
        settings.weight,
        jax.random.key(settings.seed),
        choices._replace(num_classes=len(own)),
    )
    named = [
        f"{score.name}, shrinkage {n0:g}" if n0 else score.name
        for score, n0 in columns_of(choices.scores, settings.shrinkages)
    ]
    by_name = dict(zip(named, np.asarray(columns)[:, 0], strict=True))
    return SplitScores(counted, anomalous[0][embeddings.test_labels[counted]], by_name)


@partial(jax.jit, static_argnames="choices")
def _evaluate_draws(
    arrays: Arrays,
    rows: Int[jax.Array, "draws chosen"],
    normal: Bool[jax.Array, "splits classes"],
    anomalous: Bool[jax.Array, "splits classes"],
    weight: Float[jax.Array, ""] | float,
    key: jax.Array,
    choices: Choices,
) -> dict[str, Float[jax.Array, "draws columns splits"]]:
    """Computes the metrics of every column (see `columns_of`) for every draw and split."""
    is_anomaly = anomalous[:, arrays.test_labels]
    counted = is_anomaly | normal[:, arrays.test_labels]

    def one_draw(chosen):
        columns = score_splits(
            arrays._replace(train=arrays.train[chosen], train_labels=arrays.train_labels[chosen]),
            normal,
            counted,
            weight,
            key,
            choices,
        )
        # All columns are stacked in one array, so that the metrics are compiled once and not per score.
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


def _split_results(
    protocol: Protocol, measured: Mapping[str, Float[np.ndarray, "draws splits"]]
) -> tuple[SplitResult, ...]:
    results = []
    for i, split in enumerate(protocol.splits):
        of_split = {name: values[:, i].astype(float) for name, values in measured.items()}
        aurocs = (of_split[name] for name in ("auroc", "auroc_low", "auroc_high"))
        results.append(
            SplitResult(
                normal=split.normal,
                **auroc_fields(*aurocs),
                aupr_anomaly=float(of_split["aupr_anomaly"].mean()),
                aupr_normal=float(of_split["aupr_normal"].mean()),
                fpr95=float(of_split["fpr95"].mean()),
            )
        )
    return tuple(results)


def provenance(
    embeddings: EmbeddingSet, protocol: Protocol, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the provenance of a result: embeddings, protocol, dictionary, settings and versions."""
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
        "versions": package_versions(),
    }
