"""BlissOutlierDetector passes scikit-learn's checks, and its scores are those of BLISS."""

import doctest
import pickle
import re
import warnings
from collections import defaultdict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import random_embeddings
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import bliss_jax as bj
from bliss_jax import BlissOutlierDetector
from bliss_jax.detection import sklearn as outlier_detector

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "scikit-learn.md"

ZERO_ROW = {
    "check_estimators_dtypes": "its integer X has rows of zeros, which cannot be normalised"
}
NO_CLASSES = dict.fromkeys(
    ("check_outliers_fit_predict", "check_outliers_train"),
    "it fits without y, which holds the class of each row",
)
EXCEPTIONS = {"all": ZERO_ROW, "several labels": NO_CLASSES}
"""Checks of scikit-learn that fail, by the labels of the detector, with the reason. The documentation lists
the same."""

CHECKED_DIMS = (1, 2, 3, 4, 5, 10)
"""Dimensions of the data in scikit-learn's checks. The checked detector's texts have the same dimension."""

C, D, M, N = 4, 24, 60, 320


class Data:
    """Images around one direction, texts around another, and class offsets that both share.

    Class 3, which has a label, and class 4, which has none, are anomalies.
    """

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        images, texts = random_embeddings(rng, 2, D)
        meaning = random_embeddings(rng, C + 1, D)
        noise = random_embeddings(rng, N, D)
        self.labels = reference.unit(texts + meaning[:C]).astype(np.float32)
        self.words = reference.unit(texts + random_embeddings(rng, M, D)).astype(np.float32)
        self.true = rng.integers(0, C + 1, N)
        self.x = reference.unit(images + meaning[self.true] + 0.7 * noise).astype(np.float32)
        self.y = np.where(self.true < 3, self.true, -1)

    def detector(self, **parameters):
        given = {"label_embeddings": self.labels, "dictionary_embeddings": self.words}
        return BlissOutlierDetector(**given | parameters)

    def bliss(self, x, shrinkage=0.0, **settings):
        """Returns the scores of the library's functions, with a mask for the class without rows."""
        normal = self.y >= 0
        moments = bj.fit_moments(self.x[normal], self.y[normal], num_classes=C)
        mask = np.asarray(moments.count) > 0
        return bj.bliss_score(
            x, self.labels, self.words, moments, normal=mask, shrinkage=shrinkage, **settings
        )


@pytest.fixture(scope="module")
def data():
    return Data()


@pytest.fixture(scope="module")
def fitted(data):
    return data.detector().fit(data.x, data.y)


# scikit-learn's checks


@pytest.mark.slow
@parametrize_with_checks([BlissOutlierDetector()], expected_failed_checks=lambda detector: ZERO_ROW)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_outliers_fit_predict,
        estimator_checks.check_outliers_train,
        estimator_checks.check_estimators_pickle,
        estimator_checks.check_n_features_in_after_fitting,
        estimator_checks.check_dict_unchanged,
    ],
    ids=lambda check: check.__name__,
)
def test_some_of_scikit_learns_checks_quickly(check):
    check("BlissOutlierDetector", BlissOutlierDetector())


def texts(kind, dim):
    rng = np.random.default_rng(0)
    labels = {"dictionary": None, "one label": rng.normal(size=(1, dim))}
    return {
        "dictionary_embeddings": rng.normal(size=(30, dim)),
        "label_embeddings": labels.get(kind, rng.normal(size=(5, dim))),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dictionary", "several labels"])
def test_scikit_learns_checks_pass_with_texts_of_the_dimension_of_their_data(kind):
    """Each check passes for the dimension of its X, except the listed ones, which pass for none."""
    statuses = defaultdict(set)
    for dim in CHECKED_DIMS:
        detector = BlissOutlierDetector(**texts(kind, dim))
        for result in check_estimator(detector, on_fail=None, on_skip=None):
            statuses[result["check_name"]].add(result["status"])
    # A check that is skipped because of a missing package has neither failed nor passed.
    failed = {check for check, found in statuses.items() if found == {"failed"}}
    assert failed == {*ZERO_ROW, *EXCEPTIONS.get(kind, {})}
    assert sum("passed" in found for found in statuses.values()) > 35


@pytest.mark.slow
def test_with_one_label_the_checks_that_fit_without_y_pass():
    detector = BlissOutlierDetector(**texts("one label", 2))
    for result in check_estimator(detector, on_fail=None, on_skip=None):
        if result["check_name"] in NO_CLASSES:
            assert result["status"] == "passed", result["exception"]


def test_the_documentation_lists_the_checks_that_fail():
    rows = re.findall(r"^\| `(check_\w+)` \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    stated = [(check, kind, why) for kind in EXCEPTIONS for check, why in EXCEPTIONS[kind].items()]
    assert rows == stated


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float16, np.float32, np.float64])
def test_scores_are_the_same_for_every_dtype(dtype):
    """This is the fact of the excepted check, on data without rows of zeros."""
    x = np.random.default_rng(0).integers(1, 9, (20, 5)).astype(dtype)
    y = np.tile([1, 2], 10)
    scores = BlissOutlierDetector().fit(x, y).score_samples(x)
    expected = BlissOutlierDetector().fit(x.astype(np.float64), y).score_samples(x)
    np.testing.assert_array_equal(scores, expected)


# The score


@pytest.mark.parametrize("shrinkage", [0.0, 20.0])
def test_score_samples_is_minus_bliss(data, shrinkage):
    detector = data.detector(k=7, weight=0.8, shrinkage=shrinkage).fit(data.x, data.y)
    expected = -data.bliss(data.x, k=7, weight=0.8, shrinkage=shrinkage)
    np.testing.assert_allclose(detector.score_samples(data.x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parity
def test_score_samples_is_minus_the_equation(data, fitted):
    normal = data.y >= 0
    arguments = data.labels, data.words, data.x[normal], data.y[normal], range(3)
    *_, expected = reference.bliss(data.x, *arguments)
    np.testing.assert_allclose(fitted.score_samples(data.x), -expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shrinkage", [0.0, 5.0])
def test_without_a_dictionary_the_score_is_the_internal_part(data, shrinkage):
    detector = BlissOutlierDetector(data.labels, shrinkage=shrinkage).fit(data.x, data.y)
    labels = data.labels[:3]
    internal = bj.internal_class_score(data.x, labels, detector.moments_, shrinkage=shrinkage)
    expected = -np.asarray(internal).min(axis=1)
    np.testing.assert_allclose(detector.score_samples(data.x), expected, rtol=1e-4, atol=1e-4)
    other = clone(detector).set_params(k=1, weight=7.0).fit(data.x, data.y)
    np.testing.assert_array_equal(other.score_samples(data.x), detector.score_samples(data.x))


def test_without_labels_the_normalised_class_means_replace_them(data):
    plain = BlissOutlierDetector(dictionary_embeddings=data.words).fit(data.x, data.y)
    means = [data.x[data.y == c].mean(axis=0, dtype=np.float64) for c in range(3)]
    np.testing.assert_allclose(plain.label_embeddings_, reference.unit(means), atol=1e-6)
    given = plain.label_embeddings_
    given = BlissOutlierDetector(given, data.words).fit(data.x, data.y)
    np.testing.assert_array_equal(given.score_samples(data.x), plain.score_samples(data.x))


def test_higher_is_more_normal(data, fitted):
    normal = data.y >= 0
    scores = fitted.score_samples(data.x)
    assert roc_auc_score(normal, scores) > 0.9
    assert scores[normal].mean() > scores[~normal].mean()
    assert bj.auroc(-scores.astype(np.float32), ~normal) == pytest.approx(
        roc_auc_score(normal, scores), abs=1e-6
    )


def test_the_score_of_a_row_does_not_depend_on_other_rows(data, fitted):
    """Scores are bit-identical for a row alone, among other rows, and in another place of another block."""
    scores = fitted.score_samples(data.x)
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(fitted.score_samples(data.x[order]), scores[order])
    np.testing.assert_array_equal(fitted.score_samples(data.x[100:290]), scores[100:290])
    for row in (0, 255, 256, N - 1):
        np.testing.assert_array_equal(fitted.score_samples(data.x[row : row + 1]), scores[[row]])


def test_scaling_rows_and_texts_changes_no_score(data, fitted):
    """The factors are powers of two, so nothing is rounded; some squares leave the range of float64."""
    factor = 2.0 ** np.random.default_rng(2).integers(-600, 600, (N, 1))
    scaled = BlissOutlierDetector(data.labels * 4, data.words / 8).fit(data.x * factor, data.y)
    for x in (data.x, data.x.astype(np.float64) * factor):
        np.testing.assert_array_equal(scaled.score_samples(x), fitted.score_samples(data.x))


def test_float64_input_leads_to_no_warning(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = BlissOutlierDetector(
            data.labels.astype(np.float64), data.words.astype(np.float64)
        )
        detector.fit(data.x.astype(np.float64), data.y).predict(data.x.astype(np.float64))


def test_lists_and_jax_arrays_are_accepted_as_arrays(data, fitted):
    given = BlissOutlierDetector(data.labels.tolist(), jnp.asarray(data.words))
    given.fit(jnp.asarray(data.x), data.y.tolist())
    np.testing.assert_array_equal(
        given.score_samples(data.x.tolist()), fitted.score_samples(data.x)
    )


# Classes and known anomalies


def test_known_anomalies_are_excluded_from_the_fit(data, fitted):
    normal = data.y >= 0
    without = data.detector().fit(data.x[normal], data.y[normal])
    np.testing.assert_array_equal(without.score_samples(data.x), fitted.score_samples(data.x))
    assert without.offset_ == fitted.offset_


def test_a_class_without_rows_is_not_normal(data, fitted):
    assert fitted.normal_classes_.tolist() == [0, 1, 2]
    assert fitted.moments_.count.tolist() == [np.sum(data.y == c) for c in range(3)]
    kept = data.y != 1
    detector = data.detector().fit(data.x[kept], data.y[kept])
    assert detector.normal_classes_.tolist() == [0, 2]
    np.testing.assert_array_equal(detector.label_embeddings_, fitted.label_embeddings_[[0, 2]])
    assert (detector.score_samples(data.x) <= fitted.score_samples(data.x) + 1e-4).all()


def test_one_class_needs_no_y_and_accepts_scikit_learns_signs(data):
    """1 for normal rows and -1 for outliers, as `predict` returns them, are one class and known anomalies."""
    x = data.x[data.y >= 0]
    none = BlissOutlierDetector(dictionary_embeddings=data.words).fit(x)
    assert none.normal_classes_.tolist() == [0]
    signs = np.where(data.y >= 0, 1, -1)
    signed = BlissOutlierDetector(dictionary_embeddings=data.words).fit(data.x, signs)
    assert signed.normal_classes_.tolist() == [1]
    np.testing.assert_array_equal(signed.score_samples(data.x), none.score_samples(data.x))


def test_integral_floats_are_accepted_as_classes(data, fitted):
    floats = data.detector().fit(data.x, data.y.astype(np.float64))
    np.testing.assert_array_equal(floats.score_samples(data.x), fitted.score_samples(data.x))


# Thresholds


@pytest.mark.parametrize("contamination", [0.05, 0.1, 0.5])
def test_offset_is_the_quantile_of_the_fitted_rows(data, contamination):
    detector = data.detector(contamination=contamination).fit(data.x, data.y)
    normal = data.y >= 0
    scores = detector.score_samples(data.x)
    assert detector.offset_ == np.quantile(scores[normal], contamination)
    np.testing.assert_array_equal(detector.decision_function(data.x), scores - detector.offset_)
    predicted = detector.predict(data.x)
    np.testing.assert_array_equal(predicted, np.where(scores >= detector.offset_, 1, -1))
    assert abs((predicted[normal] == -1).sum() - contamination * normal.sum()) <= 1
    np.testing.assert_array_equal(clone(detector).fit_predict(data.x, data.y), predicted)


# Within scikit-learn


def test_clone_and_set_params(data, fitted):
    copy = clone(fitted).set_params(k=3, weight=0.2, dictionary_embeddings=data.words[:20])
    with pytest.raises(NotFittedError):
        copy.predict(data.x)
    copy.fit(data.x, data.y)
    expected = BlissOutlierDetector(data.labels, data.words[:20], k=3, weight=0.2)
    expected.fit(data.x, data.y)
    np.testing.assert_array_equal(copy.score_samples(data.x), expected.score_samples(data.x))


def test_changed_parameters_take_effect_at_the_next_fit(data):
    detector = data.detector().fit(data.x, data.y)
    before = detector.score_samples(data.x)
    detector.set_params(k=3, weight=2.0, shrinkage=9.0, dictionary_embeddings=None)
    np.testing.assert_array_equal(detector.score_samples(data.x), before)
    assert not np.array_equal(detector.fit(data.x, data.y).score_samples(data.x), before)


def test_a_pickled_detector_predicts_the_same(data, fitted):
    loaded = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    np.testing.assert_array_equal(loaded.predict(data.x), fitted.predict(data.x))


def test_a_pipeline_scores_as_the_detector_alone(data, fitted):
    pipeline = make_pipeline(Normalizer(), data.detector()).fit(3 * data.x, data.y)
    scores = pipeline.score_samples(5 * data.x)
    np.testing.assert_allclose(scores, fitted.score_samples(data.x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(
        pipeline.predict(data.x), np.where(scores < fitted.offset_, -1, 1)
    )


def normal_is_positive(detector, x, y):
    return roc_auc_score(y != -1, detector.score_samples(x))


def test_grid_search_over_k_and_weight_equals_fits_by_hand(data):
    """Each cell is the mean AUROC over the folds, and the best cell is fitted again."""
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    grid = {"k": [1, 10], "weight": [0.0, 0.5, 2.0]}
    search = GridSearchCV(data.detector(), grid, scoring=normal_is_positive, cv=folds)
    search.fit(data.x, data.y)
    found = search.cv_results_
    assert len(set(found["mean_test_score"])) > 2
    for parameters, mean in zip(found["params"], found["mean_test_score"], strict=True):
        areas = []
        for train, test in folds.split(data.x, data.y):
            detector = data.detector(**parameters).fit(data.x[train], data.y[train])
            areas.append(normal_is_positive(detector, data.x[test], data.y[test]))
        assert mean == pytest.approx(np.mean(areas), abs=1e-12)
    best = data.detector(**search.best_params_).fit(data.x, data.y)
    np.testing.assert_array_equal(search.predict(data.x), best.predict(data.x))


def test_grid_search_by_roc_auc_works_with_one_class(data):
    """`scoring="roc_auc"` takes the larger of 0 and -1 as the positive class, as scikit-learn does."""
    kept = (data.true == 0) | (data.true > 2)
    x, y = data.x[kept], np.where(data.true[kept] == 0, 0, -1)
    detector = BlissOutlierDetector(data.labels[:1], data.words)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    areas = [
        GridSearchCV(detector, {"k": [5]}, scoring=scoring, cv=folds).fit(x, y).best_score_
        for scoring in ("roc_auc", normal_is_positive)
    ]
    assert areas[0] == areas[1] > 0.9


# Rejected arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "'k' parameter .* must be an int in the range \\[1, inf\\)"),
        ({"k": 2.5}, "'k' parameter"),
        ({"k": M + 1}, f"k: expected an integer in 1..{M}"),
        ({"weight": np.inf}, "'weight' parameter"),
        ({"weight": "half"}, "'weight' parameter"),
        ({"shrinkage": -1.0}, "'shrinkage' parameter"),
        ({"contamination": 0.0}, "'contamination' parameter"),
        ({"contamination": 0.6}, "'contamination' parameter"),
        ({"label_embeddings": "cat"}, "'label_embeddings' parameter"),
        ({"label_embeddings": np.ones((C, D + 1))}, r"label_embeddings: .* 24, got \[4, 25\]"),
        ({"dictionary_embeddings": np.ones((M, 3))}, r"dictionary_embeddings: .* got \[60, 3\]"),
        ({"dictionary_embeddings": np.ones(D)}, "Expected 2D array"),
        ({"dictionary_embeddings": np.ones((0, D))}, "minimum of 1 is required"),
        ({"dictionary_embeddings": np.eye(M, D)}, "dictionary_embeddings: row 24 is zero, so it"),
        ({"label_embeddings": np.full((C, D), np.nan)}, "contains NaN"),
    ],
)  # fmt: skip
def test_invalid_parameters_are_rejected(data, unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        data.detector(**change).fit(data.x, data.y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y: expected the class of each row, because label_embeddings has 4 rows; got None"),
        (np.full(N, -1), "y: expected at least one normal row, got -1 .* for all 320"),
        (np.arange(N) % 5, r"y: expected integers in -1..3, got 0..4"),
        (np.arange(N) % 4 - 2, r"y: expected integers in -1..3, got -2..1"),
        (np.full(N, 0.5), "y: expected integers, .*Unknown label type: float64"),
        (np.full(N, "cat"), "y: expected integers, .*Unknown label type: <U3"),
        (np.ones(N, bool), "y: expected integers, .*Unknown label type: bool"),
        (np.full(N, np.nan), "Input y contains NaN"),
        (np.zeros(N - 1, int), "inconsistent numbers of samples"),
        (np.zeros((N, 2), int), "y should be a 1d array"),
    ],
)
def test_invalid_classes_are_rejected(data, y, message):
    with pytest.raises(ValueError, match=message):
        data.detector().fit(data.x, y)


def test_invalid_classes_are_rejected_without_labels(data):
    with pytest.raises(ValueError, match=r"y: expected integers of at least -1, got -2\.\.1"):
        BlissOutlierDetector().fit(data.x, np.arange(N) % 4 - 2)


def test_invalid_rows_are_rejected(data, fitted):
    for position, value, message in [(7, 0.0, "X: row 7 is zero"), (8, np.nan, "X contains NaN")]:
        x = data.x.copy()
        x[position] = value
        for method in (lambda x: data.detector().fit(x, data.y), fitted.score_samples):
            with pytest.raises(ValueError, match=message):
                method(x)
    with pytest.raises(ValueError, match=r"X has 23 features, but .* expecting 24"):
        fitted.predict(data.x[:, 1:])
    with pytest.raises(ValueError, match="minimum of 1 is required"):
        fitted.predict(data.x[:0])


def test_a_class_mean_of_zero_is_rejected():
    """Class 1 holds rows and their negatives."""
    x = np.random.default_rng(0).normal(size=(30, 5))
    x, y = np.concatenate([x + 3, x, -x]), np.repeat([0, 1], [30, 60])
    with pytest.raises(ValueError, match=r"rows of class 1 have the mean zero.*label_embeddings"):
        BlissOutlierDetector().fit(x, y)


def test_the_example_in_the_docstring_runs():
    found = doctest.DocTestFinder().find(
        BlissOutlierDetector, "example", globs=vars(outlier_detector).copy()
    )
    runner = doctest.DocTestRunner()
    results = [runner.run(test) for test in found]
    assert sum(result.attempted for result in results) == 4
    assert not any(result.failed for result in results)


# Real embeddings


@pytest.mark.slow
@pytest.mark.shared_data
def test_grid_search_on_clip_embeddings_prefers_the_external_part(shared):
    """CIFAR-10 with six normal classes."""
    file = np.load(shared / "data" / "clip_vitb32_cifar10_embeddings.npz")
    y = np.where(file["labels"] < 6, file["labels"], -1)
    words = file["text_emb"][file["text_source"] == "imagenet1k"]
    detector = BlissOutlierDetector(file["class_text_emb"], words)
    search = GridSearchCV(
        detector,
        {"weight": [0.0, 0.5]},
        scoring=normal_is_positive,
        cv=StratifiedKFold(2, shuffle=True, random_state=0),
    ).fit(file["image_emb"], y)
    internal, bliss = search.cv_results_["mean_test_score"]
    assert bliss > internal > 0.85
    assert search.best_params_ == {"weight": 0.5}


def test_a_score_that_adapts_to_the_rows_is_refused():
    with pytest.raises(ValueError, match="'oodd' cannot be computed: it depends on the other"):
        bj.BlissOutlierDetector(anomaly_score="oodd").fit(np.eye(4))
