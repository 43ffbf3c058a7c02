"""DeLong's paired test, Holm's correction and the comparison of several scores."""

import jax
import numpy as np
import pytest
from scipy.stats import norm

from bliss_jax.metrics import auroc, auroc_interval, compare_scores, delong_test, holm


def sample(seed=0, size=300):
    rng = np.random.default_rng(seed)
    is_anomaly = rng.random(size) < 0.4
    base = rng.normal(size=size) + is_anomaly
    scores = {
        "good": base + 0.3 * rng.normal(size=size) + 0.8 * is_anomaly,
        "similar": base + 0.3 * rng.normal(size=size) + 0.75 * is_anomaly,
        "poor": np.round(base + rng.normal(size=size)),
    }
    return {name: s.astype(np.float32) for name, s in scores.items()}, is_anomaly


def delong_by_pairs(first, second, is_anomaly):
    """Computes the test from the full tables of pairs, as the paper defines it."""
    placed = []
    for scores in (first, second):
        a, n = scores[is_anomaly].astype(float), scores[~is_anomaly].astype(float)
        wins = (a[:, None] > n[None, :]) + 0.5 * (a[:, None] == n[None, :])
        placed.append((wins.mean(axis=1), wins.mean(axis=0)))
    v10, v01 = (np.stack(values) for values in zip(*placed, strict=True))
    covariance = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    difference = v10.mean(axis=1) @ [1, -1]
    deviation = np.sqrt([1, -1] @ covariance @ [1, -1])
    return difference, deviation, 2 * norm.sf(abs(difference) / deviation)


def holm_by_steps(p_values):
    """States Holm's procedure: the smallest p-value is multiplied by m, the next by m - 1, and so on."""
    adjusted, largest = np.empty(len(p_values)), 0.0
    for place, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@pytest.mark.parity
def test_the_paired_test_agrees_with_its_definition_over_pairs():
    scores, is_anomaly = sample()
    for other in ("similar", "poor"):
        difference, deviation, p_value = delong_by_pairs(scores["good"], scores[other], is_anomaly)
        found = delong_test(scores["good"], scores[other], is_anomaly)
        assert found.difference == pytest.approx(difference, abs=1e-6)
        assert found.p_value == pytest.approx(p_value, rel=1e-3)
        np.testing.assert_allclose(
            found.interval, difference + 1.959964 * deviation * np.array([-1, 1]), atol=1e-6
        )
        back = delong_test(scores[other], scores["good"], is_anomaly)
        assert back.difference == -found.difference
        assert back.p_value == found.p_value


def test_against_a_constant_score_the_interval_is_that_of_the_auroc():
    scores, is_anomaly = sample()
    constant = np.zeros(300, np.float32)
    found = delong_test(scores["good"], constant, is_anomaly)
    np.testing.assert_allclose(
        np.array(found.interval) + 0.5, auroc_interval(scores["good"], is_anomaly), atol=1e-6
    )
    same = delong_test(scores["good"], np.exp(scores["good"]), is_anomaly)
    assert (same.difference, same.p_value) == (0, 1)


def test_p_values_are_uniform_if_both_scores_are_equally_good():
    rng = np.random.default_rng(0)
    is_anomaly = np.tile(np.arange(200) < 80, (600, 1))
    shared = rng.normal(size=(600, 200)) + is_anomaly
    first, second = ((shared + rng.normal(size=(600, 200))).astype(np.float32) for _ in range(2))
    p_values = np.asarray(jax.jit(jax.vmap(delong_test))(first, second, is_anomaly).p_value)
    for alpha in (0.05, 0.2, 0.5):
        assert np.mean(p_values <= alpha) == pytest.approx(alpha, abs=0.05)


@pytest.mark.parametrize(
    "p_values", [[0.01, 0.04, 0.03], [0.5, 0.5], [1.0], [0.2, 0.001, 0.04, 0.04]]
)
def test_holm_agrees_with_its_steps(p_values):
    found = holm(np.array(p_values, np.float32))
    np.testing.assert_allclose(found, holm_by_steps(p_values), rtol=1e-6)


def test_masked_images_do_not_count():
    scores, is_anomaly = sample()
    where = np.random.default_rng(2).random(300) < 0.6
    masked = delong_test(scores["good"], scores["poor"], is_anomaly, where=where)
    only = delong_test(scores["good"][where], scores["poor"][where], is_anomaly[where])
    np.testing.assert_allclose(jax.tree.leaves(masked), jax.tree.leaves(only), rtol=1e-4)


def test_a_comparison_ranks_the_scores_and_corrects_for_all_pairs():
    scores, is_anomaly = sample()
    found = compare_scores(scores, is_anomaly)
    assert [row.name for row in found.rows] == ["good", "similar", "poor"]
    assert found.best == found.reference == "good"
    assert found.not_worse() == ("good", "similar")
    pairs = [("good", "similar"), ("good", "poor"), ("similar", "poor")]
    raw = [delong_by_pairs(scores[a], scores[b], is_anomaly)[2] for a, b in pairs]
    adjusted = holm_by_steps(raw)
    assert found.tests == 3
    assert [row.p_value for row in found.rows] == pytest.approx([1, *adjusted[:2]], rel=1e-3)
    for row in found.rows:
        assert row.auroc == pytest.approx(float(auroc(scores[row.name], is_anomaly)), abs=1e-6)
        low, high = row.difference_interval
        assert low <= row.difference <= high


def test_a_given_reference_needs_one_test_for_each_other_score():
    scores, is_anomaly = sample()
    found = compare_scores(scores, is_anomaly, reference="poor")
    raw = [delong_by_pairs(scores[n], scores["poor"], is_anomaly)[2] for n in ("good", "similar")]
    assert found.tests == 2
    assert [row.p_value for row in found.rows[:2]] == pytest.approx(holm_by_steps(raw), rel=1e-3)
    assert found.rows[0].difference > 0
    text, html = repr(found), found._repr_html_()
    assert "minus poor" in text and "p (Holm)" in text and "2 tests" in text
    assert "<table>" in html and "reference" in html
    alone = compare_scores({"poor": scores["poor"]}, is_anomaly)
    assert (alone.tests, alone.best) == (0, "poor")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, a: compare_scores({}, a), "scores: expected at least one score, got none"),
        (lambda s, a: compare_scores(s, a, reference="bad"), "reference: expected one of good, si"),
        (lambda s, a: compare_scores({"x": s["good"][:3]}, a), r"x: is_anomaly: expected a bool"),
        (
            lambda s, a: compare_scores(s, np.arange(300) == 0),
            "at least two anomalous and two normal images, got 1 anomalous and 299 normal",
        ),
        (lambda s, a: delong_test(s["good"], s["poor"][:5], a), "is_anomaly: expected a bool"),
        (lambda s, a: holm(np.array([0.5, 1.5], np.float32)), r"p_values: expected values in \[0"),
        (lambda s, a: holm(np.array([1])), r"p_values: expected a floating \[tests\] array"),
    ],
)
def test_wrong_arguments_are_refused(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call(*sample())
