"""Tests of p-values, thresholds and Benjamini-Hochberg: they equal their definitions and keep their error rates."""

import jax
import numpy as np
import pytest

import bliss_jax as bj


def test_p_values_count_calibration_scores_at_least_as_large():
    calibration = np.array([3.0, 1.0, 2.0, 2.0], np.float32)
    scores = np.array([0.0, 1.0, 2.0, 2.5, 3.0, 3.1, np.nan], np.float32)
    p = bj.conformal_p_values(scores, calibration)
    np.testing.assert_allclose(p, [1, 1, 4 / 5, 2 / 5, 2 / 5, 1 / 5, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(bj.conformal_p_values)(scores, calibration), p)


def test_p_values_equal_the_definition_on_random_numbers():
    rng = np.random.default_rng(0)
    calibration, scores = (rng.integers(0, 30, n).astype(np.float32) for n in (97, 200))
    counted = (calibration[None] >= scores[:, None]).sum(1)
    expected = (1 + counted) / (len(calibration) + 1)
    np.testing.assert_allclose(bj.conformal_p_values(scores, calibration), expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("m", [99, 100, 119, 500])
def test_the_threshold_and_the_p_values_agree(alpha, m):
    rng = np.random.default_rng(m)
    calibration = np.round(rng.normal(size=m), 1).astype(np.float32)  # with ties
    scores = np.concatenate([calibration, rng.normal(size=300).astype(np.float32)])
    threshold = bj.conformal_threshold(calibration, alpha)
    counted = (calibration[None] >= scores[:, None]).sum(1)
    exact = (1 + counted) * 100 <= round(100 * alpha) * (m + 1)  # in integers
    np.testing.assert_array_equal(scores > np.asarray(threshold), exact)


def test_images_needed_is_the_smallest_number_that_is_accepted():
    assert [bj.images_needed(a) for a in (0.5, 0.2, 0.1, 0.05, 0.01, 0.001)] == [
        1,
        4,
        9,
        19,
        99,
        999,
    ]
    assert bj.images_needed(0.3) == 3  # 1 / 4 <= 0.3 < 1 / 3
    for alpha in (0.5, 0.3, 0.05, 0.01):
        m = bj.images_needed(alpha)
        calibration = np.arange(m, dtype=np.float32)
        assert bj.conformal_threshold(calibration, alpha) == m - 1
        if m > 1:
            with pytest.raises(ValueError, match=f"at least {m} calibration images, got {m - 1}"):
                bj.conformal_threshold(calibration[1:], alpha)


def steps_up(p, alpha):
    """Computes the procedure as Benjamini and Hochberg define it in their paper."""
    order = np.argsort(p)
    n = len(p)
    passing = [i for i in range(n) if p[order[i]] <= alpha * (i + 1) / n]
    flagged = np.zeros(n, bool)
    if passing:
        flagged[order[: max(passing) + 1]] = True
    return flagged


def test_benjamini_hochberg_is_the_step_up_procedure():
    rng = np.random.default_rng(1)
    for n in (1, 7, 100):
        for alpha in (0.05, 0.2, 0.5):
            p = (rng.uniform(size=n) ** 2).astype(np.float32)
            flagged = bj.benjamini_hochberg(p, alpha)
            np.testing.assert_array_equal(flagged, steps_up(p.astype(np.float64), alpha))
            np.testing.assert_array_equal(jax.jit(bj.benjamini_hochberg)(p, alpha), flagged)
    assert not len(bj.benjamini_hochberg(np.zeros(0, np.float32), 0.1))
    # A p-value equal to its bound counts, whatever the rounding of alpha / n.
    assert np.asarray(bj.benjamini_hochberg(np.float32([1 / 60, 0.5, 1.0]), 0.05)).tolist() == [
        True, False, False,
    ]  # fmt: skip
    assert np.asarray(bj.benjamini_hochberg(np.float32([np.nan, 1e-6]), 0.05)).tolist() == [
        False,
        True,
    ]


def test_the_false_alarm_rate_of_normal_scores_is_alpha_on_average():
    """If m + 1 is a multiple of 1 / alpha, the expected rate is alpha; four standard errors are allowed."""
    rng = np.random.default_rng(2)
    for m, alpha, draws in ((19, 0.05, 40_000), (99, 0.1, 20_000)):
        drawn = rng.exponential(size=(draws, m + 1)).astype(np.float32)
        p = jax.vmap(bj.conformal_p_values)(drawn[:, :1], drawn[:, 1:])[:, 0]
        rate = float((np.asarray(p) <= np.float32(alpha)).mean())
        assert abs(rate - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / draws)


def test_the_false_discovery_rate_is_bounded_with_shared_calibration_images():
    rng = np.random.default_rng(3)
    alpha, draws, normals, anomalies = 0.2, 400, 80, 20
    calibration = rng.normal(size=(draws, 499)).astype(np.float32)
    scores = rng.normal(size=(draws, 100)).astype(np.float32)
    scores[:, normals:] += 3.5
    p = jax.vmap(bj.conformal_p_values)(scores, calibration)
    flagged = np.asarray(jax.vmap(lambda row: bj.benjamini_hochberg(row, alpha))(p))
    share = flagged[:, :normals].sum(1) / np.maximum(flagged.sum(1), 1)
    error = share.std() / np.sqrt(draws)
    assert share.mean() < alpha * normals / 100 + 4 * error
    assert flagged[:, normals:].mean() > 0.5, "too few anomalies are flagged"
    assert anomalies == scores.shape[1] - normals


@pytest.mark.parametrize("alpha", [0, 1, -0.1, np.nan, 5])
def test_an_alpha_that_is_not_a_rate_is_refused(alpha):
    some = np.zeros(30, np.float32)
    for call in (bj.images_needed, lambda a: bj.conformal_threshold(some, a),
                 lambda a: bj.benjamini_hochberg(some, a)):  # fmt: skip
        with pytest.raises(ValueError, match="alpha: expected a rate above 0 and below 1"):
            call(float(alpha))


@pytest.mark.usefixtures("unchecked")
def test_wrong_scores_are_refused():
    some = np.zeros(3, np.float32)
    for bad in (np.zeros((2, 2), np.float32), np.zeros(3, np.int32)):
        with pytest.raises(ValueError, match="scores: expected a floating"):
            bj.conformal_p_values(bad, some)
    with pytest.raises(ValueError, match="at least one"):
        bj.conformal_p_values(some, some[:0])
    with pytest.raises(ValueError, match="entry 1 is NaN"):
        bj.conformal_p_values(some, np.float32([0, np.nan]))
