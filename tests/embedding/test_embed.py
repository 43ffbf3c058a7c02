"""Batches of any size, images of any size and any number of devices give the same embeddings."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from bliss_jax.datasets import ImageDataset, load_dataset
from bliss_jax.embedding import batches, embed_dataset, embed_images, embed_texts
from bliss_jax.models import load_model
from bliss_jax.models import model as model_module


@pytest.fixture(scope="module")
def model():
    return load_model("bliss-jax/untrained")


def dataset(images) -> ImageDataset:
    return ImageDataset("some", images, np.arange(len(images)) % 3, ("a", "b", "c"), "made here")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), ("data",))


@pytest.mark.parametrize("batch_size", [1, 8, 13, 64, 1000])
def test_batch_size_and_padding_do_not_matter(model, batch_size):
    images = noise(37, 20, 24, 3)
    embedded = embed_images(model, dataset(images), batch_size=batch_size)
    np.testing.assert_allclose(embedded.embeddings, model.encode_images(images), atol=1e-6)
    np.testing.assert_array_equal(embedded.rows, np.arange(37))
    assert embedded.unreadable == ()


def test_eight_devices_give_what_one_gives(model):
    images = dataset(noise(50, 32, 32, 3))
    assert jax.device_count() == 8
    over_all = embed_images(model, images, batch_size=16).embeddings
    one = embed_images(model, images, batch_size=16, mesh=one_device()).embeddings
    np.testing.assert_allclose(over_all, one, atol=1e-6)


def test_images_of_many_sizes(model):
    images = [
        noise(h, w, 3, seed=h) for h, w in [(20, 24), (64, 40), (20, 24), (33, 99), (150, 31)]
    ]
    embedded = embed_images(model, dataset(images), batch_size=2)
    alone = [np.asarray(model.encode_images(image[None]))[0] for image in images]
    np.testing.assert_allclose(embedded.embeddings, alone, atol=1e-6)
    np.testing.assert_allclose(model.encode_images(images), alone, atol=1e-6)


def test_large_images_are_resized_as_they_are_read(model, monkeypatch):
    """So that a batch of them is never in memory; also one among small ones, and one of a single row."""
    shapes = [(2049, 30), (2049, 30), (1, 9000), (32, 32), (20, 24), (70, 80), (70, 80), (70, 80)]
    images = [noise(h, w, 3, seed=i) for i, (h, w) in enumerate(shapes)]
    stacked = []
    pad = batches._pad
    monkeypatch.setattr(batches, "_pad", lambda x, n: stacked.append(x.shape) or pad(x, n))
    embedded = embed_images(model, dataset(images), batch_size=8, mesh=one_device(), shard_size=8)
    assert stacked == [(8, 32, 32, 3)]
    alone = [np.asarray(model.encode_images(image[None]))[0] for image in images]
    np.testing.assert_allclose(embedded.embeddings, alone, atol=1e-6)
    stacked.clear()
    embed_images(model, dataset(images[:1]), batch_size=8, mesh=one_device())
    embed_images(model, dataset(images[5:]), batch_size=8, mesh=one_device())
    assert stacked == [(1, 32, 32, 3), (3, 70, 80, 3)]


def test_a_ragged_last_batch_does_not_recompile(model):
    compiled = model_module._encode_image._cache_size
    embed_images(model, dataset(noise(32, 18, 18, 3)), batch_size=16)
    before = compiled()
    embed_images(model, dataset(noise(45, 18, 18, 3)), batch_size=16)
    embed_images(model, dataset(noise(3, 18, 18, 3)), batch_size=16)
    assert compiled() == before


def test_texts_in_several_blocks_are_those_of_one(model, monkeypatch):
    monkeypatch.setattr("bliss_jax.embedding.texts._TEXTS_AT_ONCE", 512)
    texts = [f"text {i} {'and more ' * (i % 7)}" for i in range(1100)]
    counts = []
    embedded = embed_texts(model, texts, progress=counts.append)
    assert counts == [512, 512, 76]
    np.testing.assert_allclose(embedded, model.encode_texts(texts), atol=1e-6)
    compiled = model_module._encode_text._cache_size
    before = compiled()
    embed_texts(model, texts)
    assert compiled() == before


def test_progress_counts_every_image_once(model):
    counts = []
    embed_images(model, dataset(noise(37, 16, 16, 3)), batch_size=16, progress=counts.append)
    assert counts == [16, 16, 5]


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            directory = tmp_path / split / name
            directory.mkdir(parents=True)
            for i in range(6):
                Image.fromarray(noise(16, 16, 3, seed=i)).save(directory / f"{i}.png")
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "test" / "dog" / "0.png").write_bytes(b"")
    return tmp_path


def test_unreadable_images_are_named_and_the_rest_is_embedded(model, folder):
    train = load_dataset(folder, "train")
    embedded = embed_images(model, train, batch_size=8)
    assert len(embedded.unreadable) == 1
    assert "3.png" in embedded.unreadable[0]
    np.testing.assert_array_equal(embedded.rows, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11])
    readable = train.subset(embedded.rows)
    np.testing.assert_allclose(
        embedded.embeddings, embed_images(model, readable).embeddings, atol=1e-6
    )


def test_unreadable_images_stop_an_evaluation_unless_it_is_told_to_go_on(model, folder):
    train, test = load_dataset(folder, "train"), load_dataset(folder, "test")
    words = ["bird", "fish", "bird"]
    with pytest.raises(ValueError, match=r"1 train images cannot be used:\n.*3\.png"):
        embed_dataset(model, train, test, words)
    embedded = embed_dataset(model, train, test, words, skip_unreadable=True)
    assert [len(embedded.train_labels), len(embedded.test_labels)] == [11, 11]
    assert len(embedded.provenance["dataset"]["unreadable"]) == 2
    np.testing.assert_array_equal(embedded.train_labels, [0] * 5 + [1] * 6)


def test_only_unreadable_images_are_an_error(model, folder):
    bad = load_dataset(folder, "train").subset([3])
    with pytest.raises(ValueError, match=r"no image could be read, the first: .*3\.png"):
        embed_images(model, bad)


def test_texts_in_an_embedding_set_are_those_of_the_prompts(model):
    images = dataset(noise(9, 16, 16, 3))
    embedded = embed_dataset(model, images, images, ["bird", "fish"], prompt="one {label}")
    expected = model.encode_texts(["one a", "one b", "one c"])
    np.testing.assert_allclose(embedded.label_embeddings, expected, atol=1e-6)
    expected = model.encode_texts(["one bird", "one fish"])
    np.testing.assert_allclose(embedded.dictionary_embeddings, expected, atol=1e-6)
    expected = model.encode_texts(["a photo of a a", "a photo of a b", "a photo of a c"])
    np.testing.assert_allclose(embedded.mcm_label_embeddings, expected, atol=1e-6)
    expected = model.encode_texts(["a photo of something"])[0]
    np.testing.assert_allclose(embedded.something_embedding, expected, atol=1e-6)
    provenance = embedded.provenance
    assert provenance["model"]["weights_sha256"] == model.weights_hash
    assert provenance["prompt"] == "one {label}"
    assert provenance["preprocessing"]["stats"] == "clip"


def test_classes_that_are_not_asked_for_are_not_embedded(model):
    images = dataset(noise(9, 16, 16, 3))
    embedded = embed_dataset(
        model, images, images, ["bird"], train_classes=[1], test_classes=[0, 2]
    )
    np.testing.assert_array_equal(embedded.train_labels, [1, 1, 1])
    np.testing.assert_array_equal(embedded.test_labels, [0, 2, 0, 2, 0, 2])


def test_refused(model):
    images = dataset(noise(3, 16, 16, 3))
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        embed_images(model, images, batch_size=0)
    with pytest.raises(ValueError, match="expected at least one text"):
        embed_texts(model, [])
    with pytest.raises(ValueError, match="unknown stats 'clipp'"):
        embed_images(model, images, preprocess="clipp")
    other = ImageDataset("o", images.images, images.labels, ("x", "y", "z"), "made here")
    with pytest.raises(ValueError, match="differ in class names"):
        embed_dataset(model, images, other, ["bird"])
