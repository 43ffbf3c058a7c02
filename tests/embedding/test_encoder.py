"""Tests of encoders that are not a `Model`: embedding, evaluation, detector, refused results."""

import gc
import weakref
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

import bliss_jax as bj
from bliss_jax.datasets import ImageDataset
from bliss_jax.embedding.encoder import ModelCalls

CLASSES = ("red", "green")
WORDS = tuple(f"word {i}" for i in range(20))


class MeanColour:
    """An encoder of the mean colour of an image. Texts have fixed random embeddings."""

    name = "mean-colour"
    embedding_dim = 8
    fingerprint = "1"

    def __init__(self):
        self.batches = []
        self.mixing = np.random.default_rng(0).normal(size=(3, 8))

    def encode_images(self, images):
        self.batches.append([image.shape for image in images])
        means = np.stack([image.mean(axis=(0, 1)) for image in images]) / 255 + 0.1
        return (means @ self.mixing).astype(np.float32)

    def encode_texts(self, texts):
        seeds = [sum(text.encode()) for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds])


class Returning(MeanColour):
    """An encoder that returns given embeddings."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def encode_images(self, images):
        return self.make(len(images))


def pictures(n, seed=0):
    """Yields images of several sizes, alternately red and green."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        tint = (200, 40, 40) if i % 2 == 0 else (40, 200, 40)
        noise = rng.integers(-30, 30, (12 + i % 3, 16, 3))
        yield np.clip(np.array(tint) + noise, 0, 255).astype(np.uint8)


def dataset(n, seed=0):
    return ImageDataset(
        "pictures", tuple(pictures(n, seed)), np.arange(n, dtype=np.int32) % 2, CLASSES, "made here"
    )


def alone(image):
    row = MeanColour().encode_images([image])[0]
    return row / np.linalg.norm(row)


def test_the_encoder_gets_images_in_their_own_sizes_and_batches_of_one_length():
    encoder, data = MeanColour(), dataset(11)
    embedded = bj.embed_images(encoder, data, batch_size=8)
    assert [len(batch) for batch in encoder.batches] == [8, 8]
    assert encoder.batches[0] == [image.shape for image in data.images[:8]]
    assert encoder.batches[1][3:] == [data.images[10].shape] * 5
    np.testing.assert_allclose(embedded.embeddings, [alone(x) for x in data.images], atol=1e-6)


def test_texts_have_unit_norm():
    embedded = bj.embed_texts(MeanColour(), ["a", "b"])
    assert embedded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-6)


def test_a_cache_is_used_again_until_the_fingerprint_changes(tmp_path):
    encoder = MeanColour()
    first = bj.embed_images(encoder, dataset(6), cache=tmp_path)
    calls = len(encoder.batches)
    again = bj.embed_images(encoder, dataset(6), cache=tmp_path)
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    assert len(encoder.batches) == calls
    encoder.fingerprint = "2"
    bj.embed_images(encoder, dataset(6), cache=tmp_path)
    assert len(encoder.batches) > calls


def test_an_own_encoder_is_evaluated():
    embeddings = bj.embed_dataset(MeanColour(), dataset(20), dataset(10, seed=1), WORDS)
    assert embeddings.provenance["model"] == {"name": "mean-colour", "fingerprint": "1"}
    protocol = bj.load_protocol("one-class", dataset="own", num_classes=2)
    evaluated = bj.evaluate(embeddings, protocol, bj.Settings(scores=("knn",), neighbours=3))
    # Red and green are far apart.
    assert [row.auroc for row in evaluated.rows] == [1.0]


def test_a_detector_with_an_own_encoder_is_saved_and_scores_files(tmp_path):
    encoder, data = MeanColour(), dataset(40)
    detector = bj.Detector.fit(encoder, data, dictionary=WORDS, k=5, shrinkage=20.0)
    images = list(pictures(3, seed=2))
    scores = detector.score(images)
    embedded = np.stack([alone(image) for image in images])
    np.testing.assert_allclose(scores, detector.score(embedded), rtol=1e-4)
    Image.fromarray(images[1]).save(tmp_path / "a.png")
    (row,) = bj.score_files(detector, [tmp_path / "a.png"])
    assert row.score == scores[1]

    detector.save(tmp_path / "detector.safetensors")
    loaded = bj.Detector.load(tmp_path / "detector.safetensors", encoder)
    np.testing.assert_array_equal(loaded.score(images), scores)
    with pytest.raises(ValueError, match=r"fitted with the encoder 'mean-colour'.*model=\.\.\."):
        bj.Detector.load(tmp_path / "detector.safetensors")
    other = MeanColour()
    other.fingerprint = "2"
    with pytest.raises(ValueError, match="fingerprint: fitted with 1, got 2"):
        bj.Detector.load(tmp_path / "detector.safetensors", other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: np.ones((n, 7), np.float32), r"expected floating embeddings \[8, 8\], got float32"),
        (lambda n: np.ones((n, 8), np.int32), "expected floating embeddings .* got int32"),
        (lambda n: np.full((n, 8), np.nan, np.float32), "expected finite embeddings with a direction, got nan"),
        (lambda n: np.zeros((n, 8), np.float32), ".* got 0.0 as the norm of embedding 0"),
    ],
)  # fmt: skip
def test_embeddings_that_cannot_be_used_are_refused(make, message):
    with pytest.raises(ValueError, match=f"mean-colour.encode_images: {message}"):
        bj.embed_images(Returning(make), dataset(3), batch_size=8)


def test_half_precision_embeddings_are_accepted():
    ones = Returning(lambda n: np.ones((n, 8), ml_dtypes.bfloat16))
    found = bj.embed_images(ones, dataset(3)).embeddings
    np.testing.assert_allclose(found, np.full((3, 8), 8**-0.5), rtol=1e-6)


def test_objects_that_are_no_encoders_are_refused():
    with pytest.raises(TypeError, match="object has no name, embedding_dim, fingerprint"):
        bj.embed_texts(object(), ["a"])
    encoder = MeanColour()
    encoder.fingerprint = ""
    with pytest.raises(ValueError, match="fingerprint: expected a string that is not empty"):
        bj.embed_texts(encoder, ["a"])


def test_options_that_an_own_encoder_does_not_have_are_refused():
    with pytest.raises(ValueError, match="preprocess: mean-colour preprocesses images itself"):
        bj.embed_images(MeanColour(), dataset(3), preprocess="clip")
    with pytest.raises(ValueError, match="truncate: mean-colour tokenizes texts itself"):
        bj.embed_texts(MeanColour(), ["a"], truncate=True)


def test_a_model_is_an_encoder_with_a_fingerprint_of_weights_and_settings():
    model = bj.load_model("bliss-jax/untrained")
    assert model.fingerprint == bj.load_model("bliss-jax/untrained").fingerprint
    half = bj.load_model("bliss-jax/untrained", dtype="bfloat16")
    assert half.fingerprint != model.fingerprint
    images = list(pictures(2))
    embedded = model.encode_images(images)
    assert embedded.shape == (2, model.embedding_dim)
    assert model.encode_texts(["a", "b"]).shape == (2, model.embedding_dim)


def test_parameters_are_placed_once_for_each_mesh_and_freed_with_the_model():
    model = replace(bj.load_model("bliss-jax/untrained"))
    one, two = (Mesh(np.array(jax.devices()[:n]), ("data",)) for n in (1, 2))
    placed = ModelCalls(model, None, 4, one)._model
    assert ModelCalls(model, None, 8, Mesh(one.devices, ("data",)))._model is placed
    moved = ModelCalls(model, None, 4, two)._model
    assert all(len(leaf.devices()) == 2 for leaf in jax.tree.leaves(moved.params))
    gone = weakref.ref(moved)
    del model, placed, moved
    gc.collect()
    assert gone() is None
