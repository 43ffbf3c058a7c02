"""How the sections measure: repeated calls, blank cells with their reasons, tables that grow."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.measure import Table

Found = dict[str, dict[str, Any]]
"""Section to its numbers: what later sections refer to."""

BLANK = ""


class Settings(NamedTuple):
    """What the command was asked for."""

    quick: bool
    deadline: float
    """Unix time after which no case is begun."""
    image_file: str | None = None
    model: str | None = None

    def spent(self) -> bool:
        """Whether the time budget is used up."""
        return time.time() > self.deadline


class Timing(NamedTuple):
    """Seconds of one call: median, least and most of several samples."""

    median: float
    least: float
    most: float


def clock(
    call: Callable[[], Any], quick: bool, wait: Callable[[Any], Any] = jax.block_until_ready
) -> Timing:
    """Times a call whose result `wait` waits for: two calls of warm-up, then samples of enough calls.

    The calls of one sample are queued and waited for together, as a stream of batches would be, so that
    what a single launch costs on the host is hidden where the device is the slower of the two.
    """
    wait(call())
    start = time.perf_counter()
    wait(call())
    once = time.perf_counter() - start
    calls = max(1, min(200, math.ceil((0.02 if quick else 0.3) / once)))
    samples = []
    for _ in range(3 if quick or once > 0.5 else 5):
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = call()
        wait(result)
        samples.append((time.perf_counter() - start) / calls)
    return Timing(statistics.median(samples), min(samples), max(samples))


def attempt(call: Callable[[], Any], settings: Settings) -> tuple[Any, str | None]:
    """The result and no reason, or None and the reason why there is no result."""
    if settings.spent():
        return None, "not begun: the time budget was used up"
    try:
        return call(), None
    # Whatever a backend raises for what it lacks, memory included, is the content of the blank cell.
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return None, f"{type(error).__name__}: {first[:200]}"


class Agreement(NamedTuple):
    """Cosines of embeddings with their float32 counterparts; the smallest over the images."""

    cosine: float
    centred: float
    """After the mean of the float32 embeddings has been subtracted from both."""


def agreement(embeddings: Any, reference: Any) -> Agreement:
    """How close embeddings [n, d] are to float32 ones of the same inputs."""
    x, y = (np.asarray(a, np.float64) for a in (embeddings, reference))

    def least(a, b):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(((a * b).sum(axis=1) / norms).min())

    return Agreement(least(x, y), least(x - y.mean(axis=0), y - y.mean(axis=0)))


class Sheet:
    """A table that grows: a row for every case, blank with a note where the case could not be measured."""

    def __init__(self, settings: Settings, title: str, headings: str) -> None:
        self.title, self.headings = title, tuple(headings.split(" | "))
        self.rows: list[tuple[str, ...]] = []
        self.notes: list[str] = []
        self.data: dict[str, Any] = {}
        self._settings = settings

    def add(self, names: tuple, run: Callable[[], Any], cells: Callable[[Any], tuple]) -> Any:
        """One row: `names`, then `cells` of the result of `run`, which is returned (None without one)."""
        result, reason = attempt(run, self._settings)
        row = names if reason else (*names, *cells(result))
        blanks = (BLANK,) * (len(self.headings) - len(row))
        self.rows.append(tuple(f"{x:,}" if isinstance(x, int) else str(x) for x in (*row, *blanks)))
        if reason:
            self.notes.append(f"{', '.join(map(str, names))}: {reason}")
        return result

    def note(self, what: str, run: Callable[[], Any], sentence: Callable[[Any], str]) -> Any:
        """One sentence below the table, of the result of `run`."""
        result, reason = attempt(run, self._settings)
        self.notes.append(f"{what}: {reason or sentence(result)}")
        return result

    def table(self) -> Table:
        """What has been measured."""
        return Table(self.title, self.headings, tuple(self.rows), tuple(self.notes), self.data)


def cosines(close: Agreement) -> str:
    """An agreement in words."""
    return f"smallest cosine {close.cosine:.6f}, centred {close.centred:.5f}"


def share(value: float, whole: float | None) -> str:
    """A percentage, or a blank where there is nothing to compare with."""
    return f"{100 * value / whole:.0f} %" if whole and value else BLANK


def ceiling_of(found: Found) -> float | None:
    """The best measured rate of bfloat16 products, FLOP/s, if that section ran."""
    return found.get("ceiling", {}).get("best_flops")
