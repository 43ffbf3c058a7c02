"""A detector whose settings are chosen from its fitted images."""

import json

import numpy as np
import pytest
from test_detector import NAMES, K, Problem, same

import bliss_jax as bj
from bliss_jax.detection.file_format import decode_detector, encode_detector
from bliss_jax.evaluation import BlissSetting


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.fixture(scope="module")
def tuned(problem):
    return problem.fit(tune=bj.tune, weight=0.2)


def fitted_images(problem, detector):
    """Images and labels that were not held out for calibration."""
    held_out = {row.tobytes() for row in detector.calibration_embeddings}
    kept = np.array([row.tobytes() not in held_out for row in problem.train])
    return problem.train[kept], problem.labels[kept]


def test_the_settings_are_those_of_tune_on_the_fitted_images_alone(problem, tuned):
    """Calibration images have no part in the choice, so that thresholds keep their guarantee."""
    texts = problem.label_embeddings, problem.dictionary_embeddings
    expected = bj.tune(*fitted_images(problem, tuned), *texts, k=K, weight=0.2)
    assert BlissSetting(tuned.k, tuned.weight, tuned.shrinkage) == expected.chosen
    facts = json.loads(json.dumps(tuned.provenance["tuning"]))
    assert facts == {**expected.describe(), "summary": str(expected)}
    assert facts["given"] == {"k": K, "weight": 0.2, "shrinkage": 0.0}


def test_a_tuned_detector_is_that_of_its_settings(problem, tuned):
    settings = {"k": tuned.k, "weight": tuned.weight, "shrinkage": tuned.shrinkage}
    direct = problem.fit(**settings)
    np.testing.assert_array_equal(tuned.score(problem.test), direct.score(problem.test))
    assert tuned.threshold(0.1) == direct.threshold(0.1)
    same(decode_detector(encode_detector(tuned), "det"), tuned)


def test_a_detector_without_tune_has_no_record_of_a_choice(problem):
    assert "tuning" not in problem.fit().provenance


def test_tune_is_refused_without_bliss_and_with_single_images(problem):
    with pytest.raises(ValueError, match=r"tune: expected the score 'bliss'.* got 'knn'"):
        problem.fit(tune=bj.tune, score="knn")
    names, labels, words, dictionary = problem.texts()
    rows = np.concatenate([np.flatnonzero(problem.labels < 2), [2]])
    with pytest.raises(ValueError, match=rf"at least 2 fitted images .* got 1 of '{NAMES[2]}'"):
        bj.Detector.fit_embeddings(
            problem.train[rows], problem.labels[rows], names, labels, words, dictionary,
            k=K, calibration=0.0, tune=bj.tune,
        )  # fmt: skip
