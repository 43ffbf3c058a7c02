"""Main table of the paper: every score on the data sets and protocols of the paper, with both preprocessings.

    python -m experiments.paper.main_table --dataset cifar10 --dataset cifar100 --dataset tiny-imagenet \
        --model openai/clip-vit-base-patch16
    python -m experiments.paper.main_table                                     # glyphs with bliss-jax/tiny

The table contains AUROC x 100: the mean +- population standard deviation over the splits (and halves).
Without --preprocess, data sets other than `glyphs` are measured with both preprocessings, `clip` and
`reference` (CIFAR's statistics, as in the authors' scripts). `glyphs` uses the preprocessing of its model.
"""

from dataclasses import replace

import numpy as np

from bliss_jax.evaluation import Evaluation, Settings, evaluate
from experiments.common import (
    CASE,
    Options,
    Stopwatch,
    cases,
    experiment,
    markdown,
    said_once,
    write,
)

PREPROCESSINGS = ("clip", "reference")


FIELDS = (*CASE, "preprocessing", "protocol")


@experiment()
def main(options: Options) -> None:
    """Measure the AUROC of every score on every protocol."""
    watch = Stopwatch()
    columns: dict[tuple[str, ...], dict[str, str]] = {}
    made: list[Evaluation] = []
    for case in _all_cases(options):
        for protocol in case.protocols:
            runs = [evaluate(e, protocol, Settings(k=case.k)) for e in case.sets]
            made += runs
            of_case = (case.model, case.dataset, case.preprocess or "of the model", protocol.name)
            columns[of_case] = {
                rows[0].score: _cell([split.auroc for row in rows for split in row.splits])
                for rows in zip(*(run.rows for run in runs), strict=True)
            }
    results = {
        "fields": FIELDS,
        "columns": [[*of_case, cells] for of_case, cells in columns.items()],
        "seconds": str(watch),
        "evaluations": [dict(e.provenance) for e in made],
    }
    write(options, "main_table", _table(columns) + f"\n{watch}\n", results)


def _table(columns: dict[tuple[str, ...], dict[str, str]]) -> str:
    """Returns the table. A sentence above it states the facts that all columns share."""
    shared = [len(set(values)) == 1 for values in zip(*columns, strict=True)]
    shared[-1] = False
    said = [
        f"{field} {value}"
        for field, value, same in zip(FIELDS, next(iter(columns)), shared, strict=True)
        if same
    ]
    headings = [
        ", ".join(value for value, same in zip(of_case, shared, strict=True) if not same)
        for of_case in columns
    ]
    scores = list(dict.fromkeys(score for cells in columns.values() for score in cells))
    rows = [[score, *(cells.get(score, "") for cells in columns.values())] for score in scores]
    return said_once(said) + markdown(["score", *headings], rows)


def _all_cases(options: Options):
    for dataset in options.datasets:
        one = replace(options, datasets=(dataset,))
        own = dataset == "glyphs" or options.embeddings is not None
        if own or options.preprocess is not None:
            yield from cases(one)
            continue
        for preprocess in PREPROCESSINGS:
            yield from cases(replace(one, preprocess=preprocess))


def _cell(areas: list[float]) -> str:
    return f"{100 * np.mean(areas):.1f} ± {100 * np.std(areas):.1f}"


if __name__ == "__main__":
    main()
