"""A detector with a prompt of several templates: fitted, saved, loaded and changed."""

from pathlib import Path

import numpy as np
import pytest
from test_detector import Problem, same

import bliss_jax as bj
from bliss_jax.detection.file_format import KIND, decode_detector, encode_detector
from bliss_jax.storage import seal, unseal

TEMPLATES = ("a {label} on a table", "the {label}", "{label}")
NAMES, WORDS = ("red", "blue"), tuple(f"word {i}" for i in range(20))


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


@pytest.fixture(scope="module")
def detector(model, pictures):
    return bj.Detector.fit(model, *pictures, NAMES, dictionary=WORDS, prompt=TEMPLATES)


def test_fit_averages_the_templates_of_class_names_and_phrases(detector, model):
    np.testing.assert_allclose(
        detector.label_embeddings, bj.embed_prompts(model, TEMPLATES, NAMES), atol=1e-6
    )
    np.testing.assert_allclose(
        detector.dictionary_embeddings, bj.embed_prompts(model, TEMPLATES, WORDS), atol=1e-6
    )
    assert detector.prompt == TEMPLATES
    assert detector.describe()["prompt"] == list(TEMPLATES)


def test_a_detector_with_an_ensemble_is_saved_and_loaded(detector, model, pictures, tmp_path):
    detector.save(tmp_path / "det")
    loaded = bj.Detector.load(tmp_path / "det", model)
    assert loaded.prompt == TEMPLATES
    np.testing.assert_array_equal(loaded.score(pictures[0]), detector.score(pictures[0]))
    same(loaded, detector)


def test_changed_texts_are_embedded_in_all_templates(detector, model, pictures):
    images, _ = pictures
    added = detector.add_class("green", images[:6], calibration=0.0)
    relabelled = detector.with_labels(("green", "blue"))
    green = bj.embed_prompts(model, TEMPLATES, ["green"])[0]
    np.testing.assert_allclose(added.label_embeddings[2], green, atol=1e-6)
    np.testing.assert_allclose(relabelled.label_embeddings[0], green, atol=1e-6)
    other = detector.with_dictionary(["green", "blue"] * 5)
    np.testing.assert_allclose(other.dictionary_embeddings[0], green, atol=1e-6)
    np.testing.assert_allclose(other.dictionary_embeddings[8], green, atol=1e-6)


def test_one_template_in_a_list_writes_the_file_of_the_template(model, pictures):
    single, listed = (
        bj.Detector.fit(model, *pictures, NAMES, dictionary=WORDS, prompt=prompt)
        for prompt in ("the {label}", ["the {label}"])
    )
    same(single, listed)
    description, _ = unseal(KIND, encode_detector(listed))
    assert (description["format"], description["prompt"]) == (1, "the {label}")


@pytest.mark.usefixtures("unchecked")
def test_an_ensemble_has_format_3_and_a_wrong_type_of_prompt_is_refused(detector):
    description, arrays = unseal(KIND, encode_detector(detector))
    assert (description["format"], description["score"]) == (3, "bliss")
    assert description["prompt"] == list(TEMPLATES)
    for prompt, message in (
        ("the {label}", "prompt is str, expected <class 'list'>"),
        ([], "expected at least one template"),
        (["the {label}", "no label"], "must contain {label} exactly once"),
        (["the {label}", 3], "expected templates, which are strings, got 3"),
    ):
        content = seal(KIND, description | {"prompt": prompt}, arrays)
        with pytest.raises(ValueError, match="not a usable detector") as caught:
            decode_detector(content, "det")
        assert message in str(caught.value)


@pytest.mark.slow
def test_an_ensemble_with_another_score_is_saved_and_loaded():
    detector = Problem().fit(prompt="clip-7", score="knn")
    loaded = decode_detector(encode_detector(detector), "det")
    assert loaded.prompt == bj.prompt_templates("clip-7")
    assert loaded.score_name == "knn"
    same(loaded, detector)


@pytest.mark.usefixtures("unchecked")
def test_invalid_ensembles_are_refused(model, pictures):
    for prompt, message in (
        (("the {label}", "the"), "must contain"),
        ((), "at least one template"),
        ("clip-8", "did you mean the set of templates"),
    ):
        with pytest.raises(ValueError, match=message):
            bj.Detector.fit(model, *pictures, NAMES, dictionary=WORDS, prompt=prompt)


def test_a_kept_file_of_format_3_stays_readable():
    kept = bj.Detector.load(Path(__file__).parents[1] / "data" / "detector-format-3.safetensors")
    assert kept.prompt == ("a photo of a {label}.", "the {label}")
    assert (kept.score_name, kept.class_names, kept.k) == ("bliss", ("cat", "hound"), 2)
    x = np.eye(8, dtype=np.float32)[:3]
    texts = kept.label_embeddings, kept.dictionary_embeddings
    np.testing.assert_allclose(kept.score(x), bj.bliss_score(x, *texts, kept.moments, 2), rtol=1e-4)
