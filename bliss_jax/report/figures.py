"""The report's figures, each a pure function of arrays that returns a matplotlib `Figure`.

The paper's four (Goodge et al., BMVC 2024, arXiv 2407.17083):

    tsne_figure               images and texts in one plane
    label_similarity_figure   each label's mean cosine to the dictionary and to its images
    error_quantiles_figure    false negatives and positives by mean similarity to the dictionary
    parts_scatter_figure      internal against external score

and those of an evaluation: `roc_figure`, `histogram_figure`, `split_aurocs_figure`, `study_figure`.
Scores: higher = more anomalous; an image is flagged if its score is at least the threshold.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter
from sklearn.metrics import roc_auc_score, roc_curve

from bliss_jax.embedding import EmbeddingSet
from bliss_jax.evaluation import Row, Study
from bliss_jax.report.drawing import (
    ANOMALY,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LINES,
    NORMAL,
    VERMILLION,
    legend_below,
    new_figure,
    styled,
)

Scores = Float[np.ndarray, " images"]
IsAnomaly = Bool[np.ndarray, " images"]

_MOST_NAMES = 30
"""Labels or splits that are named on an axis; more are drawn as curves."""
_MOST_POINTS = 1500
"""Points of each kind in a scatter plot."""


def equal_error_threshold(scores: Scores, is_anomaly: IsAnomaly) -> float:
    """The threshold at which the false positive rate is nearest to the false negative rate.

    It looks at the labels of the images it is for: good for a drawing, not for use.
    """
    fpr, tpr, thresholds = roc_curve(is_anomaly, scores, drop_intermediate=False)
    return float(thresholds[np.argmin(np.abs(fpr - (1 - tpr)))])


@styled
def tsne_figure(
    embeddings: EmbeddingSet, *, images: int = 600, texts: int = 150, seed: int = 0
) -> Figure:
    """The paper's first figure: t-SNE of images (dots), labels (crosses) and dictionary words.

    Args:
        embeddings: The images are those of the test set.
        images: At most so many images, at random, and twice as many labels as dictionary texts.
        texts: At most so many dictionary texts, at random.
        seed: Of the sample and of t-SNE.
    """
    from sklearn.manifold import TSNE

    rng = np.random.default_rng(seed)
    groups = [
        _sample(rng, embeddings.test_embeddings, images),
        _sample(rng, embeddings.label_embeddings, 2 * texts),
        _sample(rng, embeddings.dictionary_embeddings, texts),
    ]
    everything = np.concatenate(groups)
    plane = TSNE(
        metric="cosine",
        init="random",
        perplexity=min(30.0, (len(everything) - 1) / 3),
        random_state=seed,
    ).fit_transform(everything)
    image, label, word = np.split(plane, np.cumsum([len(group) for group in groups])[:2])
    figure, [axes] = new_figure(4.7)
    axes.scatter(*image.T, s=9, color=BLUE, alpha=0.55, linewidths=0, label="image", zorder=2)
    axes.scatter(
        *word.T, s=16, marker="^", facecolors="none", edgecolors=GREEN, label="dictionary word"
    )
    axes.scatter(
        *label.T, s=26, marker="x", color=VERMILLION, linewidths=1.4, label="label", zorder=3
    )
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    legend_below(figure, axes, columns=3)
    return figure


@styled
def label_similarity_figure(embeddings: EmbeddingSet) -> Figure:
    """The paper's second figure: each label's mean cosine to the dictionary and to its own images.

    Images of the test set; a label without test images has no second point. Up to 30 labels by name,
    more as points in the order of their cosine to the dictionary.
    """
    to_dictionary, to_images = label_similarities(embeddings)
    order = np.argsort(to_dictionary)
    named = len(order) <= _MOST_NAMES
    places = np.arange(len(order))
    figure, [axes] = new_figure(1.3 + 0.22 * len(order) if named else 3.8)
    series = [
        (to_dictionary, VERMILLION, "^", "label to dictionary"),
        (to_images, BLUE, "o", "label to images of its class"),
    ]
    for values, color, marker, label in series:
        along = (values[order], places) if named else (places, values[order])
        size = 36 if named else 12
        axes.scatter(*along, color=color, marker=marker, s=size, linewidths=0, label=label)
    if named:
        axes.set(yticks=places, xlabel="mean cosine")
        axes.set_yticklabels([_short(embeddings.class_names[i]) for i in order])
    else:
        axes.set(xlabel=f"{len(order)} labels, by cosine to the dictionary", ylabel="mean cosine")
    legend_below(figure, axes)
    return figure


def label_similarities(
    embeddings: EmbeddingSet,
) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
    """Mean cosine of each label to the dictionary, and to its test images (not a number for none)."""
    labels = embeddings.label_embeddings.astype(np.float64)
    to_dictionary = labels @ embeddings.dictionary_embeddings.mean(axis=0, dtype=np.float64)
    own = np.einsum(
        "nd,nd->n", embeddings.test_embeddings, labels[embeddings.test_labels], dtype=np.float64
    )
    count = np.bincount(embeddings.test_labels, minlength=len(labels))
    total = np.bincount(embeddings.test_labels, own, minlength=len(labels))
    return to_dictionary, np.where(count > 0, total / np.maximum(count, 1), np.nan)


@styled
def error_quantiles_figure(
    scores: Mapping[str, Scores],
    is_anomaly: IsAnomaly,
    mean_similarity: Scores,
    *,
    quantiles: int = 8,
) -> Figure:
    """The paper's third figure: errors among images of low to high mean similarity to the dictionary.

    In each quantile, the share of its anomalies that are missed (false negatives) and the share of its
    normal images that are flagged (false positives), at each score's own `equal_error_threshold`.

    Args:
        scores: By name, one panel each.
        is_anomaly: True for anomalous images.
        mean_similarity: Mean cosine of each image to the texts of the dictionary.
        quantiles: Parts of as equal size as possible.
    """
    figure, panels = new_figure(1.2 + 1.75 * len(scores), rows=len(scores))
    places = np.arange(1, quantiles + 1)
    for axes, (name, score) in zip(panels, scores.items(), strict=True):
        rates = error_rates(score, is_anomaly, mean_similarity, quantiles=quantiles)
        axes.bar(places - 0.2, rates[:, 0], 0.38, color=ANOMALY, label="anomalies missed")
        axes.bar(
            places + 0.2, rates[:, 1], 0.38, color="white", edgecolor=NORMAL, hatch="////",
            label="normal images flagged",
        )  # fmt: skip
        axes.set_title(name, loc="left", fontsize=10)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(visible=False, axis="x")
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, top)
    panels[-1].set(
        xticks=places, xlabel="quantile of mean similarity to the dictionary, low to high"
    )
    legend_below(figure, panels[0])
    return figure


def error_rates(
    score: Scores, is_anomaly: IsAnomaly, mean_similarity: Scores, *, quantiles: int
) -> Float[np.ndarray, "quantiles 2"]:
    """Share of missed anomalies and of flagged normal images per quantile; of none, not a number."""
    flagged = score >= equal_error_threshold(score, is_anomaly)
    parts = np.array_split(np.argsort(mean_similarity, kind="stable"), quantiles)

    def share(wrong, of):
        return float(wrong[of].mean()) if of.any() else float("nan")

    return np.array(
        [
            (share(~flagged[p], is_anomaly[p]), share(flagged[p], ~is_anomaly[p]))
            for p in parts
            if len(p)
        ]
    )


@styled
def parts_scatter_figure(
    internal: Scores,
    external: Scores,
    is_anomaly: IsAnomaly,
    *,
    weight: float | None = None,
    threshold: float | None = None,
) -> Figure:
    """The paper's fourth figure: internal class score (x) against external text score (y).

    Args:
        internal: Of each image, at its nearest normal class.
        external: The same.
        is_anomaly: True for anomalous images.
        weight: lambda, for the line internal + lambda external = threshold.
        threshold: Of BLISS, for the same.
    """
    rng = np.random.default_rng(0)
    figure, [axes] = new_figure(4.4)
    for side, color, marker, label in [
        (is_anomaly, ANOMALY, "^", "anomaly"),
        (~is_anomaly, NORMAL, "o", "normal"),
    ]:
        points = _sample(rng, np.stack([internal, external], axis=1)[side], _MOST_POINTS)
        axes.scatter(
            *points.T, s=13, color=color, marker=marker, alpha=0.55, linewidths=0, label=label,
            rasterized=True,
        )  # fmt: skip
    axes.set(xlabel="internal class score", ylabel="external text score")
    if weight and threshold is not None:
        limits = axes.get_xlim(), axes.get_ylim()
        ends = np.array(limits[0])
        axes.plot(ends, (threshold - ends) / weight, color=BLACK, ls="--", lw=1, label="threshold")
        axes.set(xlim=limits[0], ylim=limits[1])
    legend_below(figure, axes, columns=3)
    return figure


@styled
def roc_figure(scores: Mapping[str, Scores], is_anomaly: IsAnomaly) -> Figure:
    """ROC curves, the best first; the anomaly is positive."""
    areas = {name: roc_auc_score(is_anomaly, score) for name, score in scores.items()}
    figure, [axes] = new_figure(4.2 + 0.19 * ((len(scores) + 1) // 2))
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8)
    lines = dict(zip(scores, LINES * (1 + len(scores) // len(LINES)), strict=False))
    for name in sorted(scores, key=lambda name: -areas[name]):
        fpr, tpr, _ = roc_curve(is_anomaly, scores[name])
        color, style, _ = lines[name]
        kept = np.unique(np.linspace(0, len(fpr) - 1, 400).astype(int))
        axes.plot(
            fpr[kept], tpr[kept], color=color, ls=style, lw=2.4 if name == "bliss" else 1.2,
            label=f"{name} {100 * areas[name]:.1f}",
        )  # fmt: skip
    axes.set(xlabel="normal images flagged", ylabel="anomalies found", xlim=(0, 1), ylim=(0, 1.005))
    axes.set_aspect("equal")
    legend_below(figure, axes)
    return figure


@styled
def histogram_figure(
    score: Scores, is_anomaly: IsAnomaly, threshold: float, *, name: str = "BLISS"
) -> Figure:
    """Scores of normal and anomalous images, each as shares of its own kind, and the threshold.

    What lies beyond the middle 99 % of all scores is counted in the outermost bars.
    """
    low, high = np.quantile(score, [0.005, 0.995])
    bins = np.linspace(low, high, 31)
    figure, [axes] = new_figure(3.6)
    for side, label, look in [
        (~is_anomaly, "normal", {"color": NORMAL, "alpha": 0.45}),
        (is_anomaly, "anomaly", {"color": ANOMALY, "histtype": "step", "hatch": "\\\\\\"}),
    ]:
        values = np.clip(score[side], low, high)
        axes.hist(values, bins, weights=np.full(len(values), 1 / len(values)), label=label, **look)
    axes.axvline(threshold, color=BLACK, ls="--", lw=1.2, label=f"threshold {threshold:.2f}")
    axes.set(xlabel=f"{name} score", ylabel="share of its kind")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(figure, axes, columns=3)
    return figure


@styled
def score_histogram_figure(
    scores: Sequence[float] | np.ndarray,
    calibration: np.ndarray | None = None,
    threshold: float | None = None,
) -> Figure:
    """BLISS of images, beside that of the calibration images; each as shares of its own kind.

    What lies beyond the middle 99 % of all scores is counted in the outermost bars.
    """
    score = np.asarray(scores, np.float64)
    held_out = np.empty(0) if calibration is None else np.asarray(calibration, np.float64)
    low, high = np.quantile(np.concatenate([score, held_out]), [0.005, 0.995])
    bins = np.linspace(low, high if high > low else low + 1, 31)
    figure, [axes] = new_figure(3.6)
    for values, label, look in [
        (held_out, "calibration images, normal", {"color": NORMAL, "alpha": 0.45}),
        (score, "these images", {"color": ANOMALY, "histtype": "step", "hatch": "\\\\\\"}),
    ]:
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            axes.hist(np.clip(values, low, high), bins, weights=weights, label=label, **look)
    if threshold is not None:
        axes.axvline(threshold, color=BLACK, ls="--", lw=1.2, label=f"threshold {threshold:.2f}")
    axes.set(xlabel="BLISS score", ylabel="share of its kind")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(figure, axes, columns=2)
    return figure


@styled
def split_aurocs_figure(
    rows: Mapping[str, Row], *, split_names: Sequence[str] | None = None
) -> Figure:
    """AUROC x 100 of each split with its 95 % interval, in the order of the first score.

    Args:
        rows: Scores on one protocol, by the name in the legend.
        split_names: What the splits are called; numbers by default.

    Raises:
        ValueError: Rows or names of different numbers of splits.
    """
    sizes = {len(row.splits) for row in rows.values()} | {len(split_names or ())} - {0}
    if len(sizes) != 1:
        raise ValueError(f"expected rows and names of one number of splits, got {sorted(sizes)}")
    [size] = sizes
    first = next(iter(rows.values()))
    order = np.argsort([split.auroc for split in first.splits], kind="stable")
    names = list(split_names or (f"split {i}" for i in range(size)))
    named = size <= _MOST_NAMES
    figure, [axes] = new_figure(1.4 + size * (0.25 if named else 3.6 / size))
    spread = np.linspace(0.2, -0.2, len(rows)) if len(rows) > 1 else [0]
    for (name, row), (color, _, marker), shift in zip(rows.items(), LINES, spread, strict=False):
        areas = 100 * np.array([row.splits[i].auroc for i in order])
        ends = 100 * np.array([row.splits[i].interval for i in order])
        axes.errorbar(
            areas, np.arange(size) + shift, xerr=np.maximum(0, np.abs(ends.T - areas)),
            fmt=marker, color=color, ms=4 if named else 2.5, lw=0.8, label=name,
        )  # fmt: skip
    axes.set(xlabel="AUROC x 100", ylim=(-0.7, size - 0.3))
    axes.set_yticks(np.arange(size), [_short(names[i]) for i in order]) if named else axes.set(
        yticks=[], ylabel=f"{size} splits"
    )
    legend_below(figure, axes)
    return figure


@styled
def study_figure(study: Study, *, chosen: float | None = None) -> Figure:
    """AUROC x 100 against the values of a study's setting; bars: standard deviation over repeats.

    Args:
        study: At least one score; values that span more than a factor of 20 go on a logarithmic axis.
        chosen: A value to be marked, such as the default.
    """
    figure, [axes] = new_figure(3.4)
    values = np.array(study.values)
    for (name, array), (color, style, marker) in zip(study.series.items(), LINES, strict=False):
        areas = 100 * study.mean(name)
        deviation = 100 * study.std(name) if array.shape[1] > 1 else None
        axes.errorbar(
            values, areas, yerr=deviation, color=color, ls=style, marker=marker, ms=5, capsize=2.5,
            label=name,
        )  # fmt: skip
    if chosen is not None:
        axes.axvline(chosen, color=GREY, ls=(0, (1, 2)), lw=1.2, label=f"chosen: {chosen:g}")
    axes.set(xlabel=study.setting, ylabel="AUROC x 100")
    if values.min() > 0 and values.max() > 20 * values.min():
        axes.set_xscale("log")
        axes.set_xticks(_spaced_ticks(values))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    legend_below(figure, axes, columns=3 if len(study.series) > 1 else 2)
    return figure


def _spaced_ticks(values: Float[np.ndarray, " values"]) -> list[float]:
    """Values whose labels do not touch on a logarithmic axis."""
    kept = [float(values[0])]
    for value in values[1:]:
        if np.log(value / kept[-1]) > 0.11 * np.log(values[-1] / values[0]):
            kept.append(float(value))
    return kept


def _sample(
    rng: np.random.Generator, rows: Float[np.ndarray, "rows dim"], size: int
) -> Float[np.ndarray, "sampled dim"]:
    if len(rows) <= size:
        return rows
    return rows[np.sort(rng.choice(len(rows), size, replace=False))]


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"
