"""What `evaluate` and `embed` share: a data set and its texts as embeddings, in one process or several."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bliss_jax.cli.exits import UNREADABLE
from bliss_jax.cli.terminal import no_progress, notes, progress
from bliss_jax.evaluation import DATASET, MODEL, dataset_defaults
from bliss_jax.storage import check_writable


@contextmanager
def processes(options: dict[str, Any], outputs: Sequence[Path]) -> Iterator[bool]:
    """The part of a command in which all processes take part; process 0 goes on alone afterwards.

    Args:
        options: `distributed` and `heartbeat`; `quiet` becomes true but in process 0.
        outputs: What process 0 will write.

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
            kept = f"shards that are done stay in {options['cache']}" if options["cache"] else ""
            notes.print(
                f"{jax.process_count()} processes, {jax.device_count()} devices; if one process dies, all "
                f"end within about {options['heartbeat']} s: {kept or 'without --cache nothing stays'}"
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
        os._exit(1)  # leaving in order would wait for the process that is gone


def jointly(options: dict[str, Any], function: Callable[[], Any]) -> Any:
    """function(); with --distributed in process 0 first, and if it fails in one it fails in all."""
    if not options["distributed"]:
        return function()
    from bliss_jax.embedding import first_process_first

    return first_process_first(function)


def load_data(options: dict[str, Any]) -> tuple[Any, Any]:
    """The training and the test set that the options name."""
    from bliss_jax.datasets import dataset_names, load_dataset

    name = options["dataset"] or DATASET
    own = {"data_dir": options["data_dir"], "manual_dir": options["manual_dir"]}
    name = name if name in dataset_names() else Path(name)
    return (
        load_dataset(name, "train", **own),
        load_dataset(name, "test", **own, reference_quirks=options["reference_quirks"]),
    )


def embed_data(options: dict[str, Any], train: Any, test: Any, **classes: Any) -> Any:
    """Their embeddings with those of the texts; what is left out is listed, with --strict it is an error.

    Args:
        options: Of the model and the data.
        train: The training set.
        test: The test set.
        **classes: As `embed_dataset`.
    """
    from bliss_jax.embedding import embed_dataset
    from bliss_jax.models import load_model
    from bliss_jax.text import PROMPT, find_overlap, load_dictionary

    quiet = options["quiet"]
    dictionary_name = options["dictionary"] or dataset_defaults(train.name).dictionary
    dtype, revision = options["dtype"], options["revision"]
    model, dictionary = jointly(
        options,
        lambda: (
            load_model(options["model"] or MODEL, dtype=dtype, revision=revision),
            load_dictionary(dictionary_name),
        ),
    )
    overlap = find_overlap(dictionary, train.class_names)
    if not quiet:
        notes.print(
            f"{model.name} on {train.name}; dictionary {dictionary_name}: {len(dictionary)} texts, "
            f"which hold {len(overlap)} of the {len(train.class_names)} labels"
            + (" (left out)" if options["exclude_labels"] and overlap else "")
        )
    embeddings = embed_dataset(
        model,
        train,
        test,
        dictionary,
        dictionary_name=dictionary_name,
        exclude_labels=options["exclude_labels"],
        prompt=PROMPT if options["prompt"] is None else options["prompt"],
        preprocess=options["preprocess"],
        batch_size=options["batch_size"],
        skip_unreadable=True,  # so that an error can name those of both sets
        cache=options["cache"],
        track=no_progress if quiet else progress,
        **classes,
    )
    unreadable = embeddings.provenance["dataset"]["unreadable"]
    if unreadable and options["strict"]:
        raise ValueError(f"{len(unreadable)} images cannot be used:\n" + "\n".join(unreadable))
    for problem in unreadable:
        notes.print(f"left out, cannot be read: {problem}")
    return embeddings


def exit_of(embeddings: Any) -> None:
    """Ends with exit code 3 where images were left out."""
    if embeddings.provenance.get("dataset", {}).get("unreadable"):
        sys.exit(UNREADABLE)
