"""`models`, `datasets`, `dictionaries`, `protocols`: what exists, from the registries themselves."""

import json
from collections.abc import Sequence
from typing import Any

import click

from bliss_jax.cli.terminal import tables

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document instead.")


@click.command(epilog="Example:  bliss-jax models --json")
@json_option
def models(as_json: bool) -> None:
    """List the encoders that have a name; other CLIP and SigLIP checkpoints are loaded as well."""
    from bliss_jax.models.registry import REGISTRY

    _show(
        [
            {
                "name": name,
                "family": entry.family,
                "embedding": entry.embedding_dim,
                "image": entry.image_size,
                "patch": entry.patch_size,
                "revision": entry.revision or "built in",
            }
            for name, entry in REGISTRY.items()
        ],
        as_json,
    )


@click.command(epilog="Example:  bliss-jax datasets")
@json_option
def datasets(as_json: bool) -> None:
    """List the data sets that have a name; a folder of images per class is one too."""
    from bliss_jax.datasets import dataset_names
    from bliss_jax.datasets.load import describe_dataset
    from bliss_jax.datasets.splits import classes_of, protocols_of

    _show(
        [
            {
                "name": name,
                "classes": classes_of(name),
                "protocols": len(protocols_of(name)),
                "what": describe_dataset(name),
            }
            for name in dataset_names()
        ],
        as_json,
    )


@click.command(epilog="Example:  bliss-jax dictionaries")
@json_option
def dictionaries(as_json: bool) -> None:
    """List the dictionaries that are shipped; a text file of one phrase per line is one too."""
    from bliss_jax.text import (
        describe_dictionary,
        dictionary_hash,
        dictionary_names,
        load_dictionary,
    )

    rows = []
    for name in dictionary_names():
        phrases = load_dictionary(name)
        digest = dictionary_hash(phrases)
        rows.append(
            {
                "name": name,
                "phrases": len(phrases),
                "sha256": digest if as_json else digest[:12],
                "what": describe_dictionary(name),
            }
        )
    _show(rows, as_json)


@click.command(epilog="Example:  bliss-jax protocols --dataset cifar10")
@click.option("--dataset", metavar="NAME", help="Only those of this data set.")
@json_option
def protocols(dataset: str | None, as_json: bool) -> None:
    """List the protocols of the data sets that have a name, with their splits."""
    from bliss_jax.datasets import dataset_names, load_protocol
    from bliss_jax.datasets.splits import classes_of, protocols_of

    if dataset is not None and dataset not in dataset_names():
        raise click.UsageError(f"--dataset: expected one of {', '.join(dataset_names())}")
    rows = []
    for data in dataset_names() if dataset is None else (dataset,):
        for name in protocols_of(data):
            protocol = load_protocol(name, dataset=data, num_classes=classes_of(data))
            normal = sorted({len(split.normal) for split in protocol.splits})
            rows.append(
                {
                    "dataset": data,
                    "protocol": name,
                    "family": protocol.family,
                    "splits": len(protocol.splits),
                    "normal classes": normal[0]
                    if len(normal) == 1
                    else f"{normal[0]}-{normal[-1]}",
                }
            )
    _show(rows, as_json)


def _show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int) else "left", no_wrap=True)
    for row in rows:
        cells = (f"{v:,}" if isinstance(v, int) else str(v) for v in row.values())
        table.add_row(*cells)
    tables().print(table)
