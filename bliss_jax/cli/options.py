"""Options that several commands have."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bliss_jax.evaluation import DATASET, MODEL

if TYPE_CHECKING:
    from bliss_jax.detection import Detector

ENVIRONMENT = (
    "Compiled programs are kept in ~/.cache/bliss-jax/compiled ($XDG_CACHE_HOME): "
    "BLISS_JAX_COMPILATION_CACHE names another folder, or is 'off'."
)

quiet_option = click.option(
    "--quiet", is_flag=True, help="No progress, no notes but on what is left out."
)


detector_argument = click.argument(
    "detector", type=click.Path(path_type=Path, dir_okay=False), metavar="DETECTOR"
)
encoder_option = click.option(
    "--model",
    metavar="NAME|DIR",
    help="Where the encoder is, if not where it was; its weights are checked.",
)

WORDS = 5
"""Named of each image."""


def load_detector(path: Path, model: str | None, *, embeddings_only: bool = False) -> "Detector":
    """The detector in a file, with its encoder from where it was or from where it is said to be."""
    from bliss_jax.detection import Detector

    return Detector.load(path, model, embeddings_only=embeddings_only)


def model_options(command: Callable) -> Callable:
    """The encoder, the texts, and how images go through it."""
    options = [
        click.option(
            "--model",
            metavar="NAME|DIR",
            help="A CLIP or SigLIP checkpoint: a Hugging Face repository or a directory.  "
            f"[default: {MODEL}, which knows symbols only]",
        ),
        click.option("--revision", help="Commit, tag or branch of the repository."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16"]),
            default="float32",
            show_default=True,
            help="float32 is the reference, bfloat16 the fast path.",
        ),
        click.option(
            "--preprocess",
            type=click.Choice(["clip", "reference"]),
            help="Statistics: CLIP's, or CIFAR's as in the authors' scripts.  [default: the model's own]",
        ),
        click.option("--prompt", help="Template.  [default: 'This is a photo of a {label}']"),
        click.option(
            "--dictionary",
            metavar="NAME|FILE",
            help="imagenet1k, wordnet-nouns, unicode-names, or a text file of one phrase per line.  "
            "[default: imagenet1k; unicode-names for glyphs]",
        ),
        click.option("--exclude-labels", is_flag=True, help="Leave labels out of the dictionary."),
        click.option(
            "--batch-size",
            type=click.IntRange(1),
            default=64,
            show_default=True,
            help="Images per call of the encoder.",
        ),
        click.option(
            "--cache",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="Keep embeddings here as they are done: a run that was stopped goes on from them, and "
            "the next run with the same images and model reads them.",
        ),
    ]
    return _with(options, command)


def model_and_data_options(command: Callable) -> Callable:
    """`model_options`, and the data set that is evaluated."""
    options = [
        click.option(
            "--dataset",
            metavar="NAME|DIR",
            help="cifar10, cifar100, tiny-imagenet, cifar10+cifar100, glyphs, digits, or a folder "
            f"DIR/train/CLASS/*.jpg, DIR/test/CLASS/*.jpg.  [default: {DATASET}]",
        ),
        model_options,
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Where prepared data sets are kept."
        ),
        click.option(
            "--manual-dir",
            type=click.Path(path_type=Path),
            help="A folder with the official archive, instead of a download.",
        ),
        click.option(
            "--strict",
            is_flag=True,
            help="An image that cannot be read is an error. Without it the run goes on, lists what is left "
            "out, and ends with exit code 3.",
        ),
        click.option(
            "--reference-quirks",
            is_flag=True,
            help="TinyImageNet without the class that the authors' scripts lose (9,950 test images).",
        ),
        click.option(
            "--distributed",
            is_flag=True,
            help="One of several processes that share the work: under SLURM, Open MPI, Kubernetes, on "
            "Cloud TPUs, or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set. "
            "See docs/many_machines.md.",
        ),
        click.option(
            "--heartbeat",
            type=click.IntRange(1),
            default=30,
            show_default=True,
            metavar="SECONDS",
            help="With --distributed: after so long a silence a process is taken for dead, and all end.",
        ),
        quiet_option,
    ]
    return _with(options, command)


def _with(options: Sequence[Callable], command: Callable) -> Callable:
    """The command with options, listed in their order."""
    for option in reversed(options):
        command = option(command)
    return command
