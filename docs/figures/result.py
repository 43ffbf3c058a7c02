"""Draws the figures of the README and of the landing page, from the model that ships with the library.

    python docs/figures/result.py

A detector is fitted on images of twelve chess symbols and scores the test images of all 259 symbols.

    result         images in the order of their scores, and the scores of all test images
    explanation    the words that make an image anomalous

Each figure is written as NAME-light.svg and NAME-dark.svg beside this file. The numbers that the pages quote
are printed.
"""

import io
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from make import _STYLE, SCHEMES, shortened
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

import bliss_jax as bj
from bliss_jax.storage import replacing

HERE = Path(__file__).parent
CHESS = 12
"""The first twelve classes of `glyphs` are chess symbols."""
SHOWN = (0, 25, 65, 105, 1000, 1500, 2600, 3000, 4020)
"""Positions of the test images in the result: four chess symbols, five others."""
EXPLAINED = 2600
ALPHA = 0.05


class Scored(NamedTuple):
    """Scores of the test images by the detector."""

    detector: bj.Detector
    images: UInt8[np.ndarray, "images height width 3"]
    names: list[str]
    scores: Float[np.ndarray, " images"]
    is_anomaly: np.ndarray
    threshold: float


def score_chess() -> Scored:
    """Fits the detector on the chess symbols and scores all test images."""
    model = bj.load_model("bliss-jax/tiny")
    train, test = bj.load_dataset("glyphs", "train"), bj.load_dataset("glyphs", "test")
    chess = train.labels < CHESS
    detector = bj.Detector.fit(
        model,
        train.images[chess],
        train.labels[chess],
        train.class_names[:CHESS],
        dictionary="unicode-names",
        k=1,
    )
    return Scored(
        detector=detector,
        images=test.images,
        names=[test.class_names[label] for label in test.labels],
        scores=np.asarray(detector.score(test.images)),
        is_anomaly=test.labels >= CHESS,
        threshold=detector.threshold(ALPHA),
    )


def draw_result(s: Scored, ink: str, colors: tuple[str, ...]) -> Figure:
    """Draws some images above the histogram of all scores, each connected to its score."""
    figure = Figure(figsize=(7.2, 3.9))
    shown = sorted(SHOWN, key=lambda position: s.scores[position])
    low, high = -2.5, 16.5
    below = figure.add_axes((0.085, 0.135, 0.9, 0.36))
    edges = np.linspace(low, high, 58)
    for kind, rows, color, style in (
        ("chess symbols (normal)", ~s.is_anomaly, colors[0], "-"),
        ("other symbols (anomalies)", s.is_anomaly, colors[1], "--"),
    ):
        height, _ = np.histogram(np.clip(s.scores[rows], low, high), edges, density=True)
        below.stairs(height, edges, color=color, label=kind, linestyle=style, linewidth=1.8)
    top = below.get_ylim()[1]
    below.axvline(s.threshold, color=ink, linewidth=1, linestyle=":")
    below.text(
        s.threshold + 0.12, 0.8 * top, f"threshold for {ALPHA:.0%}\nfalse alarms", va="center"
    )
    below.set(xlabel="BLISS score (higher = more anomalous)", ylabel="density", xlim=(low, high))
    below.legend(loc="upper right")
    side, gap = 0.09, (0.9 - len(shown) * 0.09) / (len(shown) - 1)
    for place, position in enumerate(shown):
        left = 0.085 + place * (side + gap)
        axes = figure.add_axes((left, 0.6, side, side * 7.2 / 3.9))
        color = colors[1] if s.scores[position] > s.threshold else colors[0]
        frame_image(axes, s.images[position], color)
        axes.set_title(f"{s.scores[position]:.1f}", fontsize=10, pad=4)
        axes.text(
            0.5, 1.36, wrapped(s.names[position]), transform=axes.transAxes,
            ha="center", va="bottom", fontsize=7.5, linespacing=1.1,
        )  # fmt: skip
        score = (float(s.scores[position]), top)
        line = ConnectionPatch(
            (0.5, -0.04), score, "axes fraction", "data", axesA=axes, axesB=below
        )
        line.set(color=color, linewidth=0.9, alpha=0.8)
        figure.add_artist(line)
    return figure


def draw_explanation(s: Scored, ink: str, colors: tuple[str, ...]) -> Figure:
    """Draws one image and its nearest words, with the cosine of each word in standard deviations."""
    [explanation] = s.detector.explain(s.images[EXPLAINED : EXPLAINED + 1])
    figure = Figure(figsize=(7.2, 2.4))
    left, right = (
        figure.add_axes((0.02, 0.22, 0.18, 0.54)),
        figure.add_axes((0.55, 0.2, 0.43, 0.77)),
    )
    frame_image(left, s.images[EXPLAINED], colors[1])
    left.set_title(wrapped(s.names[EXPLAINED], 22), fontsize=9)
    left.set_xlabel(f"score {explanation.score:.1f}, p-value {explanation.p_value:.2f}", fontsize=9)
    rows = [(f"unlike {explanation.nearest_class}", explanation.internal)]
    rows += [(f"like {shortened(word, 26)}", z) for word, z in explanation.words]
    names, values = zip(*rows, strict=True)
    places = range(len(rows))
    bars = right.barh(places, values, color=[colors[0], *[colors[1]] * len(explanation.words)])
    for bar in bars[1:]:
        bar.set_hatch("///")
    for place, value in zip(places, values, strict=True):
        right.text(value + 0.08, place, f"{value:.1f}", va="center")
    right.set(yticks=places, xlabel="standard deviations from the mean of the class")
    right.set_yticklabels(names, fontsize=9)
    right.set_xlim(0, max(values) * 1.1)
    right.invert_yaxis()
    right.grid(visible=False, axis="y")
    return figure


def frame_image(axes: Axes, image: UInt8[np.ndarray, "height width 3"], color: str) -> None:
    """Shows an image in a coloured frame."""
    axes.imshow(image, interpolation="lanczos")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=2)


def wrapped(name: str, width: int = 13) -> str:
    """Breaks a name into lines of about `width` characters."""
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def main() -> None:
    """Draws both figures in both colour schemes, and prints their numbers."""
    s = score_chess()
    for draw in (draw_result, draw_explanation):
        for scheme, look in SCHEMES.items():
            ink = dict.fromkeys(
                ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
                look["ink"],
            )
            with mpl.rc_context({**_STYLE, **ink, "grid.color": look["grid"]}):
                figure = draw(s, look["ink"], look["colors"])
                content = io.BytesIO()
                figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
            name = draw.__name__.removeprefix("draw_")
            with replacing(HERE / f"{name}-{scheme}.svg") as file:
                file.write(content.getvalue())
    flagged = s.scores > s.threshold
    print("AUROC", round(float(bj.auroc(s.scores, s.is_anomaly)), 3))
    print("flagged of normal images", round(float(flagged[~s.is_anomaly].mean()), 3))
    print("flagged of anomalies", round(float(flagged[s.is_anomaly].mean()), 3))


if __name__ == "__main__":
    main()
