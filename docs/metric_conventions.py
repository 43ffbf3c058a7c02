"""Prints AUPR and FPR95 of one score in the conventions of several projects, as a Markdown table.

    python docs/metric_conventions.py > docs/metric-conventions-table.md

The score has three values. 60 % of the 300 anomalies have the largest, 36 % the middle and 4 % the smallest value; of
the 1,000 normal images 6 %, 40 % and 54 %.
"""

import numpy as np

import bliss_jax as bj
from bliss_jax.metrics import CONVENTIONS

COUNTS = {True: (12, 108, 180), False: (540, 400, 60)}
"""Number of anomalous (True) and normal images with each value, in ascending order."""


def scores() -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores and whether each image is an anomaly."""
    values = [np.repeat([0, 1, 2], counts) for counts in COUNTS.values()]
    is_anomaly = np.repeat([*COUNTS], [sum(counts) for counts in COUNTS.values()])
    return np.concatenate(values).astype(np.float32), is_anomaly


def table() -> str:
    """Returns the table."""
    lines = [
        "| convention | AUROC | AUPR-in | AUPR-out | FPR95 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in CONVENTIONS:
        found = bj.ood_metrics(*scores(), name)
        lines.append(f"| {name} | " + " | ".join(f"{float(value):.3f}" for value in found) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
