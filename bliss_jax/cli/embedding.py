"""Embedding of a data set and its texts, in one process or several, for `evaluate` and `embed`."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bliss_jax.cli.class_names import odd_class_names
from bliss_jax.cli.exits import UNREADABLE
from bliss_jax.cli.options import FILE_OPTIONS, file_reader
from bliss_jax.cli.terminal import no_progress, notes, progress
from bliss_jax.evaluation import DATASET, MODEL, dataset_defaults
from bliss_jax.storage import check_writable


@contextmanager
def processes(options: dict[str, Any], outputs: Sequence[Path]) -> Iterator[bool]:
    """Runs the part of a command that all processes share. Only process 0 continues afterwards.

    Args:
        options: Options of the command. `quiet` is set to true in all processes except process 0.
        outputs: Files that process 0 will write.

    Yields:
        Whether this is process 0.
    """
    if not options["distributed"]:
        for file in outputs:
            check_writable(file)
        yield True
        return
    import jax

    from bliss_jax.embedding import (
        LostProcessError,
        failing_together,
        initialize_distributed,
        shutdown_distributed,
    )

    try:
        initialize_distributed(options["heartbeat"])
        first = jax.process_index() == 0
        if first and not options["quiet"]:
            kept = f"finished shards stay in {options['cache']}" if options["cache"] else ""
            notes.print(
                f"{jax.process_count()} processes, {jax.device_count()} devices; if one process dies, all "
                f"end within about {options['heartbeat']} s: {kept or 'without --cache no work is saved'}"
            )
        options["quiet"] = options["quiet"] or not first
        with failing_together():
            for file in outputs if first else ():
                check_writable(file)
        yield first
        shutdown_distributed()
    except LostProcessError as error:
        click.ClickException(str(error)).show()
        sys.stderr.flush()
        os._exit(1)  # a regular exit would wait for the dead process


def jointly(options: dict[str, Any], function: Callable[[], Any]) -> Any:
    """Returns function(). With --distributed, process 0 calls it first, and an error ends all processes."""
    if not options["distributed"]:
        return function()
    from bliss_jax.embedding import first_process_first

    return first_process_first(function)


def check_texts(options: dict[str, Any]) -> None:
    """Raises ValueError for a dictionary or a prompt template that cannot be used."""
    from bliss_jax.text import load_dictionary, prompt_templates

    if options["prompt"]:
        prompt_templates(options["prompt"])
    if options["dictionary"] is not None:
        load_dictionary(options["dictionary"])


def load_data(options: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the training set and the test set that the options name.

    Args:
        options: Options of the data. `reader` is set to the `FileReader` of a folder.
    """
    from bliss_jax.datasets import TFDS_PREFIX, dataset_names, load_dataset

    name = options["dataset"] or DATASET
    own: dict[str, Any] = {"data_dir": options["data_dir"], "manual_dir": options["manual_dir"]}
    reader = file_reader(options)
    if name not in dataset_names() and not name.startswith(TFDS_PREFIX):
        name = Path(name)
        own |= {"reader": reader, "strict": options["strict"]}
    elif given := [option for option in FILE_OPTIONS if options[option] not in (None, False, ())]:
        names = ", ".join("--" + option.replace("_", "-") for option in given)
        raise click.UsageError(f"{names}: only for a folder of images, but --dataset is {name}")
    options["reader"] = reader
    return (
        load_dataset(name, "train", **own),
        load_dataset(name, "test", **own, reference_quirks=options["reference_quirks"]),
    )


def load_encoder(options: dict[str, Any]) -> Any:
    """Returns the encoder that the options name."""
    from bliss_jax.models import load_model

    dtype, revision = options["dtype"], options["revision"]
    return jointly(
        options, lambda: load_model(options["model"] or MODEL, dtype=dtype, revision=revision)
    )


def embed_only(options: dict[str, Any], model: Any, dataset: Any) -> Any:
    """Returns the embeddings of the images of a data set that can be read. The others are listed.

    Raises:
        ValueError: Images cannot be read, with --strict.
    """
    from bliss_jax.embedding import BATCH_SIZE, embed_images

    track = no_progress if options["quiet"] else progress
    with track(dataset.name, len(dataset)) as advance:
        embedded = embed_images(
            model,
            dataset,
            preprocess=options["preprocess"],
            batch_size=options["batch_size"] or BATCH_SIZE,
            cache=options["cache"],
            progress=advance,
        )
    if embedded.unreadable and options["strict"]:
        raise ValueError(
            f"{len(embedded.unreadable)} images cannot be read:\n" + "\n".join(embedded.unreadable)
        )
    for problem in embedded.unreadable:
        notes.print(f"skipped: {problem}")
    return embedded.embeddings


def embed_data(
    options: dict[str, Any], train: Any, test: Any, *, model: Any = None, **classes: Any
) -> Any:
    """Embeds both sets and the texts. Unreadable images are listed; with --strict they are an error.

    Args:
        options: Options of the model and the data.
        train: Training set.
        test: Test set.
        model: The encoder; None loads it.
        **classes: `train_classes` and `test_classes` of `embed_dataset`.
    """
    from bliss_jax.embedding import BATCH_SIZE, embed_dataset
    from bliss_jax.text import PROMPT, find_overlap, load_dictionary

    quiet = options["quiet"]
    dictionary_name = options["dictionary"] or dataset_defaults(train.name).dictionary
    model = model or load_encoder(options)
    dictionary = jointly(options, lambda: load_dictionary(dictionary_name))
    overlap = find_overlap(dictionary, train.class_names)
    if not quiet:
        notes.print(
            f"{model.name} on {train.name}; dictionary {dictionary_name}: {len(dictionary)} texts, "
            f"including {len(overlap)} of the {len(train.class_names)} labels"
            + (" (excluded)" if options["exclude_labels"] and overlap else "")
        )
    embeddings = embed_dataset(
        model,
        train,
        test,
        dictionary,
        dictionary_name=dictionary_name,
        exclude_labels=options["exclude_labels"],
        prompt=options["prompt"] or PROMPT,
        preprocess=options["preprocess"],
        batch_size=options["batch_size"] or BATCH_SIZE,
        skip_unreadable=True,  # so that the error below names the images of both sets
        cache=options["cache"],
        track=no_progress if quiet else progress,
        **classes,
    )
    unreadable = embeddings.provenance["dataset"]["unreadable"]
    if unreadable and options["strict"]:
        raise ValueError(f"{len(unreadable)} images cannot be read:\n" + "\n".join(unreadable))
    for problem in unreadable:
        notes.print(f"skipped: {problem}")
    if not quiet:
        for line in options["reader"].lines(command_line=True):
            notes.print(line)
        for line in odd_class_names(train.class_names):
            notes.print(line)
    return embeddings


def exit_of(embeddings: Any) -> None:
    """Ends the process with exit code 3 if images were skipped."""
    if embeddings.provenance.get("dataset", {}).get("unreadable"):
        sys.exit(UNREADABLE)
