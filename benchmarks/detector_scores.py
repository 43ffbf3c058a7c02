"""Time of every score in a detector, prepared once and computed anew for each block of 128 images.

    python -m benchmarks.detector_scores

The detector has random embeddings: 10 classes, 1,860 texts, 512 dimensions and 2,000 fitted images. For each score

    prepared       `Detector.score` of 128 embeddings, with the arrays that the detector prepared (`prepared_score.py`)
    unprepared     the same for the score without its functions `prepare` and `from_prepared`
    preparation    the first call of a new detector with a compiled program, less a later call

Prepared and unprepared calls of all scores alternate in one process.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import numpy as np

from benchmarks.measure import Table, machine, median, seconds

CLASSES, TEXTS, DIM, IMAGES, BLOCK = 10, 1_860, 512, 2_000, 128
LEFT_OUT = ("clip_ad",)
"""Scores that need another text. Their cost is that of `msp`."""


def _unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    x = rng.normal(size=(rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def detector_scores(
    rounds: int, *, images: int = IMAGES, texts: int = TEXTS, dim: int = DIM
) -> Table:
    """Measures all scores of the library in one detector."""
    import bliss_jax as bj
    from bliss_jax.scores import score_table

    rng = np.random.default_rng(0)
    fitted = bj.Detector.fit_embeddings(
        _unit(rng, images, dim), np.arange(images) % CLASSES, [f"class {i}" for i in range(CLASSES)],
        _unit(rng, CLASSES, dim), [f"word {i}" for i in range(texts)], _unit(rng, texts, dim),
        score="knn", calibration=0.0,
    )  # fmt: skip
    x = _unit(rng, BLOCK, dim)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    first: dict[str, float] = {}
    for name, record in score_table().items():
        if name in LEFT_OUT or record.transductive:
            continue
        detector = fitted.with_score(name)
        calls[name, "prepared"] = lambda detector=detector: detector.score(x)
        if record.prepare is not None:
            plain = bj.Score(f"plain_{name}", record.function, settings=record.settings)
            other = fitted.with_score(plain)
            calls[name, "unprepared"] = lambda other=other: other.score(x)
        seconds(calls[name, "prepared"])
        new = replace(detector)
        first[name] = seconds(lambda new=new: new.score(x))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for turn in range(rounds + 1):
        for key, call in calls.items():
            took = seconds(call)
            if turn:
                times[key].append(took)
    found = {key: 1e3 * median(values) for key, values in times.items()}
    rows = tuple(
        (
            name,
            f"{found[name, 'prepared']:.1f}",
            f"{found[name, 'unprepared']:.1f}" if (name, "unprepared") in found else "",
            f"{max(0.0, 1e3 * first[name] - found[name, 'prepared']):.0f}",
        )
        for name in first
    )
    return Table(
        f"{BLOCK} images, {CLASSES} classes, {texts:,} texts, {dim} dimensions, {images:,} fitted images",
        ("score", "prepared, ms", "unprepared, ms", "preparation, ms"),
        rows,
        tuple(f"{name}: {value}" for name, value in machine().items()),
    )


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
def main(rounds: int) -> None:
    """Measure the scores of detectors and print a Markdown table."""
    click.echo(detector_scores(rounds).markdown())


if __name__ == "__main__":
    main()
