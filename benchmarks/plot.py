"""Draws time and memory against work, from the numbers that `benchmarks.run --json` wrote.

    python -m benchmarks.run --only scale --only batches --json FILE
    python -m benchmarks.plot FILE            # writes benchmarks/figures/scores.svg and encoders.svg

Work is the number of floating-point operations of the necessary matrix products. Hence texts, classes and
images share one axis, and so do encoders and batches.
"""

import json
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl

from benchmarks.measure import median

FIGURES = Path(__file__).parent / "figures"

# Okabe and Ito's colours can be told apart by colour-blind readers; the markers differ as well.
_SERIES = {
    "score_seconds": ("bliss_score", "#0072B2", "o"),
    "prepared_seconds": ("bliss_score_prepared, without preparation", "#009E73", "s"),
    "product_seconds": ("similarity product alone", "#D55E00", "^"),
}
_MEMORY = {
    "peak_bytes": ("peak of the process", "#CC79A7", "D"),
    "temporary_bytes": ("XLA's temporaries", "#0072B2", "o"),
    "bound_bytes": ("bound stated", "#000000", "_"),
}


_ENCODERS = {"B/32": ("#0072B2", "o"), "B/16": ("#D55E00", "^")}


def draw_encoders(cases: list[dict[str, Any]]):
    """Returns the figure of the cases of `batches` in the JSON file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    time, rate = figure.subplots(1, 2)
    for name, (colour, marker) in _ENCODERS.items():
        own = [case for case in cases if case["encoder"] == name]
        work = [case["flops"] / 1e9 for case in own]
        taken = [median(case["seconds"]) for case in own]
        style = {"color": colour, "marker": marker, "label": name}
        time.plot(work, taken, **style)
        rate.plot(work, [w / t for w, t in zip(work, taken, strict=True)], **style)
    time.set(yscale="log", ylabel="seconds", title="Time of a batch")
    rate.set(ylabel="GFLOP/s", title="Rate", ylim=(0, None))
    for axes in (time, rate):
        axes.set(xscale="log", xlabel="GFLOP of a batch of images")
        axes.grid(which="major", alpha=0.3)
        axes.legend(frameon=False)
    return figure


def draw_scores(cases: list[dict[str, Any]]):
    """Returns the figure of the cases of `scale` in the JSON file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name, (label, colour, marker) in _SERIES.items():
        points = [(case["operations"], median(case[name])) for case in cases if case[name]]
        time.scatter(*zip(*points, strict=True), c=colour, marker=marker, s=36, label=label)
    for name, (label, colour, marker) in _MEMORY.items():
        points = [(case["operations"], case[name] / 1e6) for case in cases]
        memory.scatter(*zip(*points, strict=True), c=colour, marker=marker, s=36, label=label)
    time.set(ylabel="seconds", title="Time")
    memory.set(ylabel="MB besides the inputs", title="Memory")
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel="operations of similarities and variances")
        axes.grid(which="major", alpha=0.3)
        # The legend is below the axes, because it would hide points inside.
        axes.legend(
            frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )
    return figure


DRAWN = {"scale": ("scores.svg", draw_scores), "batches": ("encoders.svg", draw_encoders)}
"""Benchmark to the name of its figure and the function that draws its cases."""


@click.command()
@click.argument("json_file", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=FIGURES,
    show_default=True,
    help="Folder of the figures.",
)
def main(json_file: Path, output: Path) -> None:
    """Draw the numbers in JSON_FILE as figures in a folder."""
    benchmarks = json.loads(json_file.read_text())["benchmarks"]
    found = {name: benchmarks[name]["cases"] for name in DRAWN if name in benchmarks}
    if not found:
        raise click.BadParameter(
            f"expected the numbers of {' or '.join(DRAWN)}, found {', '.join(benchmarks) or 'none'}",
            param_hint="JSON_FILE",
        )
    output.mkdir(parents=True, exist_ok=True)
    for name, cases in found.items():
        file, draw = DRAWN[name]
        # The same numbers give the same bytes, and text stays text.
        with mpl.rc_context({"svg.hashsalt": "bliss_jax", "svg.fonttype": "none"}):
            draw(cases).savefig(output / file, metadata={"Date": None})
        click.echo(f"{output / file}: {len(cases)} cases")


if __name__ == "__main__":
    main()
