"""Tables of evaluations for the terminal: AUROC x 100, mean and population std over the splits."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bliss_jax.evaluation import Evaluation, Row, SimilarityBias
from bliss_jax.models import UNTRAINED


def print_evaluation(evaluation: Evaluation, console: Console, *, per_split: bool = False) -> None:
    """Prints the table of an evaluation, followed by notes on its columns and on missing scores.

    Args:
        evaluation: Evaluation of one protocol.
        console: Console to print to.
        per_split: Whether to add a column for each split.
    """
    protocol = evaluation.provenance["protocol"]
    rows = evaluation.rows
    splits = rows[0].splits
    drawn = f", {rows[0].settings['draws']} draws" if rows[0].settings["draws"] > 1 else ""
    shots = rows[0].settings["shots"]
    images = f"{_count(shots, 'image')} per normal class{drawn}" if shots else "all normal images"
    title = (
        f"{protocol['name']} (family {protocol['family']}): {_count(len(splits), 'split')}, "
        f"{_range([len(split.normal) for split in splits])} normal, {images}"
    )
    console.print(title, soft_wrap=True)
    table = Table()
    table.add_column("score")
    for heading in ("AUROC", "std", "AUPR anomaly", "AUPR normal", "FPR95"):
        table.add_column(heading, justify="right")
    if per_split:
        for split in splits:
            table.add_column(_classes(split.normal), justify="right")
    for row in rows:
        means = [_mean(row, name) for name in ("aupr_anomaly", "aupr_normal", "fpr95")]
        cells = [row.auroc, row.auroc_std, *means]
        cells += [split.auroc for split in row.splits] if per_split else []
        mark = " *" if row.is_near_chance else ""
        table.add_row(_name(row) + mark, *(f"{100 * value:.1f}" for value in cells))
    console.print(table)
    console.print(
        "All values are x 100. The anomaly is the positive class. FPR95 is the share of normal images that "
        "are flagged when 95 % of the anomalies are detected.",
        soft_wrap=True,
    )
    if any(row.is_near_chance for row in rows):
        console.print(
            "* The AUROC is within 5 points of chance (50): here, this score hardly separates anomalies "
            "from normal images.",
            soft_wrap=True,
        )
    made_with = evaluation.provenance["embeddings"].get("model", {})
    if made_with.get("name") == UNTRAINED:
        console.print(
            f"The weights of {UNTRAINED} are random, so these numbers only show that the program runs.",
            soft_wrap=True,
        )
    for name, reason in evaluation.left_out.items():
        console.print(f"{name} was not computed: {reason}.", soft_wrap=True)


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
        by_name.setdefault(_name(row) + _shots(row), {})[row.protocol] = row.auroc
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


def _shots(row: Row) -> str:
    shots = row.settings["shots"]
    return f", {_count(shots, 'image')} per class" if shots else ""


def _name(row: Row) -> str:
    if row.score == "bliss" and row.settings["shrinkage"]:
        return f"bliss, shrinkage {row.settings['shrinkage']:g}"
    if row.score == "mcm" and row.settings["prompt"] == "labels":
        return "mcm (label prompt)"
    return row.score


def _mean(row: Row, name: str) -> float:
    return sum(getattr(split, name) for split in row.splits) / len(row.splits)


def _classes(normal: tuple[int, ...]) -> str:
    shown = ",".join(map(str, normal[:10]))
    return f"{shown},..." if len(normal) > 10 else shown


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _range(sizes: list[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low} class{'es' * (low > 1)}" if low == high else f"{low} to {high} classes"
