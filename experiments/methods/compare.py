"""All scores of the library on one data set, with paired differences to BLISS.

    python -m experiments.methods.compare                                  # glyphs with bliss-jax/tiny, test renders
    python -m experiments.methods.compare --embeddings FILE.npz            # a file as described in clip_file.py

The table contains AUROC x 100 for each protocol as the mean over splits and halves, the mean over the protocols, and
the difference of that mean to BLISS. The 95 % interval of the difference is from a bootstrap that draws the splits of
each protocol and the halves with replacement; both scores use the same splits and halves. All settings are the
defaults of the scores, which are those of their sources. The settings of the scores that adapt BLISS to the test images
were chosen on validation renders of `glyphs` (`test_time.py`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bliss_jax.evaluation import Settings, evaluate
from bliss_jax.scores import score_table
from experiments.common import (
    CASE,
    Case,
    Options,
    Stopwatch,
    cases,
    experiment,
    markdown,
    percent,
    said_once,
    write,
)

AGAINST = "bliss"
SAMPLES, CONFIDENCE = 4000, 0.95

Areas = list[Float[np.ndarray, "halves splits"]]
"""AUROCs of one score, with one array for each protocol."""


@experiment()
def main(options: Options) -> None:
    """Measure every score of the library and its difference to BLISS."""
    for case in cases(options):
        watch = Stopwatch()
        areas = measure(case)
        said = said_once([f"{what} {value}" for what, value in zip(CASE, case[:2], strict=True)])
        results = {
            "protocols": [protocol.name for protocol in case.protocols],
            "areas": {name: [a.tolist() for a in of_score] for name, of_score in areas.items()},
            "seconds": str(watch),
        }
        table = said + comparison(areas, [protocol.name for protocol in case.protocols])
        write(options, f"compare-{case.dataset}", f"{table}\n{watch}\n", results)


def measure(case: Case) -> dict[str, Areas]:
    """Returns the AUROCs of every score of the library that all sets and protocols allow."""
    settings = Settings(scores=tuple(score_table()), k=case.k)
    areas: dict[str, Areas] = {}
    for protocol in case.protocols:
        runs = [evaluate(e, protocol, settings) for e in case.sets]
        for rows in zip(*(run.rows for run in runs), strict=True):
            of_halves = [[split.auroc for split in row.splits] for row in rows]
            areas.setdefault(rows[0].score, []).append(np.array(of_halves))
    return {name: found for name, found in areas.items() if len(found) == len(case.protocols)}


def comparison(areas: dict[str, Areas], protocols: Sequence[str], seed: int = 0) -> str:
    """Returns the Markdown table of the AUROCs and of the differences to BLISS."""
    rows = []
    for name, of_score in areas.items():
        cells = [percent(a.mean()) for a in of_score]
        cells.append(f"{100 * np.mean([a.mean() for a in of_score]):.2f}")
        if name == AGAINST:
            rows.append([f"**{name}**", *cells, ""])
            continue
        mean, low, high = difference(of_score, areas[AGAINST], seed)
        rows.append([name, *cells, f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"])
    return markdown(["score", *protocols, "mean", f"difference to {AGAINST}"], rows)


def difference(of_score: Areas, against: Areas, seed: int = 0) -> tuple[float, float, float]:
    """Returns the mean difference x 100 over the protocols, and its bootstrap interval.

    Each sample draws the halves, which all protocols share, and the splits of each protocol with replacement.
    """
    rng = np.random.default_rng(seed)
    paired = [100 * (a - b) for a, b in zip(of_score, against, strict=True)]
    halves = len(paired[0])
    times = rng.multinomial(halves, np.full(halves, 1 / halves), SAMPLES) / halves
    samples = np.zeros(SAMPLES)
    for of_protocol in paired:
        splits = of_protocol.shape[1]
        drawn = rng.multinomial(splits, np.full(splits, 1 / splits), SAMPLES) / splits
        samples += np.einsum("bh,hs,bs->b", times, of_protocol, drawn) / len(paired)
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(np.mean([p.mean() for p in paired])), float(low), float(high)


if __name__ == "__main__":
    main()
