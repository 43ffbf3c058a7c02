"""Split-conformal thresholds keep their rate on real CLIP embeddings and on simulated ones."""

import numpy as np
import pytest

import bliss_jax as bj
from experiments.thresholds import calibration as study

DRAWS = 60


def check(data, fitted, m):
    found = study.outcomes(data, fitted, m, DRAWS, seed=1)
    for i, alpha in enumerate(study.ALPHAS):
        if m < bj.images_needed(alpha):
            assert not found.false_alarms[:, i].any(), "no p-value is so small"
            continue
        expected = np.floor(round(alpha * (m + 1), 6)) / (m + 1)
        assert expected <= alpha
        alarms = found.false_alarms[:, i]
        assert abs(alarms.mean() - expected) < 4 * alarms.std() / np.sqrt(DRAWS) + 1e-3, alpha
        discoveries = found.false_discoveries[:, i]
        assert discoveries.mean() < alpha + 4 * discoveries.std() / np.sqrt(DRAWS)


@pytest.mark.shared_data
def test_on_real_clip_embeddings(shared):
    file = shared / "data" / "clip_vitb32_cifar10_embeddings.npz"
    check(study.real(file, (0, 1, 9, 7, 3, 2)), 141, 49)


def test_on_clusters():
    check(study.simulated(2, 500, 100, seed=3), 200, 99)
