"""The options `--ood` and `--suite` of `evaluate`: a data set against out-of-distribution sets."""

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from bliss_jax.cli.embedding import (
    check_texts,
    embed_data,
    embed_only,
    exit_of,
    jointly,
    load_data,
    load_encoder,
    processes,
)
from bliss_jax.cli.options import file_reader
from bliss_jax.cli.terminal import notes, tables, write
from bliss_jax.storage import check_writable

_EMBEDDINGS = ".npz"
_CONVENTIONS = ("bliss-jax", "openood", "pytorch-ood", "mcm")
"""The names of `bliss_jax.metrics.CONVENTIONS`, without an import of JAX."""


def ood_options(command: Callable) -> Callable:
    """Adds the options of the evaluation against out-of-distribution sets."""
    for option in (
        click.option(
            "--convention",
            type=click.Choice(_CONVENTIONS),
            help="With --ood: definition of AUPR and FPR95.  [default: openood; that of the suite]",
        ),
        click.option(
            "--class-names",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="With --suite: class names, one per line in the order of the ids. Needed for suites on ImageNet.",
        ),
        click.option(
            "--suite-dir",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("data"),
            show_default=True,
            metavar="DIR",
            help="Folder of the suite, in the layout of its project.",
        ),
        click.option(
            "--suite",
            metavar="NAME",
            help="Evaluate a named suite of a data set and out-of-distribution sets: openood-cifar10, "
            "openood-cifar100, openood-imagenet200, openood-imagenet or mcm-imagenet.",
        ),
        click.option(
            "--ood",
            multiple=True,
            metavar="[GROUP=]NAME|DIR|FILE",
            help="Take all classes of --dataset as normal, and this set as anomalous: a data set's name (its test "
            "split), tfds:NAME, a folder of images, an image list FILE.txt of OpenOOD beside its images, or embeddings "
            "FILE.npz (its test images). May be repeated; groups, e.g. near= and far=, have means.",
        ),
    ):
        command = option(command)
    return command


def run_ood(
    options: dict[str, Any], settings_of: Callable[[str], Sequence[Any]], outputs: Sequence[Path]
) -> None:
    """Runs the evaluation, prints its tables and writes its files.

    Args:
        options: Options of the command `evaluate`.
        settings_of: Returns the settings of a data set, one for each number of shots.
        outputs: Files that are written.
    """
    given = [_named(text) for text in options["ood"]]
    if options["embeddings"] is not None:
        found = _from_embeddings(options, given, outputs)
    else:
        check_texts(options)
        with processes(options, outputs) as first:
            found = _from_images(options, given)
        if not first:
            return
    name, convention, embeddings, sets = found
    from bliss_jax.evaluation import evaluate_ood, to_csv, to_json
    from bliss_jax.report import print_ood

    console, evaluations = tables(), []
    for setting in settings_of(str(embeddings.provenance.get("dataset", {}).get("name", ""))):
        evaluations.append(
            evaluate_ood(embeddings, sets, setting, name=name, convention=convention)
        )
        print_ood(evaluations[-1], console)
    if options["json_file"] is not None:
        command = shlex.join(["bliss-jax", *sys.argv[1:]])
        write(options["json_file"], to_json(evaluations, command=command))
    if options["csv_file"] is not None:
        write(options["csv_file"], to_csv(evaluations))
    if options["embeddings"] is None:
        exit_of(embeddings)


def _named(text: str) -> tuple[str, str]:
    """Returns the group and the set of a value of --ood."""
    group, equals, name = text.partition("=")
    if not equals or Path(text).exists():
        return "", text
    if not group or not name:
        raise click.UsageError(f"--ood: expected [GROUP=]NAME, DIR or FILE, got {text!r}")
    return group, name


def _from_embeddings(
    options: dict[str, Any], given: Sequence[tuple[str, str]], outputs: Sequence[Path]
) -> tuple[str, str, Any, list[Any]]:
    """Returns the protocol's name, the convention, the embeddings of the data set and of the sets, from files."""
    from bliss_jax.embedding import load_embeddings

    if options["suite"] is not None:
        raise click.UsageError("--suite cannot be combined with --embeddings")
    for _, name in given:
        if not name.endswith(_EMBEDDINGS):
            raise click.UsageError(
                f"--ood: expected a file of embeddings ({_EMBEDDINGS}) beside --embeddings, got {name!r}"
            )
    for file in outputs:
        check_writable(file)
    embeddings = load_embeddings(options["embeddings"])
    sets = [_from_file(group, name) for group, name in given]
    return "ood", options["convention"] or "openood", embeddings, sets


def _from_file(group: str, name: str) -> Any:
    from bliss_jax.embedding import load_embeddings
    from bliss_jax.evaluation import OodSet

    return OodSet(
        Path(name).stem,
        load_embeddings(Path(name)).test_embeddings,
        group,
        f"test images of {name}",
    )


def _from_images(
    options: dict[str, Any], given: Sequence[tuple[str, str]]
) -> tuple[str, str, Any, list[Any]]:
    """Returns the protocol's name, the convention, the embeddings of the data set and of the sets, from images."""
    from bliss_jax.evaluation import OodSet

    name, convention = "ood", options["convention"] or "openood"
    datasets: list[tuple[str, str, Any]] = []
    if options["suite"] is not None:
        suite = jointly(options, lambda: _suite(options))
        train, test = suite.train, suite.test
        name, convention = suite.suite.name, options["convention"] or suite.suite.convention
        datasets += [(part.name, part.group, dataset) for part, dataset in suite.ood]
    else:
        train, test = jointly(options, lambda: load_data(options))
    for group, text in given:
        if not text.endswith(_EMBEDDINGS):
            own = Path(text).stem if Path(text).exists() else text
            datasets.append((own, group, jointly(options, partial(_set, options, text))))
    model = load_encoder(options)
    embeddings = embed_data(options, train, test, model=model)
    sets = [
        OodSet(own, embed_only(options, model, dataset), group, f"{dataset.name}, {dataset.source}")
        for own, group, dataset in datasets
    ]
    sets += [_from_file(group, text) for group, text in given if text.endswith(_EMBEDDINGS)]
    return name, convention, embeddings, sets


def _suite(options: dict[str, Any]) -> Any:
    from bliss_jax.datasets import load_suite

    if options["dataset"] is not None:
        raise click.UsageError("--suite has its own data set: omit --dataset")
    file = options["class_names"]
    names = None if file is None else file.read_text(encoding="utf-8").splitlines()
    options["reader"] = reader = file_reader(options)
    suite = load_suite(options["suite"], options["suite_dir"], class_names=names, reader=reader)
    if not options["quiet"]:
        notes.print(f"{suite.suite.name}: {suite.suite.source}")
    return suite


def _set(options: dict[str, Any], name: str) -> Any:
    """Returns the images of an out-of-distribution set."""
    from bliss_jax.datasets import (
        OOD_CLASS,
        TFDS_PREFIX,
        dataset_names,
        find_images,
        load_dataset,
        load_imglist,
        load_tfds,
    )

    own = {"data_dir": options["data_dir"]}
    if name in dataset_names():
        return load_dataset(name, "test", manual_dir=options["manual_dir"], **own)
    if name.startswith(TFDS_PREFIX):
        return load_tfds(name.removeprefix(TFDS_PREFIX), "test", own["data_dir"], need_labels=False)
    path = Path(name)
    if path.is_dir():
        return find_images(path, (OOD_CLASS,), options["reader"])
    if path.is_file():
        return load_imglist(path, path.parent, reader=options["reader"])
    raise ValueError(
        f"--ood: expected a data set ({', '.join(dataset_names())}, tfds:NAME), a folder, an image list or a file of "
        f"embeddings, got {name!r}"
    )
