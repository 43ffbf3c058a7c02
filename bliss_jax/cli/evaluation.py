"""The commands `evaluate`, `embed` and `demo`."""

import shlex
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from bliss_jax.cli.embedding import (
    check_texts,
    embed_data,
    exit_of,
    jointly,
    load_data,
    processes,
)
from bliss_jax.cli.ood import ood_options, run_ood
from bliss_jax.cli.options import ENVIRONMENT, model_and_data_options
from bliss_jax.cli.own_scores import library_scores, load_scores
from bliss_jax.cli.terminal import no_progress, notes, progress, tables, write
from bliss_jax.evaluation import MODEL, dataset_defaults
from bliss_jax.storage import check_writable

# Heavy packages (jax, transformers, tfds) are imported inside the commands, so that --help answers at once.

_OF_THE_MODEL = (
    "model",
    "revision",
    "dtype",
    "preprocess",
    "prompt",
    "dictionary",
    "exclude_labels",
)
_OF_THE_DATA = (
    "data_dir",
    "manual_dir",
    "batch_size",
    "strict",
    "reference_quirks",
    "cache",
    "distributed",
)


json_file_option = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write all results with their provenance as JSON.",
)


@click.command(
    epilog=f"""\b
Example:
  bliss-jax evaluate --dataset cifar10 --protocol zoc-6 --model openai/clip-vit-base-patch16

{ENVIRONMENT}"""
)
@model_and_data_options
@click.option(
    "--embeddings",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Evaluate precomputed embeddings (see `bliss-jax embed`) without a model.",
)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="NAME|FILE.json",
    help="Protocol to evaluate: one-class, leave-one-out, zoc-6, zoc, cac, cifar+10-zoc, cifar+50-zoc, "
    "cifar+10-cac, glyphs-..., or a file {'name': ..., 'splits': [[ids of the normal classes], ...]}. May be "
    "repeated.  [default: one-class; glyphs-half-family for glyphs]",
)
@click.option(
    "--normal",
    "own_splits",
    multiple=True,
    metavar="CLASS,...",
    help="Normal classes of a custom split, by name or by id (#0, #1, ... in the order of the names); all "
    "other classes are anomalous. May be repeated for several splits. Replaces the default protocol.",
)
@click.option(
    "--score",
    "scores",
    multiple=True,
    metavar="NAME|MODULE:FUNCTION",
    help="Compute only this score: the name of a score, or a function or `bliss_jax.Score` of one's own, as "
    "MODULE:FUNCTION (the current directory is searched first) or FILE.py:FUNCTION. May be repeated.",
)
@click.option(
    "--k", type=int, help="Number of dictionary texts per image.  [default: 10; 1 for glyphs]"
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
    metavar="N0",
    help="Also evaluate BLISS with shrinkage N0: class variances are shrunk toward the variance pooled over "
    "all normal classes, with the weight of N0 images.  [default: 20 with --shots]",
)
@click.option(
    "--shots",
    type=int,
    multiple=True,
    metavar="N",
    help="Fit N normal images per class (few-shot). May be repeated.",
)
@click.option(
    "--draws", type=int, help="Number of random few-shot draws.  [default: 20 with --shots]"
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the draws and of NegLabel."
)
@click.option("--per-split", is_flag=True, help="Print one column per split.")
@ood_options
@json_file_option
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write an HTML report on the first protocol, with figures and explanations of misjudged images.",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the results as CSV, one line per split.",
)
@click.pass_context
def evaluate(ctx: click.Context, **options: Any) -> None:
    """Evaluate BLISS and baseline scores on a benchmark."""
    import numpy as np

    # Nothing that imports JAX, so that errors in arguments and folders are found at once.
    from bliss_jax.embedding import load_embeddings
    from bliss_jax.evaluation import Settings, dataset_of, has_own_order, to_csv, to_json

    shots = options["shots"] or (None,)
    few = bool(options["shots"])
    n0 = options["shrinkage"] if options["shrinkage"] is not None else (20.0 if few else None)
    if options["draws"] is not None and not few:
        raise click.UsageError("--draws needs --shots")
    draws = 1 if not few else 20 if options["draws"] is None else options["draws"]
    # The scores of the library are checked first. Own modules are imported after all arguments were checked.
    scores: Any = library_scores(options["scores"]) or None
    if options["report"] is not None and "bliss" not in (options["scores"] or ("bliss",)):
        raise click.UsageError("--report needs --score bliss")
    outputs = [file for file in (options["json_file"], options["csv_file"]) if file is not None]
    images = None

    def settings_of(dataset: str) -> list[Settings]:
        return [
            Settings(
                scores=scores,
                k=dataset_defaults(dataset).k if options["k"] is None else options["k"],
                weight=options["weight"],
                shrinkages=(0.0, n0) if n0 else (0.0,),
                shots=number,
                draws=draws,
                seed=options["seed"],
            )
            for number in shots
        ]

    settings_of("")  # raises for values that are invalid for every data set
    if options["embeddings"] is not None:
        given = _given(ctx, _OF_THE_MODEL + _OF_THE_DATA)
        if given:
            raise click.UsageError(f"{', '.join(given)} cannot be combined with --embeddings")
    if options["ood"] or options["suite"]:
        for option, name in (
            ("--protocol", "protocols"), ("--normal", "own_splits"), ("--report", "report"),
            ("--per-split", "per_split"),
        ):  # fmt: skip
            if options[name]:
                raise click.UsageError(f"{option} cannot be combined with --ood or --suite")
        scores = load_scores(options["scores"])
        run_ood(options, settings_of, outputs)
        return
    if options["embeddings"] is not None:
        for file in outputs:
            check_writable(file)
        embeddings = load_embeddings(options["embeddings"])
        recognised = dataset_of(embeddings)
        dataset = options["dataset"] or recognised.name or options["embeddings"].stem
        if recognised.by_class_names and not options["dataset"] and not options["quiet"]:
            notes.print(
                f"{options['embeddings']} has the class names of {dataset} and is evaluated as {dataset}; "
                "use --dataset NAME if it is another data set"
            )
        protocols = _protocols(options, dataset, embeddings.class_names)
        scores = load_scores(options["scores"])
        if has_own_order(embeddings, dataset) and not options["quiet"]:
            notes.print(
                f"{options['embeddings']} has the classes of {dataset} in another order: the splits of "
                f"{dataset} are mapped by class name, and class ids are positions in the file"
            )
    else:
        check_texts(options)
        with processes(options, outputs) as first:
            train, test = jointly(options, lambda: load_data(options))
            dataset = train.name
            protocols = jointly(options, lambda: _protocols(options, dataset, train.class_names))
            scores = jointly(options, lambda: load_scores(options["scores"]))
            settings_of(dataset)  # raises for two scores of one name
            splits = [split for protocol in protocols for split in protocol.splits]
            normal = {c for split in splits for c in split.normal}
            both = normal | {c for split in splits for c in split.anomalous}
            test = test.subset(np.flatnonzero(np.isin(test.labels, sorted(both))))
            embeddings = embed_data(options, train, test, train_classes=normal)
        if not first:
            return
        if len(test) == len(embeddings.test_labels):
            images = test.images
        elif options["report"] is not None:
            notes.print("the report has no gallery, because some test images could not be read")
    from bliss_jax.evaluation import evaluate as evaluate_protocol
    from bliss_jax.report import print_evaluation, write_report

    console = tables()
    evaluations = []
    for protocol in protocols:
        if protocol.name == _OWN_SPLITS:
            for line in _named_splits(protocol, embeddings.class_names):
                console.print(line, soft_wrap=True)
        for setting in settings_of(dataset):
            evaluations.append(evaluate_protocol(embeddings, protocol, setting))
            print_evaluation(evaluations[-1], console, per_split=options["per_split"])
    command = shlex.join(["bliss-jax", *sys.argv[1:]])
    if options["json_file"] is not None:
        write(options["json_file"], to_json(evaluations, command=command))
    if options["csv_file"] is not None:
        write(options["csv_file"], to_csv(evaluations))
    if options["report"] is not None:
        page = write_report(
            options["report"], embeddings, protocols[0], evaluations, images=images, command=command
        )
        console.print(f"Report: {page}", soft_wrap=True)
    if not options["quiet"] and options["embeddings"] is None and options["model"] is None:
        notes.print(
            f"{MODEL} was trained on symbols only. For photographs, pass --model "
            "openai/clip-vit-base-patch16 or --embeddings FILE.npz."
        )
    if options["embeddings"] is None:
        exit_of(embeddings)


@click.command(
    epilog=f"""\b
Example:
  bliss-jax embed --dataset cifar10 --model openai/clip-vit-base-patch16 -o cifar10.npz

{ENVIRONMENT}"""
)
@model_and_data_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.npz",
    help="Output file. The documentation's page on files describes its arrays.",
)
def embed(**options: Any) -> None:
    """Embed a data set, its labels and a dictionary for `evaluate --embeddings`."""
    from bliss_jax.embedding import save_embeddings

    if options["output"].suffix != ".npz":
        raise click.UsageError(f"--output: expected a file ending in .npz, got {options['output']}")
    check_texts(options)
    with processes(options, [options["output"]]) as first:
        train, test = jointly(options, lambda: load_data(options))
        embeddings = embed_data(options, train, test)
    if not first:
        return
    save_embeddings(embeddings, options["output"])
    if not options["quiet"]:
        notes.print(f"wrote {options['output']}")
    exit_of(embeddings)


@click.command(epilog="Example:  bliss-jax demo -o my-report")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bliss-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for the report.",
)
@json_file_option
@click.option("--quiet", is_flag=True, help="Print neither progress nor notes.")
def demo(output: Path, json_file: Path | None, quiet: bool) -> None:
    """Evaluate BLISS with a small trained model, without a download; print tables and write a report."""
    from bliss_jax.cli.demo import run_demo
    from bliss_jax.evaluation import to_json

    if json_file is not None:
        check_writable(json_file)
    command = shlex.join(["bliss-jax", *sys.argv[1:]])
    evaluations = run_demo(
        output,
        tables(),
        command=command,
        say=(lambda line: None) if quiet else notes.print,
        track=no_progress if quiet else progress,
    )
    if json_file is not None:
        write(json_file, to_json(evaluations, command=command))


def _given(ctx: click.Context, names: tuple[str, ...]) -> list[str]:
    """Returns the options among `names` that the command line contains."""
    default = click.core.ParameterSource.DEFAULT
    return [
        "--" + name.replace("_", "-")
        for name in names
        if ctx.get_parameter_source(name) not in (default, None)
    ]


def _protocols(options: dict[str, Any], dataset: str, class_names: tuple[str, ...]) -> list[Any]:
    """Returns the protocols of --protocol, and one protocol with the splits of --normal."""
    from bliss_jax.datasets import Protocol, load_protocol, normal_against_rest

    default = () if options["own_splits"] else (dataset_defaults(dataset).protocol,)
    names = options["protocols"] or default
    protocols = [
        load_protocol(name, dataset=dataset, num_classes=len(class_names), class_names=class_names)
        for name in names
    ]
    if options["own_splits"]:
        splits = tuple(
            normal_against_rest(_class_ids(classes, class_names), len(class_names))
            for classes in options["own_splits"]
        )
        protocols.append(Protocol(_OWN_SPLITS, "custom", None, splits))
    return protocols


_OWN_SPLITS = "command-line"
"""Name of the protocol with the splits of --normal."""


def _named_splits(protocol: Any, class_names: tuple[str, ...]) -> list[str]:
    """Returns the normal classes of each split by name and id."""
    number = len(protocol.splits)
    return [
        f"normal classes{f' of split {i}' if number > 1 else ''}: "
        + ", ".join(f"{class_names[c]} (#{c})" for c in split.normal)
        for i, split in enumerate(protocol.splits, 1)
    ]


def _class_ids(classes: str, class_names: tuple[str, ...]) -> list[int]:
    """Returns the class ids of a list of names, or ids such as `#3`.

    A number without # is a name, because folders may be named 0, 1, 10, 2, whose ids are their positions in
    the order of the names.
    """
    ids = []
    for word in (word.strip() for word in classes.split(",")):
        if word in class_names:
            ids.append(class_names.index(word))
        elif word[:1] == "#" and word[1:].isdecimal() and int(word[1:]) < len(class_names):
            ids.append(int(word[1:]))
        else:
            near = get_close_matches(word, class_names, n=3)
            known = " or ".join(near) if near else ", ".join(class_names[:20])
            raise click.UsageError(
                f"--normal: unknown class {word!r}; expected {known}, or an id from #0 to "
                f"#{len(class_names) - 1}"
            )
    return ids
