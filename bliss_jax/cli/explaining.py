"""The commands `explain` and `info`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bliss_jax.cli.exits import UNREADABLE
from bliss_jax.cli.options import (
    WORDS,
    detector_argument,
    encoder_option,
    file_options,
    file_reader,
    load_detector,
    own_score_option,
)
from bliss_jax.cli.terminal import notes, printable, tables
from bliss_jax.storage import check_writable

if TYPE_CHECKING:
    import numpy as np

    from bliss_jax.detection import Detector, ScoredFile


@click.command(epilog="Example:  bliss-jax explain det.safetensors photo.jpg")
@detector_argument
@click.argument("images", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--words",
    type=click.IntRange(1),
    default=WORDS,
    show_default=True,
    help="Number of phrases per image.",
)
@click.option(
    "--map",
    "map_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Write the image under a map of the parts that raise its score, and the map as FILE.npy. Needs one image.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@encoder_option
@own_score_option
@file_options
def explain(
    detector: Path,
    images: tuple[str, ...],
    words: int,
    map_file: Path | None,
    as_json: bool,
    model: str | None,
    own_score: str | None,
    **options: Any,
) -> None:
    """Explain the scores of images: nearest normal class, both parts of the score, nearest phrases.

    With a detector of another score than BLISS, the class, the parts and the phrases are those of BLISS.
    """
    if map_file is not None:
        _check_map_file(map_file, images)
    loaded = load_detector(detector, model, own_score=own_score)
    from bliss_jax.detection import note_on_parts, open_table, score_files, table_columns

    own = loaded.decoding
    reader = file_reader(options, background=own.background, bit_depth=own.bit_depth)
    rows = list(score_files(loaded, images, words=words, reader=reader))
    if as_json:
        writer = open_table("jsonl", sys.stdout.buffer, table_columns(alpha=False, words=True))
        for row in rows:
            writer.write(row)
        writer.close()
    else:
        for row in rows:
            _print_why(row, loaded)
        if rows and (note := note_on_parts(loaded.score_name, fitted=_is_fitted(loaded))):
            notes.print(note)
    if map_file is not None and not any(row.error for row in rows):
        _write_map(map_file, loaded, reader.read(Path(images[0]), images[0]))
    for line in reader.lines(command_line=True):
        notes.print(line)
    if any(row.error for row in rows):
        sys.exit(UNREADABLE)


def _check_map_file(file: Path, images: tuple[str, ...]) -> None:
    """Raises UsageError unless there is one image and the file is a PNG that can be written."""
    if len(images) != 1 or Path(images[0]).is_dir():
        raise click.UsageError("--map needs exactly one image file")
    if file.suffix.lower() != ".png":
        raise click.UsageError(f"--map: expected a file that ends with .png, got {file}")
    check_writable(file)


def _write_map(file: Path, detector: "Detector", image: "np.ndarray") -> None:
    """Writes the image under the map of its score as PNG, and the map as an array in the image's pixels."""
    from bliss_jax.report import write_map

    [why] = detector.explain([image], maps=True)
    assert why.maps is not None  # noqa: S101 (requested)
    picture, array = write_map(file, image, why.maps.score)
    notes.print(f"Map: {picture}, {array}")


@click.command(epilog="Example:  bliss-jax info det.safetensors")
@detector_argument
@click.option("--json", "as_json", is_flag=True, help="Print all facts as JSON.")
def info(detector: Path, as_json: bool) -> None:
    """Describe a detector: classes, dictionary, settings, provenance."""
    from bliss_jax.text import describe_prompt

    loaded = load_detector(detector, None, embeddings_only=True)
    facts = loaded.describe()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    made = facts["provenance"]
    model = made.get("model") or {}
    alpha = facts["smallest_alpha"]
    held_out = len(loaded.calibration_labels)
    for name, value in [
        ("classes", ", ".join(f"{c['name']} ({c['fitted']})" for c in facts["classes"][:20])
         + (f" and {len(facts['classes']) - 20} more" if len(facts["classes"]) > 20 else "")),
        ("calibration", f"{held_out} images, alpha at least {alpha:.3g}{_independence(made)}"
         if held_out else "none"),
        ("dictionary", f"{(made.get('dictionary') or {}).get('name')}, {facts['dictionary']} texts"),
        ("score", f"{facts['score']}{_place(made)}, k {facts['k']}, "
                  f"lambda {facts['lambda']:g}, shrinkage {facts['shrinkage']:g}"),
        ("prompt", describe_prompt(loaded.prompt)),
        ("encoder", str(model.get("name", "none: embeddings only"))),
        ("weights", str(model.get("weights_sha256", ""))[:16]),
        ("dtype", str(model.get("dtype", ""))),
        ("images", str((made.get("images") or {}).get("source", ""))),
        ("changes", "; ".join(json.dumps(c) for c in made.get("changes", [])) or "none"),
    ]:  # fmt: skip
        click.echo(f"{name:<13}{printable(value)}".rstrip())


def _place(made: dict[str, Any]) -> str:
    """Returns the module and function of a score of one's own, as text."""
    facts = made.get("score")
    place = facts.get("function") if isinstance(facts, dict) else None
    return f" ({place})" if place else ""


def _independence(made: dict[str, Any]) -> str:
    """Returns facts about the calibration images, as text."""
    facts = made.get("calibration")
    facts = facts if isinstance(facts, dict) else {}
    text = ""
    if isinstance(groups := facts.get("groups"), dict):
        text += f", one of each of {groups.get('held_out')} held-out groups"
    if number := facts.get("near_duplicates"):
        text += f", {number} of {facts.get('compared')} near-duplicates of fitted images"
    return text


def _print_why(row: "ScoredFile", detector: "Detector") -> None:
    console = tables()
    console.print(printable(row.path), style="bold", soft_wrap=True)
    if row.error is not None:
        console.print(f"  cannot be scored: {printable(row.error)}")
        return
    named = f"{detector.score_name} {row.score:+.4g}"
    if detector.score_name == "bliss":
        named = f"BLISS {row.score:+.2f}"
    p = "" if row.p_value is None else f", p-value {row.p_value:.3g}"
    fitted = _is_fitted(detector)
    digits = "+.2f" if fitted else "+.3f"
    console.print(
        f"  {named}{p}\n"
        f"  nearest normal class: {row.nearest_class}\n"
        f"  internal {row.internal:{digits}}, external {row.external:{digits}} x {detector.weight:g}"
    )
    for word, z in row.words or ():
        console.print(f"    z {z:+6.1f}  {word}" if fitted else f"    cosine {z:+.3f}  {word}")


def _is_fitted(detector: "Detector") -> bool:
    """Returns whether the detector was fitted to images."""
    return bool(detector.moments.count.any())
