"""The commands `models`, `datasets`, `dictionaries` and `protocols`, which print the library's registries."""

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import click

from bliss_jax.cli.terminal import tables

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON document instead of a table."
)


@click.command(epilog="Example:  bliss-jax models --json")
@json_option
def models(as_json: bool) -> None:
    """List the registered encoders.

    --model also accepts other CLIP and SigLIP checkpoints: a Hugging Face repository or a directory.
    """
    from bliss_jax.models import REGISTRY

    _show(
        [
            {
                "name": name,
                "family": entry.family,
                "embedding": entry.embedding_dim,
                "image": entry.image_size,
                "patch": entry.patch_size,
                "revision": entry.revision,
            }
            for name, entry in REGISTRY.items()
        ],
        as_json,
        {"revision": lambda commit: commit or "built in"},
    )


@click.command(epilog="Example:  bliss-jax datasets")
@json_option
def datasets(as_json: bool) -> None:
    """List the registered data sets.

    --dataset also accepts a folder with one subfolder per class.
    """
    from bliss_jax.datasets import classes_of, dataset_names, describe_dataset

    _show(
        [
            {
                "name": name,
                "classes": classes_of(name),
                **describe_dataset(name)._asdict(),
            }
            for name in dataset_names()
        ],
        as_json,
    )


@click.command(epilog="Example:  bliss-jax dictionaries")
@json_option
def dictionaries(as_json: bool) -> None:
    """List the dictionaries that come with the library.

    --dictionary also accepts a text file with one phrase per line.
    """
    from bliss_jax.text import (
        describe_dictionary,
        dictionary_hash,
        dictionary_names,
        load_dictionary,
    )

    loaded = {name: load_dictionary(name) for name in dictionary_names()}
    _show(
        [
            {
                "name": name,
                "phrases": len(phrases),
                "sha256": dictionary_hash(phrases),
                "what": describe_dictionary(name),
            }
            for name, phrases in loaded.items()
        ],
        as_json,
        {"sha256": lambda digest: digest[:12]},
    )


@click.command(epilog="Example:  bliss-jax protocols --dataset cifar10")
@click.option("--dataset", metavar="NAME", help="List only the protocols of this data set.")
@json_option
def protocols(dataset: str | None, as_json: bool) -> None:
    """List the protocols of the registered data sets, with their numbers of splits and classes."""
    from bliss_jax.datasets import classes_of, dataset_names, load_protocol, protocols_of

    if dataset is not None and dataset not in dataset_names():
        known = get_close_matches(dataset, dataset_names()) or dataset_names()
        raise click.UsageError(
            f"--dataset: unknown data set {dataset!r}; expected {' or '.join(known)}"
        )
    rows = []
    for data in dataset_names() if dataset is None else (dataset,):
        for name in protocols_of(data):
            protocol = load_protocol(name, dataset=data, num_classes=classes_of(data))
            rows.append(
                {
                    "dataset": data,
                    "protocol": name,
                    "family": protocol.family,
                    "splits": len(protocol.splits),
                    "normal": _least_and_most([split.normal for split in protocol.splits]),
                    "anomalous": _least_and_most([split.anomalous for split in protocol.splits]),
                }
            )
    _show(rows, as_json, {"normal": _range, "anomalous": _range})


def _least_and_most(classes: Sequence[tuple[int, ...]]) -> list[int]:
    """Returns the smallest and the largest number of classes of a split."""
    numbers = [len(ids) for ids in classes]
    return [min(numbers), max(numbers)]


def _range(numbers: list[int]) -> str:
    least, most = numbers
    return str(least) if least == most else f"{least}-{most}"


def _show(
    rows: Sequence[dict[str, Any]],
    as_json: bool,
    written: Mapping[str, Callable[[Any], str]] | None = None,
) -> None:
    """Prints rows as JSON or as a table.

    Args:
        rows: Rows with the same keys, which are the columns.
        as_json: Whether to print JSON.
        written: Formatting function of a column's values in the table, by column.
    """
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    ways = {name: (written or {}).get(name, _cell) for name in rows[0]}
    for name, value in rows[0].items():
        right = isinstance(value, int | list) and not isinstance(value, bool)
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(ways[name](value) for name, value in row.items()))
    tables().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
