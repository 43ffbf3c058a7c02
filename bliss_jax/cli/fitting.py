"""The command `fit`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bliss_jax.cli.class_names import odd_class_names
from bliss_jax.cli.embedding import check_texts
from bliss_jax.cli.exits import UNREADABLE
from bliss_jax.cli.options import (
    ENVIRONMENT,
    file_options,
    file_reader,
    model_options,
    quiet_option,
)
from bliss_jax.cli.own_scores import library_scores, load_scores
from bliss_jax.cli.terminal import listed, no_progress, notes, progress
from bliss_jax.evaluation import MODEL
from bliss_jax.storage import check_writable

if TYPE_CHECKING:
    from bliss_jax.datasets import FileReader, ImageDataset
    from bliss_jax.detection import Detector

_DICTIONARY = "imagenet1k"
_FOR_PHOTOGRAPHS = "--model openai/clip-vit-base-patch16"


class _ShareOrFolder(click.ParamType):
    """A share of the images, or a folder."""

    name = "SHARE|DIR"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | Path:
        """Returns a float or a path."""
        if isinstance(value, float | Path):
            return value
        try:
            return float(value)
        except ValueError:
            return Path(value)


@click.command(
    epilog=f"Example:  bliss-jax fit --images photos --folders -o det.safetensors\n\n{ENVIRONMENT}"
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of normal images. Without it, the detector is fitted to --labels and the dictionary alone.",
)
@click.option(
    "--folders",
    is_flag=True,
    help="Take each subfolder of DIR as a class and its name as the label: DIR/cat/*.jpg, DIR/dog/*.jpg. If "
    "DIR has subfolders train and test, the classes are those of train.",
)
@click.option(
    "--labels",
    metavar="LABEL,...",
    help="Label of the images in DIR. With several labels, each image gets the label of the largest cosine, "
    "which the provenance records.  [default: object, if DIR has no subfolders]",
)
@click.option(
    "--score",
    "scores",
    metavar="NAME|MODULE:FUNCTION",
    help="Score of the detector: the name of a score, or a function or `bliss_jax.Score` of one's own, as "
    "MODULE:FUNCTION (the current directory is searched first) or FILE.py:FUNCTION.  [default: bliss; text_bliss "
    "without --images]",
)
@file_options
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
    "--tune",
    is_flag=True,
    help="Choose k, lambda and shrinkage from the normal images: those that separate normal classes from each other "
    "best if some are left out. The given values are kept if no others are clearly better.",
)
@click.option(
    "--calibration",
    type=_ShareOrFolder(),
    default=0.2,
    show_default=True,
    metavar="SHARE|DIR",
    help="Share of the images that is held out of the fit to calibrate thresholds, or a folder of other "
    "normal images for that, laid out like --images. `score --alpha` needs 19 calibration images for 0.05 "
    "and 99 for 0.01.",
)
@click.option(
    "--group-by",
    metavar="folder|REGEX",
    help="Hold out whole groups of images that belong together, e.g. the frames of a video: images in one "
    "folder, or with the same text in the first parenthesis of a regular expression, e.g. '(scene\\d+)'. One "
    "image of each held-out group calibrates.",
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
    _check_usage(options)
    check_writable(options["output"])
    # Everything that can be wrong with arguments and folders is checked before anything heavy is imported.
    check_texts(options)
    reader = file_reader(options)
    dataset = None if options["images"] is None else _images(options, options["images"], reader)
    calibration = options["calibration"]
    own = file_reader(options)
    if isinstance(calibration, Path):
        if options["group_by"] is not None:
            raise click.UsageError("--group-by cannot be combined with --calibration DIR")
        if not calibration.is_dir():
            raise ValueError(
                f"--calibration: expected a share such as 0.2, or a folder; there is no folder {calibration}"
            )
        calibration = _images(options, calibration, own)
    _check_numbers(options, dataset, calibration)
    detector = _fitted(options, dataset, calibration)
    detector.save(options["output"])
    unreadable = detector.provenance["images"]["unreadable"]
    listed(unreadable)
    if not options["quiet"]:
        for line in (*reader.lines(command_line=True), *own.lines(command_line=True)):
            notes.print(line)
        for line in odd_class_names(detector.class_names):
            notes.print(line)
        if options["tune"]:
            notes.print(f"tuned: {detector.provenance['tuning']['summary']}")
        notes.print(f"wrote {options['output']}: {_summary(detector)}")
        if options["model"] is None:
            notes.print(
                f"{MODEL} was trained on symbols only. For photographs, pass {_FOR_PHOTOGRAPHS}."
            )
    if unreadable:
        sys.exit(UNREADABLE)


def _check_usage(options: dict[str, Any]) -> None:
    """Checks which options are given, and completes --labels for a folder without subfolders.

    Raises:
        UsageError: The classes of the images are not given, or given twice.
    """
    from bliss_jax.datasets import UNNAMED_CLASS, is_flat_folder

    library_scores([options["scores"]] if options["scores"] else [])
    if options["tune"] and (options["images"] is None or options["scores"] not in (None, "bliss")):
        raise click.UsageError(
            "--tune chooses the settings of BLISS, so it needs --images and no other --score"
        )
    if options["images"] is None:
        if options["folders"] or options["labels"] is None:
            raise click.UsageError("expected --images DIR, or --labels LABEL,... without images")
        return
    folder = options["images"]
    if (
        not options["folders"]
        and options["labels"] is None
        and folder.is_dir()
        and is_flat_folder(folder)
    ):
        options["labels"] = UNNAMED_CLASS
        if not options["quiet"]:
            notes.print(
                f"{folder} has no subfolders, so all images are of one class, {UNNAMED_CLASS!r}; a name that says what "
                "they show, --labels NAME, gives better scores"
            )
    if options["folders"] == (options["labels"] is not None):
        raise click.UsageError("expected either --folders or --labels LABEL,...")


def _labels(options: dict[str, Any]) -> tuple[str, ...]:
    """Returns the labels of --labels."""
    labels = tuple(label.strip() for label in options["labels"].split(","))
    if not all(labels) or len(set(labels)) < len(labels):
        raise click.UsageError(
            f"--labels: expected different labels separated by commas, got {options['labels']!r}"
        )
    return labels


def _images(options: dict[str, Any], folder: Path, reader: "FileReader") -> "ImageDataset":
    """Lists the images of a folder, with the labels of --folders, or the first one of --labels."""
    if not folder.is_dir():
        raise ValueError(f"--images: there is no folder {folder}")
    if options["folders"]:
        from bliss_jax.datasets import load_dataset

        return load_dataset(folder, "train", reader=reader, strict=options["strict"])
    from bliss_jax.datasets import find_images

    dataset = find_images(folder, _labels(options), reader)
    if dataset.problems and options["strict"]:
        raise ValueError(
            f"{len(dataset.problems)} files cannot be read:\n" + "\n".join(dataset.problems)
        )
    return dataset


def _check_numbers(
    options: dict[str, Any], dataset: "ImageDataset | None", calibration: "float | ImageDataset"
) -> None:
    """Raises ValueError for numbers that are out of range, and for groups that the names do not have."""
    import numpy as np

    from bliss_jax.detection import check_fit
    from bliss_jax.text import exclude_labels, load_dictionary

    phrases = load_dictionary(options["dictionary"] or _DICTIONARY)
    class_names = _labels(options) if dataset is None else dataset.class_names
    if options["exclude_labels"]:
        phrases = exclude_labels(phrases, class_names)
    check_fit(
        phrases=len(phrases),
        **{name: options[name] for name in ("k", "weight", "shrinkage")},
        calibration=calibration,
        groups=options["group_by"],
        images=dataset,
        labels=np.empty(0, np.int32) if dataset is None else dataset.labels,
        classes=len(class_names),
    )


def _fitted(
    options: dict[str, Any], dataset: "ImageDataset | None", calibration: "float | ImageDataset"
) -> "Detector":
    """Fits the detector."""
    from bliss_jax.detection import Detector, default_images_per_device, label_images
    from bliss_jax.detection import with_present_classes as present
    from bliss_jax.evaluation import tune
    from bliss_jax.models import load_model
    from bliss_jax.text import PROMPT

    score = load_scores([options["scores"]] if options["scores"] else [])
    model = load_model(
        options["model"] or MODEL, dtype=options["dtype"], revision=options["revision"]
    )
    shared: dict[str, Any] = {
        "prompt": options["prompt"] or PROMPT,
        "preprocess": options["preprocess"],
        "cache": options["cache"],
        "track": no_progress if options["quiet"] else progress,
    }
    batch = options["batch_size"] or default_images_per_device()

    def labelled(images: "ImageDataset") -> "ImageDataset":
        if options["folders"]:
            return present(images)
        return label_images(model, images, images_per_device=batch, **shared)

    return Detector.fit(
        model,
        None if dataset is None else labelled(dataset),
        class_names=_labels(options) if dataset is None else None,
        score=None if score is None else score[0],
        dictionary=options["dictionary"] or _DICTIONARY,
        exclude_labels=options["exclude_labels"],
        k=options["k"],
        weight=options["weight"],
        shrinkage=options["shrinkage"],
        tune=tune if options["tune"] else None,
        calibration=calibration if isinstance(calibration, float | int) else labelled(calibration),
        groups=options["group_by"],
        seed=options["seed"],
        batch_size=batch,
        skip_unreadable=not options["strict"],
        **shared,
    )


def _summary(detector: "Detector") -> str:
    facts = detector.describe()
    counts = ", ".join(f"{c['name']} {c['fitted']}" for c in facts["classes"])
    number = len(detector.calibration_labels)
    groups = detector.provenance["calibration"].get("groups")
    held_out = f"calibration images: {number}"
    if groups:
        held_out += (
            f" (one of each of {groups['held_out']} held-out groups of {groups['number']}, which have "
            f"{groups['images']} images)"
        )
    if not sum(c["fitted"] for c in facts["classes"]):
        counts = f"none ({', '.join(detector.class_names)})"
    alpha = f"smallest alpha {facts['smallest_alpha']:.3g}" if number else "no thresholds"
    return f"score {detector.score_name}; fitted images: {counts}; {held_out}, {alpha}"
