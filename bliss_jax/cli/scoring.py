"""`score`: a row for every file of a folder or a stream, and a page of the most anomalous."""

import heapq
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from bliss_jax.cli.exits import UNREADABLE
from bliss_jax.cli.options import (
    ENVIRONMENT,
    WORDS,
    detector_argument,
    encoder_option,
    load_detector,
    quiet_option,
)
from bliss_jax.cli.terminal import no_progress, notes, printable, progress
from bliss_jax.storage import check_writable, replacing

if TYPE_CHECKING:
    from bliss_jax.detection import Detector, ScoredFile

_SHOWN = 24
"""Images in the report, unless --top says otherwise."""


@click.command(
    epilog=f"Example:  bliss-jax score det.safetensors photos --alpha 0.05 -o scores.csv\n\n{ENVIRONMENT}"
)
@detector_argument
@click.argument("paths", nargs=-1, required=True, metavar="DIR|FILE...|-")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="scores.csv, .jsonl or .parquet; whole or not at all.  [default: CSV on standard output]",
)
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines on standard output instead of CSV."
)
@click.option(
    "--null", is_flag=True, help="Names on standard input end with a zero byte, not a line."
)
@click.option(
    "--top", type=click.IntRange(1), metavar="N", help="Only the N most anomalous, in order."
)
@click.option(
    "--alpha",
    type=float,
    help="Flag anomalies: at most this share of normal images is flagged.",
)
@click.option(
    "--fdr",
    is_flag=True,
    help="With --alpha: at most this share of the flagged images is normal, over the whole run.",
)
@click.option(
    "--explain", is_flag=True, help="Name the nearest words of each image, with z-scores."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=f"Write a page that shows the most anomalous images ({_SHOWN}, or those of --top), and why.",
)
@encoder_option
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@quiet_option
def score(**options: Any) -> None:
    """Score images: a row for each file, also for those that cannot be read.

    Folders are walked through; - reads names from standard input, and scores them as they come.
    """
    paths: tuple[str, ...] = options["paths"]
    if options["fdr"] and options["alpha"] is None:
        raise click.UsageError("--fdr needs --alpha")
    if options["null"] and paths != ("-",):
        raise click.UsageError("--null is for names on standard input: -")
    if "-" in paths and len(paths) > 1:
        raise click.UsageError("- stands alone: give paths, or names on standard input")
    if options["output"] is not None:
        if options["as_json"]:
            raise click.UsageError("--json is for standard output; --output takes scores.jsonl")
        check_writable(options["output"])
    format = _format(options)
    detector = load_detector(options["detector"], options["model"])
    from bliss_jax.detection import open_table, score_files, table_columns

    words = WORDS if options["explain"] or options["report"] is not None else 0
    given = _standard_input(options["null"]) if paths == ("-",) else iter(paths)
    track = no_progress if options["quiet"] else progress
    names = table_columns(alpha=options["alpha"] is not None, words=options["explain"])
    with track("images", None) as advance:
        rows: Iterable[ScoredFile] = score_files(
            detector,
            given,
            alpha=None if options["fdr"] else options["alpha"],
            words=words,
            batch_size=options["batch_size"],
        )
        rows = _advancing(rows, advance)
        if options["fdr"]:
            rows = _with_fdr(detector, list(rows), options["alpha"])
        counted = _Counted(rows, keep_scores=options["report"] is not None)
        most = _Most(counted, options["top"] or _SHOWN)
        with _opened(options["output"]) as file:
            writer = open_table(format, file, names)
            for row in most if options["top"] is None else most.then_the_others():
                writer.write(row)
                if options["output"] is None:
                    file.flush()  # for whoever waits at the other end of a pipe
            writer.close()
    if options["report"] is not None:
        from bliss_jax.report import write_score_report

        page = write_score_report(
            options["report"],
            detector,
            most.rows(),
            scores=counted.scores,
            unreadable=counted.unreadable,
            errors=counted.errors,
            flagged=counted.flagged,
            alpha=options["alpha"],
            control="fdr" if options["fdr"] else "false-alarms",
            command=shlex.join(["bliss-jax", *sys.argv[1:]]),
        )
        notes.print(f"Report: {page}")
    for row in counted.unreadable:
        notes.print(f"cannot be scored: {printable(row.path)}: {row.error}")
    if counted.errors > len(counted.unreadable):
        notes.print(f"... and {counted.errors - len(counted.unreadable)} more, listed in the rows")
    if not counted.errors and not counted.number:
        notes.print("no files found")
    if counted.errors:
        sys.exit(UNREADABLE)


def _format(options: dict[str, Any]) -> str:
    if options["output"] is None:
        return "jsonl" if options["as_json"] else "csv"
    suffix = options["output"].suffix.removeprefix(".").lower()
    if suffix not in ("csv", "jsonl", "parquet"):
        raise click.UsageError(
            f"--output: expected a file ending in .csv, .jsonl or .parquet, got {options['output']}"
        )
    return suffix


@contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        stream = sys.stdout.buffer
        yield stream
        stream.flush()
    else:
        with replacing(path) as file:
            yield file


def _standard_input(null: bool) -> Iterator[str]:
    """Names on standard input, each as soon as it is there."""
    stream = sys.stdin.buffer
    if not null:
        for line in iter(stream.readline, b""):
            if name := line.removesuffix(b"\n").removesuffix(b"\r"):
                yield os.fsdecode(name)
        return
    rest = b""
    # read1 gives what has come, without waiting for more.
    read = getattr(stream, "read1", stream.read)
    while chunk := read(65536):
        *names, rest = (rest + chunk).split(b"\0")
        yield from (os.fsdecode(name) for name in names if name)
    if rest:
        yield os.fsdecode(rest)


def _advancing(
    rows: "Iterable[ScoredFile]", advance: Callable[[int], None]
) -> "Iterator[ScoredFile]":
    for row in rows:
        advance(1)
        yield row


class _Counted:
    """Rows as they pass: how many, their scores where a histogram wants them, the first with an error."""

    def __init__(self, rows: "Iterable[ScoredFile]", *, keep_scores: bool):
        self._rows, self._kept = rows, _HISTOGRAM if keep_scores else 0
        self.number = self.errors = self.flagged = 0
        self.scores: list[float] = []
        self.unreadable: list[ScoredFile] = []

    def __iter__(self) -> "Iterator[ScoredFile]":
        for row in self._rows:
            self.number += 1
            if row.score is None:
                self.errors += 1
                if len(self.unreadable) < _LISTED:
                    self.unreadable.append(row)
            else:
                self.flagged += bool(row.anomaly)
                if len(self.scores) < self._kept:
                    self.scores.append(row.score)
            yield row


_LISTED = 100
"""Errors that are kept for the end of the run and the report; all are in the rows."""
_HISTOGRAM = 1_000_000
"""Scores that are kept for the report's histogram."""


class _Most:
    """Rows as they pass, of which the most anomalous are kept."""

    def __init__(self, rows: "Iterable[ScoredFile]", number: int):
        self._rows, self._number = rows, number
        self._heap: list[tuple[float, int, ScoredFile]] = []

    def __iter__(self) -> "Iterator[ScoredFile]":
        for position, row in enumerate(self._rows):
            if row.score is not None:
                entry = (row.score, -position, row)
                if len(self._heap) < self._number:
                    heapq.heappush(self._heap, entry)
                else:
                    heapq.heappushpop(self._heap, entry)
            yield row

    def rows(self) -> "list[ScoredFile]":
        """By falling score; of the same score the earlier first."""
        return [row for _, _, row in sorted(self._heap, reverse=True)]

    def then_the_others(self) -> "Iterator[ScoredFile]":
        """The most anomalous, and after them those that have no score."""
        errors = [row for row in self if row.score is None]
        yield from self.rows()
        yield from errors


def _with_fdr(
    detector: "Detector", rows: "Sequence[ScoredFile]", alpha: float
) -> "Iterator[ScoredFile]":
    import numpy as np

    scores = np.array([row.score for row in rows if row.score is not None], np.float32)
    flags = iter(detector.judge(scores, alpha, "fdr").tolist())
    for row in rows:
        yield row if row.score is None else row._replace(anomaly=next(flags))
