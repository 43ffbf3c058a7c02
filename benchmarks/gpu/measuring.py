"""Timing of calls, counts of compiled programs, and comparison of embeddings."""

import collections
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np


class Context(NamedTuple):
    """Settings that every case receives."""

    quick: bool
    """Whether models and inputs are shrunken, to prove on a CPU that the case runs."""
    scratch: Path
    """Folder for files that later cases read, such as embeddings to compare with."""
    platform: str = "cpu"
    """JAX's platform, for cases that run without JAX."""
    image_file: str | None = None
    """`.npz` file with images, for the AUROC of real weights."""
    model: str | None = None
    """Checkpoint for `image_file`."""


class Timing(NamedTuple):
    """Seconds of one call: median, smallest and largest of several samples."""

    median: float
    least: float
    most: float


def clock(
    call: Callable[[], Any], quick: bool, wait: Callable[[Any], Any] = jax.block_until_ready
) -> Timing:
    """Returns the seconds of one call, after two calls to warm up.

    The calls of one sample are queued and waited for together, like a stream of batches. This hides the
    time that the host needs to start a call if the device takes longer than the host. A call that takes
    more than two seconds is timed once.

    Args:
        call: The function to time. It may return before its result is ready.
        quick: Whether to take short samples.
        wait: Waits until the result of a call is ready.
    """
    wait(call())
    start = time.perf_counter()
    wait(call())
    once = time.perf_counter() - start
    if once > 2:
        return Timing(once, once, once)
    calls = max(1, min(200, math.ceil((0.02 if quick else 0.25) / once)))
    samples = []
    for _ in range(3 if quick or once > 0.5 else 5):
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = call()
        wait(result)
        samples.append((time.perf_counter() - start) / calls)
    return Timing(statistics.median(samples), min(samples), max(samples))


def first_call(call: Callable[[], Any]) -> tuple[Any, float]:
    """Returns the result of one call and its seconds, compilation included."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


class Compilations:
    """Counts the programs that JAX compiles in this process, and the seconds that this takes."""

    _SECONDS = "/jax/core/compile/backend_compile_duration"
    _HITS = "/jax/compilation_cache/cache_hits"

    def __init__(self) -> None:
        self._events: collections.Counter[str] = collections.Counter()
        self._seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add_duration)
        jax.monitoring.register_event_listener(self._add_event)

    def _add_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == self._SECONDS:
            self._events[event] += 1
            self._seconds += duration_secs

    def _add_event(self, event: str, **_: Any) -> None:
        self._events[event] += 1

    def counted(self) -> dict[str, float]:
        """Returns the programs, the compilation seconds and the cache hits since the last call."""
        counts = {
            "programs": self._events[self._SECONDS],
            "cache_hits": self._events[self._HITS],
            "compile_s": self._seconds,
        }
        self._events.clear()
        self._seconds = 0.0
        return counts


class Agreement(NamedTuple):
    """Smallest cosine between embeddings and their float32 counterparts, over all images."""

    cosine: float
    centred: float
    """The same after the mean of the float32 embeddings has been subtracted from both."""


def agreement(embeddings: Any, reference: Any) -> Agreement:
    """Compares embeddings [n, d] with float32 embeddings of the same inputs."""
    x, y = (np.asarray(a, np.float64) for a in (embeddings, reference))

    def smallest_cosine(a, b):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(((a * b).sum(axis=1) / norms).min())

    return Agreement(smallest_cosine(x, y), smallest_cosine(x - y.mean(axis=0), y - y.mean(axis=0)))
