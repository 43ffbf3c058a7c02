"""Several processes as one program, by JAX's own multi-controller runtime (`jax.distributed`).

Every process runs the same program on its own devices. What they need of each other is one collective,
`exchange`: each gives some bytes and gets everyone's. It runs on the devices (NCCL, ICI, or gloo on
CPUs), so that no folder need be visible to all.

A process that fails says so in the next exchange, and all raise: nobody waits for a process that has given
up. A process that is killed can say nothing: JAX then ends the others, at once where the coordinator
(process 0) is lost, else after `heartbeat_seconds`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np

HEARTBEAT_SECONDS = 30
"""After so many seconds without a sign of life a process is taken for dead. JAX's own default is 100."""

_SHUTDOWN_SECONDS = 60
_MESSAGE_GRAIN = 1 << 16
"""Messages are padded to a multiple of so many bytes, so that few lengths compile."""

Result = TypeVar("Result")


class LostProcessError(ConnectionError):
    """A process could not be reached: it was killed, or the network is down."""


class RemoteError(ValueError):
    """Another process failed and said why; this one gave up with it."""


def initialize_distributed(heartbeat_seconds: int = HEARTBEAT_SECONDS) -> None:
    """Joins the processes of this run; before anything else of JAX.

    SLURM, Open MPI, Kubernetes and Cloud TPU are found by JAX. Elsewhere `JAX_COORDINATOR_ADDRESS`
    (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` tell it; JAX itself reads only the
    first of them. Where all three are set, nothing is searched for.

    Args:
        heartbeat_seconds: How long a process may be silent before the others are ended.

    Raises:
        ValueError: neither a known launcher nor these variables, or variables that are no numbers.
        LostProcessError: the coordinator does not answer.
    """
    count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
    explicit = None not in (os.environ.get("JAX_COORDINATOR_ADDRESS"), count, index)
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            cluster_detection_method="deactivate" if explicit else None,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            "these processes do not know of each other: start them with SLURM, Open MPI, Kubernetes or on a "
            "Cloud TPU, or set JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0, JAX_NUM_PROCESSES and "
            f"JAX_PROCESS_ID ({error})"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise LostProcessError(f"the processes did not find each other: {error}") from error


def shutdown_distributed() -> None:
    """Leaves the run together with the other processes; each goes on alone, on its own devices."""
    jax.distributed.shutdown()


def exchange(message: bytes) -> list[bytes]:
    """Each process's message, in the order of the processes. All must call it, equally often.

    Raises:
        RemoteError: a process failed (`failing_together`); with its message.
        LostProcessError: a process is gone.
    """
    if jax.process_count() == 1:
        return [message]
    return _exchange(message, failed=False)


@contextmanager
def failing_together() -> Iterator[None]:
    """If the block fails in one process, it fails in all: those in which it went well raise RemoteError.

    The block itself must not exchange anything, and all processes must go through it.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            _exchange(f"{type(error).__name__}: {error}".encode(), failed=True)
        raise
    exchange(b"")


def first_process_first(function: Callable[[], Result]) -> Result:
    """function(), in process 0 and then in the others, which find what it downloaded or prepared."""
    first = jax.process_index() == 0
    result = None
    for now in (first, not first):
        with failing_together():
            if now:
                result = function()
        if jax.process_count() == 1:
            break
    return result  # pyright: ignore[reportReturnType]


def _exchange(message: bytes, failed: bool) -> list[bytes]:
    from jax.experimental.multihost_utils import process_allgather

    try:
        heads = np.asarray(process_allgather(np.array([len(message), failed], np.int32)))
        longest = int(heads[:, 0].max())
        padded = np.zeros(-(-max(longest, 1) // _MESSAGE_GRAIN) * _MESSAGE_GRAIN, np.uint8)
        padded[: len(message)] = np.frombuffer(message, np.uint8)
        gathered = np.asarray(process_allgather(padded)) if longest else np.zeros((len(heads), 0))
    # gloo's errors come as ValueError, those of other backends as JaxRuntimeError.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise LostProcessError(
            f"process {jax.process_index()} of {jax.process_count()}: another process is gone "
            f"({str(error).splitlines()[0]})"
        ) from error
    messages = [row[:size].tobytes() for row, (size, _) in zip(gathered, heads, strict=True)]
    failures = [
        f"process {i}: {messages[i].decode()}" for i in np.flatnonzero(heads[:, 1]) if not failed
    ]
    if failures:
        raise RemoteError("\n".join(failures))
    return messages


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        raise ValueError(f"{variable}: expected a number, got {text!r}")
    return int(text)
