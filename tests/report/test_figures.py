"""Figures show the measured numbers."""

import numpy as np
import pytest
from clusters import clusters
from sklearn.metrics import roc_auc_score

from bliss_jax.evaluation import Row, Study
from bliss_jax.evaluation.results import SplitResult
from bliss_jax.report import figures


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    is_anomaly = rng.random(400) < 0.4
    return is_anomaly + 0.8 * rng.normal(size=400), is_anomaly


def test_equal_error_threshold_has_equal_error_rates(scored):
    score, is_anomaly = scored
    flagged = score >= figures.equal_error_threshold(score, is_anomaly)
    missed, false_alarms = (~flagged)[is_anomaly].mean(), flagged[~is_anomaly].mean()
    # One image changes an error rate by its share of the images of its kind.
    assert abs(missed - false_alarms) <= 1 / min(is_anomaly.sum(), (~is_anomaly).sum())


@pytest.mark.parity
def test_error_rates_of_each_quantile_equal_numpy(scored):
    score, is_anomaly = scored
    similarity = np.random.default_rng(1).permutation(400) / 400  # no ties
    rates = figures.error_rates(score, is_anomaly, similarity, quantiles=4)
    flagged = score >= figures.equal_error_threshold(score, is_anomaly)
    for i in range(4):
        part = (similarity >= i / 4) & (similarity < (i + 1) / 4)
        expected = [(~flagged)[part & is_anomaly].mean(), flagged[part & ~is_anomaly].mean()]
        np.testing.assert_allclose(rates[i], expected)
    # A single quantile contains all images, for which both rates are equal.
    [[missed, false_alarms]] = figures.error_rates(score, is_anomaly, similarity, quantiles=1)
    assert abs(missed - false_alarms) <= 1 / is_anomaly.sum()


def test_a_quantile_without_anomalies_has_a_nan_rate_of_missed_anomalies(scored):
    score, is_anomaly = scored
    rates = figures.error_rates(score, is_anomaly, is_anomaly.astype(np.float64), quantiles=8)
    assert np.isnan(rates[0, 0])
    assert np.isnan(rates[-1, 1])


@pytest.mark.parity
def test_roc_curves_have_the_area_stated_in_the_legend(scored):
    score, is_anomaly = scored
    given = {"one": score, "bliss": score**3, "worse": score + np.sin(np.arange(400))}
    figure = figures.roc_figure(given, is_anomaly)
    curves = {line.get_label(): line for line in figure.axes[0].lines[1:]}
    areas = {name: roc_auc_score(is_anomaly, s) for name, s in given.items()}
    assert set(curves) == {f"{name} {100 * area:.1f}" for name, area in areas.items()}
    for name, area in areas.items():
        x, y = curves[f"{name} {100 * area:.1f}"].get_data()
        assert abs(np.trapezoid(y, x) - area) < 1e-3, "the curve is reduced to 400 points"


def test_histograms_count_every_image_and_ignore_outliers_in_their_range(scored):
    score, is_anomaly = scored
    score = np.where(np.arange(400) == 3, 1e6, score)
    figure = figures.histogram_figure(score, is_anomaly, threshold=0.5)
    bars = figure.axes[0].containers[0]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
    assert figure.axes[0].get_xlim()[1] < 100, "an outlier does not determine the range"


@pytest.mark.parity
def test_label_similarities_equal_means_of_cosines():
    e = clusters()
    to_dictionary, to_images = figures.label_similarities(e)
    cosines = e.label_embeddings @ e.dictionary_embeddings.T
    np.testing.assert_allclose(to_dictionary, cosines.mean(axis=1), atol=1e-6)
    for c in range(6):
        own = e.test_embeddings[e.test_labels == c] @ e.label_embeddings[c]
        np.testing.assert_allclose(to_images[c], own.mean(), atol=1e-6)


def test_splits_figure_shows_aurocs_with_their_intervals():
    rng = np.random.default_rng(0)

    def row(score: str) -> Row:
        areas = rng.uniform(0.6, 0.9, 3)
        splits = [SplitResult((0,), a, (a - 0.05, a + 0.02), a, a, a) for a in areas.tolist()]
        return Row("three", "custom", score, {}, tuple(splits))

    rows = {score: row(score) for score in ("bliss", "max_cosine")}
    axes = figures.split_aurocs_figure(rows, split_names=["one", "two", "three"]).axes[0]
    order = np.argsort([split.auroc for split in rows["bliss"].splits], kind="stable")
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        ["one", "two", "three"][i] for i in order
    ]
    for container, row in zip(axes.containers, rows.values(), strict=True):
        points, _, [bars] = container.lines
        expected = [100 * row.splits[i].auroc for i in order]
        np.testing.assert_allclose(points.get_xdata(), expected)
        ends = [segment[:, 0] for segment in bars.get_segments()]
        np.testing.assert_allclose(ends, [100 * np.array(row.splits[i].interval) for i in order])
    with pytest.raises(ValueError, match=r"the same number of splits, got \[2, 3\] splits"):
        figures.split_aurocs_figure(rows, split_names=["one", "two"])


def test_study_figure_shows_the_mean_auroc_at_each_value():
    areas = np.random.default_rng(0).random((2, 3, 4, 5))
    series = {"internal": areas[0], "bliss": areas[1]}
    study = Study("lambda", "lambda", (0.0, 0.5, 1.0), series, "three")
    axes = figures.study_figure(study, chosen=0.5).axes[0]
    for container, name in zip(axes.containers, study.series, strict=True):
        x, y = container.lines[0].get_data()
        np.testing.assert_allclose(x, study.values)
        np.testing.assert_allclose(y, 100 * study.mean(name))


def test_tsne_figure_is_reproducible():
    def points():
        figure = figures.tsne_figure(clusters(), images=40, texts=20, seed=1)
        return [np.asarray(c.get_offsets()) for c in figure.axes[0].collections]

    first, second = points(), points()
    assert [len(kind) for kind in first] == [40, 20, 6]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_line_in_the_scatter_figure_is_where_bliss_equals_the_threshold():
    rng = np.random.default_rng(0)
    internal, external = rng.normal(size=(2, 50))
    axes = figures.parts_scatter_figure(
        internal, external, rng.random(50) < 0.5, weight=0.5, threshold=0.3
    ).axes[0]
    x, y = axes.lines[0].get_data()
    np.testing.assert_allclose(x + 0.5 * y, 0.3)
