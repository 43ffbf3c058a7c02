"""The report's figures. Each is a pure function of arrays that returns a matplotlib `Figure`.

The four figures of the paper (Goodge et al., BMVC 2024, arXiv 2407.17083):

    tsne_figure               t-SNE of images, labels and dictionary texts
    label_similarity_figure   mean cosine of each label to the dictionary and to its images
    error_quantiles_figure    false negatives and false positives by mean cosine to the dictionary
    parts_scatter_figure      internal class score against external text score

The figures of an evaluation are `roc_figure`, `histogram_figure`, `split_aurocs_figure` and `study_figure`.
A higher score is more anomalous. An image is flagged if its score is at least the threshold.
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
"""Maximum number of labels or splits that are named on an axis."""
_MOST_POINTS = 1500
"""Maximum number of normal images, and of anomalies, in a scatter plot."""


def equal_error_threshold(scores: Scores, is_anomaly: IsAnomaly) -> float:
    """Returns the threshold at which the false positive rate is nearest to the false negative rate.

    It is computed from the labels of the same images, so it is only good for a figure: on other images, the
    error rates differ. `Detector.threshold` returns a threshold for use.
    """
    fpr, tpr, thresholds = roc_curve(is_anomaly, scores, drop_intermediate=False)
    return float(thresholds[np.argmin(np.abs(fpr - (1 - tpr)))])


@styled
def tsne_figure(
    embeddings: EmbeddingSet, *, images: int = 600, texts: int = 150, seed: int = 0
) -> Figure:
    """Draws the paper's first figure: t-SNE of images (dots), labels (crosses) and dictionary texts.

    Args:
        embeddings: Embeddings of a data set. The images are the test images.
        images: Maximum number of images, drawn at random.
        texts: Maximum number of dictionary texts, drawn at random. The maximum number of labels is twice
            this number.
        seed: Seed of the random draws and of t-SNE.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    groups = [
        _sample(rng, embeddings.test_embeddings, images),
        _sample(rng, embeddings.label_embeddings, 2 * texts),
        _sample(rng, embeddings.dictionary_embeddings, texts),
    ]
    everything = np.concatenate(groups)
    tsne = TSNE(
        metric="cosine",
        init="random",
        perplexity=min(30.0, (len(everything) - 1) / 3),
        random_state=seed,
    )
    # One thread: with so few points, several threads wait for each other longer than they compute (1,050
    # points on two cores: 16 s of CPU time, 3 s with one thread; the result is the same).
    with threadpool_limits(limits=1):
        plane = tsne.fit_transform(everything)
    image, label, word = np.split(plane, np.cumsum([len(group) for group in groups])[:2])
    figure, [axes] = new_figure(4.7)
    axes.scatter(*image.T, s=9, color=BLUE, alpha=0.55, linewidths=0, label="image", zorder=2)
    axes.scatter(
        *word.T, s=16, marker="^", facecolors="none", edgecolors=GREEN, label="dictionary text"
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
    """Draws the paper's second figure: mean cosine of each label to the dictionary and to its own images.

    The images are the test images, so a label without test images has only one point. Up to 30 labels are
    named on the axis; more labels are drawn without names, in the order of their cosine to the dictionary.
    """
    to_dictionary, to_images = label_similarities(embeddings)
    order = np.argsort(to_dictionary)
    named = len(order) <= _MOST_NAMES
    places = np.arange(len(order))
    figure, [axes] = new_figure(1.3 + 0.22 * len(order) if named else 3.8)
    series = [
        (to_dictionary, VERMILLION, "^", "label and dictionary"),
        (to_images, BLUE, "o", "label and images of its class"),
    ]
    for values, color, marker, label in series:
        along = (values[order], places) if named else (places, values[order])
        size = 36 if named else 12
        axes.scatter(*along, color=color, marker=marker, s=size, linewidths=0, label=label)
    if named:
        axes.set(yticks=places, xlabel="mean cosine")
        axes.set_yticklabels([_short(embeddings.class_names[i]) for i in order])
    else:
        axes.set(
            xlabel=f"{len(order)} labels, sorted by cosine to the dictionary", ylabel="mean cosine"
        )
    legend_below(figure, axes)
    return figure


def label_similarities(
    embeddings: EmbeddingSet,
) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
    """Returns the mean cosine of each label to the dictionary, and to its test images (NaN without any)."""
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
    """Draws the paper's third figure: error rates by the images' mean cosine to the dictionary.

    For each quantile of the images, the figure shows the share of its anomalies that are missed (false
    negatives) and the share of its normal images that are flagged (false positives). The threshold of each
    score is its `equal_error_threshold`.

    Args:
        scores: Scores by name. Each has a panel of its own.
        is_anomaly: Whether each image is an anomaly.
        mean_similarity: Mean cosine of each image to the texts of the dictionary.
        quantiles: Number of quantiles. Their sizes differ by at most one image.
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
        xticks=places, xlabel="quantile of the mean cosine to the dictionary (1 = lowest)"
    )
    legend_below(figure, panels[0])
    return figure


def error_rates(
    score: Scores, is_anomaly: IsAnomaly, mean_similarity: Scores, *, quantiles: int
) -> Float[np.ndarray, "quantiles 2"]:
    """Returns the share of missed anomalies and of flagged normal images in each quantile.

    A share is NaN if the quantile has no anomalies, or no normal images.
    """
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
    """Draws the paper's fourth figure: internal class score (x) against external text score (y).

    Args:
        internal: Internal class score of each image for its nearest normal class.
        external: External text score of each image for the same class.
        is_anomaly: Whether each image is an anomaly.
        weight: lambda of the line internal + lambda external = threshold.
        threshold: BLISS threshold of this line. Without `weight` or `threshold`, no line is drawn.
    """
    rng = np.random.default_rng(0)
    figure, [axes] = new_figure(4.4)
    for side, color, marker, label in [
        (is_anomaly, ANOMALY, "^", "anomaly"),
        (~is_anomaly, NORMAL, "o", "normal image"),
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
    """Draws ROC curves in descending order of the AUROC. The anomaly is the positive class."""
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
    axes.set(
        xlabel="share of normal images flagged", ylabel="share of anomalies flagged",
        xlim=(0, 1), ylim=(0, 1.005),
    )  # fmt: skip
    axes.set_aspect("equal")
    legend_below(figure, axes)
    return figure


@styled
def histogram_figure(
    score: Scores, is_anomaly: IsAnomaly, threshold: float, *, name: str = "BLISS"
) -> Figure:
    """Draws histograms of the scores of normal images and of anomalies, and the threshold.

    The bars of each histogram add up to 100 %. Scores outside of the middle 99 % are counted in the
    outermost bars.
    """
    low, high = np.quantile(score, [0.005, 0.995])
    bins = np.linspace(low, high, 31)
    figure, [axes] = new_figure(3.6)
    for side, label, look in [
        (~is_anomaly, "normal images", {"color": NORMAL, "alpha": 0.45}),
        (is_anomaly, "anomalies", {"color": ANOMALY, "histtype": "step", "hatch": "\\\\\\"}),
    ]:
        values = np.clip(score[side], low, high)
        axes.hist(values, bins, weights=np.full(len(values), 1 / len(values)), label=label, **look)
    axes.axvline(threshold, color=BLACK, ls="--", lw=1.2, label=f"threshold {threshold:.2f}")
    axes.set(xlabel=f"{name} score", ylabel="share of the images")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(figure, axes, columns=3)
    return figure


@styled
def score_histogram_figure(
    scores: Sequence[float] | np.ndarray,
    calibration: np.ndarray | None = None,
    threshold: float | None = None,
    *,
    score_label: str = "BLISS",
) -> Figure:
    """Draws histograms of the scores of images and of the calibration images.

    The bars of each histogram add up to 100 %. Scores outside of the middle 99 % are counted in the
    outermost bars.

    Args:
        scores: Scores of the images.
        calibration: Scores of the calibration images, if there are any.
        threshold: Threshold to draw as a line, if there is one.
        score_label: Name of the score on the axis.
    """
    score = np.asarray(scores, np.float64)
    held_out = np.empty(0) if calibration is None else np.asarray(calibration, np.float64)
    low, high = np.quantile(np.concatenate([score, held_out]), [0.005, 0.995])
    bins = np.linspace(low, high if high > low else low + 1, 31)
    figure, [axes] = new_figure(3.6)
    for values, label, look in [
        (held_out, "calibration images (normal)", {"color": NORMAL, "alpha": 0.45}),
        (score, "scored images", {"color": ANOMALY, "histtype": "step", "hatch": "\\\\\\"}),
    ]:
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            axes.hist(np.clip(values, low, high), bins, weights=weights, label=label, **look)
    if threshold is not None:
        axes.axvline(threshold, color=BLACK, ls="--", lw=1.2, label=f"threshold {threshold:.4g}")
    axes.set(xlabel=f"{score_label} score", ylabel="share of the images")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(figure, axes, columns=2)
    return figure


@styled
def split_aurocs_figure(
    rows: Mapping[str, Row], *, split_names: Sequence[str] | None = None
) -> Figure:
    """Draws the AUROC x 100 of each split with its 95 % interval, sorted by the AUROC of the first score.

    Args:
        rows: Rows of one protocol, by their name in the legend.
        split_names: Names of the splits. The default is their numbers.

    Raises:
        ValueError: If the rows and the names do not have the same number of splits.
    """
    sizes = {len(row.splits) for row in rows.values()} | {len(split_names or ())} - {0}
    if len(sizes) != 1:
        raise ValueError(
            f"expected rows and names with the same number of splits, got {sorted(sizes)} splits"
        )
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
    """Draws AUROC x 100 against the values of a study's setting.

    The error bars are the standard deviation over the repeats. The axis of the values is logarithmic if they
    are positive and the largest is more than 20 times the smallest.

    Args:
        study: Study with at least one score.
        chosen: A value to mark with a line, such as the default.
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
    """Returns those values whose labels do not touch each other on a logarithmic axis."""
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
