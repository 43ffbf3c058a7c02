"""Results of an evaluation, with their provenance, and functions that write them as JSON and CSV.

JSON: {"provenance": {...}, "rows": [{"protocol": "zoc-6", "score": "bliss", "auroc": 0.956,
"auroc_std": 0.01, "splits": [{"normal": [0, 1, ...], "auroc": 0.95, "interval": [0.93, 0.97], ...}]}]}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from bliss_jax.storage import csv_row


@dataclass(frozen=True)
class SplitResult:
    """Metrics of one score on one split. With few-shot draws, each metric is the mean over the draws."""

    normal: tuple[int, ...]
    """Ids of the normal classes."""
    auroc: float
    interval: tuple[float, float]
    """95 % interval of the AUROC: DeLong's, or the 2.5 % and 97.5 % quantiles over few-shot draws."""
    aupr_anomaly: float
    aupr_normal: float
    fpr95: float
    """FPR at 95 % TPR: the anomaly is positive, unless the row's settings name a `convention`."""
    draws: tuple[float, ...] = ()
    """AUROC of each few-shot draw; empty if there is only one."""
    name: str = ""
    """Name of the out-of-distribution set whose images are the anomalies; empty for a split of the classes."""
    group: str = ""
    """Group of the out-of-distribution set, e.g. "near" or "far"; empty if it has none."""


def auroc_fields(
    draws: Float[np.ndarray, " draws"],
    low: Float[np.ndarray, " draws"],
    high: Float[np.ndarray, " draws"],
) -> dict[str, Any]:
    """Returns the fields of a `SplitResult` that hold AUROCs.

    Args:
        draws: AUROC of each few-shot draw, or the only one.
        low: Lower end of its interval by DeLong.
        high: Upper end of it.
    """
    if len(draws) == 1:
        return {"auroc": draws.item(), "interval": (low.item(), high.item())}
    interval = tuple(np.quantile(draws, [0.025, 0.975]).tolist())
    return {"auroc": float(draws.mean()), "interval": interval, "draws": tuple(draws.tolist())}


@dataclass(frozen=True)
class Row:
    """Result of one score on one protocol. AUROCs are in [0, 1]."""

    protocol: str
    family: str
    """Split family. Families define different splits for the same benchmark, so every result names it."""
    score: str
    settings: Mapping[str, Any]
    splits: tuple[SplitResult, ...]
    label: str = ""
    """Label of the score in tables; empty for its name."""

    @property
    def auroc(self) -> float:
        """Mean AUROC over the splits."""
        return float(np.mean([split.auroc for split in self.splits]))

    @property
    def auroc_std(self) -> float:
        """Population standard deviation of the AUROC over the splits."""
        return float(np.std([split.auroc for split in self.splits]))

    @property
    def is_near_chance(self) -> bool:
        """Whether the mean AUROC is within 5 points of 50, so the score is hardly better than chance."""
        return abs(self.auroc - 0.5) < 0.05

    def __repr__(self) -> str:
        return (
            f"Row(protocol={self.protocol!r}, score={self.score!r}, auroc={self.auroc:.4f}, "
            f"auroc_std={self.auroc_std:.4f}, splits={len(self.splits)})"
        )

    def _repr_html_(self) -> str:
        from bliss_jax.evaluation.tables import html_of, row_table

        return html_of(row_table(self))


@dataclass(frozen=True)
class Evaluation:
    """Rows of an evaluation, with their provenance as JSON values."""

    provenance: Mapping[str, Any]
    rows: tuple[Row, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Names of the scores that could not be computed, each with the reason."""

    def __repr__(self) -> str:
        rows = ", ".join(map(repr, self.rows))
        return (
            f"Evaluation(rows=({rows}{',' * (len(self.rows) == 1)}), left_out={[*self.left_out]})"
        )

    def _repr_html_(self) -> str:
        from bliss_jax.evaluation.tables import evaluation_table, html_of

        return html_of(evaluation_table(self))


def to_json(evaluations: Sequence[Evaluation], **provenance: Any) -> str:
    """Returns one JSON document with the rows of all evaluations. NaN and infinity become null.

    Args:
        evaluations: Evaluations, e.g. of several protocols.
        **provenance: Further entries of the document's provenance, as JSON values.
    """
    document = {
        "provenance": {**provenance, "evaluations": [dict(e.provenance) for e in evaluations]},
        "rows": [_row(row) for evaluation in evaluations for row in evaluation.rows],
        "left_out": {name: reason for e in evaluations for name, reason in e.left_out.items()},
    }
    return json.dumps(_without_nan(document), indent=2, allow_nan=False) + "\n"


def to_csv(evaluations: Sequence[Evaluation]) -> str:
    """Returns a CSV table with a header and one line per split of each row.

    The cells of the columns `settings` and `provenance` contain JSON.
    """
    columns = ("protocol", "family", "score", "settings", "split", "normal", "auroc", "low", "high")
    columns += ("aupr_anomaly", "aupr_normal", "fpr95", "provenance")
    lines = [csv_row(columns)]
    made_with = [json.dumps(_without_nan(dict(e.provenance))) for e in evaluations]
    rows = [
        (row, provenance)
        for evaluation, provenance in zip(evaluations, made_with, strict=True)
        for row in evaluation.rows
    ]
    for row, provenance in rows:
        for number, split in enumerate(row.splits):
            head = (
                row.protocol,
                row.family,
                row.score,
                json.dumps(dict(row.settings)),
                split.name or number,
            )
            normal = " ".join(map(str, split.normal))
            measured = (
                split.auroc,
                *split.interval,
                split.aupr_anomaly,
                split.aupr_normal,
                split.fpr95,
            )
            lines.append(csv_row([*head, normal, *measured, provenance]))
    return "".join(lines)


def _row(row: Row) -> dict[str, Any]:
    splits = [asdict(split) for split in row.splits]
    for split in splits:
        for optional in ("draws", "name", "group"):
            if not split[optional]:
                del split[optional]
    summary = {"auroc": row.auroc, "auroc_std": row.auroc_std, "near_chance": row.is_near_chance}
    head = {"protocol": row.protocol, "family": row.family, "score": row.score}
    return {**head, "settings": dict(row.settings), **summary, "splits": splits}


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
