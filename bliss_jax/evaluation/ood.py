"""One data set against others: all of its classes are normal, and each out-of-distribution (OOD) set is anomalous.

This is the main protocol of the literature on out-of-distribution detection, e.g. of OpenOOD (Zhang et al., 2023,
arXiv 2306.09301). The scores are fitted to the training images of the data set and computed once for all test images.
Each OOD set is then measured against the same test images of the data set. AUPR and FPR95 follow the convention of the
publication to compare with (`bliss_jax.metrics.CONVENTIONS`).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from bliss_jax.datasets import Protocol, Split
from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation.results import Evaluation, Row, SplitResult, auroc_fields
from bliss_jax.evaluation.runner import choices_of, provenance
from bliss_jax.evaluation.score_table import arrays_of, columns_of, jitted_scores, row_settings
from bliss_jax.evaluation.settings import Settings, describe_settings
from bliss_jax.evaluation.splits import training_rows
from bliss_jax.metrics import CONVENTIONS, auroc_interval, ood_metrics

FAMILY = "ood"
"""Split family of the results."""


class OodSet(NamedTuple):
    """Embeddings of the images of one out-of-distribution set, by the encoder of the data set."""

    name: str
    embeddings: Float[np.ndarray, "images dim"]
    group: str = ""
    """Group whose mean is reported, e.g. "near" or "far"."""
    source: str = ""


def evaluate_ood(
    embeddings: EmbeddingSet,
    ood: Sequence[OodSet],
    settings: Settings | None = None,
    *,
    name: str = "ood",
    convention: str = "openood",
) -> Evaluation:
    """Evaluates scores on a data set whose classes are all normal, against each out-of-distribution set.

    Args:
        embeddings: Embeddings of the data set, its labels and a dictionary.
        ood: Out-of-distribution sets, embedded by the same model.
        settings: Scores and their parameters. With several few-shot draws, results are means over them.
        name: Name of the protocol in the result, e.g. that of a suite.
        convention: Definition of AUPR and FPR95, see `ood_metrics`.

    Returns:
        One row per score. Its `splits` are the out-of-distribution sets, with their names and groups.

    Raises:
        ValueError: There is no set, two sets have one name, a set has no images or another dimension, a class has no
            training images, the convention is unknown, or no score can be computed.
    """
    settings = settings or Settings()
    _check(embeddings, ood, convention)
    everything = np.ones(embeddings.num_classes, bool)
    rows = training_rows(
        embeddings, everything, shots=settings.shots, draws=settings.draws, seed=settings.seed
    )
    choices, left_out = choices_of(embeddings, everything[None], rows, settings)
    arrays, normal = arrays_of(embeddings), len(embeddings.test_labels)
    sizes = [normal, *(len(s.embeddings) for s in ood)]
    test = np.concatenate([embeddings.test_embeddings, *(s.embeddings for s in ood)])
    arrays = arrays._replace(
        test=jnp.asarray(test), test_labels=jnp.zeros(len(test), arrays.test_labels.dtype)
    )
    part = np.repeat(np.arange(len(sizes)), sizes)
    counted = jnp.asarray(np.stack([(part == 0) | (part == i) for i in range(1, len(sizes))]))
    # Scores that depend on the other images are computed once for each set; for all others the sets share one "split".
    transductive = any(score.transductive for score in choices.scores)
    batches = counted if transductive else jnp.ones((1, len(test)), bool)
    measured = []
    for chosen in rows:
        columns = jitted_scores(
            arrays._replace(train=arrays.train[chosen], train_labels=arrays.train_labels[chosen]),
            jnp.ones((len(batches), embeddings.num_classes), bool),
            batches,
            settings.weight,
            jax.random.key(settings.seed),
            choices,
        )
        of_sets = jnp.broadcast_to(columns, (len(columns), *counted.shape))
        found = _measure(of_sets, jnp.asarray(part > 0), counted, convention=convention)
        measured.append(jax.tree.map(np.asarray, found))
    draws: dict[str, np.ndarray] = {
        key: np.stack([m[key] for m in measured]) for key in measured[0]
    }
    table = []
    for column, (score, n0) in enumerate(columns_of(choices.scores, settings.shrinkages)):
        own = row_settings(score, n0, settings, choices, embeddings) | {"convention": convention}
        results = tuple(
            _result(
                {key: values[:, column, i].astype(float) for key, values in draws.items()},
                embeddings,
                s,
            )
            for i, s in enumerate(ood)
        )
        table.append(Row(name, FAMILY, score.name, own, results, score.label))
    # The images of the sets are one further class.
    split = Split(tuple(range(embeddings.num_classes)), (embeddings.num_classes,))
    made_with = provenance(
        embeddings, Protocol(name, FAMILY, None, (split,)), describe_settings(settings)
    )
    made_with["ood"] = [
        {"name": s.name, "group": s.group, "images": len(s.embeddings), "source": s.source}
        for s in ood
    ]
    return Evaluation(made_with, tuple(table), left_out)


def _check(embeddings: EmbeddingSet, ood: Sequence[OodSet], convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(
            f"convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}"
        )
    if not ood:
        raise ValueError("ood: expected at least one out-of-distribution set, got none")
    names = [s.name for s in ood]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"ood: expected different names, got twice: {', '.join(repeated)}")
    dim = embeddings.test_embeddings.shape[1]
    for s in ood:
        if s.embeddings.ndim != 2 or s.embeddings.shape[1] != dim or not len(s.embeddings):
            raise ValueError(
                f"ood: expected embeddings [images, {dim}] of at least one image of {s.name}, got "
                f"{list(s.embeddings.shape)}"
            )


@partial(jax.jit, static_argnames="convention")
def _measure(
    columns: Float[jax.Array, "columns sets images"],
    is_anomaly: Bool[jax.Array, " images"],
    counted: Bool[jax.Array, "sets images"],
    *,
    convention: str,
) -> dict[str, Float[jax.Array, "columns sets"]]:
    """Computes the metrics of every score on every set."""

    def measure(scores: jax.Array, where: jax.Array) -> dict[str, Any]:
        found = ood_metrics(scores, is_anomaly, convention, where=where)
        low, high = auroc_interval(scores, is_anomaly, where=where)
        return {**found._asdict(), "low": low, "high": high}

    return jax.vmap(jax.vmap(measure), in_axes=(0, None))(columns, counted)


def _result(values: dict[str, np.ndarray], embeddings: EmbeddingSet, ood: OodSet) -> SplitResult:
    return SplitResult(
        normal=tuple(range(embeddings.num_classes)),
        **auroc_fields(values["auroc"], values["low"], values["high"]),
        aupr_anomaly=float(values["aupr_out"].mean()),
        aupr_normal=float(values["aupr_in"].mean()),
        fpr95=float(values["fpr95"].mean()),
        name=ood.name,
        group=ood.group,
    )


OOD_METRICS = (
    ("AUROC", "auroc"),
    ("AUPR-in", "aupr_normal"),
    ("AUPR-out", "aupr_anomaly"),
    ("FPR95", "fpr95"),
)
"""Headings and fields of the metrics of a result, in the order of the tables."""


def group_means(row: Row, metric: str) -> dict[str, float]:
    """Returns the mean of a metric over the sets of each group, and over all sets under the name "all"."""
    groups = dict.fromkeys(split.group for split in row.splits if split.group)
    means = {
        group: float(np.mean([getattr(s, metric) for s in row.splits if s.group == group]))
        for group in groups
    }
    return means | {"all": float(np.mean([getattr(s, metric) for s in row.splits]))}
