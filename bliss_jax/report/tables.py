"""Tables of evaluations for the terminal: AUROC x 100, mean and population std over the splits."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bliss_jax.evaluation import (
    Evaluation,
    SimilarityBias,
    evaluation_table,
    ood_tables,
    row_name,
    shots_of,
)
from bliss_jax.evaluation import (
    Table as ContentTable,
)
from bliss_jax.metrics import ScoreComparison


def print_evaluation(evaluation: Evaluation, console: Console, *, per_split: bool = False) -> None:
    """Prints the table of an evaluation, followed by notes on its columns and on missing scores.

    Args:
        evaluation: Evaluation of one protocol.
        console: Console to print to.
        per_split: Whether to add a column for each split.
    """
    _print_table(evaluation_table(evaluation, per_split=per_split), console)


def print_ood(evaluation: Evaluation, console: Console) -> None:
    """Prints the tables of `evaluate_ood`, one for each metric.

    Args:
        evaluation: Result of `evaluate_ood`.
        console: Console to print to.
    """
    for table in ood_tables(evaluation):
        _print_table(table, console)


def _print_table(content: ContentTable, console: Console) -> None:
    console.print(content.title, soft_wrap=True)
    first, *others = content.headings
    table = Table()
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    for row in content.rows:
        table.add_row(*row)
    console.print(table)
    for note in content.notes:
        console.print(note, soft_wrap=True)


def print_comparison(comparison: ScoreComparison, console: Console) -> None:
    """Prints the table of a comparison of scores, followed by notes on the tests and on missing scores.

    Args:
        comparison: Comparison of scores on one sample.
        console: Console to print to.
    """
    notes = (comparison.summary(), *comparison.notes)
    rows = tuple(comparison.cells())
    title = f"Best of {len(rows)} scores: {comparison.best}"
    _print_table(ContentTable(title, comparison.headings(), rows, notes), console)


def print_summary(evaluations: Sequence[Evaluation], console: Console) -> None:
    """Prints one table of several protocols: AUROC x 100 by score and protocol, and the mean over them.

    Args:
        evaluations: Evaluations of all protocols. Each protocol may have several, e.g. with different
            numbers of shots, but all protocols must have the same scores and settings.
        console: Console to print to.

    Raises:
        ValueError: If a score was not computed for all protocols.
    """
    protocols, by_name = summary_rows(evaluations)
    table = Table(title="AUROC x 100, mean over the splits", title_justify="left")
    table.add_column("score")
    for protocol in (*protocols, "mean"):
        table.add_column(protocol, justify="right")
    for name, values in by_name.items():
        table.add_row(name, *(f"{100 * value:.1f}" for value in values))
    console.print(table)


def summary_rows(evaluations: Sequence[Evaluation]) -> tuple[list[str], dict[str, list[float]]]:
    """Returns the protocols, and for each score its AUROC on each protocol, followed by their mean.

    Raises:
        ValueError: If a score was not computed for all protocols.
    """
    protocols = list(dict.fromkeys(row.protocol for e in evaluations for row in e.rows))
    by_name: dict[str, dict[str, float]] = {}
    for row in (row for evaluation in evaluations for row in evaluation.rows):
        by_name.setdefault(row_name(row) + shots_of(row), {})[row.protocol] = row.auroc
    rows = {}
    for name, of_protocol in by_name.items():
        if set(of_protocol) != set(protocols):
            raise ValueError(
                f"score {name!r}: expected a value for each of the protocols {protocols}, got "
                f"values for {list(of_protocol)}"
            )
        values = [of_protocol[protocol] for protocol in protocols]
        rows[name] = [*values, sum(values) / len(values)]
    return protocols, rows


def print_bias(bias: SimilarityBias, console: Console) -> None:
    """Prints the mean cosines of texts and images."""
    table = Table(title="Mean cosines", title_justify="left")
    table.add_column("between")
    table.add_column("mean cosine", justify="right")
    for between, value in bias_rows(bias):
        table.add_row(between, f"{value:.3f}")
    console.print(table)


def bias_rows(bias: SimilarityBias) -> list[tuple[str, float]]:
    """Returns the six mean cosines, each with a description of its pairs."""
    return [
        ("labels and other labels", bias.label_label),
        ("dictionary texts and other dictionary texts", bias.dictionary_dictionary),
        ("labels and dictionary texts", bias.label_dictionary),
        ("images and other images", bias.image_image),
        ("images and their own labels", bias.image_own_label),
        ("images and dictionary texts", bias.image_dictionary),
    ]
