"""Measured rates of false alarms agree with split-conformal theory, on real and simulated embeddings."""

import numpy as np
import pytest

import bliss_jax as bj
from experiments.thresholds import calibration as study

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
