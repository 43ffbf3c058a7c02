"""A detector of any score: fitted, saved, updated, compared, and fitted without images."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from PIL import Image
from test_detector import D, K, Problem, same

import bliss_jax as bj
from bliss_jax.detection.chosen_score import needs_images
from bliss_jax.detection.file_format import KIND, decode_detector, encode_detector
from bliss_jax.scores import score_table
from bliss_jax.storage import seal, unseal


@pytest.fixture(scope="module")
def problem():
    return Problem()


def margin_score(embeddings, label_embeddings, *, weight=0.5):
    """A score of a user: minus the difference of the two largest cosines to labels."""
    first = jnp.sort(embeddings @ label_embeddings.T, axis=1)[:, ::-1]
    return weight * (first[:, 1] - first[:, 0])


def state_inputs(problem, detector):
    fitted = detector.score_arrays
    return SimpleNamespace(
        x=problem.test, labels=problem.label_embeddings, texts=problem.dictionary_embeddings,
        moments=detector.moments, train=fitted.get("train_embeddings"),
    )  # fmt: skip


EXPECTED = {
    "whitened_bliss": lambda i: bj.whitened_bliss_score(i.x, i.labels, i.texts, i.moments, K),
    "mahalanobis": lambda i: bj.mahalanobis_score(i.x, i.moments),
    "max_cosine": lambda i: bj.max_cosine_score(i.x, i.labels),
    "mcm": lambda i: bj.mcm_score(i.x, i.labels),
    "knn": lambda i: bj.knn_score(i.x, i.train),
    "external": lambda i: bj.external_text_score(i.x, i.texts, i.moments, K).min(axis=1),
}


QUICK = ("max_cosine", "knn")
CHECKED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXPECTED]


@pytest.mark.parametrize("name", CHECKED)
def test_scores_are_those_of_the_pure_function(problem, name):
    detector = problem.fit(score=name)
    expected = np.asarray(EXPECTED[name](state_inputs(problem, detector)))
    np.testing.assert_allclose(detector.score(problem.test), expected, rtol=1e-4, atol=1e-5)
    one_by_one = np.concatenate([detector.score(row[None]) for row in problem.test[:3]])
    np.testing.assert_array_equal(one_by_one, detector.score(problem.test)[:3])
    flagged = detector.predict(problem.test, 0.1)
    np.testing.assert_array_equal(flagged, detector.p_values(detector.score(problem.test)) <= 0.1)
    why = detector.explain(problem.test[:2])
    assert [w.score for w in why] == detector.score(problem.test[:2]).tolist()
    bliss = problem.fit().explain(problem.test[:2])
    assert [(w.nearest_class, w.words) for w in why] == [(w.nearest_class, w.words) for w in bliss]


@pytest.mark.parametrize("name", ["max_cosine", "knn"])
def test_a_detector_is_saved_and_loaded_with_its_score(problem, name, tmp_path):
    detector = problem.fit(score=name)
    detector.save(tmp_path / "det")
    loaded = bj.Detector.load(tmp_path / "det")
    same(detector, loaded)
    assert loaded.score_name == name
    assert f"score {name!r}" in repr(loaded)
    assert loaded.describe()["score"] == name
    np.testing.assert_array_equal(loaded.score(problem.test), detector.score(problem.test))


def test_a_detector_with_bliss_keeps_format_1(problem):
    description, arrays = unseal(KIND, encode_detector(problem.fit()))
    assert description["format"] == 1
    assert "score" not in description
    assert "train_embeddings" not in arrays
    description, arrays = unseal(KIND, encode_detector(problem.fit(score="knn")))
    assert (description["format"], description["score"]) == (2, "knn")
    description["score"] = 3
    with pytest.raises(ValueError, match="score is int, expected a name"):
        decode_detector(seal(KIND, description, arrays), "x")
    arrays["train_labels"] = arrays["train_labels"][:-1]
    description["score"] = "knn"
    with pytest.raises(ValueError, match=r"train_embeddings: expected float32 \["):
        decode_detector(seal(KIND, description, arrays), "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mahalanobis", "knn"])
def test_updates_and_changes_of_classes_equal_one_fit(problem, name):
    everything = problem.fit(score=name, calibration=0.0)
    first, rest = slice(0, 90), slice(90, None)
    part = bj.Detector.fit_embeddings(
        problem.train[first],
        problem.labels[first],
        *problem.texts(),
        k=K,
        score=name,
        calibration=0.0,
    )
    updated = part.update(problem.train[rest], problem.labels[rest])
    np.testing.assert_allclose(
        updated.score(problem.test), everything.score(problem.test), rtol=1e-3
    )
    fewer = everything.remove_class("cow")
    kept = problem.labels < 2
    names, labels, words, dictionary = problem.texts()
    without = bj.Detector.fit_embeddings(
        problem.train[kept], problem.labels[kept], names[:2], labels[:2], words, dictionary, k=K,
        score=name, calibration=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(fewer.score(problem.test), without.score(problem.test), rtol=1e-3)
    back = fewer.add_class("cow", problem.train[~kept], label_embedding=labels[2], calibration=0.0)
    np.testing.assert_allclose(back.score(problem.test), everything.score(problem.test), rtol=1e-3)


def test_the_score_can_be_changed_if_the_state_has_what_it_needs(problem):
    bliss = problem.fit()
    np.testing.assert_array_equal(
        bliss.with_score("max_cosine").score(problem.test),
        problem.fit(score="max_cosine").score(problem.test),
    )
    back = problem.fit(score="knn").with_score("bliss")
    np.testing.assert_array_equal(back.score(problem.test), bliss.score(problem.test))
    assert not back.score_arrays
    with pytest.raises(
        ValueError, match="'knn' cannot be computed: it needs the embeddings of the"
    ):
        bliss.with_score("knn")


def test_an_own_score_is_passed_to_load_and_never_read_from_the_file(problem, tmp_path):
    detector = problem.fit(score=margin_score)
    expected = np.asarray(margin_score(problem.test, problem.label_embeddings))
    np.testing.assert_allclose(detector.score(problem.test), expected, rtol=1e-5, atol=1e-7)
    facts = detector.provenance["score"]
    assert facts["function"] == f"{__name__}:margin_score"
    detector.save(tmp_path / "det")
    with pytest.raises(
        ValueError, match=r"'margin_score', is not a score of this library: pass its"
    ):
        bj.Detector.load(tmp_path / "det")
    loaded = bj.Detector.load(tmp_path / "det", score=margin_score)
    np.testing.assert_array_equal(loaded.score(problem.test), detector.score(problem.test))
    with pytest.raises(
        ValueError, match="expected the score 'margin_score' of the fit, got 'other'"
    ):
        bj.Detector.load(tmp_path / "det", score=bj.Score("other", margin_score))
    unknown = bj.Detector.load(tmp_path / "det", embeddings_only=True)
    with pytest.raises(ValueError, match="is not a score of this library"):
        unknown.score(problem.test)


@pytest.mark.slow
def test_the_best_score_of_a_sample_is_found_with_paired_tests(problem):
    detector = problem.fit()
    is_anomaly = np.arange(60) >= 30
    found = detector.compare(problem.test, is_anomaly)
    assert {"bliss", "mahalanobis", "max_cosine"} <= {row.name for row in found.rows}
    by_hand = bj.compare_scores({"bliss": detector.score(problem.test)}, is_anomaly)
    assert by_hand.rows[0].auroc == next(r.auroc for r in found.rows if r.name == "bliss")
    assert "knn is left out: it needs the embeddings of the fitted images" in repr(found)
    two = detector.compare(problem.test, is_anomaly, ["bliss", margin_score], reference="bliss")
    assert (two.tests, two.reference) == (1, "bliss")
    with pytest.raises(ValueError, match="'knn' cannot be computed"):
        detector.compare(problem.test, is_anomaly, ["knn"])


def test_a_detector_without_images_scores_by_texts_and_has_no_thresholds():
    model = bj.load_model("bliss-jax/untrained")
    pictures = np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3), dtype=np.uint8)
    names, words = ("cat", "dog"), tuple(f"word {i}" for i in range(12))
    detector = bj.Detector.fit(model, None, class_names=names, dictionary=words, k=3)
    assert detector.score_name in ("text_bliss", "max_cosine")
    x = detector._embeddings(pictures)
    to_labels = x @ detector.label_embeddings.T
    to_words = np.sort(x @ detector.dictionary_embeddings.T, axis=1)[:, ::-1]
    expected = -to_labels.max(axis=1) + 0.5 * to_words[:, :3].mean(axis=1)
    np.testing.assert_allclose(detector.score(pictures), expected, atol=1e-5)
    why = detector.explain(pictures[:1])[0]
    assert why.nearest_class == names[int(to_labels[0].argmax())]
    assert why.internal == pytest.approx(-to_labels[0].max(), abs=1e-5)
    assert [z for _, z in why.words] == pytest.approx(to_words[0, :5].tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="no calibration images"):
        detector.threshold(0.1)
    calibrated = detector.calibrate(pictures[:20], np.zeros(20, int))
    assert calibrated.predict(pictures[:20], 0.1).sum() <= 2
    with pytest.raises(
        ValueError, match="first update needs images of every class, got none of dog"
    ):
        detector.update(pictures[:4], np.zeros(4, int))
    grown = detector.update(pictures[:8], np.arange(8) % 2).with_score("bliss")
    fitted = bj.Detector.fit(
        model, pictures[:8], np.arange(8) % 2, names, dictionary=words, k=3, calibration=0.0
    )
    np.testing.assert_allclose(grown.score(pictures), fitted.score(pictures), rtol=1e-3)


def test_a_score_that_needs_images_is_refused_without_any(problem):
    names, labels, words, dictionary = problem.texts()
    none = np.empty((0, D), np.float32), np.empty(0, np.int32)
    with pytest.raises(ValueError, match=r"'bliss' needs normal images.*max_cosine"):
        bj.Detector.fit_embeddings(*none, names, labels, words, dictionary, k=K)
    found = bj.Detector.fit_embeddings(
        *none, names, labels, words, dictionary, k=K, score="max_cosine"
    )
    again = decode_detector(encode_detector(found), "x")
    assert not np.asarray(again.moments.count).any()
    assert not needs_images(score_table()["max_cosine"])


@pytest.mark.parametrize(
    "score",
    [
        "bliss_proxies",
        bj.Score("own", margin_score, transductive=True),
        lambda embeddings, counted: embeddings[:, 0],
    ],
)
def test_a_score_that_adapts_to_the_images_is_refused(problem, score):
    with pytest.raises(ValueError, match="p-values and thresholds are not valid for it"):
        problem.fit(score=score)
    with pytest.raises(ValueError, match="depends on the other images"):
        problem.fit().with_score(score)


@pytest.mark.parametrize("images", [1, 2])
def test_a_few_images_per_class_are_enough(problem, images):
    rows = np.arange(3 * images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = bj.Detector.fit_embeddings(
            problem.train[rows], problem.labels[rows], *problem.texts(), k=K, shrinkage=20.0
        )
    assert np.isfinite(detector.score(problem.test)).all()


def test_a_folder_without_subfolders_is_one_class(tmp_path):
    model = bj.load_model("bliss-jax/untrained")
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    options = {"dictionary": ("a", "b", "c"), "k": 2, "calibration": 0.0}
    with pytest.warns(
        UserWarning, match="has no subfolders, so all of its images are of one class, 'object'"
    ):
        detector = bj.Detector.fit(model, tmp_path, **options)
    assert detector.class_names == ("object",)
    assert detector.moments.count.tolist() == [6]
    named = bj.Detector.fit(model, str(tmp_path), class_names=["screw"], **options)
    assert named.class_names == ("screw",)
    with pytest.raises(ValueError, match=r"expected one name, because .* has no subfolders, got"):
        bj.Detector.fit(model, tmp_path, class_names=["a", "b"], **options)


def test_a_kept_file_of_format_2_stays_readable():
    kept = bj.Detector.load(Path(__file__).parents[1] / "data" / "detector-format-2.safetensors")
    x = reference.unit(np.eye(8)[:5] + 0.1).astype(np.float32)
    nearest = np.sort(x @ kept.score_arrays["train_embeddings"].T, axis=1)[:, -10:]
    np.testing.assert_allclose(kept.score(x), -nearest.mean(axis=1), rtol=1e-5)
    assert (kept.score_name, kept.class_names, kept.k) == ("knn", ("cat", "hound"), 2)
    assert len(kept.score_arrays["train_labels"]) == int(np.sum(kept.moments.count)) == 24
