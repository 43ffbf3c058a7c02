"""Measured rates of false alarms agree with split-conformal theory, on real and simulated embeddings."""

import numpy as np
import pytest

import bliss_jax as bj
from experiments.thresholds import calibration as study
from experiments.thresholds import dependent_images

DRAWS = 60


def assert_rates_agree_with_theory(data, fitted, m):
    found = study.outcomes(data, fitted, m, DRAWS, seed=1)
    for i, alpha in enumerate(study.ALPHAS):
        if m < bj.images_needed(alpha):
            assert not found.false_alarms[:, i].any(), "no p-value is at most alpha"
            continue
        expected = np.floor(round(alpha * (m + 1), 6)) / (m + 1)
        assert expected <= alpha
        alarms = found.false_alarms[:, i]
        assert abs(alarms.mean() - expected) < 4 * alarms.std() / np.sqrt(DRAWS) + 1e-3, alpha
        discoveries = found.false_discoveries[:, i]
        assert discoveries.mean() < alpha + 4 * discoveries.std() / np.sqrt(DRAWS)


@pytest.mark.slow
@pytest.mark.shared_data
def test_rates_on_real_clip_embeddings_agree_with_theory(shared):
    file = shared / "data" / "clip_vitb32_cifar10_embeddings.npz"
    assert_rates_agree_with_theory(study.real(file, (0, 1, 9, 7, 3, 2)), 141, 49)


def test_rates_on_simulated_clusters_agree_with_theory():
    assert_rates_agree_with_theory(study.simulated(2, 500, 100, seed=3), 200, 99)


def mean_rate(setting, scheme, draws=12):
    found = [dependent_images.draw(setting, scheme, (0.1,), seed) for seed in range(draws)]
    rates = np.array([rates.false_alarms[0] for rates in found])
    return rates.mean(), 3 * rates.std() / np.sqrt(draws), found[0]


def test_rates_of_tied_scores_are_at_most_alpha():
    repeating = dependent_images.SETTINGS[0]
    mean, error, _ = mean_rate(repeating, "images held out")
    assert mean < 0.1 + error


def test_held_out_groups_keep_the_rate_and_near_duplicates_of_fitted_images_are_counted():
    videos = dependent_images.SETTINGS[-1]
    mixed, _, of_mixed = mean_rate(videos, "images held out")
    separate, error, of_separate = mean_rate(videos, "one image each")
    assert separate < 0.1 + error
    assert of_mixed.near_duplicates > 0.9
    assert of_separate.near_duplicates == 0
    assert of_separate.calibration == 20
    assert mixed > 0
