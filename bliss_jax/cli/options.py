"""Options that several commands share."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bliss_jax.cli.terminal import printable
from bliss_jax.evaluation import DATASET, MODEL

if TYPE_CHECKING:
    from bliss_jax.datasets import FileReader
    from bliss_jax.detection import Detector

ENVIRONMENT = (
    "Compiled programs are cached in bliss-jax/compiled in the user's cache folder (~/.cache on Linux). The "
    "variable BLISS_JAX_COMPILATION_CACHE names another folder, or is 'off'."
)

quiet_option = click.option(
    "--quiet", is_flag=True, help="Print no progress, and notes on skipped files only."
)


detector_argument = click.argument(
    "detector", type=click.Path(path_type=Path, dir_okay=False), metavar="DETECTOR"
)
encoder_option = click.option(
    "--model",
    metavar="NAME|DIR",
    help="Encoder, if it is not where the detector was fitted. Its weights must be the same.",
)

own_score_option = click.option(
    "--score",
    "own_score",
    metavar="MODULE:FUNCTION",
    help="Function of the detector's score, if it was fitted with a score of one's own; also FILE.py:FUNCTION.",
)

FILE_OPTIONS = ("background", "bit_depth", "follow_links", "globs")


def file_options(command: Callable) -> Callable:
    """Adds the options that say how image files are found and read."""
    options = [
        click.option(
            "--glob",
            "globs",
            multiple=True,
            metavar="PATTERN",
            help="Read only files that match, e.g. '*.png' or 'camera1/*'. May be repeated.  [default: files "
            "with the extension of an image]",
        ),
        click.option(
            "--follow-links",
            is_flag=True,
            help="Follow links that lead out of a folder, and links to folders.",
        ),
        click.option(
            "--background",
            metavar="COLOUR",
            help="Colour behind transparent pixels: a name or #rrggbb.  [default: white; black for pictures "
            "that would be blank on white]",
        ),
        click.option(
            "--bit-depth",
            type=click.IntRange(8, 16),
            metavar="N",
            help="Significant bits of 16-bit images, e.g. 12 for many cameras.  [default: as the file "
            "states, or 16]",
        ),
    ]
    return _with(options, command)


def file_reader(options: Mapping[str, Any], **defaults: Any) -> "FileReader":
    """Returns a reader of image files with the options of a command, or else the defaults."""
    from bliss_jax.datasets import FileReader

    given = {name: options[name] for name in FILE_OPTIONS if options[name] not in (None, ())}
    return FileReader(**{**defaults, **given})


def check_paths(paths: Sequence[str], reader: "FileReader") -> None:
    """Raises ValueError for a folder that does not exist or has no image files.

    A missing path with the extension of an image is a file, which gets a row with the reason.
    """
    from bliss_jax.datasets import has_image_suffix

    for path in paths:
        if not os.path.lexists(path) and not has_image_suffix(path):
            raise ValueError(f"there is no file or folder {printable(path)}")
        if Path(path).is_dir() and next(reader.find([path]), None) is None:
            facts = "; ".join(reader.lines(command_line=True))
            raise ValueError(
                f"{printable(path)}: expected image files, found none" + (facts and f" ({facts})")
            )


BATCH_OF_DETECTOR = "16 per accelerator, or half the number of cores"
"""Default batch size of `fit` in words."""

WORDS = 5
"""Default number of phrases in an explanation."""


def load_detector(
    path: Path, model: str | None, *, embeddings_only: bool = False, own_score: str | None = None
) -> "Detector":
    """Returns the detector in a file, with its recorded encoder or the one of --model, and the score of --score."""
    check_detector_file(path)
    from bliss_jax.cli.own_scores import library_scores, load_scores
    from bliss_jax.detection import Detector

    names = [own_score] if own_score else []
    if library_scores(names):
        raise click.UsageError(
            f"--score: expected MODULE:FUNCTION or FILE.py:FUNCTION, got {own_score!r}; the detector's file "
            "names scores of the library"
        )
    score = load_scores(names)
    return Detector.load(
        path, model, embeddings_only=embeddings_only, score=None if score is None else score[0]
    )


def check_detector_file(path: Path) -> int:
    """Returns the number of calibration images of a detector, without importing heavy packages.

    Raises:
        ValueError: The file is not a detector.
    """
    from bliss_jax.datasets import format_of

    if not path.exists():
        raise ValueError(
            f"{path}: expected a detector that `bliss-jax fit` wrote, found no such file"
        )
    with path.open("rb") as file:
        head = file.read(64)
        length = int.from_bytes(head[:8], "little")
        size = path.stat().st_size
        if head[8:9] == b"{" and 8 + length <= size:
            file.seek(8)
            header = file.read(length)
            if b"bliss_jax.detector" in header:
                return _calibration_images(header)
            raise ValueError(f"{path} is a safetensors file, but not a detector")
    kind = format_of(head)
    found = (
        f"it is a file in the format {kind}"
        if kind
        else "it is empty"
        if not size
        else "it is damaged"
    )
    raise ValueError(
        f"{path} is not a usable detector: {found}; expected a file that `bliss-jax fit` wrote"
    )


def _calibration_images(header: bytes) -> int:
    """Returns the number of calibration images in the header of a detector; 0 if it is damaged."""
    try:
        return int(json.loads(header)["calibration_labels"]["shape"][0])
    except (ValueError, LookupError, TypeError):
        return 0


def model_options(command: Callable, batch_default: str = BATCH_OF_DETECTOR) -> Callable:
    """Adds the options of the encoder, the texts and the batches."""
    options = [
        click.option(
            "--model",
            metavar="NAME|DIR",
            help="CLIP or SigLIP checkpoint: a Hugging Face repository or a directory.  "
            f"[default: {MODEL}, trained on symbols only]",
        ),
        click.option("--revision", help="Commit, tag or branch of the Hugging Face repository."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16"]),
            default="float32",
            show_default=True,
            help="Precision of the encoder: float32 is the reference, bfloat16 is faster.",
        ),
        click.option(
            "--preprocess",
            type=click.Choice(["clip", "reference"]),
            help="Normalisation of images: CLIP's statistics, or CIFAR's as in the authors' scripts.  "
            "[default: the model's own]",
        ),
        click.option(
            "--prompt",
            multiple=True,
            metavar="TEMPLATE|NAME",
            help="Prompt template with {label}, or a set of templates: clip-80, OpenAI's for ImageNet, or clip-7, "
            "the best 7 of them. May be repeated. The embeddings of all templates are averaged.  [default: 'This "
            "is a photo of a {label}']",
        ),
        click.option(
            "--dictionary",
            metavar="NAME|FILE",
            help="imagenet1k, wordnet-nouns, wordnet-adjectives, unicode-names, or a text file with one "
            "phrase per line.  "
            "[default: imagenet1k; unicode-names for glyphs]",
        ),
        click.option(
            "--exclude-labels", is_flag=True, help="Remove the class labels from the dictionary."
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(1),
            help=f"Images per call of the encoder.  [default: {batch_default}]",
        ),
        click.option(
            "--cache",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="Folder for finished embeddings. An interrupted run resumes from them, and later runs with "
            "the same images and model reuse them.",
        ),
    ]
    return _with(options, command)


def model_and_data_options(command: Callable) -> Callable:
    """Adds `model_options` and the options of the evaluated data set."""
    options = [
        click.option(
            "--dataset",
            metavar="NAME|DIR",
            help="cifar10, cifar100, tiny-imagenet, cifar10+cifar100, glyphs, digits, tfds:NAME[/CONFIG] for a data "
            "set that tensorflow-datasets has prepared, or a folder with "
            f"DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg.  [default: {DATASET}]",
        ),
        partial(model_options, batch_default="64"),
        file_options,
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path),
            help="Folder for prepared data sets.  [default: ~/tensorflow_datasets]",
        ),
        click.option(
            "--manual-dir",
            type=click.Path(path_type=Path),
            help="Folder with the official archive, which replaces the download.",
        ),
        click.option(
            "--strict",
            is_flag=True,
            help="Fail if an image cannot be read. By default such images are listed and skipped, and the "
            "exit code is 3.",
        ),
        click.option(
            "--reference-quirks",
            is_flag=True,
            help="TinyImageNet without the class that the authors' scripts omit (9,950 test images).",
        ),
        click.option(
            "--distributed",
            is_flag=True,
            help="Run as one of several processes that share the work: under SLURM, Open MPI, Kubernetes, on "
            "Cloud TPUs, or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set. "
            "See docs/many_machines.md.",
        ),
        click.option(
            "--heartbeat",
            type=click.IntRange(1),
            default=30,
            show_default=True,
            metavar="SECONDS",
            help="With --distributed: time without a sign of life after which a process counts as dead and "
            "all processes end.",
        ),
        quiet_option,
    ]
    return _with(options, command)


def _with(options: Sequence[Callable], command: Callable) -> Callable:
    """Adds options to a command; --help lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command
