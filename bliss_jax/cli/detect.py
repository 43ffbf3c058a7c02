"""`fit`, `score`, `explain`, `info`: a detector of one's own images."""

import heapq
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from bliss_jax.cli.exits import UNREADABLE
from bliss_jax.cli.options import ENVIRONMENT, model_options, quiet_option
from bliss_jax.cli.terminal import no_progress, notes, progress, tables
from bliss_jax.defaults import MODEL
from bliss_jax.files import check_writable, replacing

if TYPE_CHECKING:
    from bliss_jax.detector import Detector
    from bliss_jax.scored_files import ScoredFile

_EXPLAINED = 5
"""Words named of each image."""
_SHOWN = 24
"""Images in the report, unless --top says otherwise."""

detector_argument = click.argument(
    "detector", type=click.Path(path_type=Path, dir_okay=False), metavar="DETECTOR"
)
model_option = click.option(
    "--model",
    metavar="NAME|DIR",
    help="Where the encoder is, if not where it was; its weights are checked.",
)


@click.command(
    epilog=f"Example:  bliss-jax fit --images photos --folders -o det.safetensors\n\n{ENVIRONMENT}"
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Normal images.",
)
@click.option(
    "--folders",
    is_flag=True,
    help="Each folder in DIR is a class, its name the label: DIR/cat/*.jpg, DIR/dog/*.jpg.",
)
@click.option(
    "--labels",
    metavar="LABEL,...",
    help="What the images in DIR show. With several labels each image is taken for the one of the largest "
    "cosine, which is recorded.",
)
@model_options
@click.option("--k", type=int, default=10, show_default=True, help="Dictionary texts per image.")
@click.option(
    "--lambda", "weight", type=float, default=0.5, show_default=True, help="Weight of their score."
)
@click.option(
    "--shrinkage",
    type=float,
    default=0.0,
    show_default=True,
    metavar="N0",
    help="For few images per class: variances drawn toward the classes' common one as by N0 images.",
)
@click.option(
    "--calibration",
    type=float,
    default=0.2,
    show_default=True,
    metavar="SHARE",
    help="Held out of the fit at random, so that --alpha has a meaning: 19 images for 0.05, 99 for 0.01.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of that draw.")
@click.option("--strict", is_flag=True, help="An image that cannot be read is an error.")
@quiet_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="The detector, one file of safetensors.",
)
def fit(**options: Any) -> None:
    """Fit a detector to normal images, and keep it as one file."""
    if options["folders"] == (options["labels"] is not None):
        raise click.UsageError("expected either --folders or --labels")
    check_writable(options["output"])
    from bliss_jax.detector import Detector
    from bliss_jax.models import load_model
    from bliss_jax.text import PROMPT

    model = load_model(
        options["model"] or MODEL, dtype=options["dtype"], revision=options["revision"]
    )
    prompt = PROMPT if options["prompt"] is None else options["prompt"]
    track = no_progress if options["quiet"] else progress
    if options["folders"]:
        from bliss_jax.datasets import load_dataset

        dataset, problems = load_dataset(options["images"], "train"), ()
    else:
        labels = tuple(label.strip() for label in options["labels"].split(","))
        dataset, problems = _labelled_files(options, model, prompt, labels, track)
    detector = Detector.fit(
        model,
        dataset,
        dictionary=options["dictionary"] or "imagenet1k",
        prompt=prompt,
        preprocess=options["preprocess"],
        exclude_labels=options["exclude_labels"],
        k=options["k"],
        weight=options["weight"],
        shrinkage=options["shrinkage"],
        calibration=options["calibration"],
        seed=options["seed"],
        batch_size=options["batch_size"],
        skip_unreadable=not options["strict"],
        cache=options["cache"],
        track=track,
    )
    detector.save(options["output"])
    unreadable = (*problems, *detector.provenance["images"]["unreadable"])
    for problem in unreadable:
        notes.print(f"left out: {problem}", markup=False)
    if not options["quiet"]:
        facts = detector.describe()
        counts = ", ".join(f"{c['name']} {c['fitted']}" for c in facts["classes"])
        held_out = len(detector.calibration_labels)
        notes.print(
            f"wrote {options['output']}: images fitted: {counts}; {held_out} held out, "
            + (f"alpha at least {facts['smallest_alpha']:.3g}" if held_out else "no thresholds"),
            markup=False,
        )
        if options["model"] is None:
            notes.print(f"{MODEL} knows symbols only. For photographs: {_FOR_PHOTOGRAPHS}")
    if unreadable:
        sys.exit(UNREADABLE)


_FOR_PHOTOGRAPHS = "--model openai/clip-vit-base-patch16"


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
@model_option
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
    detector = _load(options["detector"], options["model"])
    from bliss_jax.score_tables import columns, open_writer
    from bliss_jax.scored_files import score_files

    words = _EXPLAINED if options["explain"] or options["report"] is not None else 0
    given = _standard_input(options["null"]) if paths == ("-",) else iter(paths)
    track = no_progress if options["quiet"] else progress
    names = columns(alpha=options["alpha"] is not None, words=options["explain"])
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
            writer = open_writer(format, file, names)
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
        notes.print(f"Report: {page}", markup=False)
    for row in counted.unreadable:
        notes.print(f"cannot be scored: {_printable(row.path)}: {row.error}", markup=False)
    if counted.errors > len(counted.unreadable):
        notes.print(f"... and {counted.errors - len(counted.unreadable)} more, listed in the rows")
    if not counted.errors and not counted.number:
        notes.print("no files found")
    if counted.errors:
        sys.exit(UNREADABLE)


@click.command(epilog="Example:  bliss-jax explain det.safetensors photo.jpg")
@detector_argument
@click.argument("images", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--words", type=click.IntRange(1), default=_EXPLAINED, show_default=True, help="Words named."
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines instead.")
@model_option
def explain(
    detector: Path, images: tuple[str, ...], words: int, as_json: bool, model: str | None
) -> None:
    """Say why images have their scores: nearest normal class, both parts, nearest words."""
    loaded = _load(detector, model)
    from bliss_jax.score_tables import columns, open_writer
    from bliss_jax.scored_files import score_files

    rows = list(score_files(loaded, images, words=words))
    if as_json:
        writer = open_writer("jsonl", sys.stdout.buffer, columns(alpha=False, words=True))
        for row in rows:
            writer.write(row)
        writer.close()
    else:
        for row in rows:
            _print_why(row, loaded)
    if any(row.error for row in rows):
        sys.exit(UNREADABLE)


@click.command(epilog="Example:  bliss-jax info det.safetensors")
@detector_argument
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")
def info(detector: Path, as_json: bool) -> None:
    """Say what a detector is: classes, dictionary, settings, and what it was made with."""
    loaded = _load(detector, None, embeddings_only=True)
    facts = loaded.describe()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    from rich.table import Table

    made = facts["provenance"]
    model = made.get("model") or {}
    table = Table(box=None, pad_edge=False, show_header=False)
    alpha = facts["smallest_alpha"]
    held_out = len(loaded.calibration_labels)
    for name, value in [
        ("classes", ", ".join(f"{c['name']} ({c['fitted']})" for c in facts["classes"][:20])
         + (f" and {len(facts['classes']) - 20} more" if len(facts["classes"]) > 20 else "")),
        ("calibration", f"{held_out} images, alpha at least {alpha:.3g}" if held_out else "none"),
        ("dictionary", f"{(made.get('dictionary') or {}).get('name')}, {facts['dictionary']} texts"),
        ("score", f"k {facts['k']}, lambda {facts['lambda']:g}, shrinkage {facts['shrinkage']:g}"),
        ("prompt", facts["prompt"]),
        ("encoder", str(model.get("name", "none: embeddings only"))),
        ("weights", str(model.get("weights_sha256", ""))[:16]),
        ("dtype", str(model.get("dtype", ""))),
        ("images", str((made.get("images") or {}).get("source", ""))),
        ("changes", "; ".join(json.dumps(c) for c in made.get("changes", [])) or "none"),
    ]:  # fmt: skip
        table.add_row(name, _escaped(_printable(value)))
    tables().print(table)


def _load(path: Path, model: str | None, *, embeddings_only: bool = False) -> "Detector":
    from bliss_jax.detector import Detector

    return Detector.load(path, model, embeddings_only=embeddings_only)


def _labelled_files(
    options: dict[str, Any],
    model: Any,
    prompt: str,
    labels: tuple[str, ...],
    track: Any,
) -> tuple[Any, tuple[str, ...]]:
    """The files below a folder as a data set, each with the label that it is taken for."""
    from dataclasses import replace

    import numpy as np

    from bliss_jax.datasets import ImageDataset
    from bliss_jax.datasets.folder import FileImages
    from bliss_jax.embed import embed_images
    from bliss_jax.scored_files import find_files
    from bliss_jax.text import fill_prompt

    root = options["images"]
    prompts = fill_prompt(prompt, labels)
    found = list(find_files([root]))
    problems = tuple(f"{file.path}: {file.problem}" for file in found if file.problem)
    if problems and options["strict"]:
        raise ValueError("what is no image file:\n" + "\n".join(problems))
    names = [str(Path(file.path).relative_to(root)) for file in found if not file.problem]
    if not names:
        raise ValueError(f"{root}: there are no files in it")
    dataset = ImageDataset(
        root.resolve().name,
        FileImages(root.resolve(), names),
        np.zeros(len(names), np.int32),
        labels,
        f"folder ({len(names)} files)",
    )
    if len(labels) == 1:
        return dataset, problems
    with track("images, for their labels", len(names)) as advance:
        embedded = embed_images(
            model,
            dataset,
            preprocess=options["preprocess"],
            batch_size=options["batch_size"],
            cache=options["cache"],
            progress=advance,
        )
    if embedded.unreadable and options["strict"]:
        raise ValueError("images that cannot be read:\n" + "\n".join(embedded.unreadable))
    nearest = np.argmax(embedded.embeddings @ np.asarray(model.encode_texts(prompts)).T, axis=1)
    readable = dataset.subset(embedded.rows)
    source = f"{dataset.source}, labels by the largest cosine"
    labelled = replace(readable, labels=nearest.astype(np.int32), source=source)
    return labelled, (*problems, *embedded.unreadable)


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
    import os

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


def _print_why(row: "ScoredFile", detector: "Detector") -> None:
    console = tables()
    path = _escaped(_printable(row.path))
    if row.error is not None:
        console.print(f"[bold]{path}[/]\n  cannot be scored: {_escaped(row.error)}")
        return
    p = "" if row.p_value is None else f", p-value {row.p_value:.3g}"
    console.print(
        f"[bold]{path}[/]\n"
        f"  BLISS {row.score:+.2f}{p}\n"
        f"  nearest normal class: {_escaped(row.nearest_class or '')}\n"
        f"  internal {row.internal:+.2f}, external {row.external:+.2f} x {detector.weight:g}"
    )
    for word, z in row.words or ():
        console.print(f"    z {z:+6.1f}  {_escaped(word)}")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _printable(text: str) -> str:
    """Without characters that move a terminal's cursor, or that no encoding has."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
