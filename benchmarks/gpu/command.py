"""The command's options. See the package's docstring."""

import argparse
import fnmatch
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.cases import ON_REQUEST, Case, cases
from benchmarks.gpu.floors import floors_table
from benchmarks.gpu.hlo import hlo_table
from benchmarks.gpu.measuring import Context
from benchmarks.gpu.results import FAILED, STOPPED, Results, read_results
from benchmarks.gpu.supervisor import CaseError, run_cases
from benchmarks.gpu.tables import Records, cases_table, tables


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure encoders and scores on an accelerator.",
    )
    found.add_argument(
        "--output", type=Path, help="folder for results.jsonl, tables.md and workers.log"
    )
    found.add_argument(
        "--budget", type=float, default=480, help="seconds after which everything ends; default 480"
    )
    found.add_argument(
        "--only", action="append", metavar="CASE", help="a case, or a pattern; may be repeated"
    )
    found.add_argument(
        "--quick", action="store_true", help="shrunken models, to prove on a CPU that all runs"
    )
    found.add_argument(
        "--cache", type=Path, help="folder of compiled programs; default: xla-cache in --output"
    )
    found.add_argument(
        "--tables", type=Path, metavar="FILE", help="print the tables of a results.jsonl and end"
    )
    found.add_argument("--image-file", help=".npz with images, for the case aurocs")
    found.add_argument("--model", help="checkpoint for --image-file")
    for name, text in {
        "--list": "print the cases and end",
        "--floors": "print the shortest possible time of each case and end",
        "--hlo": "print checks of the lowered programs and end; needs no accelerator",
    }.items():
        found.add_argument(name, action="store_true", help=text)
    return found


def chosen_cases(patterns: list[str] | None) -> dict[str, Case]:
    """Returns the cases that match any of the patterns, in the benchmark's order; all by default.

    Raises:
        ValueError: If a pattern matches no case.
    """
    known = cases()
    if patterns is None:
        return known
    known = {**known, **ON_REQUEST}
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ValueError(f"--only {pattern}: expected one of {list(known)}, or a pattern")
    return {
        name: case
        for name, case in known.items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }


def all_tables(records: Records) -> str:
    """Returns all tables in Markdown, the table of cases last."""
    found = [*tables(records), cases_table(records)]
    return "\n\n".join(table.markdown() for table in found)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; the exit code is 1 if a case failed or was stopped."""
    start = time.monotonic()
    options = parser().parse_args(arguments)
    if options.list:
        for name, case in {**cases(), **ON_REQUEST}.items():
            print(f"{name:50} {case.worker:30} {case.expected_s:4.0f} s")
    if options.floors:
        print(floors_table().markdown())
    if options.hlo:
        print(hlo_table(options.quick).markdown())
    if options.tables:
        print(all_tables(read_results(options.tables)))
    if options.list or options.floors or options.hlo or options.tables:
        return
    if options.output is None:
        parser().error("--output: expected a folder for the results, e.g. --output runs/gpu")
    options.output.mkdir(parents=True, exist_ok=True)
    _set_environment((options.cache or options.output / "xla-cache").resolve())

    def report(line: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {line}", flush=True)

    try:
        chosen = chosen_cases(options.only)
        results = Results(options.output, options.quick)
        with tempfile.TemporaryDirectory() as scratch:
            context = Context(
                options.quick, Path(scratch), "cpu", options.image_file, options.model
            )
            deadline = start + options.budget
            run_cases(chosen, context, results, deadline=deadline, report=report)
    except (ValueError, CaseError) as error:
        sys.exit(f"python -m benchmarks.gpu: {error}")
    (options.output / "tables.md").write_text(all_tables(results.records) + "\n")
    text = "\n\n".join(table.markdown() for table in tables(results.records))
    print(f"\n{text}\n", flush=True)
    statuses = [results.records[name]["status"] for name in chosen]
    print(", ".join(f"{statuses.count(kind)} {kind}" for kind in dict.fromkeys(statuses)))
    sys.exit(1 if {FAILED, STOPPED} & set(statuses) else 0)


def _set_environment(cache: Path) -> None:
    """Sets the environment that the workers inherit."""
    for name, value in {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "HF_HUB_OFFLINE": "1",
        # JAX would otherwise reserve three quarters of the device's memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }.items():
        os.environ.setdefault(name, value)
