"""JAX's persistent compilation cache for the command line: what was compiled once is read back.

`BLISS_JAX_COMPILATION_CACHE` names another folder than `$XDG_CACHE_HOME/bliss-jax/compiled` (by default
below `~/.cache`), or is `off`. `JAX_COMPILATION_CACHE_DIR`, where it is set, is left alone.

A cache is code: it belongs to one user and is not shared. Code for a CPU holds only on CPUs of its kind, and
a home may be on machines of many kinds, so each kind has a folder of its own.
"""

import hashlib
import os
import platform
from pathlib import Path

VARIABLE = "BLISS_JAX_COMPILATION_CACHE"
OFF = "off"
MIN_COMPILE_SECONDS = "0.1"
"""What compiles faster is not kept. JAX's default is a second; on a machine with nothing else to do many
programs of an evaluation take less than that. `benchmarks/pipeline.py` measures what the cache saves."""

MAX_BYTES = str(1 << 30)
"""Least recently used programs are dropped beyond this."""


def use_compilation_cache() -> Path | None:
    """Tells JAX, which must not have been imported yet, where compiled programs are kept.

    Returns:
        The folder, or None where no cache is to be used or JAX has been told already.
    """
    choice = os.environ.get(VARIABLE, "")
    if choice == OFF or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    folder = (Path(choice) if choice else _user_caches() / "bliss-jax" / "compiled") / _cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None  # a read-only home: everything works, only slower
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.fspath(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", MIN_COMPILE_SECONDS)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", MAX_BYTES)
    return folder


def _user_caches() -> Path:
    """As the XDG Base Directory Specification has it: a relative path is ignored."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


def _cpu() -> str:
    """A name for CPUs that run the same code, by the instructions they have."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    facts = "\n".join(sorted(set(known)) or [platform.processor()])
    return f"{platform.machine() or 'cpu'}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
