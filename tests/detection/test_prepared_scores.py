"""The prepared form of a score: equal to the unprepared one, computed once, exported, and never in the file."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from test_detector import C, K, Problem

import bliss_jax as bj
from bliss_jax.detection.chosen_score import fitted_arrays, why_not
from bliss_jax.detection.file_format import KIND, decode_detector, encode_detector
from bliss_jax.detection.prepared_score import prepare_score, score_embeddings
from bliss_jax.scores import score_table
from bliss_jax.storage import unseal

QUICK = ("whitened_bliss", "knn")
PREPARED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name, record in score_table().items()
    if record.prepare is not None
]
OTHERS = [name for name in score_table() if name not in ("bliss", "clip_ad")]


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.fixture(scope="module")
def fitted(problem):
    """A detector with the embeddings of the fitted images, which all scores can use."""
    return problem.fit(score="knn")


def scores_of(record, detector, x):
    prepared = prepare_score(
        record, fitted_arrays(detector), k=K, weight=0.5, shrinkage=detector.shrinkage
    )
    return np.asarray(score_embeddings(x, prepared))


def unprepared(record):
    return replace(record, prepare=None, from_prepared=None)


@pytest.mark.parametrize("name", PREPARED)
def test_prepared_scores_equal_those_of_the_function(problem, fitted, name):
    record = score_table()[name]
    expected = scores_of(unprepared(record), fitted, problem.test)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(
        scores_of(record, fitted, problem.test), expected, rtol=2e-4, atol=2e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [param.values[0] for param in PREPARED])
def test_prepared_scores_are_those_of_the_normal_classes(problem, fitted, name):
    record, normal = score_table()[name], jnp.array([True, False, True])
    inputs = {
        "embeddings": jnp.asarray(problem.test),
        "normal": normal,
        "key": jax.random.key(0),
        "k": K,
    }
    inputs |= {"weight": 0.5, "neighbours": 10, "num_classes": C} | fitted_arrays(fitted)
    inputs["nearest_images"] = bj.nearest_of_class(
        problem.test, inputs["train_embeddings"], inputs["train_labels"], 10, num_classes=C
    )

    def call(function, **more):
        from bliss_jax.scores import inputs_of

        return function(**{name: inputs[name] for name in inputs_of(function)}, **more)

    @jax.jit
    def both():
        return call(record.function), call(record.from_prepared, prepared=call(record.prepare))

    expected, found = both()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_both_parts_from_the_table_are_those_of_the_pure_functions(problem, fitted):
    both = bj.Score("both", lambda internal, external: (internal + 0.3 * external).max(axis=1))
    internal = bj.internal_class_score(problem.test, problem.label_embeddings, fitted.moments)
    external = bj.external_text_score(
        problem.test, problem.dictionary_embeddings, fitted.moments, K
    )
    expected = np.asarray(internal + 0.3 * external).max(axis=1)
    np.testing.assert_allclose(
        scores_of(both, fitted, problem.test), expected, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        fitted.with_score("internal").score(problem.test),
        internal.min(axis=1),
        rtol=1e-4,
        atol=1e-4,
    )


def centre_of(moments, normal):
    share = jnp.where(normal, moments.count, 0) / moments.count.sum()
    return {"centre": share @ moments.mean}


def from_centre(embeddings, prepared, weight):
    return weight * jnp.linalg.norm(embeddings - prepared["centre"][None, :], axis=1)


def distance(embeddings, moments, normal, weight):
    """A score of a user: lambda times the distance to the mean of all normal images."""
    return from_centre(embeddings, centre_of(moments, normal), weight)


def test_a_score_is_prepared_once_for_each_detector_and_is_not_in_the_file(problem):
    calls = []

    def prepare(moments, normal):
        jax.debug.callback(lambda: calls.append(1))
        return centre_of(moments, normal)

    detector = problem.fit(
        score=bj.Score("distance", distance, prepare=prepare, from_prepared=from_centre)
    )
    first = detector.score(problem.test)
    np.testing.assert_array_equal(detector.score(problem.test), first)
    detector.predict(problem.test, 0.1)
    jax.effects_barrier()
    assert calls == [1]
    grown = detector.update(problem.test[:30], np.arange(30) % C)
    assert not np.array_equal(grown.score(problem.test), first)
    jax.effects_barrier()
    assert calls == [1, 1]
    _, arrays = unseal(KIND, encode_detector(detector))
    assert "train_embeddings" not in arrays
    assert not any("centre" in name for name in arrays)


def program_of(path):
    file = np.load(path)
    program = export.deserialize(bytearray(file["program"]))
    arrays = {name: file[name] for name in file.files if name.startswith("arrays/")}
    call = jax.jit(program.call)
    return lambda rows: [np.asarray(part) for part in call(arrays, rows)], file


def check_program(path, detector, problem):
    """Compares an exported program with its detector."""
    call, file = program_of(path)
    scores, p_values, nearest = call(problem.test)
    expected = detector.score(problem.test)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(p_values, detector.p_values(expected), atol=0.05)
    assert (nearest == -1).all()
    known = call(detector.calibration_embeddings)
    np.testing.assert_array_equal(known[0], detector.calibration_scores)
    np.testing.assert_array_equal(known[1], detector.p_values(detector.calibration_scores))
    assert np.isnan(call(2 * problem.test[:2])[0]).all()
    assert json.loads(file["metadata.json"])["score"] == detector.score_name
    return file


@pytest.mark.parametrize(
    "name",
    [n if n == "whitened_bliss" else pytest.param(n, marks=pytest.mark.slow) for n in OTHERS],
)
def test_every_score_is_thresholded_saved_updated_and_exported(problem, fitted, name, tmp_path):
    if (reason := why_not(score_table()[name], fitted)) is not None:
        with pytest.raises(ValueError, match="cannot be computed"):
            fitted.with_score(name)
        assert reason
        return
    detector = fitted.with_score(name)
    scores = detector.score(problem.test)
    assert np.isfinite(scores).all()
    again = bj.Detector(**vars(decode_detector(encode_detector(detector), name)))
    np.testing.assert_array_equal(again.score(problem.test), scores)
    assert np.isfinite(detector.threshold(0.1))
    grown = detector.update(problem.test[:30], np.arange(30) % C)
    assert np.isfinite(grown.score(problem.test)).all()
    assert detector.explain(problem.test[:1])[0].note.endswith(f"which is {name}.")
    detector.export(tmp_path / "det.npz", inputs="embeddings", batch_size=64)
    check_program(tmp_path / "det.npz", detector, problem)


def test_a_score_of_a_user_is_saved_loaded_compared_and_exported(problem, tmp_path):
    own = bj.Score(
        "distance",
        distance,
        source="here",
        settings={"norm": 2},
        prepare=centre_of,
        from_prepared=from_centre,
    )
    detector = problem.fit(score=own)
    x, moments = problem.test, detector.moments
    count = np.asarray(moments.count)
    centre = count @ np.asarray(moments.mean) / count.sum()
    expected = 0.5 * np.linalg.norm(x - centre, axis=1)
    np.testing.assert_allclose(detector.score(x), expected, rtol=1e-5)
    facts = detector.provenance["score"]
    assert facts["function"] == f"{__name__}:distance"
    assert (facts["source"], facts["settings"]) == ("here", {"norm": 2})
    detector.save(tmp_path / "det")
    loaded = bj.Detector.load(tmp_path / "det", score=own)
    np.testing.assert_array_equal(loaded.score(x), detector.score(x))
    assert loaded.threshold(0.1) == detector.threshold(0.1)
    unknown = bj.Detector.load(tmp_path / "det", embeddings_only=True)
    with pytest.raises(ValueError, match="is not a score of this library"):
        unknown.export(tmp_path / "x.npz", inputs="embeddings")
    loaded.export(tmp_path / "det.npz", inputs="embeddings", platforms=["cpu"], batch_size=64)
    file = check_program(tmp_path / "det.npz", loaded, problem)
    assert "arrays/score/prepared/centre.npy" in file.zip.namelist()
    found = detector.compare(x, np.arange(60) >= 30, [own, "max_cosine"])
    by_hand = bj.auroc(expected.astype(np.float32), np.arange(60) >= 30)
    assert {row.name: row.auroc for row in found.rows}["distance"] == pytest.approx(float(by_hand))
    back = problem.fit().with_score(own)
    assert back.provenance["score"] == facts
    assert "score" not in back.with_score("max_cosine").provenance


def calls_python(embeddings):
    shape = jax.ShapeDtypeStruct(embeddings.shape[:1], embeddings.dtype)
    return jax.pure_callback(lambda x: x[:, 0], shape, embeddings)


def with_keys(moments):
    return {"key": jax.random.split(jax.random.key(0), 2), "mean": moments.mean}


def test_scores_that_a_program_cannot_contain_are_refused_at_the_export(problem, tmp_path):
    detector = problem.fit(score=calls_python)
    assert np.isfinite(detector.score(problem.test)).all()
    with pytest.raises(ValueError, match=r"'calls_python' \(.*:calls_python\) cannot be exported"):
        detector.export(tmp_path / "x.npz", inputs="embeddings", platforms=["cpu"])
    keyed = bj.Score(
        "keyed",
        lambda embeddings: embeddings[:, 0],
        prepare=with_keys,
        from_prepared=lambda embeddings, prepared: embeddings @ prepared["mean"][0],
    )
    with pytest.raises(
        ValueError, match="expected arrays of numbers, but prepared/key has the dtype"
    ):
        problem.fit(score=keyed).export(tmp_path / "x.npz", inputs="embeddings")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prepare": centre_of}, "'s': expected both prepare and from_prepared, or neither"),
        ({"from_prepared": from_centre}, "expected both prepare and from_prepared, or neither"),
        ({"prepare": distance, "from_prepared": from_centre}, "the parameter 'embeddings' of prepare is not"),
        (
            {"prepare": centre_of, "from_prepared": lambda prepard: 0},
            r"the parameter 'prepard' of from_prepared is not.*did you mean prepared",
        ),
        ({"prepare": centre_of, "from_prepared": 3}, "expected a function as from_prepared, got a int"),
    ],
)  # fmt: skip
def test_records_with_wrong_preparations_are_refused(fields, message, unchecked):
    with pytest.raises(ValueError, match=message):
        bj.Score("s", distance, **fields)


def test_explanations_name_the_score_and_say_which_parts_they_have(problem):
    bliss = problem.fit().explain(problem.test[:1])[0]
    assert (bliss.score_name, bliss.note) == ("bliss", None)
    other = problem.fit(score="max_cosine").explain(problem.test[:1])[0]
    assert "are those of BLISS. The parts do not add up to the score" in other.note
    assert (other.nearest_class, other.words) == (bliss.nearest_class, bliss.words)
    assert "score (max_cosine)" in other._repr_html_()
    assert "are those of BLISS" in other._repr_html_()
    none = np.empty((0, problem.test.shape[1]), np.float32), np.empty(0, np.int32)
    texts = bj.Detector.fit_embeddings(*none, *problem.texts(), k=K, score="text_bliss")
    why = texts.explain(problem.test[:1])[0]
    assert why.score == pytest.approx(why.internal + 0.5 * why.external, abs=1e-6)
    assert why.note.endswith("are cosines. The score is internal + lambda external.")
    assert "phrase 'word 0', cosine" in why._repr_html_() or ", cosine" in why._repr_html_()


def test_classes_without_images_are_added_to_detectors_without_images(problem):
    names, labels, words, dictionary = problem.texts()
    none = np.empty((0, problem.test.shape[1]), np.float32), np.empty(0, np.int32)
    two = bj.Detector.fit_embeddings(
        *none, names[:2], labels[:2], words, dictionary, k=K, score="max_cosine"
    )
    three = two.add_class("cow", label_embedding=labels[2])
    assert three.class_names == names
    expected = -(problem.test @ labels.T).max(axis=1)
    np.testing.assert_allclose(three.score(problem.test), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"fitted without images.*add_class\('cow'\), and images"):
        two.add_class("cow", problem.train[:5], label_embedding=labels[2])
    with pytest.raises(ValueError, match=r"expected normal images of 'cow', because the other"):
        problem.fit().remove_class("cow").add_class("cow", label_embedding=labels[2])
    with pytest.raises(ValueError, match="already has a class 'cow'"):
        three.add_class("cow", label_embedding=labels[2])
    with pytest.raises(
        ValueError, match="first update needs images of every class, got none of cow"
    ):
        three.update(problem.train[:8], problem.labels[:8] % 2)
    grown = three.update(problem.train, problem.labels).with_score("bliss")
    everything = problem.fit(calibration=0.0)
    np.testing.assert_allclose(
        grown.score(problem.test), everything.score(problem.test), rtol=1e-3, atol=1e-3
    )
