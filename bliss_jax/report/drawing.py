"""Style of the report's figures, and functions that create and save them.

Every series has a colour, a marker and a line style of its own, so no figure distinguishes two series by
colour alone. The figures have the width of a phone's screen, so that their text is legible there.
The colours are those of Okabe and Ito, "Color Universal Design", 2008.
"""

import base64
import io
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bliss_jax.storage import replacing

BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#6B7280"

NORMAL, ANOMALY = BLUE, VERMILLION
"""Colours of normal images and of anomalies in every figure."""

LINES = [
    (color, style, marker)
    for style, markers in (("-", "o^sDv"), ("--", "P<X>*"), (":", "dhp8H"))
    for color, marker in zip((VERMILLION, BLUE, GREEN, PURPLE, BLACK), markers, strict=True)
]
"""Colour, line style and marker of each series, in this order."""

WIDTH = 4.8
"""Width of a figure in inches. As SVG it is 461 CSS pixels, so 10 points are about 10 pixels on a phone."""

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": "#1f2430",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#e4e7ec",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "xtick.color": "#3b4252",
    "ytick.color": "#3b4252",
    # Without a fixed salt, the ids in the SVG and therefore its bytes differ from run to run.
    "svg.hashsalt": "bliss-jax",
    "svg.fonttype": "path",
}
_DOTS_PER_INCH = 160

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Returns a function that runs `draw` with the report's style."""

    @wraps(draw)
    def with_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return with_style


def new_figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure with `rows` axes in one column. It uses no pyplot and no global state."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False, sharex=rows > 1)
    return figure, list(axes[:, 0])


def legend_below(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """Adds a legend below the axes, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Writes `name`.png and `name`.svg, and returns the SVG as a data URI for an `<img>`."""
    with mpl.rc_context(_STYLE):
        for kind in ("png", "svg"):
            content = io.BytesIO()
            about = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(content, format=kind, dpi=_DOTS_PER_INCH, metadata=about)
            with replacing(folder / f"{name}.{kind}") as file:
                file.write(content.getvalue())
    return data_uri(content.getvalue(), "image/svg+xml")


def data_uri(content: bytes, media_type: str) -> str:
    """Returns the content as a data URI, which needs no network."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
