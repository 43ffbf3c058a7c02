"""Metrics in the conventions of OpenOOD, pytorch-ood and MCM, against plain statements of their definitions."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from bliss_jax.metrics import CONVENTIONS, aupr, autc, fpr_at_tpr, ood_metrics, oscr

labelled_scores = st.lists(
    st.tuples(st.integers(-3, 3), st.booleans(), st.booleans()), min_size=2, max_size=32
).filter(lambda rows: len({anomalous for _, anomalous, _ in rows}) == 2)


def padded(rows, length=32):
    """Returns scores, labels, a third column and a mask, padded so that one compilation serves all examples."""
    scores, is_anomaly, third = (np.array(column) for column in zip(*rows, strict=True))
    pad = length - len(rows)
    arrays = np.pad(scores, (0, pad)).astype(np.float32), np.pad(is_anomaly, (0, pad))
    return (
        (scores, is_anomaly, third),
        (*arrays, np.pad(third, (0, pad))),
        np.arange(length) < len(rows),
    )


def openood_fpr(scores, is_anomaly, tpr):
    """States OpenOOD's definition: its confidence is the negative score, and its positive class is normal."""
    normal, anomalous = np.sort(-scores[~is_anomaly]), -scores[is_anomaly]
    threshold = normal[-int(np.floor(tpr * len(normal)))]
    return np.mean(anomalous > threshold)


def trapezoid_aupr(scores, positive):
    precision, recall, _ = precision_recall_curve(positive, scores)
    return auc(recall, precision)


def nearest_recall_fpr(scores, positive, tpr):
    """States the definition of MCM's scripts with a loop over the distinct thresholds, lowest first."""
    found = []
    for threshold in np.unique(scores):
        flagged = scores >= threshold
        recall = np.mean(flagged[positive])
        rate = np.mean(flagged[~positive])
        if (
            recall == 1
        ):  # of the thresholds that flag all positive images, the scripts keep the highest
            found = [(recall, rate)]
        else:
            found.append((recall, rate))
    distances = [abs(recall - tpr) for recall, _ in found]
    nearest = [i for i, d in enumerate(distances) if d <= min(distances) + 1e-7]
    return found[nearest[0]][1]


@pytest.mark.parity
@settings(max_examples=60, deadline=None)
@given(labelled_scores)
def test_definitions_agree_with_their_statements_on_any_ties(rows):
    (scores, is_anomaly, is_correct), arrays, where = padded(rows)
    s, a, c = arrays
    near = lambda value: pytest.approx(value, abs=1e-6)
    assert aupr(s, a, where=where, interpolation="trapezoid") == near(
        trapezoid_aupr(scores, is_anomaly)
    )
    assert aupr(s, a, where=where, positive="normal", interpolation="trapezoid") == near(
        trapezoid_aupr(-scores, ~is_anomaly)
    )
    for tpr in (0.95, 0.5):
        strict = fpr_at_tpr(s, a, tpr, where=where, positive="normal", rule="strict")
        assert strict == near(openood_fpr(scores, is_anomaly, tpr))
        nearest = fpr_at_tpr(s, a, tpr, where=where, positive="normal", rule="nearest")
        assert nearest == near(nearest_recall_fpr(-scores, ~is_anomaly, tpr))
        nearest = fpr_at_tpr(s, a, tpr, where=where, rule="nearest")
        assert nearest == near(nearest_recall_fpr(scores, is_anomaly, tpr))
    least = fpr_at_tpr(s, a, where=where, positive="normal")
    assert least == near(float(fpr_at_tpr(-s, ~a, where=where)))
    found = oscr(s, a, c, where=where)
    normal, anomalies = scores[~is_anomaly], scores[is_anomaly]
    pairs = (anomalies > normal[:, None]) + 0.5 * (anomalies == normal[:, None])
    assert found.oscr == near((pairs * is_correct[~is_anomaly, None]).mean())
    assert found.accuracy == near(is_correct[~is_anomaly].mean())
    if len(set(scores)) > 1:
        thresholds = np.linspace(0, 1, 6001)
        unit = (scores - scores.min()) / (scores.max() - scores.min())
        false_alarms = (unit[~is_anomaly] > thresholds[:, None]).mean(axis=1)
        misses = (unit[is_anomaly] <= thresholds[:, None]).mean(axis=1)
        areas = np.mean([false_alarms, misses])  # over equally spaced thresholds
        assert autc(s, a, where=where) == pytest.approx(areas, abs=1e-3)


def sample(size=3000, levels=None):
    rng = np.random.default_rng(0)
    is_anomaly = rng.random(size) < 0.3
    scores = rng.normal(size=size) + 1.5 * is_anomaly
    if levels is not None:
        scores = np.digitize(scores, np.linspace(0, 2, levels - 1))
    return scores.astype(np.float32), is_anomaly


@pytest.mark.parity
@pytest.mark.parametrize("levels", [None, 3])
def test_each_convention_gives_the_numbers_of_its_project(levels):
    scores, is_anomaly = sample(levels=levels)
    fpr, tpr, _ = roc_curve(is_anomaly, scores, drop_intermediate=False)
    expected = {
        "openood": (
            trapezoid_aupr(-scores, ~is_anomaly),
            trapezoid_aupr(scores, is_anomaly),
            openood_fpr(scores, is_anomaly, 0.95),
        ),
        "pytorch-ood": (
            trapezoid_aupr(-scores, ~is_anomaly),
            trapezoid_aupr(scores, is_anomaly),
            fpr[np.argmax(tpr >= 0.95)],
        ),
        "mcm": (
            average_precision_score(~is_anomaly, -scores),
            average_precision_score(is_anomaly, scores),
            nearest_recall_fpr(-scores, ~is_anomaly, 0.95),
        ),
    }
    assert {*CONVENTIONS} == {*expected, "bliss-jax"}
    for name, values in expected.items():
        found = ood_metrics(scores, is_anomaly, name)
        np.testing.assert_allclose(found[1:], values, atol=1e-6)
        assert found.auroc == ood_metrics(scores, is_anomaly, "bliss-jax").auroc


def test_conventions_differ_under_ties_and_nearly_agree_without():
    few, many = (
        {name: ood_metrics(*sample(levels=levels), name) for name in CONVENTIONS}
        for levels in (3, None)
    )
    assert few["openood"].aupr_out > few["mcm"].aupr_out + 0.02
    assert few["openood"].fpr95 < few["mcm"].fpr95
    assert abs(many["openood"].aupr_out - many["mcm"].aupr_out) < 1e-3
    assert abs(many["openood"].fpr95 - many["mcm"].fpr95) < 0.01


@pytest.mark.torch
@pytest.mark.parametrize("levels", [None, 3])
def test_agrees_with_pytorch_ood(levels):
    """Runs where pytorch-ood is installed: CI has no torchvision, which it needs."""
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("pytorch_ood.metrics", exc_type=ImportError)
    scores, is_anomaly = sample(levels=levels)
    theirs = metrics.OODMetrics()
    theirs.update(torch.tensor(scores), torch.tensor(np.where(is_anomaly, -1, 0)))
    computed = theirs.compute()
    found = ood_metrics(scores, is_anomaly, "pytorch-ood")
    names = ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR")
    np.testing.assert_allclose(found, [computed[name] for name in names], atol=1e-5)
    assert autc(scores, is_anomaly) == pytest.approx(computed["AUTC"], abs=1e-5)


def test_autc_is_half_for_useless_scores_and_zero_for_separate_constant_scores():
    is_anomaly = np.array([False] * 3 + [True] * 5)
    assert autc(is_anomaly.astype(np.float32), is_anomaly) == 0
    assert autc(1 - is_anomaly.astype(np.float32), is_anomaly) == 1
    assert np.isnan(autc(np.zeros(8, np.float32), is_anomaly))
    scaled = sample(200)
    assert autc(3 * scaled[0] - 7, scaled[1]) == pytest.approx(float(autc(*scaled)), abs=1e-6)


def test_oscr_is_the_auroc_of_a_perfect_classifier_and_at_most_the_accuracy():
    scores, is_anomaly = sample(400)
    right = np.ones(400, bool)
    assert oscr(scores, is_anomaly, right).oscr == pytest.approx(
        float(ood_metrics(scores, is_anomaly).auroc), abs=1e-6
    )
    some = np.random.default_rng(1).random(400) < 0.7
    area, accuracy = oscr(scores, is_anomaly, some)
    assert area < accuracy == pytest.approx(some[~is_anomaly].mean())


def test_new_metrics_compose_with_jit_and_vmap():
    scores, _ = sample(200)
    splits = np.random.default_rng(3).random((3, 200)) < 0.4
    for metric in (
        autc,
        lambda s, a: aupr(s, a, interpolation="trapezoid"),
        lambda s, a: fpr_at_tpr(s, a, positive="normal", rule="nearest"),
        lambda s, a: fpr_at_tpr(s, a, positive="normal", rule="strict"),
    ):
        together = jax.jit(jax.vmap(metric, in_axes=(None, 0)))(scores, splits)
        np.testing.assert_allclose(together, [metric(scores, split) for split in splits], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, a: aupr(s, a, interpolation="linear"), "interpolation: expected 'step' or"),
        (lambda s, a: fpr_at_tpr(s, a, positive="id"), "positive: expected 'anomaly' or"),
        (lambda s, a: fpr_at_tpr(s, a, rule="mcm"), "rule: expected 'at-least' or 'nearest'"),
        (lambda s, a: ood_metrics(s, a, "ours"), "convention: expected 'bliss-jax' or"),
        (lambda s, a: oscr(s, a, s), r"is_correct: expected a bool \[50\] array, got float32"),
    ],
)
def test_unknown_choices_are_refused(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call(*sample(50))
