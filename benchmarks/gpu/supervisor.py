"""Runs cases in processes that can be stopped, and writes every number to a file as soon as it is measured.

A case that hangs, crashes or needs too much memory costs only itself: its process is ended, and the next
case starts a new one.
"""

import contextlib
import multiprocessing
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import ON_REQUEST, WORKERS, Case, cases
from benchmarks.gpu.measuring import Compilations, Context
from benchmarks.gpu.results import FAILED, LEFT_OUT, MEASURED, STOPPED, Results

_BROKEN_DEVICE = re.compile("CUDA_ERROR|INTERNAL|ABORTED|illegal memory|device-side assert")
"""Errors after which a process cannot use its device any more."""


class CaseError(Exception):
    """A case ended without all of its numbers. The message says why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _known_cases() -> Mapping[str, Case]:
    return {"machine": Case(_machine, 0), **cases(), **ON_REQUEST}


Source = Callable[[], Mapping[str, Case]]


class Worker:
    """A process that runs cases one after the other.

    Args:
        kind: A name of `WORKERS`, for the environment.
        context: Settings of the cases.
        log: File to which the process's own output is appended.
        source: Returns the cases by name; called in the process.
    """

    def __init__(
        self, kind: str, context: Context, log: Path, source: Source = _known_cases
    ) -> None:
        self.kind = kind
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, context, str(log), source))
        with environment(WORKERS[kind]):
            self._process.start()
        theirs.close()

    def run(self, name: str, seconds: float) -> Iterator[dict[str, Any]]:
        """Runs a case and yields its numbers as they are measured.

        Raises:
            CaseError: If the case failed, if the process ended, or if the seconds have passed.
        """
        deadline = time.monotonic() + seconds
        try:
            self._connection.send(name)
            while True:
                if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                    self.end()
                    raise CaseError(STOPPED, f"it was not finished after {seconds:.0f} s")
                kind, value = self._connection.recv()
                if kind == "failed":
                    if _BROKEN_DEVICE.search(value):
                        self.end()
                    raise CaseError(FAILED, value)
                yield value
                if kind == "finished":
                    return
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self._process.join()
            code = self._process.exitcode
            self.end()
            raise CaseError(FAILED, f"its process ended with exit code {code}") from None

    @property
    def alive(self) -> bool:
        """Whether the process can run further cases."""
        return self._process.is_alive()

    def end(self) -> None:
        """Ends the process and waits for it, so that its memory on the device is free."""
        self._process.kill()
        self._process.join()
        self._connection.close()


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables inside the `with` block; XLA's flags are added to those that are set."""
    before = {name: os.environ.get(name) for name in variables}
    for name, value in variables.items():
        old = before[name] if name == "XLA_FLAGS" else None
        os.environ[name] = f"{old} {value}" if old else value
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, context: Context, log: str, source: Source) -> None:
    """Runs in the worker: receives names of cases and sends their numbers back."""
    with open(log, "ab", buffering=0) as file:  # noqa: PTH123 (no shorter with pathlib)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    counter = Compilations()
    known = source()
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        print(f"\n=== {name}", flush=True)
        try:
            for numbers in known[name].run(context):
                connection.send(("numbers", numbers))
        # A backend raises errors of many types for what it lacks; the message goes into the table.
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            first = (str(error).strip() or "no message").splitlines()[0]
            connection.send(("failed", f"{type(error).__name__}: {first[:300]}"))
        else:
            connection.send(("finished", counter.counted()))


def _machine(context: Context) -> Iterator[dict[str, Any]]:
    """Yields the device, its platform, and the versions of the packages that matter."""
    import jax

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    device = jax.devices()[0]
    names = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "numpy", "torch", "transformers")
    yield {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "host CPUs": os.cpu_count(),
        "python": platform.python_version(),
        **{name: installed(name) for name in names},
    }


def run_cases(
    chosen: Mapping[str, Case],
    context: Context,
    results: Results,
    *,
    deadline: float,
    report: Callable[[str], None],
) -> None:
    """Runs cases in their order until the deadline, and records the status and reason of every case.

    A case is left out if fewer seconds are left than it is expected to take; later cases may still fit.
    The case `machine` runs first.

    Args:
        chosen: Cases by name.
        context: Settings. The platform is filled in from the first process.
        results: Receives the numbers.
        deadline: Time of `time.monotonic` at which the last case is stopped.
        report: Receives a line for each case.

    Raises:
        CaseError: If the first process cannot start JAX.
        ValueError: If `results` holds numbers of another machine, or if there is no accelerator and the
            models are not shrunken.
    """
    log = results.file.with_name("workers.log")
    worker = Worker("jax", context, log)
    try:
        facts: dict[str, Any] = {}
        for numbers in worker.run("machine", _START_LIMIT_S):
            facts |= {name: x for name, x in numbers.items() if name not in _COUNTS}
        results.check_machine(facts)
        report(", ".join(f"{name} {value}" for name, value in facts.items()))
        context = context._replace(platform=facts["platform"])
        if context.platform == "cpu" and not context.quick:
            raise ValueError("expected an accelerator, but JAX found none; use --quick on a CPU")
        for name, case in chosen.items():
            left = deadline - time.monotonic()
            if left < case.expected_s:
                reason = (
                    f"it needs about {case.expected_s:.0f} s, and {max(0.0, left):.0f} s were left"
                )
                if name not in results.records:
                    results.add(name, {"status": LEFT_OUT, "reason": reason})
                report(f"{name}: left out, {reason}")
                continue
            if worker.kind != case.worker or not worker.alive:
                worker.end()
                worker = Worker(case.worker, context, log)
            _run_case(name, worker, min(case.limit_s, left), results, report)
    finally:
        worker.end()


_START_LIMIT_S = 120
"""Seconds in which JAX must have started."""

_COUNTS = ("programs", "cache_hits", "compile_s")


def _run_case(
    name: str, worker: Worker, seconds: float, results: Results, report: Callable[[str], None]
) -> None:
    results.start(name)
    start = time.monotonic()
    try:
        for numbers in worker.run(name, seconds):
            results.add(name, numbers)
        status, reason = MEASURED, ""
    except CaseError as error:
        status, reason = error.status, str(error)
    took = time.monotonic() - start
    results.add(name, {"status": status, "reason": reason, "took_s": took})
    record = results.records[name]
    if status == MEASURED:
        reason = (
            f"{record['programs']:.0f} programs, {record['cache_hits']:.0f} of them cached, compiled in "
            f"{record['compile_s']:.0f} s"
        )
    report(f"{name}: {status} in {took:.0f} s; {reason}")
