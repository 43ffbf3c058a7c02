"""What the experiments share: options, embeddings that are computed once, results as JSON and Markdown.

Every script takes the same options. What is embedded is kept under OUTPUT/embeddings and read again by the
next run and by every other script; name another OUTPUT to start afresh. Results are written to
OUTPUT/SCRIPT.json, with all that made them, and OUTPUT/SCRIPT.md.
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
from bliss_jax.evaluation import DATASET, MODEL, dataset_defaults
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
    """The command line."""

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
    """One model on one data set."""

    model: str
    dataset: str
    sets: tuple[EmbeddingSet, ...]
    """One, or one per random half of a file that has no training images of its own."""
    protocols: tuple[Protocol, ...]
    k: int
    """Dictionary texts per image."""
    preprocess: str | None = None


def experiment(
    *, datasets: tuple[str, ...] = (DATASET,), models: tuple[str, ...] = (MODEL,)
) -> Callable[[Callable[[Options], None]], click.Command]:
    """Makes a function of `Options` the command of a script, with these defaults."""

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
                     help="cifar10, cifar100, tiny-imagenet, glyphs, or a folder. May be repeated."),
        click.option("--model", "models", multiple=True, default=models, help="May be repeated."),
        click.option("--embeddings", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help="A file of `bliss-jax embed`, or the one of clip_file.py, instead of both."),
        click.option("--protocol", "protocols", multiple=True, show_default="those of the data set"),
        click.option("--dictionary", show_default="imagenet1k; unicode-names for glyphs"),
        click.option("--preprocess", type=click.Choice(["clip", "reference"]),
                     show_default="the model's own"),
        click.option("--k", type=click.IntRange(1), show_default="10; 1 for glyphs"),
        click.option("--output", type=path, default=Path("runs/experiments")),
        click.option("--data-dir", type=path, help="Where prepared data sets are kept."),
        click.option("--manual-dir", type=path, help="A folder with the official archives."),
        click.option("--quick", is_flag=True, help="Few images, texts, splits, repeats: does it run?"),
    ]  # fmt: skip


def cases(options: Options, *, exclude_labels: bool = False) -> Iterator[Case]:
    """The cases that the options ask for, embedded when their turn comes."""
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
                _protocols(options, dataset, embeddings.num_classes),
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
        recorded = sets[0].provenance
        model, dataset = (
            str(recorded.get(what, {}).get("name", file.stem)) for what in ("model", "dataset")
        )
    protocols = _protocols(options, dataset, sets[0].num_classes)
    return Case(model, dataset, sets, protocols, options.k or dataset_defaults(dataset).k)


def _protocols(options: Options, dataset: str, num_classes: int) -> tuple[Protocol, ...]:
    names = options.protocols or PROTOCOLS.get(dataset, (dataset_defaults(dataset).protocol,))
    protocols = [load_protocol(name, dataset=dataset, num_classes=num_classes) for name in names]
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
    """The images behind a case's test embeddings; None where they came from a file."""
    return None if options.embeddings else _images(options, case.dataset, "test").images


def slug(text: str) -> str:
    """A name for a file."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self._start = time.perf_counter()

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._start
        return f"{seconds:.0f} s on {jax.devices()[0].device_kind}, compilation included"


def command() -> str:
    """The command line of this run."""
    script = Path(sys.argv[0]).resolve().relative_to(Path(__file__).parents[1]).with_suffix("")
    return shlex.join(["python", "-m", ".".join(script.parts), *sys.argv[1:]])


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table; the first `texts` columns are aligned to the left."""
    rule = ["---"] * texts + ["---:"] * (len(headings) - texts)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, rule, *rows))


def by_case(headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """A table of `CASE` columns and then `headings`; what all rows share of a case is said once, above.

    Args:
        headings: Of the columns after those of the case.
        rows: Model, data set, and a cell for each heading.
        texts: As `markdown`, of `headings`.
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
    """A sentence above a table, or nothing."""
    sentence = "; ".join(facts)
    return f"{sentence[:1].upper()}{sentence[1:]}.\n\n" if facts else ""


def percent(area: float) -> str:
    """An AUROC x 100 with one decimal."""
    return f"{100 * area:.1f}"


def write(options: Options, name: str, table: str, results: Any) -> None:
    """Prints the Markdown, and writes it and the JSON."""
    options.output.mkdir(parents=True, exist_ok=True)
    document = {"command": command(), "results": results}
    text = json.dumps(document, indent=1, default=str) + "\n"
    for suffix, content in ((".json", text), (".md", f"`{command()}`\n\n{table}")):
        with replacing(options.output / f"{name}{suffix}") as file:
            file.write(content.encode())
    click.echo(table)
    click.echo(f"written: {options.output / name}.json and .md", err=True)
