"""The command `export`."""

from pathlib import Path
from typing import Literal

import click

from bliss_jax import _require
from bliss_jax.cli.options import (
    check_detector_file,
    detector_argument,
    encoder_option,
    load_detector,
    own_score_option,
)
from bliss_jax.cli.terminal import notes
from bliss_jax.detection import DEFAULT_PLATFORMS, PLATFORMS
from bliss_jax.storage import check_writable


@click.command(epilog="Example:  bliss-jax export det.safetensors -o det.npz")
@detector_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Output file, e.g. det.npz.",
)
@click.option(
    "--inputs",
    type=click.Choice(["images", "embeddings"]),
    default="images",
    show_default=True,
    help="Inputs of the program: uint8 images of the encoder's size, or embeddings of unit norm.",
)
@click.option(
    "--platform",
    "platforms",
    type=click.Choice(PLATFORMS),
    multiple=True,
    default=DEFAULT_PLATFORMS,
    show_default=True,
    help="Platform on which the program runs. May be repeated.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    help="Inputs that are computed at once, which bounds the memory.  [default: that of the detector for images, "
    "128 embeddings]",
)
@encoder_option
@own_score_option
def export(
    detector: Path,
    output: Path,
    inputs: Literal["images", "embeddings"],
    platforms: tuple[str, ...],
    batch_size: int | None,
    model: str | None,
    own_score: str | None,
) -> None:
    """Export a detector as a program that runs with JAX alone, without bliss-jax.

    The program returns scores, p-values and nearest classes (-1 with another score than BLISS). Run it with the
    packages jax and flatbuffers: see docs/how-to/exporting.md.
    """
    check_writable(output)
    check_detector_file(detector)
    _require("flatbuffers", "export")
    loaded = load_detector(
        detector, model, embeddings_only=inputs == "embeddings", own_score=own_score
    )
    loaded.export(output, inputs=inputs, platforms=platforms, batch_size=batch_size)
    notes.print(f"wrote {output}: {output.stat().st_size / 1e6:.1f} MB")
