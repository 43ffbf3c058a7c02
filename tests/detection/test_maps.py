"""Maps of a detector's explanations, at the pixels of images of many sizes."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest

import bliss_jax as bj
from bliss_jax.datasets.odd_glyphs import draw_odd_scenes, normal_names

WORDS = (*(f"word {i}" for i in range(8)), "white star")
K = 2


@pytest.fixture(scope="module")
def scenes():
    return draw_odd_scenes("validation", 8, odd=True)


@pytest.fixture(scope="module")
def detector(scenes):
    return bj.Detector.fit(
        bj.load_model("bliss-jax/tiny"),
        scenes.images,
        np.arange(8, dtype=np.int32) % 2,
        normal_names()[:2],
        dictionary=WORDS,
        k=K,
        shrinkage=20.0,
        calibration=0.25,
        batch_size=4,
    )


def explained(detector, images, **options):
    return detector.explain(images, words=3, maps=True, **options)


def test_a_batch_of_mixed_sizes_maps_back_to_each_originals_pixels(detector, scenes):
    images = [
        scenes.images[0],
        scenes.images[1][:64],
        scenes.images[2][:, 20:60],
        scenes.images[3][:9],
    ]
    for image, why in zip(images, explained(detector, images), strict=True):
        height, width = image.shape[:2]
        short = min(height, width)
        assert why.maps.score.shape == (height, width)
        assert why.maps.words.shape == (3, height, width)
        seen = np.isfinite(why.maps.score)
        assert abs(seen.sum(axis=0).max() - short) <= 1
        assert abs(seen.sum(axis=1).max() - short) <= 1
        alone = explained(detector, [image])[0]
        np.testing.assert_allclose(alone.maps.patches, why.maps.patches, rtol=1e-4, atol=1e-6)


def test_the_map_of_the_score_is_the_sum_of_those_of_its_parts(detector, scenes):
    [why] = explained(detector, scenes.images[:1])
    maps = why.maps
    np.testing.assert_allclose(maps.score, maps.internal + 0.5 * maps.external, atol=1e-5)
    # k = 2 of the 3 words are the nearest texts of the score.
    np.testing.assert_allclose(maps.external, maps.words[:K].mean(axis=0), atol=1e-4)
    np.testing.assert_array_equal(maps.at_size(96, 96)[3:], maps.words)
    assert maps.at_size(24, 24).shape == (6, 24, 24)
    assert "3 words; 96 x 96 pixels, 16 patches" in repr(maps)


@pytest.mark.slow
def test_maps_are_those_of_the_pure_functions(detector, scenes):
    image = scenes.images[5:6]
    [why] = explained(detector, image)
    model, prepared = detector.model, detector.prepared
    embedded = model.encode_images(image)
    parts = bj.explain_bliss_prepared(embedded, prepared, K, num_texts=3)
    w = bj.bliss_directions(parts, prepared, K).score
    pixels = bj.preprocess(image, size=32)
    found = bj.attribute_patches(model.params, model.config, pixels, w[:, None])[0, 0]
    expected = why.maps.patches[0] + 0.5 * why.maps.patches[1]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_explanations_without_maps_are_the_same_and_have_none(detector, scenes):
    plain = detector.explain(scenes.images[:3], words=3)
    for with_maps, without in zip(explained(detector, scenes.images[:3]), plain, strict=True):
        assert without.maps is None
        assert with_maps._replace(maps=None) == without
    assert explained(detector, scenes.images[:0]) == ()
    assert pickle.loads(pickle.dumps(plain)) == plain  # noqa: S301


def test_embeddings_other_encoders_and_detectors_of_texts_have_no_maps(detector, scenes):
    embeddings = np.asarray(detector.model.encode_images(scenes.images[:2]))
    with pytest.raises(ValueError, match="maps: expected images, got embeddings"):
        explained(detector, embeddings)

    class Own:
        name, embedding_dim, fingerprint = "mine", 64, "1"

        def encode_images(self, images):
            return embeddings[: len(images)]

        def encode_texts(self, texts):
            return embeddings[: len(texts)]

    with pytest.raises(ValueError, match="expected a Model of this library"):
        explained(dataclasses.replace(detector, model=Own()), scenes.images[:1])
    texts = bj.Detector.fit(detector.model, None, class_names=["star"], dictionary=WORDS, k=K)
    with pytest.raises(ValueError, match="expected a detector that was fitted to images"):
        explained(texts, scenes.images[:1])


def same_as_bliss(
    embeddings, label_embeddings, dictionary_embeddings, moments, k, weight, shrinkage
):
    """A score of a user that equals BLISS."""
    return bj.bliss_score(
        embeddings,
        label_embeddings,
        dictionary_embeddings,
        moments,
        k,
        weight=weight,
        shrinkage=shrinkage,
    )


@pytest.mark.slow
def test_the_map_of_a_score_that_equals_bliss_is_that_of_bliss(detector, scenes):
    [bliss] = explained(detector, scenes.images[:1])
    [own] = explained(detector.with_score(same_as_bliss), scenes.images[:1])
    scale = np.nanmax(np.abs(bliss.maps.score))
    np.testing.assert_allclose(own.maps.score, bliss.maps.score, atol=1e-3 * scale)
    np.testing.assert_allclose(own.maps.patches, bliss.maps.patches, atol=1e-5)


def test_the_map_of_another_score_is_that_of_its_gradient(detector, scenes):
    other = detector.with_score("max_cosine")
    [why] = explained(other, scenes.images[:1])
    model, pixels = detector.model, bj.preprocess(scenes.images[:1], size=32)
    x = np.asarray(model.encode_images(scenes.images[:1]))
    nearest = detector.label_embeddings[int((x @ detector.label_embeddings.T).argmax())]
    expected = bj.attribute_patches(model.params, model.config, pixels, -nearest[None, None])[0, 0]
    np.testing.assert_allclose(why.maps.own, expected, rtol=1e-3, atol=1e-5)
    [bliss] = explained(detector, scenes.images[:1])
    np.testing.assert_allclose(why.maps.patches, bliss.maps.patches, atol=1e-5)


def calls_python(embeddings):
    shape = jax.ShapeDtypeStruct(embeddings.shape[:1], embeddings.dtype)
    return jax.pure_callback(lambda x: x[:, 0], shape, embeddings)


@pytest.mark.slow
def test_scores_that_have_no_gradient_have_no_maps(detector, scenes):
    with pytest.raises(
        ValueError, match="expected a score that JAX can differentiate, got 'calls_p"
    ):
        explained(detector.with_score(calls_python), scenes.images[:1])
