"""Embeddings do not depend on the batch size, the sizes of the other images or the number of devices.

The tests share few shapes of batches, because each shape is compiled: 8 or 16 images of 16 x 16 pixels.
"""

import jax
import numpy as np
import pytest
from compilations import Compilations
from jax.sharding import Mesh
from PIL import Image

from bliss_jax.datasets import ImageDataset, load_dataset
from bliss_jax.embedding import embed_dataset, embed_images, embed_texts, encoder
from bliss_jax.models import load_model

CLASSES = ("cat", "dog", "emu")
PROMPT = "one {label}"


@pytest.fixture(scope="module")
def model():
    return load_model("bliss-jax/untrained")


def dataset(images) -> ImageDataset:
    return ImageDataset("some", images, np.arange(len(images)) % 3, CLASSES, "made here")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), ("data",))


def each_alone(model, images) -> list[np.ndarray]:
    return [np.asarray(model.encode_images(image[None]))[0] for image in images]


@pytest.mark.parametrize("batch_size", [1, 13, 64])
def test_embeddings_do_not_depend_on_batch_size_and_padding(model, batch_size):
    """On 8 devices the batches have 8, 16 and 64 images; the last one is padded."""
    images = noise(37, 16, 16, 3)
    embedded = embed_images(model, dataset(images), batch_size=batch_size)
    np.testing.assert_allclose(embedded.embeddings, model.encode_images(images), atol=1e-6)
    np.testing.assert_array_equal(embedded.rows, np.arange(37))
    assert embedded.unreadable == ()


def test_eight_devices_and_one_device_give_the_same_embeddings(model):
    images = dataset(noise(50, 16, 16, 3))
    assert jax.device_count() == 8
    eight = embed_images(model, images, batch_size=16).embeddings
    one = embed_images(model, images, batch_size=16, mesh=one_device()).embeddings
    np.testing.assert_allclose(eight, one, atol=1e-6)


def test_images_of_different_sizes_are_embedded_as_alone(model):
    images = [noise(h, w, 3, seed=h) for h, w in [(20, 24), (70, 80), (20, 24), (33, 99)]]
    embedded = embed_images(model, dataset(images), batch_size=8, mesh=one_device())
    alone = each_alone(model, images)
    np.testing.assert_allclose(embedded.embeddings, alone, atol=1e-6)
    np.testing.assert_allclose(model.encode_images(images), alone, atol=1e-6)


def test_images_with_a_long_side_are_resized_when_they_are_read(model, monkeypatch):
    """A batch of them is therefore never in memory, also if only some images of a batch are large."""
    shapes = [(2049, 30), (2049, 30), (1, 9000), (32, 32), (20, 24), (70, 80), (70, 80), (70, 80)]
    images = [noise(h, w, 3, seed=i) for i, (h, w) in enumerate(shapes)]
    stacked = []
    put = jax.device_put

    def record(array, sharding):
        if isinstance(array, np.ndarray):
            stacked.append(array.shape)
        return put(array, sharding)

    monkeypatch.setattr(encoder.jax, "device_put", record)
    embedded = embed_images(model, dataset(images), batch_size=8, mesh=one_device(), shard_size=8)
    assert stacked == [(8, 32, 32, 3)]
    np.testing.assert_allclose(embedded.embeddings, each_alone(model, images), atol=1e-6)
    stacked.clear()
    embed_images(model, dataset(images[:1]), batch_size=8, mesh=one_device())
    embed_images(model, dataset(images[5:]), batch_size=8, mesh=one_device())
    assert stacked == [(8, 32, 32, 3), (8, 70, 80, 3)]


def test_an_incomplete_last_batch_is_not_compiled_again(model):
    def embed(number):
        return embed_images(model, dataset(noise(number, 16, 16, 3)), batch_size=16)

    embed(32)
    with Compilations() as compiled:
        embed(45)
        embed(3)
    assert compiled.count == 0


@pytest.mark.slow
def test_texts_in_several_blocks_have_the_embeddings_of_one_block(model, monkeypatch):
    monkeypatch.setattr("bliss_jax.embedding.texts._TEXTS_AT_ONCE", 16)
    texts = [f"text {i} {'and more ' * (i % 7)}" for i in range(40)]
    counts = []
    embedded = embed_texts(model, texts, progress=counts.append)
    assert counts == [16, 16, 8]
    np.testing.assert_allclose(embedded, model.encode_texts(texts), atol=1e-6)
    with Compilations() as compiled:
        embed_texts(model, texts)
    assert compiled.count == 0


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


def test_unreadable_images_are_named_and_the_others_are_embedded(model, folder):
    train = load_dataset(folder, "train")
    embedded = embed_images(model, train, batch_size=8)
    assert len(embedded.unreadable) == 1
    assert "3.png" in embedded.unreadable[0]
    np.testing.assert_array_equal(embedded.rows, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11])
    readable = train.subset(embedded.rows)
    np.testing.assert_allclose(
        embedded.embeddings, embed_images(model, readable, batch_size=8).embeddings, atol=1e-6
    )


def test_unreadable_images_are_an_error_unless_skip_unreadable_is_true(model, folder):
    train, test = load_dataset(folder, "train"), load_dataset(folder, "test")
    words, options = ["bird", "fish", "bird"], {"prompt": PROMPT, "batch_size": 8}
    with pytest.raises(ValueError, match=r"1 train images cannot be read:\n.*3\.png"):
        embed_dataset(model, train, test, words, **options)
    embedded = embed_dataset(model, train, test, words, skip_unreadable=True, **options)
    assert [len(embedded.train_labels), len(embedded.test_labels)] == [11, 11]
    assert len(embedded.provenance["dataset"]["unreadable"]) == 2
    np.testing.assert_array_equal(embedded.train_labels, [0] * 5 + [1] * 6)


def test_a_data_set_without_readable_images_is_refused(model, folder):
    bad = load_dataset(folder, "train").subset([3])
    with pytest.raises(ValueError, match=r"none of the images can be read; the first: .*3\.png"):
        embed_images(model, bad)


def test_an_embedding_set_has_the_embeddings_of_its_prompts(model):
    images = dataset(noise(9, 16, 16, 3))
    embedded = embed_dataset(model, images, images, ["bird", "fish"], prompt=PROMPT, batch_size=16)
    expected = model.encode_texts(["one cat", "one dog", "one emu"])
    np.testing.assert_allclose(embedded.label_embeddings, expected, atol=1e-6)
    expected = model.encode_texts(["one bird", "one fish"])
    np.testing.assert_allclose(embedded.dictionary_embeddings, expected, atol=1e-6)
    expected = model.encode_texts(["a photo of a cat", "a photo of a dog", "a photo of a emu"])
    np.testing.assert_allclose(embedded.mcm_label_embeddings, expected, atol=1e-6)
    expected = model.encode_texts(["a photo of something"])[0]
    np.testing.assert_allclose(embedded.something_embedding, expected, atol=1e-6)
    provenance = embedded.provenance
    assert provenance["model"]["weights_sha256"] == model.weights_hash
    assert provenance["prompt"] == PROMPT
    assert provenance["preprocessing"]["stats"] == "clip"


def test_only_images_of_the_selected_classes_are_embedded(model):
    images = dataset(noise(9, 16, 16, 3))
    embedded = embed_dataset(
        model,
        images,
        images,
        ["bird"],
        prompt=PROMPT,
        batch_size=16,
        train_classes=[1],
        test_classes=[0, 2],
    )
    np.testing.assert_array_equal(embedded.train_labels, [1, 1, 1])
    np.testing.assert_array_equal(embedded.test_labels, [0, 2, 0, 2, 0, 2])


def test_invalid_arguments_are_refused(model):
    images = dataset(noise(3, 16, 16, 3))
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        embed_images(model, images, batch_size=0)
    with pytest.raises(ValueError, match="expected at least one text"):
        embed_texts(model, [])
    with pytest.raises(ValueError, match="unknown stats 'clipp'"):
        embed_images(model, images, preprocess="clipp")
    other = ImageDataset("o", images.images, images.labels, ("x", "y", "z"), "made here")
    with pytest.raises(ValueError, match="must have the same class names"):
        embed_dataset(model, images, other, ["bird"])
