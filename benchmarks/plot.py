"""Draws time and memory of scoring against its work, from the numbers that `benchmarks.run --json` wrote.

    python -m benchmarks.run --only scale --json FILE
    python -m benchmarks.plot FILE            # writes benchmarks/figures/scores.svg

Work is counted in floating-point operations of the two products that BLISS needs, so that texts, classes and
images share one axis.
"""

import json
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl

from benchmarks.measure import median

FIGURE = Path(__file__).parent / "figures" / "scores.svg"

# Okabe and Ito's colours, which the colour-blind can tell apart; markers differ as well.
_SERIES = {
    "score_seconds": ("bliss_score", "#0072B2", "o"),
    "prepared_seconds": ("bliss_score_prepared, preparation apart", "#009E73", "s"),
    "product_seconds": ("similarity product alone", "#D55E00", "^"),
}
_MEMORY = {
    "peak_bytes": ("peak of the process", "#CC79A7", "D"),
    "temporary_bytes": ("XLA's temporaries", "#0072B2", "o"),
    "bound_bytes": ("bound stated", "#000000", "_"),
}


def draw(cases: list[dict[str, Any]]):
    """The figure of the cases of `scale`, as they stand in the JSON file."""
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
    memory.set(ylabel="MB beside the inputs", title="Memory")
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel="operations of similarities and variances")
        axes.grid(which="major", alpha=0.3)
        # Below the axes: within them it would hide points.
        axes.legend(
            frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )
    return figure


@click.command()
@click.argument("json_file", type=click.Path(exists=True, path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), default=FIGURE, show_default=True)
def main(json_file: Path, output: Path) -> None:
    """Draw the figure from the numbers in JSON_FILE."""
    numbers = json.loads(json_file.read_text())
    cases = numbers["benchmarks"].get("scale", {}).get("cases")
    if not cases:
        raise click.BadParameter("expected the numbers of `scale`", param_hint="JSON_FILE")
    output.parent.mkdir(parents=True, exist_ok=True)
    # The same bytes for the same numbers, and words that stay text.
    with mpl.rc_context({"svg.hashsalt": "bliss_jax", "svg.fonttype": "none"}):
        draw(cases).savefig(output, metadata={"Date": None})
    click.echo(f"{output}: {len(cases)} cases")


if __name__ == "__main__":
    main()
