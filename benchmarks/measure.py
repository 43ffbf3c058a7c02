"""How the benchmarks measure: seconds, peak memory, the machine, and the Markdown table they end in.

Nothing here imports NumPy or JAX at the top, so that the process that starts the others stays small and
the number of threads can be set before either is loaded.
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
    """What a benchmark found."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table."""
    data: dict[str, Any] = field(default_factory=dict)
    """The unrounded numbers, for `--json`."""

    def markdown(self) -> str:
        """The table with its title and notes."""
        rule = ("---", *("---:" for _ in self.headings[1:]))
        lines = [f"| {' | '.join(cells)} |" for cells in (self.headings, rule, *self.rows)]
        return "\n".join((f"### {self.title}", "", *lines, "", *(f"- {n}" for n in self.notes)))


def set_threads(threads: int) -> None:
    """Gives this process and those it starts the same number of threads for NumPy and for JAX.

    JAX's CPU backend takes as many threads as there are CPUs it may run on, so the process is bound to
    that many. NumPy's OpenBLAS is left to choose its kernel itself: an environment that forces one on it
    would slow the peer down. Must be called before NumPy and JAX are imported.
    """
    for name in _FORCED_KERNELS:
        os.environ.pop(name, None)
    # A cache of compiled programs would hide the compile time.
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    os.environ.update(dict.fromkeys(_THREAD_COUNTS, str(threads)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def in_fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """function(*args) in a new interpreter, so that peak memory and compilation are its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result()


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call; what it returns is waited for if it is JAX's."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def repeat(function: Callable[[], Any], times: int) -> list[float]:
    """Wall times of several calls, after one that is not counted."""
    seconds(function)
    return [seconds(function) for _ in range(times)]


def compiled(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """The function compiled for these arguments, and the seconds that tracing and compiling took."""
    import jax

    start = time.perf_counter()
    executable = jax.jit(function).lower(*args, **kwargs).compile()
    return executable, time.perf_counter() - start


def median(values: Sequence[float]) -> float:
    """Median: one run that another process disturbed does not move it."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Smallest to largest."""
    return f"{min(values):.3g} to {max(values):.3g}"


def reset_peak_memory() -> None:
    """Makes `peak_memory` forget what was before, where the system can (Linux)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak_memory() -> int:
    """Largest resident set of this process, in bytes, since it began or since the last reset.

    Linux's VmHWM rather than getrusage's maximum, which a process inherits from the one that started it.
    """
    return _status("VmHWM")


def resident_memory() -> int:
    """Resident set of this process now, in bytes."""
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}: memory is measured on Linux only")


def machine() -> dict[str, str]:
    """Processor, threads, load and versions, as they stand now (imports NumPy and JAX)."""
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
    """CPUs that this process may run on."""
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
