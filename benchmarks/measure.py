"""Measurement of seconds, peak memory and the machine, and the Markdown table of results.

This module does not import NumPy or JAX when it is imported. Therefore the process that starts the others
stays small, and the number of threads can be set before either is loaded.
"""

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

_FORCED_KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_THREAD_COUNTS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Table:
    """The results of a benchmark."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table."""
    data: dict[str, Any] = field(default_factory=dict)
    """The unrounded numbers, for `--json`."""

    def markdown(self) -> str:
        """Returns the table in Markdown, with its title and notes."""
        rule = ("---", *("---:" for _ in self.headings[1:]))
        lines = [f"| {' | '.join(cells)} |" for cells in (self.headings, rule, *self.rows)]
        return "\n".join((f"### {self.title}", "", *lines, "", *(f"- {n}" for n in self.notes)))


def set_threads(threads: int) -> None:
    """Gives NumPy and JAX the same number of threads in this process and in those that it starts.

    JAX's CPU backend uses as many threads as there are CPUs that the process may run on. Therefore the
    process is bound to that many CPUs. NumPy's OpenBLAS chooses its kernel itself: variables that force a
    kernel are removed, because they could slow NumPy down. The function must be called before NumPy and JAX
    are imported.
    """
    for name in _FORCED_KERNELS:
        os.environ.pop(name, None)
    # A cache of compiled programs would hide the compile time.
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    os.environ.update(dict.fromkeys(_THREAD_COUNTS, str(threads)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def in_fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """Returns function(*args), computed in a new interpreter.

    Peak memory and compilation are then those of this call alone.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result()


def seconds(function: Callable[[], Any]) -> float:
    """Returns the wall time of one call. The time includes waiting for JAX arrays that it returns."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def repeat(function: Callable[[], Any], times: int) -> list[float]:
    """Returns the wall times of several calls, after one call that is not timed."""
    seconds(function)
    return [seconds(function) for _ in range(times)]


def compiled(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Compiles a function for these arguments, and returns it with the seconds of tracing and compilation."""
    import jax

    start = time.perf_counter()
    executable = jax.jit(function).lower(*args, **kwargs).compile()
    return executable, time.perf_counter() - start


def median(values: Sequence[float]) -> float:
    """Returns the median, which one run that was disturbed by another process hardly changes."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Returns the smallest and the largest value, e.g. `1.2 to 1.5`."""
    return f"{min(values):.3g} to {max(values):.3g}"


def reset_peak_memory() -> None:
    """Restarts the measurement of `peak_memory`, on Linux; does nothing on other systems."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak_memory() -> int:
    """Returns the largest resident set of this process in bytes, since it started or since the last reset.

    The value is Linux's VmHWM. The maximum of getrusage would not do, because a process inherits it from the
    process that started it.
    """
    return _status("VmHWM")


def resident_memory() -> int:
    """Returns the present resident set of this process in bytes."""
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(
        f"expected {name} in /proc/self/status, found none; memory can be measured on Linux only"
    )


def machine() -> dict[str, str]:
    """Returns processor, threads, load and versions at present. Imports NumPy and JAX."""
    import jax
    import numpy  # noqa: F401  (so that threadpoolctl finds its BLAS)
    from threadpoolctl import threadpool_info

    blas = [
        f"{library['internal_api']} {library['version']} ({library.get('architecture', '?')}, "
        f"{library['num_threads']} threads)"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    return {
        "processor": f"{_processor()}, {cpus()} CPUs in use of {os.cpu_count()}",
        "device": ", ".join(sorted({d.device_kind for d in jax.devices()})),
        "load, 1 minute": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("bliss-jax", "jax", "jaxlib", "numpy", "scikit-learn")},
        "BLAS of NumPy": ", ".join(blas),
    }


def cpus() -> int:
    """Returns the number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
