"""The command `fit`."""

import sys
from pathlib import Path
from typing import Any

import click

from bliss_jax.cli.exits import UNREADABLE
from bliss_jax.cli.options import ENVIRONMENT, model_options, quiet_option
from bliss_jax.cli.terminal import no_progress, notes, progress
from bliss_jax.evaluation import MODEL
from bliss_jax.storage import check_writable


@click.command(
    epilog=f"Example:  bliss-jax fit --images photos --folders -o det.safetensors\n\n{ENVIRONMENT}"
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder of normal images.",
)
@click.option(
    "--folders",
    is_flag=True,
    help="Take each subfolder of DIR as a class and its name as the label: DIR/cat/*.jpg, DIR/dog/*.jpg.",
)
@click.option(
    "--labels",
    metavar="LABEL,...",
    help="Label of the images in DIR. With several labels, each image gets the label of the largest cosine, "
    "which the provenance records.",
)
@model_options
@click.option(
    "--k", type=int, default=10, show_default=True, help="Number of dictionary texts per image."
)
@click.option(
    "--lambda",
    "weight",
    type=float,
    default=0.5,
    show_default=True,
    help="Weight of the external text score.",
)
@click.option(
    "--shrinkage",
    type=float,
    default=0.0,
    show_default=True,
    metavar="N0",
    help="For few images per class: shrink class variances toward the variance pooled over all classes, with "
    "the weight of N0 images. 20 is a good choice.",
)
@click.option(
    "--calibration",
    type=float,
    default=0.2,
    show_default=True,
    metavar="SHARE",
    help="Share of the images that is held out of the fit to calibrate thresholds. `score --alpha` needs 19 "
    "held-out images for 0.05 and 99 for 0.01.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the choice of held-out images.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Fail if an image cannot be read. By default such images are listed and skipped, and the exit code "
    "is 3.",
)
@quiet_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Output file for the detector (safetensors).",
)
def fit(**options: Any) -> None:
    """Fit a detector to normal images and write it to a file."""
    if options["folders"] == (options["labels"] is not None):
        raise click.UsageError("expected either --folders or --labels LABEL,...")
    check_writable(options["output"])
    from bliss_jax.detection import Detector, label_files
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
        dataset, problems = label_files(
            model,
            options["images"],
            labels,
            prompt=prompt,
            track=track,
            preprocess=options["preprocess"],
            batch_size=options["batch_size"],
            cache=options["cache"],
        )
        if problems and options["strict"]:
            raise ValueError(f"{len(problems)} files cannot be read:\n" + "\n".join(problems))
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
        notes.print(f"skipped: {problem}")
    if not options["quiet"]:
        facts = detector.describe()
        counts = ", ".join(f"{c['name']} {c['fitted']}" for c in facts["classes"])
        held_out = len(detector.calibration_labels)
        notes.print(
            f"wrote {options['output']}: fitted images: {counts}; calibration images: {held_out}, "
            + (f"smallest alpha {facts['smallest_alpha']:.3g}" if held_out else "no thresholds"),
        )
        if options["model"] is None:
            notes.print(
                f"{MODEL} was trained on symbols only. For photographs, pass {_FOR_PHOTOGRAPHS}."
            )
    if unreadable:
        sys.exit(UNREADABLE)


_FOR_PHOTOGRAPHS = "--model openai/clip-vit-base-patch16"
