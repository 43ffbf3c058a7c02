"""Runs several processes as one program with JAX's multi-controller runtime (`jax.distributed`).

Every process runs the same program on its own devices. The processes need only one collective operation,
`exchange`: each process contributes some bytes and receives those of all processes. It runs on the devices
(NCCL, ICI, or gloo on CPUs), so the processes need no common folder.

A process that fails reports this in the next exchange, and all processes raise. No process waits for one
that has failed. A process that is killed cannot report anything. JAX then terminates the other processes:
immediately if the killed process was the coordinator (process 0), and otherwise after `heartbeat_seconds`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np

HEARTBEAT_SECONDS = 30
"""Seconds without a heartbeat after which a process counts as dead. The default of JAX is 100."""

_SHUTDOWN_SECONDS = 60
_MESSAGE_GRAIN = 1 << 16
"""Messages are padded to a multiple of this number of bytes, so that few lengths are compiled."""

Result = TypeVar("Result")


class LostProcessError(ConnectionError):
    """Error for a process that cannot be reached because it was killed or the network is down."""


class RemoteError(ValueError):
    """Error that reports the failure of another process."""


def initialize_distributed(heartbeat_seconds: int = HEARTBEAT_SECONDS) -> None:
    """Connects the processes of this run. It must be called before any other function of JAX.

    JAX detects SLURM, Open MPI, Kubernetes and Cloud TPU. Otherwise the environment variables
    `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` describe the
    processes; JAX itself reads only the first of them. If all three are set, the detection is skipped.

    Args:
        heartbeat_seconds: Seconds without a heartbeat of a process after which JAX terminates the others.

    Raises:
        ValueError: Neither a launcher is detected nor are these variables set, or a variable that should
            be a number is none.
        LostProcessError: The coordinator does not answer.
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
            "no launcher of several processes was detected: start them with SLURM, Open MPI, Kubernetes or "
            "on a Cloud TPU, or set JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES and "
            f"JAX_PROCESS_ID in each process ({error})"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise LostProcessError(f"the processes could not connect to each other: {error}") from error


def shutdown_distributed() -> None:
    """Disconnects all processes; each continues alone on its own devices."""
    jax.distributed.shutdown()


def exchange(message: bytes) -> list[bytes]:
    """Exchanges messages between all processes. All must call it, and equally often.

    Returns:
        The message of each process, in the order of the processes.

    Raises:
        RemoteError: Another process failed (see `failing_together`); the error contains its message.
        LostProcessError: Another process was killed or cannot be reached.
    """
    if jax.process_count() == 1:
        return [message]
    return _exchange(message, failed=False)


@contextmanager
def failing_together() -> Iterator[None]:
    """Makes a block fail in all processes if it fails in one of them.

    Processes in which the block succeeds then raise RemoteError. All processes must execute the block, and
    the block itself must not call `exchange`.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            _exchange(f"{type(error).__name__}: {error}".encode(), failed=True)
        raise
    exchange(b"")


def first_process_first(function: Callable[[], Result]) -> Result:
    """Calls a function in process 0 and then in the other processes, and returns its result.

    The other processes can then use files that process 0 has downloaded or prepared.
    """
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
    # gloo raises ValueError, and other backends raise JaxRuntimeError.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise LostProcessError(
            f"process {jax.process_index()} of {jax.process_count()}: another process cannot be reached "
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
