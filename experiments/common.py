"""Shared code of the experiments: options, cached embeddings, and results as JSON and Markdown.

All scripts take the same options. Embeddings are cached in OUTPUT/embeddings, and every script reads them
from there; choose another OUTPUT to compute them anew. Results are written to OUTPUT/SCRIPT.json (with their
provenance) and to OUTPUT/SCRIPT.md.
"""

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import numpy as np

from bliss_jax.datasets import ImageDataset, Protocol, dataset_names, load_dataset, load_protocol
from bliss_jax.embedding import EmbeddingSet, embed_dataset, load_embeddings, save_embeddings
from bliss_jax.evaluation import DATASET, MODEL, dataset_defaults, dataset_of
from bliss_jax.models import load_model
from bliss_jax.storage import replacing
from bliss_jax.text import load_dictionary
from experiments import clip_file

PROTOCOLS = {
    "cifar10": ("one-class", "zoc-6", "leave-one-out"),
    "cifar100": ("zoc",),
    "tiny-imagenet": ("zoc",),
    "glyphs": (
        "glyphs-family",
        "glyphs-half-family",
        "glyphs-leave-sibling-out",
        "glyphs-leave-family-out",
        "glyphs-third",
        "glyphs-leave-one-out",
    ),
}
CASE = ("model", "data set")
HALVES = 10
QUICK_IMAGES = {"train": 6, "test": 3}
QUICK_TEXTS, QUICK_SPLITS, QUICK_HALVES = 300, 3, 2


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    datasets: tuple[str, ...]
    models: tuple[str, ...]
    embeddings: Path | None
    protocols: tuple[str, ...]
    dictionary: str | None
    preprocess: str | None
    k: int | None
    output: Path
    data_dir: Path | None
    manual_dir: Path | None
    quick: bool


class Case(NamedTuple):
    """Embeddings and protocols of one model on one data set."""

    model: str
    dataset: str
    sets: tuple[EmbeddingSet, ...]
    """One embedding set, or one per random half if the file has no training images of its own."""
    protocols: tuple[Protocol, ...]
    k: int
    """Dictionary texts per image."""
    preprocess: str | None = None


def experiment(
    *, datasets: tuple[str, ...] = (DATASET,), models: tuple[str, ...] = (MODEL,)
) -> Callable[[Callable[[Options], None]], click.Command]:
    """Returns a decorator that turns a function of `Options` into the command of a script.

    Args:
        datasets: Default data sets.
        models: Default models.
    """

    def command(run: Callable[[Options], None]) -> click.Command:
        def main(**options: Any) -> None:
            run(Options(**options))

        main.__doc__ = run.__doc__
        decorated = main
        for option in reversed(_options(datasets, models)):
            decorated = option(decorated)
        return click.command(context_settings={"show_default": True})(decorated)

    return command


def _options(datasets: tuple[str, ...], models: tuple[str, ...]) -> list[Callable]:
    path = click.Path(path_type=Path)
    return [
        click.option("--dataset", "datasets", multiple=True, default=datasets,
                     help="Data set: cifar10, cifar100, tiny-imagenet, glyphs, or a folder of images. May "
                     "be repeated."),
        click.option("--model", "models", multiple=True, default=models,
                     help="Model: a name or a directory. May be repeated."),
        click.option("--embeddings", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help="File written by `bliss-jax embed`, or a file as described in clip_file.py. It "
                     "replaces --dataset and --model."),
        click.option("--protocol", "protocols", multiple=True, show_default="those of the data set",
                     help="Protocol. May be repeated."),
        click.option("--dictionary", show_default="imagenet1k; unicode-names for glyphs",
                     help="Name or file of the dictionary."),
        click.option("--preprocess", type=click.Choice(["clip", "reference"]),
                     show_default="that of the model", help="Preprocessing of the images."),
        click.option("--k", type=click.IntRange(1), show_default="10; 1 for glyphs",
                     help="Number of dictionary texts per image."),
        click.option("--output", type=path, default=Path("runs/experiments"),
                     help="Folder for embeddings and results."),
        click.option("--data-dir", type=path, help="Folder of prepared data sets."),
        click.option("--manual-dir", type=path, help="Folder with the official archives."),
        click.option("--quick", is_flag=True,
                     help="Use few images, texts, splits and repeats, to check that the script runs."),
    ]  # fmt: skip


def cases(options: Options, *, exclude_labels: bool = False) -> Iterator[Case]:
    """Yields the cases selected by the options. Each is embedded when it is requested."""
    if options.embeddings is not None:
        yield _case_of_file(options, options.embeddings)
        return
    for model in options.models:
        for dataset in options.datasets:
            embeddings = _embedded(options, model, dataset, exclude_labels)
            yield Case(
                model,
                dataset,
                (embeddings,),
                _protocols(options, dataset, embeddings.class_names),
                options.k or dataset_defaults(dataset).k,
                options.preprocess,
            )


def _case_of_file(options: Options, file: Path) -> Case:
    with np.load(file, allow_pickle=False) as content:
        images_alone = "image_emb" in content
    if images_alone:
        sets = tuple(clip_file.halves(file, QUICK_HALVES if options.quick else HALVES, seed=0))
        model, dataset = clip_file.MODEL, clip_file.DATASET
    else:
        sets = (load_embeddings(file),)
        model = str(sets[0].provenance.get("model", {}).get("name", file.stem))
        dataset = dataset_of(sets[0]).name or file.stem
    protocols = _protocols(options, dataset, sets[0].class_names)
    return Case(model, dataset, sets, protocols, options.k or dataset_defaults(dataset).k)


def _protocols(
    options: Options, dataset: str, class_names: tuple[str, ...]
) -> tuple[Protocol, ...]:
    names = options.protocols or PROTOCOLS.get(dataset, (dataset_defaults(dataset).protocol,))
    protocols = [
        load_protocol(name, dataset=dataset, num_classes=len(class_names), class_names=class_names)
        for name in names
    ]
    if options.quick:
        protocols = [replace(p, splits=p.splits[:QUICK_SPLITS]) for p in protocols[:2]]
    return tuple(protocols)


def _embedded(options: Options, model: str, dataset: str, exclude_labels: bool) -> EmbeddingSet:
    dictionary_name = options.dictionary or dataset_defaults(dataset).dictionary
    parts = [dataset, model, dictionary_name, options.preprocess or "own"]
    parts += ["without labels"] * exclude_labels + ["quick"] * options.quick
    file = options.output / "embeddings" / f"{slug('-'.join(parts))}.npz"
    if file.exists():
        return load_embeddings(file)
    dictionary = load_dictionary(dictionary_name)
    embeddings = embed_dataset(
        load_model(model),
        _images(options, dataset, "train"),
        _images(options, dataset, "test"),
        dictionary[:QUICK_TEXTS] if options.quick else dictionary,
        dictionary_name=dictionary_name,
        exclude_labels=exclude_labels,
        preprocess=options.preprocess,
        batch_size=256,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    save_embeddings(embeddings, file)
    return embeddings


def _images(options: Options, dataset: str, split: str) -> ImageDataset:
    name = dataset if dataset in dataset_names() else Path(dataset)
    images = load_dataset(name, split, data_dir=options.data_dir, manual_dir=options.manual_dir)
    if not options.quick:
        return images
    first = [np.flatnonzero(images.labels == c) for c in range(len(images.class_names))]
    return images.subset(np.concatenate([rows[: QUICK_IMAGES[split]] for rows in first]))


def test_images(options: Options, case: Case) -> Any:
    """Returns the images of a case's test embeddings, or None if the embeddings are from a file."""
    return None if options.embeddings else _images(options, case.dataset, "test").images


def slug(text: str) -> str:
    """Returns the text as a valid file name."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


class Stopwatch:
    """Measures the seconds since its creation."""

    def __init__(self):
        self._start = time.perf_counter()

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._start
        return f"{seconds:.0f} s on {jax.devices()[0].device_kind}, compilation included"


def command() -> str:
    """Returns the command line of this run."""
    script = Path(sys.argv[0]).resolve().relative_to(Path(__file__).parents[1]).with_suffix("")
    return shlex.join(["python", "-m", ".".join(script.parts), *sys.argv[1:]])


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Returns a Markdown table. The first `texts` columns are left-aligned, the others right-aligned."""
    rule = ["---"] * texts + ["---:"] * (len(headings) - texts)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, rule, *rows))


def by_case(headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """Returns a Markdown table with the columns model and data set, followed by `headings`.

    If all rows have the same model or data set, a sentence above the table states it instead of a column.

    Args:
        headings: Headings of the columns after model and data set.
        rows: Model, data set, and a cell for each heading.
        texts: Number of columns among `headings` that are aligned to the left.
    """
    shared = [len({row[i] for row in rows}) == 1 for i in range(len(CASE))]
    said = [
        f"{what} {value}" for what, value, one in zip(CASE, rows[0], shared, strict=False) if one
    ]
    kept = [i for i in range(len(CASE) + len(headings)) if i >= len(CASE) or not shared[i]]
    table = markdown(
        [(*CASE, *headings)[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        texts=texts + len(CASE) - sum(shared),
    )
    return said_once(said) + table


def said_once(facts: Sequence[str]) -> str:
    """Returns the facts as a sentence above a table, or an empty text if there are none."""
    sentence = "; ".join(facts)
    return f"{sentence[:1].upper()}{sentence[1:]}.\n\n" if facts else ""


def percent(area: float) -> str:
    """Returns an AUROC x 100 with one decimal."""
    return f"{100 * area:.1f}"


def write(options: Options, name: str, table: str, results: Any) -> None:
    """Prints the Markdown table, and writes it and the results as JSON to the output folder."""
    options.output.mkdir(parents=True, exist_ok=True)
    document = {"command": command(), "results": results}
    text = json.dumps(document, indent=1, default=str) + "\n"
    for suffix, content in ((".json", text), (".md", f"`{command()}`\n\n{table}")):
        with replacing(options.output / f"{name}{suffix}") as file:
            file.write(content.encode())
    click.echo(table)
    click.echo(f"written: {options.output / name}.json and .md", err=True)
