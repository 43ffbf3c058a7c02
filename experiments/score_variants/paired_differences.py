"""Paired differences of AUROCs with bootstrap intervals, and their Markdown table."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95


class Measured(NamedTuple):
    """Measured AUROCs and their derivatives, as means over halves and draws. Rows are as in `row_names`."""

    areas: list[Float[np.ndarray, "shots splits rows"]]
    """AUROCs, with one array for each protocol."""
    influences: list[Float[np.ndarray, "shots splits rows images"]]
    """Derivatives of the AUROCs by the weight of each image, with one array for each protocol."""
    choices: list[Counter[str]]
    """Number of times that each setting was chosen, for each row."""


class Differences(NamedTuple):
    """Difference between the AUROC of each row and that of one of the rows, x 100, by column."""

    mean: Float[np.ndarray, "columns rows"]
    interval: Float[np.ndarray, "2 columns rows"]
    together: Float[np.ndarray, "2 rows"]
    """Intervals of the last column that are simultaneous for all rows."""


def differences(measured: Measured, against: int, samples: int, seed: int) -> Differences:
    """Computes paired differences. The columns are the shots, the protocols, and the mean of all.

    Each bootstrap sample draws the test images, and the splits within each protocol, with replacement.
    An image that is drawn w times changes an AUROC by (w - 1) times its influence.

    Args:
        measured: AUROCs and their derivatives.
        against: Row with which all rows are compared.
        samples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    num_images = measured.influences[0].shape[-1]
    weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images), samples) - 1.0
    cells, drawn_cells = [], []
    for areas, influences in zip(measured.areas, measured.influences, strict=True):
        area = areas - areas[:, :, [against]]
        influence = influences - influences[:, :, [against]]
        moved = (influence.reshape(-1, num_images) @ weights.T.astype(np.float32)).T
        drawn = area[None] + moved.reshape(samples, *area.shape)
        num_splits = area.shape[1]
        times = rng.multinomial(num_splits, np.full(num_splits, 1 / num_splits), samples)
        cells.append(area.mean(axis=1)[None])
        drawn_cells.append(np.einsum("bs,bksr->bkr", times / num_splits, drawn))
    mean = columns_of(np.stack(cells, axis=2))[0]
    drawn = columns_of(np.stack(drawn_cells, axis=2))
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    spread = drawn[:, -1].std(axis=0)
    studentised = np.abs(drawn[:, -1] - mean[-1]) / np.where(spread > 0, spread, np.inf)
    reach = np.quantile(studentised.max(axis=1), CONFIDENCE) * spread
    return Differences(
        100 * mean,
        100 * np.quantile(drawn, tails, axis=0),
        100 * np.stack([mean[-1] - reach, mean[-1] + reach]),
    )


def columns_of(cells: np.ndarray) -> np.ndarray:
    """Converts cells [samples, shots, protocols, rows] to columns [samples, columns, rows]."""
    everything = cells.mean(axis=(1, 2))[:, None]
    return np.concatenate([cells.mean(axis=2), cells.mean(axis=1), everything], axis=1)


def table(
    measured: Measured,
    found: Differences,
    names: Sequence[str],
    against: int,
    columns: Sequence[str],
) -> str:
    """Returns a Markdown table with the AUROCs of the row `against` and the differences of all others."""
    areas = np.stack([a.mean(axis=1) for a in measured.areas], axis=1)[None]
    absolute = 100 * columns_of(areas)[0, :, against]
    head = ["score", "setting (times chosen)", *columns, "mean, simultaneous interval", "verdict"]
    lines = [head, ["---", "---", *["---:"] * (len(columns) + 1), "---"]]
    lines.append([f"**{names[against]}**", "", *(f"{value:.2f}" for value in absolute), "", ""])
    for row, name in enumerate(names):
        if row == against:
            continue
        setting, times = measured.choices[row].most_common(1)[0]
        low, high = found.interval[:, :, row]
        cells = [_cell(*c) for c in zip(found.mean[:, row], low, high, strict=True)]
        together = found.together[:, row]
        all_rows = f"{together[0]:+.2f} to {together[1]:+.2f}"
        verdict = _verdict(low[-1], high[-1], *together)
        chosen = f"{setting} ({times} of {measured.choices[row].total()})" if setting else ""
        lines.append([name, chosen, *cells, all_rows, verdict])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(mean: float, low: float, high: float) -> str:
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _verdict(low: float, high: float, low_of_all: float, high_of_all: float) -> str:
    if low > 0:
        return "**better**" if low_of_all > 0 else "better (single interval)"
    if high < 0:
        return "**worse**" if high_of_all < 0 else "worse (single interval)"
    return ""
