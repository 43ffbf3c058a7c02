"""The command `score`."""

import hashlib
import heapq
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from bliss_jax.cli.exits import UNREADABLE, Terminated
from bliss_jax.cli.options import (
    ENVIRONMENT,
    WORDS,
    check_detector_file,
    check_paths,
    detector_argument,
    encoder_option,
    file_options,
    file_reader,
    load_detector,
    own_score_option,
    quiet_option,
)
from bliss_jax.cli.terminal import no_progress, notes, printable, progress
from bliss_jax.storage import check_writable, replacing

if TYPE_CHECKING:
    from bliss_jax.datasets import Decoding, FileReader
    from bliss_jax.detection import Detector, PartialRows, ScoredFile

_SHOWN = 24
"""Number of images in the report without --top."""


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
    help="Output file: .csv, .jsonl or .parquet.  [default: CSV on standard output]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue an interrupted run with the same --output, which left its rows in FILE.partial.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON lines instead of CSV on standard output."
)
@click.option(
    "--null",
    is_flag=True,
    help="File names on standard input end with a null byte instead of a newline.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    help="Output only the N most anomalous images, the most anomalous first.",
)
@click.option(
    "--alpha",
    type=float,
    help="Flag anomalies such that, on average, at most this share of the normal images is flagged.",
)
@click.option(
    "--fdr",
    is_flag=True,
    help="With --alpha: flag anomalies such that, on average, at most this share of the flagged images is "
    "normal. Needs all scores, so rows appear at the end.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Add the dictionary phrases nearest to each image, with z-scores.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=f"Write an HTML report on the most anomalous images ({_SHOWN}, or the number of --top).",
)
@click.option(
    "--maps",
    is_flag=True,
    help="With --report: show which parts of each image raise its score, and where each phrase is seen.",
)
@encoder_option
@own_score_option
@file_options
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for embeddings. Files with the same content are not embedded again in later runs, also with "
    "other labels, dictionaries or settings of the detector.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Largest number of files that are scored together. It does not change scores.",
)
@quiet_option
def score(**options: Any) -> None:
    """Score images. The output has one row per file; a file that cannot be read has the reason in its row.

    Folders are searched recursively for image files. The argument - reads file names from standard input and
    scores each file as its name arrives.
    """
    _check_usage(options)
    paths: tuple[str, ...] = options["paths"]
    format = _format(options)
    if options["output"] is not None:
        check_writable(options["output"])
    # Everything that can be wrong with files is checked before anything heavy is imported.
    held_out = check_detector_file(options["detector"])
    if paths != ("-",):
        check_paths(paths, file_reader(options))
    _check_alpha(options["alpha"], held_out)
    words = WORDS if options["explain"] or options["report"] is not None else 0
    detector = load_detector(options["detector"], options["model"], own_score=options["own_score"])
    own = detector.decoding
    reader = file_reader(options, background=own.background, bit_depth=own.bit_depth)
    from bliss_jax.detection import PartialRows, score_files

    partial = None
    if options["output"] is not None:
        partial = PartialRows(
            options["output"], _settings(options, reader, words), resume=options["resume"]
        )
    track = no_progress if options["quiet"] else progress
    with track("images", None) as advance, _kept(partial):
        rows = score_files(
            detector,
            _standard_input(options["null"]) if paths == ("-",) else iter(paths),
            alpha=None if options["fdr"] else options["alpha"],
            words=words,
            batch_size=options["batch_size"],
            reader=reader,
            cache=options["cache"],
            known={} if partial is None else partial.known,
        )
        rows = _advancing(rows, advance)
        if partial is not None:
            for row in rows:
                partial.write(row)
            rows = partial.rows()
        if options["fdr"]:
            rows = _with_fdr(detector, list(rows), options["alpha"])
        counted = _Counted(rows, keep_scores=options["report"] is not None)
        most = _Most(counted, options["top"] or _SHOWN)
        chosen = most if options["top"] is None else most.then_the_others()
        _write(chosen, format, options)
        if partial is not None:
            partial.close(remove=True)
    if options["report"] is not None:
        _report(options, detector, most, counted, reader.decoding)
    for row in counted.unreadable:
        notes.print(f"cannot be scored: {printable(row.path)}: {row.error}")
    if counted.errors > len(counted.unreadable):
        notes.print(f"... and {counted.errors - len(counted.unreadable)} more, listed in the rows")
    if not options["quiet"]:
        for line in reader.lines(command_line=True):
            notes.print(line)
    if counted.errors:
        sys.exit(UNREADABLE)


def _check_usage(options: dict[str, Any]) -> None:
    """Raises UsageError for options that cannot be combined."""
    paths: tuple[str, ...] = options["paths"]
    if options["fdr"] and options["alpha"] is None:
        raise click.UsageError("--fdr needs --alpha")
    if options["maps"] and options["report"] is None:
        raise click.UsageError("--maps needs --report DIR")
    if options["null"] and paths != ("-",):
        raise click.UsageError("--null needs the argument -, which reads names from standard input")
    if "-" in paths and len(paths) > 1:
        raise click.UsageError(
            "expected either paths or the single argument -, which reads names from standard input"
        )
    if options["output"] is not None and options["as_json"]:
        raise click.UsageError(
            "--json writes to standard output; for a file pass --output FILE.jsonl instead"
        )
    if options["resume"] and options["output"] is None:
        raise click.UsageError("--resume needs --output FILE")


def _check_alpha(alpha: float | None, held_out: int) -> None:
    """Raises ValueError for an alpha out of range, or if a detector has too few calibration images for it."""
    if alpha is None:
        return
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a rate above 0 and below 1, got {alpha:g}")
    if 0 < held_out <= 1 / alpha:  # the exact check imports JAX
        from bliss_jax.scores import check_calibration_size

        check_calibration_size(held_out, alpha)


def _settings(options: dict[str, Any], reader: "FileReader", words: int) -> dict[str, Any]:
    """Returns everything that decides the rows of a run."""
    return {
        "detector": hashlib.sha256(options["detector"].read_bytes()).hexdigest(),
        "alpha": options["alpha"],
        "fdr": options["fdr"],
        "words": words,
        "images": reader.decoding.describe(),
    }


@contextmanager
def _kept(partial: "PartialRows | None") -> Iterator[None]:
    """Says where the rows are if the run is interrupted or fails."""
    try:
        yield
    except (KeyboardInterrupt, Terminated, OSError, ValueError):
        if partial is not None:
            partial.close(remove=False)
            number = partial.written
            if number:
                notes.print(
                    f"{number} {'row is' if number == 1 else 'rows are'} kept in {partial.path}; the same "
                    "command with --resume continues from them"
                )
        raise


def _write(rows: "Iterable[ScoredFile]", format: str, options: dict[str, Any]) -> None:
    """Writes the rows to the output."""
    from bliss_jax.detection import open_table, table_columns

    names = table_columns(alpha=options["alpha"] is not None, words=options["explain"])
    with _opened(options["output"]) as file:
        writer = open_table(format, file, names)
        for row in rows:
            writer.write(row)
            if options["output"] is None:
                file.flush()  # the reader of a pipe may wait for the row
        writer.close()


def _report(
    options: dict[str, Any],
    detector: "Detector",
    most: "_Most",
    counted: "_Counted",
    decoding: "Decoding",
) -> None:
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
        decoding=decoding,
        maps=options["maps"],
    )
    notes.print(f"Report: {page}")


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
    """Yields the names on standard input as they arrive."""
    stream = sys.stdin.buffer
    if not null:
        for line in iter(stream.readline, b""):
            if name := line.removesuffix(b"\n").removesuffix(b"\r"):
                yield os.fsdecode(name)
        return
    rest = b""
    # read1 returns the bytes that have arrived without waiting for more.
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
    """An iterator over rows that counts them, and keeps scores for a histogram and the first errors."""

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
"""Number of errors that are printed at the end of the run and in the report."""
_HISTOGRAM = 1_000_000
"""Number of scores in the report's histogram."""


class _Most:
    """An iterator over rows that keeps the most anomalous ones."""

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
        """Returns the most anomalous rows by decreasing score; ties keep the order of the files."""
        return [row for _, _, row in sorted(self._heap, reverse=True)]

    def then_the_others(self) -> "Iterator[ScoredFile]":
        """Yields the most anomalous rows, then the rows without a score."""
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
