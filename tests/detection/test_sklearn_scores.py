"""BlissOutlierDetector with a score other than BLISS."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from test_sklearn import Data

import bliss_jax as bj
from bliss_jax import BlissOutlierDetector


@pytest.fixture(scope="module")
def data():
    return Data()


def halved_cosine(embeddings, label_embeddings, weight=1.0):
    """A score of a user: minus lambda times the largest cosine to a label."""
    return -weight * bj.similarity(embeddings, label_embeddings).max(axis=1)


def expected(data, name):
    normal = data.y >= 0
    moments = bj.fit_moments(data.x[normal], data.y[normal], num_classes=4)
    mask = np.asarray(moments.count) > 0
    return {
        "mahalanobis": lambda: bj.mahalanobis_score(data.x, moments, normal=mask),
        "whitened_bliss": lambda: bj.whitened_bliss_score(
            data.x, data.labels, data.words, moments, normal=mask
        ),
        "knn": lambda: bj.knn_score(data.x, data.x[normal]),
        "max_cosine": lambda: bj.max_cosine_score(data.x, data.labels, normal=mask),
        "external": lambda: bj.external_text_score(data.x, data.words, moments)[:, mask].min(
            axis=1
        ),
    }[name]()


@pytest.mark.parametrize(
    "name",
    ["knn", *(pytest.param(n, marks=pytest.mark.slow) for n in
              ("max_cosine", "mahalanobis", "whitened_bliss", "external"))],
)  # fmt: skip
def test_samples_have_minus_the_score_of_the_pure_function(data, name):
    detector = data.detector(anomaly_score=name).fit(data.x, data.y)
    scores = detector.score_samples(data.x)
    np.testing.assert_allclose(scores, -np.asarray(expected(data, name)), rtol=1e-3, atol=1e-4)
    one_by_one = np.concatenate([detector.score_samples(row[None]) for row in data.x[:3]])
    np.testing.assert_array_equal(one_by_one, scores[:3])
    assert np.mean(detector.predict(data.x[data.y >= 0]) == -1) == pytest.approx(0.1, abs=0.01)


def test_own_scores_are_cloned_pickled_and_set_as_a_parameter(data):
    record = bj.Score("halved", halved_cosine)
    detector = data.detector(anomaly_score=halved_cosine, weight=0.5).fit(data.x, data.y)
    with_record = (
        clone(data.detector(weight=0.5)).set_params(anomaly_score=record).fit(data.x, data.y)
    )
    largest = (data.x @ data.labels[:3].T).max(axis=1)
    np.testing.assert_allclose(detector.score_samples(data.x), 0.5 * largest, rtol=1e-4, atol=1e-6)
    again = pickle.loads(pickle.dumps(clone(with_record).fit(data.x, data.y)))  # noqa: S301
    np.testing.assert_array_equal(again.score_samples(data.x), detector.score_samples(data.x))


@pytest.mark.slow
def test_a_grid_search_chooses_among_scores(data):
    def auroc(estimator, x, y):
        return roc_auc_score(y != -1, estimator.score_samples(x))

    grid = {"anomaly_score": ["max_cosine", "knn", "bliss"]}
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    search = GridSearchCV(data.detector(), grid, scoring=auroc, cv=folds).fit(data.x, data.y)
    means = search.cv_results_["mean_test_score"]
    assert search.best_params_["anomaly_score"] == grid["anomaly_score"][int(np.argmax(means))]
    assert np.isfinite(means).all()


@pytest.mark.slow
def test_scores_of_images_alone_need_no_texts(data):
    detector = BlissOutlierDetector(anomaly_score="knn").fit(data.x)
    np.testing.assert_allclose(
        detector.score_samples(data.x), -np.asarray(bj.knn_score(data.x, data.x)), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anomaly_score": "knnn"}, r"unknown score 'knnn' \(did you mean knn"),
        (
            {"anomaly_score": "text_bliss", "dictionary_embeddings": None},
            "'text_bliss' needs, got None",
        ),
        ({"anomaly_score": "clip_ad"}, "got 'clip_ad', which needs the embedding of another text"),
        ({"anomaly_score": 3}, "The 'anomaly_score' parameter of BlissOutlierDetector must be"),
    ],
)
def test_scores_that_cannot_be_computed_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        data.detector(**options).fit(data.x, data.y)


def test_a_covariance_of_one_row_per_class_is_refused(data):
    with pytest.raises(
        ValueError, match="'mahalanobis' cannot be computed: a covariance needs more"
    ):
        data.detector(anomaly_score="mahalanobis").fit(data.x[:1], np.array([0]))
