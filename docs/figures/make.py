"""Draws the figures of the documentation with the model that comes with the library, without a download.

    python docs/figures/make.py

The script writes NAME-light.svg and NAME-dark.svg beside this file, for the two colour schemes of the pages.
The background is transparent, and colour is never the only difference between two things. The script prints
the numbers that docs/method.md quotes.
"""

import io
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import bliss_jax as bj
from bliss_jax.report.drawing import BLUE, GREEN, ORANGE, SKY_BLUE, VERMILLION
from bliss_jax.storage import replacing

HERE = Path(__file__).parent
PROMPT = "This is a photo of a {label}"
SCHEMES = {
    "light": {"ink": "#3b4252", "grid": "#dfe3e8", "colors": (BLUE, VERMILLION, GREEN)},
    "dark": {"ink": "#c8ced8", "grid": "#3a3f47", "colors": (SKY_BLUE, ORANGE, "#4fd1a5")},
}
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "bliss-jax",  # makes the file of a figure reproducible
}


class Glyphs(NamedTuple):
    """Embeddings of the symbols and of their names by `bliss-jax/tiny`."""

    train: Float[np.ndarray, "train dim"]
    train_labels: Int[np.ndarray, " train"]
    test: Float[np.ndarray, "test dim"]
    test_labels: Int[np.ndarray, " test"]
    labels: Float[np.ndarray, "classes dim"]
    dictionary: Float[np.ndarray, "texts dim"]
    names: tuple[str, ...]
    words: tuple[str, ...]

    def moments(self) -> bj.ClassMoments:
        """Returns the moments of the training images of each symbol."""
        return bj.fit_moments(self.train, self.train_labels, num_classes=len(self.names))


def glyphs() -> Glyphs:
    """Renders the symbols and embeds them, their names and the dictionary."""
    model = bj.load_model("bliss-jax/tiny")
    train, test = bj.load_dataset("glyphs", "train"), bj.load_dataset("glyphs", "test")
    words = bj.load_dictionary("unicode-names")
    return Glyphs(
        train=bj.embed_images(model, train).embeddings,
        train_labels=train.labels,
        test=bj.embed_images(model, test).embeddings,
        test_labels=test.labels,
        labels=np.asarray(model.encode_texts(bj.fill_prompt(PROMPT, train.class_names))),
        dictionary=np.asarray(
            model.encode_texts(bj.fill_prompt(PROMPT, words, allow_repeats=True))
        ),
        names=train.class_names,
        words=words,
    )


def gap(g: Glyphs, axes: list[Axes], colors: tuple[str, ...]) -> Float[np.ndarray, " kinds"]:
    """Draws the cosines of text pairs, image pairs and pairs of image and text. Returns their means."""
    rng = np.random.default_rng(0)
    images = g.test[rng.choice(len(g.test), 600, replace=False)]
    texts = g.dictionary[rng.choice(len(g.dictionary), 600, replace=False)]
    upper = np.triu_indices(600, 1)
    kinds = {
        "text and text": (texts @ texts.T)[upper],
        "image and image": (images @ images.T)[upper],
        "image and text": (images @ texts.T).ravel(),
    }
    for (name, cosines), color, style in zip(kinds.items(), colors, ("-", "--", ":"), strict=True):
        height, edges = np.histogram(cosines, 60, (0, 1), density=True)
        axes[0].stairs(height, edges, color=color, label=name, linestyle=style, linewidth=1.8)
    axes[0].set(xlabel="cosine of two unrelated embeddings", ylabel="density")
    return np.array([cosines.mean() for cosines in kinds.values()])


def words(g: Glyphs, axes: list[Axes], colors: tuple[str, ...]) -> Float[np.ndarray, "..."]:
    """Draws cosines of one symbol's images to twenty words, and the z-scores of which BLISS takes the mean.

    The moments are fitted on every other training image, and the other half is drawn. The words are evenly
    spaced in the order of their mean cosine.

    Returns:
        Over all words: the smallest and largest mean cosine, the mean standard deviation within a word, and
        the share of the variance between words in the variance of the cosines and of the z-scores.
    """
    own = g.train[g.train_labels == 0]
    fitted, shown = own[::2], own[1::2]
    mean, cov = fitted.mean(axis=0), np.cov(fitted.T, ddof=0)
    deviation = np.sqrt(np.einsum("td,de,te->t", g.dictionary, cov, g.dictionary))
    cosines = shown @ g.dictionary.T
    scores = (cosines - g.dictionary @ mean) / deviation
    order = np.argsort(cosines.mean(axis=0))
    chosen = order[np.linspace(0, len(order) - 1, 20).astype(int)]
    for ax, values in zip(axes, (cosines, scores), strict=True):
        for place, word in enumerate(chosen):
            ax.plot(
                values[:, word], np.full(len(shown), place), "o", ms=3.5, color=colors[0], alpha=0.6
            )
            ax.plot(values[:, word].mean(), place, "|", ms=12, mew=2.2, color=colors[1])
        ax.set(yticks=range(len(chosen)))
    axes[0].set(xlabel="cosine to the word")
    axes[0].set_yticklabels([shortened(g.words[word]) for word in chosen])
    axes[1].set(xlabel="the same, standardised")
    axes[1].tick_params(labelleft=False)
    means = cosines.mean(axis=0)
    shares = [values.mean(axis=0).var() / values.var() for values in (cosines, scores)]
    return np.array([means.min(), means.max(), cosines.std(axis=0).mean(), *shares])


def shortened(word: str, length: int = 30) -> str:
    """Returns a word cut to a number of characters, with an ellipsis if it was longer."""
    return word if len(word) <= length else word[: length - 1] + "…"


def separation(g: Glyphs, axes: list[Axes], colors: tuple[str, ...]) -> Float[np.ndarray, "..."]:
    """Draws the test images' largest cosine and BLISS score, with every third symbol as an anomaly.

    Returns:
        The AUROC of each score.
    """
    normal = np.arange(len(g.names)) % 3 != 0
    anomaly = ~normal[g.test_labels]
    bliss = jax.jit(bj.bliss_score, static_argnames="k")
    scores = {
        "largest cosine, negated": bj.max_cosine_score(g.test, g.labels, normal=normal),
        "BLISS": bliss(g.test, g.labels, g.dictionary, g.moments(), k=1, normal=normal),
    }
    for ax, (name, values) in zip(axes, scores.items(), strict=True):
        values = np.asarray(values)
        edges = np.linspace(*np.quantile(values, [0.001, 0.999]), 41)
        kinds = (("normal", ~anomaly, colors[0], "-"), ("anomalous", anomaly, colors[1], "--"))
        for kind, rows, color, style in kinds:
            height, _ = np.histogram(values[rows], edges, density=True)
            ax.stairs(height, edges, color=color, label=kind, linestyle=style, linewidth=1.8)
        ax.set(xlabel=name)
    axes[0].set(ylabel="density")
    return np.array([float(bj.auroc(values, anomaly)) for values in scores.values()])


FIGURES = {gap: (1, 3.2), words: (2, 5.0), separation: (2, 3.2)}
"""Function that draws a figure to its number of panels and its height."""


def main() -> None:
    """Draws every figure in both colour schemes, and prints its numbers."""
    g = glyphs()
    for draw, (panels, height) in FIGURES.items():
        for scheme, look in SCHEMES.items():
            ink = dict.fromkeys(
                ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
                look["ink"],
            )
            with mpl.rc_context({**_STYLE, **ink, "grid.color": look["grid"]}):
                figure = Figure(figsize=(6.4, height), layout="constrained")
                axes = list(figure.subplots(1, panels, squeeze=False)[0])
                numbers = draw(g, axes, look["colors"])
                handles, labels = axes[0].get_legend_handles_labels()
                if handles:
                    figure.legend(handles, labels, loc="outside lower center", ncols=3)
                content = io.BytesIO()
                figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
            with replacing(HERE / f"{draw.__name__}-{scheme}.svg") as file:
                file.write(content.getvalue())
        print(draw.__name__, np.round(numbers, 3))


if __name__ == "__main__":
    main()
