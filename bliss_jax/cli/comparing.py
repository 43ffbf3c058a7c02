"""The command `compare`."""

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bliss_jax.cli.evaluation import json_file_option
from bliss_jax.cli.exits import UNREADABLE
from bliss_jax.cli.options import (
    ENVIRONMENT,
    check_detector_file,
    check_paths,
    detector_argument,
    encoder_option,
    file_options,
    file_reader,
    quiet_option,
)
from bliss_jax.cli.own_scores import library_scores, load_scores
from bliss_jax.cli.terminal import listed, no_progress, notes, progress, tables, write
from bliss_jax.storage import check_writable, csv_row

if TYPE_CHECKING:
    from bliss_jax.detection import Detector
    from bliss_jax.metrics import ScoreComparison


@click.command(
    epilog=f"""\b
Example:
  bliss-jax compare det.safetensors photos/normal --anomalies photos/odd

{ENVIRONMENT}"""
)
@detector_argument
@click.argument("paths", nargs=-1, required=True, metavar="DIR|FILE...")
@click.option(
    "--anomalies",
    multiple=True,
    required=True,
    metavar="DIR|FILE",
    help="Anomalous images: a folder, which is searched recursively, or a file. May be repeated.",
)
@click.option(
    "--score",
    "scores",
    multiple=True,
    metavar="NAME|MODULE:FUNCTION",
    help="Score to compare: the name of a score, or a function or `bliss_jax.Score` of one's own, as MODULE:FUNCTION "
    "(the current directory is searched first) or FILE.py:FUNCTION. May be repeated.  [default: the score of the "
    "detector and the default scores of evaluate]",
)
@click.option(
    "--reference",
    metavar="NAME",
    help="Score that all others are tested against.  [default: the score with the largest AUROC]",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Coverage of the intervals.",
)
@encoder_option
@file_options
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for finished embeddings, which later runs with the same files reuse.",
)
@json_file_option
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the table as CSV, one line per score.",
)
@quiet_option
def compare(**options: Any) -> None:
    """Compare scores on a labelled sample: AUROC of each score, and paired tests of the differences.

    DIR|FILE... are normal images. They must be new: images of the fit look more normal than they are. All scores are
    computed from the state of the detector. The tests are DeLong's, and their p-values are corrected for their
    number (Holm).
    """
    library_scores(options["scores"])
    outputs = [file for file in (options["json_file"], options["csv_file"]) if file is not None]
    for file in outputs:
        check_writable(file)
    check_detector_file(options["detector"])
    for paths in (options["paths"], options["anomalies"]):
        check_paths(paths, file_reader(options))
    scores = load_scores(options["scores"])
    detector = _load(options, scores)
    own = detector.decoding
    reader = file_reader(options, background=own.background, bit_depth=own.bit_depth)
    from bliss_jax.detection import embed_sample
    from bliss_jax.report import print_comparison

    sample = embed_sample(
        detector,
        options["paths"],
        options["anomalies"],
        reader=reader,
        track=no_progress if options["quiet"] else progress,
        cache=options["cache"],
    )
    found = detector.compare(
        sample.embeddings,
        sample.is_anomaly,
        scores,
        reference=options["reference"],
        confidence=options["confidence"],
    )
    print_comparison(found, tables())
    if options["json_file"] is not None:
        made = {"provenance": _provenance(options, detector), **found.describe()}
        write(options["json_file"], json.dumps(made, indent=2, allow_nan=False) + "\n")
    if options["csv_file"] is not None:
        write(options["csv_file"], _csv(found))
    listed(sample.unreadable)
    if not options["quiet"]:
        for line in reader.lines(command_line=True):
            notes.print(line)
    if sample.unreadable:
        sys.exit(UNREADABLE)


def _load(options: dict[str, Any], scores: tuple[Any, ...] | None) -> "Detector":
    """Returns the detector, with its own score if --score names it."""
    from bliss_jax.detection import Detector

    path = options["detector"]
    own = {score.name: score for score in scores or () if not isinstance(score, str)}
    name = Detector.load(path, embeddings_only=True).score_name
    return Detector.load(path, options["model"], score=own.get(name))


def _provenance(options: dict[str, Any], detector: "Detector") -> dict[str, Any]:
    from bliss_jax.storage import package_versions

    return {
        "command": shlex.join(["bliss-jax", *sys.argv[1:]]),
        "detector": hashlib.sha256(options["detector"].read_bytes()).hexdigest(),
        "model": detector.provenance.get("model"),
        "versions": package_versions(),
    }


def _csv(found: "ScoreComparison") -> str:
    columns = ("score", "auroc", "low", "high", "reference", "difference")
    columns += ("difference_low", "difference_high", "p_value")
    lines = [csv_row(columns)]
    for row in found.describe()["rows"]:
        apart = row["difference_interval"] or (None, None)
        lines.append(
            csv_row(
                [
                    row["score"],
                    row["auroc"],
                    *row["interval"],
                    found.reference,
                    row["difference"],
                    *apart,
                    row["p_value"],
                ]
            )
        )
    return "".join(lines)
