"""A detector returns the scores of the pure functions, is immutable, and rejects invalid input."""

import dataclasses
import json
import pickle
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import reference
from reference import random_embeddings

import bliss_jax as bj
from bliss_jax.datasets import ImageDataset
from bliss_jax.detection.file_format import KIND, decode_detector, encode_detector
from bliss_jax.storage import seal, unseal

C, D, M, K = 3, 16, 40, 4
NAMES = ("cat", "dog", "cow")
WORDS = (*tuple(f"word {i}" for i in range(M - 1)), "word 0")


class Problem:
    def __init__(self, n=240, seed=0):
        rng = np.random.default_rng(seed)
        images, texts = random_embeddings(rng, D), random_embeddings(rng, D)
        self.centres = random_embeddings(rng, C, D, around=images)
        self.labels = np.arange(n, dtype=np.int32) % C
        self.train = self.near(self.labels, rng)
        self.test = np.concatenate(
            [self.near(np.arange(30) % C, rng), random_embeddings(rng, 30, D, around=images)]
        )
        self.label_embeddings = random_embeddings(rng, C, D, around=texts)
        self.dictionary_embeddings = random_embeddings(rng, M, D, around=texts)

    def near(self, labels, rng):
        noisy = self.centres[labels] + 0.1 * rng.normal(size=(len(labels), D))
        return reference.unit(noisy).astype(np.float32)

    def texts(self):
        return NAMES, self.label_embeddings, WORDS, self.dictionary_embeddings

    def fit(self, **options):
        names, labels, words, dictionary = self.texts()
        return bj.Detector.fit_embeddings(
            self.train, self.labels, names, labels, words, dictionary, **{"k": K, **options}
        )


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.fixture(scope="module")
def detector(problem):
    return problem.fit()


@pytest.fixture(scope="module")
def model():
    return bj.load_model("bliss-jax/untrained")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(5)
    tint = rng.integers(0, 256, (2, 1, 1, 3))
    labels = np.arange(20) % 2
    noise = rng.integers(-60, 60, (20, 20, 20, 3))
    return np.clip(tint[labels] + noise, 0, 255).astype(np.uint8), labels


def same(a: bj.Detector, b: bj.Detector):
    assert encode_detector(a) == encode_detector(b)


def same_moments(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("options", [{}, {"shrinkage": 20.0, "weight": 0.9, "k": 7}])
def test_scores_are_those_of_bliss_score(problem, options):
    detector = problem.fit(calibration=0.0, **options)
    moments = bj.fit_moments(problem.train, problem.labels, num_classes=C)
    _, labels, _, dictionary = problem.texts()
    expected = bj.bliss_score(problem.test, labels, dictionary, moments, **{"k": K, **options})
    np.testing.assert_allclose(detector.score(problem.test), expected, rtol=1e-4, atol=1e-4)


def test_a_score_does_not_depend_on_the_other_images_of_the_call(problem, detector):
    whole = detector.score(np.concatenate([problem.test] * 4))
    for rows in ([7], [3, 59, 0], range(0, 60, 2)):
        np.testing.assert_array_equal(detector.score(problem.test[list(rows)]), whole[list(rows)])
    assert detector.score(problem.test[:0]).shape == (0,)


def test_a_share_is_held_out_at_random_and_the_rest_is_fitted(problem):
    detector = problem.fit(calibration=0.25, seed=3)
    assert len(detector.calibration_labels) == 60
    assert int(detector.moments.count.sum()) == 180
    held = {row.tobytes() for row in detector.calibration_embeddings}
    kept = np.array([row.tobytes() not in held for row in problem.train])
    rest = bj.fit_moments(problem.train[kept], problem.labels[kept], num_classes=C)
    same_moments(rest, detector.moments)
    assert held != {
        r.tobytes() for r in problem.fit(calibration=0.25, seed=4).calibration_embeddings
    }
    same(detector, problem.fit(calibration=0.25, seed=3))


def test_a_class_of_one_image_keeps_it(problem):
    labels = np.r_[0, np.ones(239, int)]
    detector = bj.Detector.fit_embeddings(
        problem.train, labels, NAMES[:2], problem.label_embeddings[:2], WORDS,
        problem.dictionary_embeddings, k=K, calibration=0.9,
    )  # fmt: skip
    assert int(detector.moments.count[0]) == 1
    assert (detector.calibration_labels == 1).all()


def test_updates_in_any_order_equal_one_fit_of_all_images(problem):
    options = {"calibration": 0.0, "k": K}
    whole = problem.fit(**options)
    _, labels, _, dictionary = problem.texts()
    rng = np.random.default_rng(0)
    for _ in range(2):
        parts = np.array_split(rng.permutation(240), 4)
        first, *rest = parts
        det = bj.Detector.fit_embeddings(
            problem.train[first], problem.labels[first], NAMES, labels, WORDS, dictionary, **options
        )
        before = encode_detector(det)
        updated = det
        for part in rest:
            updated = updated.update(problem.train[part], problem.labels[part])
        assert encode_detector(det) == before, "update must not change the original"
        np.testing.assert_array_equal(updated.moments.count, whole.moments.count)
        np.testing.assert_allclose(
            updated.score(problem.test), whole.score(problem.test), rtol=1e-4, atol=1e-3
        )
        assert [next(iter(c)) for c in updated.provenance["changes"]] == ["update"] * 3


def test_adding_and_removing_a_class_equals_fitting_with_and_without_it(problem):
    two = problem.labels < 2
    names, labels, words, dictionary = problem.texts()
    whole = problem.fit(calibration=0.0)
    pair = bj.Detector.fit_embeddings(
        problem.train[two], problem.labels[two], names[:2], labels[:2], words, dictionary,
        k=K, calibration=0.0,
    )  # fmt: skip
    added = pair.add_class("cow", problem.train[~two], label_embedding=labels[2], calibration=0.0)
    assert added.class_names == NAMES
    np.testing.assert_allclose(added.score(problem.test), whole.score(problem.test), atol=1e-4)
    np.testing.assert_allclose(
        added.remove_class("cow").score(problem.test), pair.score(problem.test), atol=1e-6
    )
    swapped = whole.remove_class("dog")
    assert swapped.class_names == ("cat", "cow")
    normal = np.array([True, False, True])
    expected = bj.bliss_score(problem.test, labels, dictionary, whole.moments, k=K, normal=normal)
    np.testing.assert_allclose(swapped.score(problem.test), expected, rtol=1e-4, atol=1e-4)


def test_calibration_images_are_removed_and_added_with_their_class(problem):
    detector = problem.fit()
    kept = detector.remove_class("cat")
    was = detector.calibration_labels
    np.testing.assert_array_equal(kept.calibration_labels, was[was != 0] - 1)
    np.testing.assert_array_equal(
        kept.calibration_embeddings, detector.calibration_embeddings[was != 0]
    )
    again = kept.add_class("cat", problem.train[:20], label_embedding=problem.label_embeddings[0])
    assert (again.calibration_labels == 2).sum() == 4
    assert int(again.moments.count[2]) == 16


def test_dictionary_labels_and_settings_change_without_a_new_fit(problem, detector):
    _names, labels, words, dictionary = problem.texts()
    same_state = detector.with_dictionary(words[:9], dictionary[:9]).with_settings(k=2, weight=0.1)
    expected = bj.bliss_score(
        problem.test, labels, dictionary[:9], detector.moments, k=2, weight=0.1
    )
    np.testing.assert_allclose(same_state.score(problem.test), expected, rtol=1e-4, atol=1e-4)
    renamed = detector.with_labels(("x", "y", "z"), labels[::-1].copy())
    expected = bj.bliss_score(problem.test, labels[::-1], dictionary, detector.moments, k=K)
    np.testing.assert_allclose(renamed.score(problem.test), expected, rtol=1e-4, atol=1e-4)
    assert renamed.explain(problem.test[:1])[0].nearest_class in ("x", "y", "z")
    assert detector.with_settings(k=M).score(problem.test).shape == (60,)


def test_predictions_agree_with_thresholds_and_p_values(problem, detector):
    scores = detector.score(problem.test)
    held_out = detector.score(detector.calibration_embeddings)
    np.testing.assert_array_equal(detector.calibration_scores, held_out)
    p = bj.conformal_p_values(scores, held_out)
    np.testing.assert_array_equal(detector.p_values(scores), p)
    for alpha in (0.05, 0.2):
        flagged = detector.predict(problem.test, alpha)
        np.testing.assert_array_equal(flagged, scores > detector.threshold(alpha))
        np.testing.assert_array_equal(flagged, np.asarray(p) <= np.float32(alpha))
    flagged = detector.predict(problem.test, 0.2, "fdr")
    np.testing.assert_array_equal(flagged, bj.benjamini_hochberg(p, 0.2))
    other = detector.calibrate(problem.test[:30], np.arange(30) % C)
    np.testing.assert_array_equal(other.calibration_scores, other.score(problem.test[:30]))
    same_moments(other.moments, detector.moments)


@pytest.mark.usefixtures("unchecked")
def test_the_error_for_too_few_calibration_images_says_how_many_are_needed(problem, detector):
    with pytest.raises(
        ValueError, match=r"alpha 0\.01 needs at least 99 calibration images, got 48"
    ):
        detector.predict(problem.test, 0.01)
    with pytest.raises(ValueError, match=r"alpha 0\.001 needs at least 999"):
        detector.predict(problem.test, 0.001, "fdr")
    none = problem.fit(calibration=0.0)
    for ask in (none.predict, lambda x: none.p_values(none.score(x))):
        with pytest.raises(ValueError, match="no calibration images"):
            ask(problem.test)
    with pytest.raises(ValueError, match="control: expected"):
        detector.judge(detector.score(problem.test), 0.1, "other")


def test_the_parts_of_an_explanation_add_up_to_the_score(problem, detector):
    scores = detector.score(problem.test)
    for number, why in enumerate(detector.explain(problem.test, words=K)):
        assert why.score == scores[number]
        assert np.isclose(why.internal + 0.5 * why.external, why.score, atol=1e-4)
        assert np.isclose(np.mean([z for _, z in why.words]), why.external, atol=1e-3)
        assert why.p_value == detector.p_values(scores[number : number + 1])[0]
        assert why.nearest_class in NAMES
    assert len(detector.explain(problem.test[:2], words=500)[0].words) == M
    assert problem.fit(calibration=0.0).explain(problem.test[:1])[0].p_value is None
    with pytest.raises(ValueError, match="words: expected at least 1"):
        detector.explain(problem.test, words=0)


def test_saving_and_loading_returns_the_same_detector(problem, detector, tmp_path):
    changed = detector.with_settings(weight=0.25)
    changed.save(tmp_path / "det.safetensors")
    loaded = bj.Detector.load(tmp_path / "det.safetensors")
    same(loaded, changed)
    assert loaded.model is None
    np.testing.assert_array_equal(loaded.score(problem.test), changed.score(problem.test))
    assert loaded.describe() == changed.describe()
    json.dumps(loaded.describe())


def test_a_flipped_bit_and_a_truncated_file_are_detected_and_named(problem):
    small = problem.fit().with_dictionary(WORDS[:4], problem.dictionary_embeddings[:4])
    content = encode_detector(small)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(content), 1500).tolist() + list(range(200)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError, match=r"det\.x is not a usable detector"):
            decode_detector(bytes(damaged), "det.x")
    for length in [0, 1, 7, 8, 9, *rng.integers(10, len(content), 50).tolist()]:
        with pytest.raises(ValueError, match="damaged"):
            decode_detector(content[:length], "det.x")


def test_a_newer_format_and_other_content_are_rejected(detector):
    description, arrays = unseal(KIND, encode_detector(detector))
    newer = seal(KIND, description | {"format": 4}, arrays)
    with pytest.raises(
        ValueError, match="format is 4, but this version of bliss_jax reads formats 1 to 3"
    ):
        decode_detector(newer, "det")
    with pytest.raises(ValueError, match="damaged"):
        decode_detector(pickle.dumps({"k": 1}), "det")


@pytest.mark.parametrize(
    ("name", "dtype"), [("count", np.int64), ("mean", np.float64), ("cov", np.float64)]
)
def test_moments_of_wider_types_are_rejected_and_not_narrowed(detector, name, dtype):
    description, arrays = unseal(KIND, encode_detector(detector))
    widened = arrays | {name: arrays[name].astype(dtype)}
    with pytest.raises(ValueError, match=f"{name} is {np.dtype(dtype).name}, expected"):
        decode_detector(seal(KIND, description, widened), "det")


def test_files_of_every_released_format_stay_readable():
    """The file and the scores are from release 0.3.0."""
    kept = bj.Detector.load(Path(__file__).parents[1] / "data" / "detector-format-1.safetensors")
    x = reference.unit(np.eye(8)[:5] + 0.1).astype(np.float32)
    scores = [6.7567754, 3.6553063, 4.3280015, 8.981744, 3.617218]
    np.testing.assert_allclose(kept.score(x), scores, rtol=1e-5)
    np.testing.assert_allclose(kept.threshold(0.1), 2.2080345, rtol=1e-5)
    assert kept.class_names == ("cat", "hound")
    assert kept.dictionary == ("tree", "tréé", "car", "car", "日本")
    assert (kept.k, kept.weight, kept.shrinkage) == (2, 0.75, 3.0)
    assert kept.moments.count.tolist() == [26, 23]
    assert [next(iter(c)) for c in kept.provenance["changes"]] == ["source", "with_labels"]
    assert kept.provenance["note"] == "kept for the tests"


def test_a_detector_with_an_encoder_scores_images_and_checks_the_encoder_on_loading(
    model, pictures, tmp_path
):
    images, labels = pictures
    words = [f"word {i}" for i in range(20)]
    det = bj.Detector.fit(model, images, labels, ("red", "blue"), dictionary=words, seed=1)
    embeddings = np.asarray(model.encode_images(images))
    prompts = lambda names: model.encode_texts([f"This is a photo of a {n}" for n in names])
    by_hand = bj.Detector.fit_embeddings(
        embeddings, labels, ("red", "blue"), prompts(("red", "blue")), words, prompts(words), seed=1
    )
    np.testing.assert_allclose(det.score(images), by_hand.score(embeddings), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(det.score(list(images)), det.score(images), rtol=1e-3, atol=1e-3)
    assert det.score(images[:0]).shape == (0,)
    det.save(tmp_path / "det")
    loaded = bj.Detector.load(tmp_path / "det")
    np.testing.assert_array_equal(loaded.score(images), det.score(images))
    same(loaded.with_labels(("red", "green")).with_labels(("red", "blue")).with_model(model),
         det.with_labels(("red", "green")).with_labels(("red", "blue")))  # fmt: skip
    alone = bj.Detector.load(tmp_path / "det", embeddings_only=True)
    with pytest.raises(ValueError, match="no encoder for images"):
        alone.score(images)
    with pytest.raises(ValueError, match="no encoder for texts"):
        alone.with_dictionary(words)
    for other, what in [
        (dataclasses.replace(model, weights_hash="ab"), "weights_sha256: fitted with .*got ab"),
        (
            dataclasses.replace(model, config=dataclasses.replace(model.config, dtype="bfloat16")),
            "dtype: fitted with float32",
        ),
    ]:
        with pytest.raises(ValueError, match=rf"(?s)not the encoder .*{what}"):
            bj.Detector.load(tmp_path / "det", other)


@pytest.mark.slow
def test_folders_and_data_sets_supply_labels_and_class_names(model, pictures, tmp_path):
    from PIL import Image

    images, labels = pictures
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "own" / ("red", "blue")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    order = np.argsort(1 - labels, kind="stable")  # folders are sorted by name
    dataset = ImageDataset("own", images[order], 1 - labels[order], ("blue", "red"), "here")
    options = {"dictionary": ("a", "b", "c"), "k": 2}
    from_folder = bj.Detector.fit(model, tmp_path / "own", **options)
    from_dataset = bj.Detector.fit(model, dataset, **options)
    np.testing.assert_allclose(from_folder.score(images), from_dataset.score(images), rtol=1e-4)
    # The folder's classes are matched by name; their order differs from the detector's.
    reversed_ = bj.Detector.fit(model, images, labels, ("red", "blue"), calibration=0.0, **options)
    more = reversed_.update(tmp_path / "own")
    np.testing.assert_array_equal(more.moments.count, [20, 20])
    np.testing.assert_allclose(more.moments.mean, reversed_.moments.mean, atol=1e-6)
    (tmp_path / "own" / "red" / "00.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 images cannot be read:\n.*00\.png"):
        bj.Detector.fit(model, tmp_path / "own", **options)
    skipped = bj.Detector.fit(model, tmp_path / "own", skip_unreadable=True, **options)
    assert len(skipped.provenance["images"]["unreadable"]) == 1
    assert sum(skipped.provenance["fitted"].values()) == 19 - int(0.2 * 19)


def few_embeddings(problem, rows):
    names, labels, words, dictionary = problem.texts()
    return bj.Detector.fit_embeddings(
        problem.train[rows],
        problem.labels[rows],
        names,
        labels,
        words,
        dictionary,
        k=K,
        calibration=0.0,
    )


def test_identical_images_of_a_class_lead_to_a_warning(problem):
    with pytest.warns(UserWarning, match="cat, dog, cow are identical"):
        det = few_embeddings(problem, [0, 1, 2])
    assert np.isfinite(det.score(problem.test)).all()
    with pytest.warns(UserWarning, match="images of cat are identical"):
        few_embeddings(problem, [0, 1, 4, 7, 2, 5])
    with pytest.warns(UserWarning, match="are identical"):
        few_embeddings(problem, [0, 0, 1, 4, 2, 5])
    shrunk = det.with_settings(shrinkage=20.0)
    assert np.isfinite(shrunk.score(problem.test)).all()


def test_one_phrase_one_class_and_one_image_give_finite_scores(problem):
    with pytest.warns(UserWarning, match="are identical"):
        det = bj.Detector.fit_embeddings(
            problem.train[:1], None, ["cat"], problem.label_embeddings[:1], ["word"],
            problem.dictionary_embeddings[:1], k=1,
        )  # fmt: skip
    assert np.isfinite(det.score(problem.test)).all()
    assert not len(det.calibration_labels)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "labels: expected one per image, because there are 3 classes"),
        ({"labels": np.zeros(240, int)}, "images of every normal class, got none of dog, cow"),
        ({"labels": np.full(240, 3)}, r"labels: expected values in 0\.\.2, got 3\.\.3"),
        ({"labels": np.zeros(5, int)}, r"labels: expected an integer \[240\] array"),
        ({"names": ("cat", "cat", "cow")}, "repeated: .'cat'"),
        ({"names": ("cat", " ", "cow")}, "label 1 must be a string that is not blank"),
        ({"names": ("cat", "dog")}, r"labels: expected values in 0\.\.1"),
        ({"words": WORDS[:-1]}, r"dictionary_embeddings: expected float32 \[39, 16\]"),
        ({"words": ()}, "at least one label, got none"),
        ({"k": M + 1}, rf"k: expected an integer in 1\.\.{M}"),
        ({"k": 0}, "k: expected an integer"),
        ({"weight": np.nan}, "weight: expected a finite number"),
        ({"shrinkage": -1.0}, "shrinkage: expected a finite number >= 0"),
        ({"calibration": 1.0}, "calibration: expected a share"),
        ({"calibration": -0.1}, "calibration: expected a share"),
    ],
)
def test_a_fit_rejects_invalid_arguments(problem, change, message):
    names, labels, words, dictionary = problem.texts()
    given = {"names": names, "words": words, "labels": problem.labels, "k": K} | change
    with pytest.raises(ValueError, match=message):
        bj.Detector.fit_embeddings(
            problem.train, given.pop("labels"), given.pop("names"), labels, given.pop("words"),
            dictionary, **given,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.__setitem__((3, 2), np.nan), "row 3 holds NaN"),
        (lambda x: x.__setitem__((3, 2), np.inf), "row 3 holds NaN or infinite"),
        (lambda x: x.__setitem__(3, 0), "row 3 has norm 0"),
        (lambda x: x.__imul__(2), "unit norm"),
    ],
)
def test_invalid_embeddings_are_rejected_with_their_row(problem, detector, spoil, message):
    x = problem.test.copy()
    spoil(x)
    for ask in (
        detector.score,
        detector.explain,
        lambda x: detector.update(x, np.zeros(len(x), int)),
    ):
        with pytest.raises(ValueError, match=message):
            ask(x)


@pytest.mark.usefixtures("unchecked")
def test_methods_reject_invalid_arguments(problem, detector):
    with pytest.raises(ValueError, match=r"embeddings: expected \[n, 16\], got \[2, 8\]"):
        detector.score(reference.unit(np.ones((2, 8))).astype(np.float32))
    with pytest.raises(ValueError, match="score_files scores folders"):
        detector.score("some/folder")
    with pytest.raises(ValueError, match="no class 'bird'; its classes are cat, dog, cow"):
        detector.remove_class("bird")
    with pytest.raises(ValueError, match="already has a class 'cat'"):
        detector.add_class("cat", problem.train[:5], label_embedding=problem.label_embeddings[0])
    with pytest.raises(ValueError, match="only class"):
        detector.remove_class("cat").remove_class("dog").remove_class("cow")
    with pytest.raises(ValueError, match=r"one name per class \(3\), got 2"):
        detector.with_labels(("a", "b"), problem.label_embeddings[:2])
    with pytest.raises(ValueError, match="k: expected an integer"):
        detector.with_dictionary(WORDS[:2], problem.dictionary_embeddings[:2])


def test_embeddings_in_bfloat16_score_as_their_rounded_values(problem, detector):
    half = problem.near(np.arange(6) % 3, np.random.default_rng(5)).astype(ml_dtypes.bfloat16)
    score = jax.jit(bj.bliss_score_prepared, static_argnames="k")
    expected = score(half.astype(np.float32), detector.prepared, k=K, weight=detector.weight)
    np.testing.assert_allclose(detector.score(half), expected, rtol=1e-5)


def test_representations_are_short(problem, detector, model):
    assert repr(detector).startswith("Detector(3 classes (")
    images = ImageDataset(
        "many", np.zeros((50, 8, 8, 3), np.uint8), np.arange(50), tuple(map(str, range(50))), ""
    )
    for value in (detector, model, images):
        assert len(repr(value)) < 300
