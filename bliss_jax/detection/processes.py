"""An error instead of a hang in a process that was forked after JAX had started.

JAX runs threads, which a forked process does not have: its first computation waits for ever. Worker processes
must be started with the method "spawn" or "forkserver":

    multiprocessing.get_context("spawn").Pool(4)
"""

import os

_forked_with_jax = False


def check_process() -> None:
    """Raises RuntimeError in a process that was forked after JAX had started."""
    if _forked_with_jax:
        raise RuntimeError(
            "this process was forked after JAX had started, so that its computations would never end: start "
            "worker processes with multiprocessing.get_context('spawn')"
        )


def _after_fork() -> None:
    global _forked_with_jax
    from jax._src import xla_bridge

    started = getattr(xla_bridge, "backends_are_initialized", None)
    _forked_with_jax = _forked_with_jax or (started is not None and started())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
