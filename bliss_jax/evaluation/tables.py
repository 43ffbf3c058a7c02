"""Tables of results as texts, which the terminal and notebooks show in the same words."""

from typing import NamedTuple

from bliss_jax.evaluation.defaults import UNTRAINED_MODEL
from bliss_jax.evaluation.ood import OOD_METRICS, group_means
from bliss_jax.evaluation.results import Evaluation, Row
from bliss_jax.evaluation.study import Study
from bliss_jax.text import html_table

METRICS = ("AUPR anomaly", "AUPR normal", "FPR95")
"""Headings of the metrics besides the AUROC."""
_UNITS = (
    "All values are x 100. The anomaly is the positive class. FPR95 is the share of normal images that are "
    "flagged when 95 % of the anomalies are detected."
)


class Table(NamedTuple):
    """A table with its title and notes. All cells are texts; the first column contains names."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def evaluation_table(evaluation: Evaluation, *, per_split: bool = False) -> Table:
    """Returns the table of an evaluation: one row per score, with means over the splits.

    Args:
        evaluation: Evaluation of one protocol.
        per_split: Whether to add a column for each split.
    """
    rows = evaluation.rows
    splits = rows[0].splits if rows else ()
    headings = ("score", "AUROC", "std", *METRICS)
    if per_split:
        headings += tuple(_classes(split.normal) for split in splits)
    cells = []
    for row in rows:
        values = [row.auroc, row.auroc_std, *_means(row)]
        values += [split.auroc for split in row.splits] if per_split else []
        mark = " *" if row.is_near_chance else ""
        cells.append((row_name(row) + mark, *map(_x100, values)))
    notes = [_UNITS]
    if any(row.is_near_chance for row in rows):
        notes.append(
            "* The AUROC is within 5 points of chance (50): here, this score hardly separates anomalies "
            "from normal images."
        )
    model = evaluation.provenance.get("embeddings", {}).get("model") or {}
    if model.get("name") == UNTRAINED_MODEL:
        notes.append(
            f"The weights of {UNTRAINED_MODEL} are random, so these numbers only show that the program runs."
        )
    notes += [f"{name} was not computed: {reason}." for name, reason in evaluation.left_out.items()]
    return Table(_title(rows[0]) if rows else "no scores", headings, tuple(cells), tuple(notes))


def ood_tables(evaluation: Evaluation) -> list[Table]:
    """Returns one table for each metric of `evaluate_ood`: a row per score, a column per set, and means of groups."""
    tables = []
    for heading, field in OOD_METRICS:
        first = evaluation.rows[0] if evaluation.rows else None
        means = list(group_means(first, field)) if first is not None else []
        sets = [split.name for split in first.splits] if first is not None else []
        if len(sets) == 1:
            means = []
        rows = [
            (
                row_name(row) + shots_of(row),
                *(_x100(getattr(split, field)) for split in row.splits),
                *(_x100(group_means(row, field)[group]) for group in means),
            )
            for row in evaluation.rows
        ]
        columns = ("score", *sets, *(f"mean of {group}" for group in means))
        convention = first.settings["convention"] if first is not None else ""
        title = f"{heading} x 100 ({convention})" if field != "auroc" else f"{heading} x 100"
        tables.append(Table(title, columns, tuple(rows)))
    notes = [f"{name} was not computed: {reason}." for name, reason in evaluation.left_out.items()]
    if tables:
        tables[-1] = tables[-1]._replace(notes=tuple(notes))
    return tables


def row_table(row: Row) -> Table:
    """Returns the table of one score on one protocol: one row per split, and their mean."""
    cells = []
    for split in row.splits:
        low, high = split.interval
        values = (split.aupr_anomaly, split.aupr_normal, split.fpr95)
        interval = f"{_x100(low)} to {_x100(high)}"
        cells.append((_classes(split.normal), _x100(split.auroc), interval, *map(_x100, values)))
    mean = f"std {_x100(row.auroc_std)}"
    cells.append(("mean", _x100(row.auroc), mean, *map(_x100, _means(row))))
    return Table(
        f"{row_name(row)}, {_title(row)}",
        ("normal classes", "AUROC", "95 % interval", *METRICS),
        tuple(cells),
        (_UNITS,),
    )


def study_table(study: Study) -> Table:
    """Returns the table of a study: one row per value of the setting, one column per score."""
    repeats, splits = next(iter(study.series.values())).shape[1:]
    cells = []
    for i, value in enumerate(study.values):
        means = [_x100(study.mean(score)[i]) for score in study.series]
        if repeats > 1:
            stds = [_x100(study.std(score)[i]) for score in study.series]
            means = [f"{mean} ± {std}" for mean, std in zip(means, stds, strict=True)]
        cells.append((f"{value:g}", *means))
    over = f"mean over {_count(splits, 'split')}"
    notes = ()
    if repeats > 1:
        over += f" and {_count(repeats, 'repeat')}"
        notes = ("± is the standard deviation over the repeats.",)
    title = f"{study.protocol}: AUROC x 100, {over}"
    return Table(title, (study.setting, *study.series), tuple(cells), notes)


def html_of(table: Table) -> str:
    """Returns a table as HTML for notebooks."""
    return html_table(table.headings, table.rows, title=table.title, notes=table.notes)


def row_name(row: Row) -> str:
    """Returns the label of a row's score, with its shrinkage or prompt if it is not the default."""
    name = row.label or row.score
    if row.settings.get("shrinkage"):
        return f"{name}, shrinkage {row.settings['shrinkage']:g}"
    if row.settings.get("prompt") == "labels":
        return f"{name} (label prompt)"
    return name


def shots_of(row: Row) -> str:
    """Returns the number of normal images per class as a suffix of a row's name, if it is few-shot."""
    shots = row.settings.get("shots")
    return f", {_count(shots, 'image')} per class" if shots else ""


def _title(row: Row) -> str:
    shots, draws = row.settings.get("shots"), row.settings.get("draws", 1)
    drawn = f", {draws} draws" if draws > 1 else ""
    images = f"{_count(shots, 'image')} per normal class{drawn}" if shots else "all normal images"
    return (
        f"{row.protocol} (family {row.family}): {_count(len(row.splits), 'split')}, "
        f"{_range([len(split.normal) for split in row.splits])} normal, {images}"
    )


def _means(row: Row) -> list[float]:
    names = ("aupr_anomaly", "aupr_normal", "fpr95")
    return [sum(getattr(split, name) for split in row.splits) / len(row.splits) for name in names]


def _x100(value: float) -> str:
    return f"{100 * value:.1f}"


def _classes(normal: tuple[int, ...]) -> str:
    shown = ",".join(map(str, normal[:10]))
    return f"{shown},..." if len(normal) > 10 else shown


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _range(sizes: list[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low} class{'es' * (low > 1)}" if low == high else f"{low} to {high} classes"
