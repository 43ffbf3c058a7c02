"""Tests of a loaded encoder, from uint8 images and strings to unit-norm embeddings."""

import dataclasses
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import save_tiny_clip, save_tiny_siglip, torch_embeddings, torch_model

from bliss_jax.models import (
    REGISTRY,
    Model,
    encode_image,
    encode_text,
    load_model,
    model,
    model_names,
)
from bliss_jax.models.preprocessing import STATS, apply_preprocessing

UNTRAINED = "bliss-jax/untrained"
ROUNDING = 5e-7


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    save_tiny_clip(directory)
    return directory


@pytest.fixture(scope="module")
def untrained():
    return load_model(UNTRAINED)


def images(n=5, height=40, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


TEXTS = ["a", "a cat", "", "the dog ran", "of"]


def test_a_loaded_checkpoint_has_the_attributes_of_its_files(saved):
    loaded = load_model(saved)
    assert loaded.name == str(saved)
    assert loaded.revision is None
    assert (loaded.dtype, loaded.embedding_dim, loaded.image_size) == ("float32", 24, 32)


@pytest.mark.parity
@pytest.mark.torch
def test_a_loaded_checkpoint_equals_pytorch(saved):
    loaded = load_model(saved)
    pixels = apply_preprocessing(jnp.asarray(images()), loaded.preprocessing)
    image, text = torch_embeddings(torch_model(saved), np.asarray(pixels), loaded.tokenize(TEXTS))
    np.testing.assert_allclose(loaded.encode_images(images()), image, atol=2e-6, rtol=0)
    np.testing.assert_allclose(loaded.encode_texts(TEXTS), text, atol=2e-6, rtol=0)


def test_images_equal_the_pure_function(untrained):
    pixels = apply_preprocessing(jnp.asarray(images()), untrained.preprocessing)
    expected = jax.jit(encode_image, static_argnums=1)(untrained.params, untrained.config, pixels)
    np.testing.assert_allclose(untrained.encode_images(images()), expected, atol=ROUNDING)


@pytest.mark.slow
def test_texts_equal_the_pure_function(untrained):
    tokens = jnp.asarray(untrained.tokenize(["a cat", "a dog"]))
    expected = jax.jit(encode_text, static_argnums=1)(untrained.params, untrained.config, tokens)
    np.testing.assert_allclose(untrained.encode_texts(["a cat", "a dog"]), expected, atol=ROUNDING)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_unit_norm_float32_with_every_dtype(dtype):
    loaded = load_model(UNTRAINED, dtype=dtype)
    assert loaded.dtype == dtype
    for embeddings in (loaded.encode_images(images()), loaded.encode_texts(["a", "b"])):
        assert embeddings.dtype == jnp.float32
        assert embeddings.shape[1] == loaded.embedding_dim == 64
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_bfloat16_stays_close_to_float32(untrained):
    fast = load_model(UNTRAINED, dtype="bfloat16")
    assert fast.weights_hash == untrained.weights_hash
    exact, coarse = untrained.encode_images(images()), fast.encode_images(images())
    assert np.abs(exact - coarse).max() > 0
    assert np.sum(exact * coarse, axis=1).min() > 0.999


def test_images_of_different_sizes_keep_their_order(untrained):
    shapes = [(40, 48), (32, 32), (40, 48), (20, 90), (32, 32)]
    ragged = [images(1, *shape, seed=i)[0] for i, shape in enumerate(shapes)]
    together = untrained.encode_images(ragged)
    alone = jnp.concatenate([untrained.encode_images(image[None]) for image in ragged])
    np.testing.assert_allclose(together, alone, atol=ROUNDING)
    stacked = images(3)
    np.testing.assert_array_equal(
        untrained.encode_images(list(stacked)), untrained.encode_images(stacked)
    )
    np.testing.assert_array_equal(
        untrained.encode_images(jnp.asarray(stacked)), untrained.encode_images(stacked)
    )


def test_no_images_and_no_texts_give_no_rows(untrained):
    assert untrained.encode_images(images(0)).shape == (0, 64)
    assert untrained.encode_images([]).shape == (0, 64)
    assert untrained.encode_texts([]).shape == (0, 64)
    assert untrained.tokenize([]).shape == (0, 128)


def test_statistics_are_chosen_by_name(untrained):
    own = untrained.encode_images(images())
    np.testing.assert_array_equal(untrained.encode_images(images(), "clip"), own)
    reference = untrained.encode_images(images(), preprocess="reference")
    assert np.abs(reference - own).max() > 1e-4
    mean, std = STATS["reference"]
    other = dataclasses.replace(untrained.preprocessing, mean=mean, std=std)
    changed = dataclasses.replace(untrained, preprocessing=other)
    np.testing.assert_array_equal(changed.encode_images(images()), reference)
    with pytest.raises(ValueError, match="refernce"):
        untrained.encode_images(images(), preprocess="refernce")


def test_arrays_that_are_not_images_are_refused(untrained, unchecked):
    for wrong in (images().astype(np.float32), images()[..., :1], [images()[0], images()[0, :, 0]]):
        with pytest.raises(ValueError, match="uint8"):
            untrained.encode_images(wrong)


def test_batching_texts_changes_no_embedding(untrained, monkeypatch):
    """Lengths, the number of batches and a shared prefix have no effect."""
    texts = [f"a photo of {i} {'very ' * (i % 3)}small cats" for i in range(20)]
    one_by_one = np.concatenate([untrained.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(untrained.encode_texts(texts), one_by_one, atol=ROUNDING)
    monkeypatch.setattr(model, "text_batch_size", lambda: 4)
    np.testing.assert_allclose(untrained.encode_texts(["!", *texts])[1:], one_by_one, atol=ROUNDING)


def test_long_texts_are_refused_or_truncated_on_request(untrained):
    long = "x" * 200
    with pytest.raises(ValueError, match="has 202 tokens, more than the context of 128"):
        untrained.encode_texts([long])
    np.testing.assert_array_equal(
        untrained.encode_texts([long], truncate=True), untrained.encode_texts(["x" * 126])
    )


def test_repeated_calls_do_not_compile_again(untrained, caplog):
    def compilations(function):
        caplog.clear()
        with jax.log_compiles():
            result = function()
        return sum("Finished XLA compilation" in r.getMessage() for r in caplog.records), result

    def run(model, texts):
        return model.encode_images(images(3, 33, 35)), model.encode_texts(texts)

    first_count, first = compilations(lambda: run(untrained, ["a cat", "b"]))
    assert first_count >= 1, "choose a shape that no other test compiles"
    second_count, second = compilations(lambda: run(untrained, ["a cat", "b"]))
    # Another model of the same configuration and other texts of similar length compile nothing.
    again = load_model(UNTRAINED)
    other_count, _ = compilations(lambda: run(again, ["other", "texts"]))
    assert second_count == 0
    assert other_count == 0
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_embeddings_of_sharded_images_stay_sharded(untrained):
    devices = jax.devices()
    assert len(devices) == 8
    mesh = jax.sharding.Mesh(devices, "batch")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    found = untrained.encode_images(jax.device_put(images(16), sharding))
    assert found.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(found, untrained.encode_images(images(16)), atol=ROUNDING)


def test_importing_the_models_imports_no_heavy_package():
    heavy = {"transformers", "tokenizers", "huggingface_hub", "safetensors", "torch", "PIL"}
    code = f"import sys, bliss_jax.models; print(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert found.stdout.strip() == "[]"


def test_the_untrained_model_is_reproducible(untrained):
    again = load_model(UNTRAINED)
    assert again.weights_hash == untrained.weights_hash
    assert again.revision is None
    jax.tree.map(np.testing.assert_array_equal, again.params, untrained.params)
    np.testing.assert_array_equal(again.encode_images(images()), untrained.encode_images(images()))
    assert (
        np.abs(
            np.triu(untrained.encode_images(images()) @ again.encode_images(images()).T, 1)
        ).max()
        < 1
    )


def test_the_untrained_model_tokenizes_bytes(untrained):
    tokens = untrained.tokenize(["Zoë", ""])
    assert (tokens[:, 0] == 256).all()
    assert (tokens[0] != 257).sum() == 1 + len("zoë".encode())
    assert len(set(tokens[0, 1:5])) == 4
    assert (tokens[1, 1:] == 257).all()
    every_byte = untrained.tokenize(["".join(map(chr, range(0x20, 0x7F)))])[0]
    assert every_byte.max() == 257


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("siglip")
    save_tiny_siglip(directory)
    return directory


def test_siglip_is_loaded_with_its_tokenizer_and_preprocessing(siglip):
    loaded = load_model(siglip)
    assert (loaded.preprocessing.geometry, loaded.preprocessing.resample) == ("squash", "bilinear")
    assert loaded.encode_images(images(2), "clip").shape == (2, 32)
    assert loaded.tokenize(["a cat"]).shape == (1, 16)


@pytest.mark.parity
@pytest.mark.torch
def test_a_loaded_siglip_equals_pytorch(siglip):
    loaded, texts = load_model(siglip), ["a cat", "A DOG!"]
    pixels = apply_preprocessing(jnp.asarray(images(2)), loaded.preprocessing)
    image, text = torch_embeddings(torch_model(siglip), np.asarray(pixels), loaded.tokenize(texts))
    np.testing.assert_allclose(loaded.encode_images(images(2)), image, atol=2e-6, rtol=0)
    np.testing.assert_allclose(loaded.encode_texts(texts), text, atol=2e-6, rtol=0)


def test_errors_for_unknown_names_list_similar_ones():
    with pytest.raises(
        ValueError, match=r"(?s)cannot get 'openai/clip-vit-base-patch61'.*HF_HUB_OFFLINE.*-patch16"
    ):
        load_model("openai/clip-vit-base-patch61")
    with pytest.raises(ValueError, match=r"(?s)no directory 'untrained'.*'bliss-jax/untrained'"):
        load_model("untrained")
    with pytest.raises(ValueError, match=r"(?s)'bliss-jax/tinny' is not a model.*'bliss-jax/tiny'"):
        load_model("bliss-jax/tinny")


def test_wrong_arguments_are_refused(saved, unchecked):
    with pytest.raises(ValueError, match=r"unknown dtype 'float16'.*float32.*bfloat16"):
        load_model(UNTRAINED, dtype="float16")
    with pytest.raises(ValueError, match="is a directory and has no revision, got 'main'"):
        load_model(saved, revision="main")


def test_sizes_are_compared_with_the_registry(saved, tmp_path, monkeypatch):
    asked = []

    def fetch(name, revision):
        asked.append((name, revision))
        return saved

    monkeypatch.setattr(model, "fetch", fetch)
    loaded = load_model("somebody/else")
    assert (loaded.name, loaded.revision) == ("somebody/else", saved.name)
    name = "openai/clip-vit-base-patch32"
    with pytest.raises(
        ValueError, match=r"sizes \(24, 32, 8\), but the registry says \(512, 224, 32\)"
    ):
        load_model(name)
    pinned = REGISTRY[name].revision
    monkeypatch.setitem(
        REGISTRY,
        name,
        dataclasses.replace(
            REGISTRY[name],
            embedding_dim=24,
            patch_size=8,
            preprocessing=loaded.preprocessing,
        ),
    )
    assert isinstance(load_model(name), Model)
    load_model(name, revision="v2")
    assert asked == [("somebody/else", None), (name, pinned), (name, pinned), (name, "v2")]
    assert name in model_names()


def test_weights_are_compared_with_the_registry_at_its_own_revision(saved, monkeypatch):
    name, commit = "openai/clip-vit-base-patch32", saved.name
    monkeypatch.setattr(model, "fetch", lambda name, revision: saved)
    loaded = load_model("somebody/else")

    def register(weights_sha256, revision):
        changes = {"embedding_dim": 24, "patch_size": 8, "preprocessing": loaded.preprocessing}
        entry = dataclasses.replace(REGISTRY[name], **changes)
        changes = {"weights_sha256": weights_sha256, "revision": revision}
        monkeypatch.setitem(REGISTRY, name, dataclasses.replace(entry, **changes))

    for known, revision in [(loaded.weights_hash, commit), (None, commit), ("00", "another")]:
        register(known, revision)
        load_model(name)
    register("00", commit)
    with pytest.raises(ValueError, match=f"hash {loaded.weights_hash}, but the registry says 00"):
        load_model(name)


@pytest.mark.parametrize("position", [-1, -1_000_000])
def test_a_flipped_byte_in_the_tiny_model_is_found_and_named(position, tmp_path, monkeypatch):
    directory = tmp_path / "tiny"
    shutil.copytree(model._TINY_DIRECTORY, directory)
    monkeypatch.setattr(model, "_TINY_DIRECTORY", directory)
    load_model("bliss-jax/tiny")
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bliss-jax/tiny have the hash .*{directory} is damaged"):
        load_model("bliss-jax/tiny")
