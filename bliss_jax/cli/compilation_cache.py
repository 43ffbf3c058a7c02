"""JAX's persistent compilation cache for the command line, so that later runs reuse compiled programs.

The default folder is `bliss-jax/compiled` in the user's cache folder: `$XDG_CACHE_HOME` if set, otherwise
`~/.cache` on Linux and `~/Library/Caches` on macOS. The variable `BLISS_JAX_COMPILATION_CACHE` names another
folder, or is `off`. If `JAX_COMPILATION_CACHE_DIR` is set, it takes precedence.

The cache holds executable code, so its folder is private to the user. Code compiled for one kind of CPU may
not run on another, and a home directory may be shared by several machines. Each kind of CPU therefore has its
own subfolder.
"""

import hashlib
import os
import platform
from pathlib import Path

from platformdirs import user_cache_path

VARIABLE = "BLISS_JAX_COMPILATION_CACHE"
OFF = "off"
MIN_COMPILE_SECONDS = "0.1"
"""Compilation time below which a program is not cached. JAX's default is 1 second, but on an idle machine
many programs of an evaluation compile faster. `benchmarks/pipeline.py` measures the time that the cache
saves."""

MAX_BYTES = str(1 << 30)
"""Size of the cache above which the least recently used programs are deleted."""


def use_compilation_cache() -> Path | None:
    """Configures JAX's compilation cache. JAX must not have been imported yet.

    Returns:
        The folder, or None if the cache is off, cannot be created or is already configured.
    """
    choice = os.environ.get(VARIABLE, "")
    if choice == OFF or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    compiled = (
        Path(choice) if choice else user_cache_path("bliss-jax", appauthor=False) / "compiled"
    )
    folder = compiled / _cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None  # e.g. a read-only home; programs are then compiled in every run
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.fspath(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", MIN_COMPILE_SECONDS)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", MAX_BYTES)
    return folder


def _cpu() -> str:
    """Returns a name for the kind of CPU, derived from its instruction set and model."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    facts = "\n".join(sorted(set(known)) or [platform.processor()])
    return f"{platform.machine() or 'cpu'}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
