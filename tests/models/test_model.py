"""The whole encoder: uint8 images and strings in, unit-norm embeddings out."""

import dataclasses
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoints import (
    save_tiny_clip,
    tiny_siglip_model,
    torch_embeddings,
)

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
    return directory, save_tiny_clip(directory)


@pytest.fixture(scope="module")
def untrained():
    return load_model(UNTRAINED)


def images(n=5, height=40, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parity
def test_a_loaded_checkpoint_is_the_model_that_was_saved(saved):
    directory, torch_model = saved
    loaded = load_model(directory)
    assert loaded.name == str(directory)
    assert loaded.revision is None
    assert (loaded.dtype, loaded.embedding_dim, loaded.image_size) == ("float32", 24, 32)
    pixels = apply_preprocessing(jnp.asarray(images()), loaded.preprocessing)
    tokens = loaded.tokenize(["a", "a cat", "", "the dog ran", "of"])
    image, text = torch_embeddings(torch_model, np.asarray(pixels), tokens)
    np.testing.assert_allclose(loaded.encode_images(images()), image, atol=2e-6, rtol=0)
    found = loaded.encode_texts(["a", "a cat", "", "the dog ran", "of"])
    np.testing.assert_allclose(found, text, atol=2e-6, rtol=0)


def test_the_pure_functions_are_what_the_model_runs(untrained):
    pixels = apply_preprocessing(jnp.asarray(images()), untrained.preprocessing)
    expected = jax.jit(encode_image, static_argnums=1)(untrained.params, untrained.config, pixels)
    np.testing.assert_allclose(untrained.encode_images(images()), expected, atol=ROUNDING)
    tokens = jnp.asarray(untrained.tokenize(["a cat", "a dog"]))
    expected = jax.jit(encode_text, static_argnums=1)(untrained.params, untrained.config, tokens)
    np.testing.assert_allclose(untrained.encode_texts(["a cat", "a dog"]), expected, atol=ROUNDING)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_unit_norm_float32_whatever_the_dtype(dtype):
    loaded = load_model(UNTRAINED, dtype=dtype)
    assert loaded.dtype == dtype
    for embeddings in (loaded.encode_images(images()), loaded.encode_texts(["a", "b"])):
        assert embeddings.dtype == jnp.float32
        assert embeddings.shape[1] == loaded.embedding_dim == 64
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_bfloat16_stays_close(untrained):
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


def test_no_images_and_no_texts_are_no_rows(untrained):
    assert untrained.encode_images(images(0)).shape == (0, 64)
    assert untrained.encode_images([]).shape == (0, 64)
    assert untrained.encode_texts([]).shape == (0, 64)
    assert untrained.tokenize([]).shape == (0, 128)


def test_statistics_by_name(untrained):
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


def test_what_is_not_an_image_is_refused(untrained, unchecked):
    for wrong in (images().astype(np.float32), images()[..., :1], [images()[0], images()[0, :, 0]]):
        with pytest.raises(ValueError, match="uint8"):
            untrained.encode_images(wrong)


def test_many_texts_are_encoded_as_few(untrained, monkeypatch):
    """Of all lengths, in any order, in one batch or several, with a beginning in common or none."""
    texts = [f"a photo of {i} {'very ' * (i % 9)}small cats" for i in range(30)]
    one_by_one = np.concatenate([untrained.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(untrained.encode_texts(texts), one_by_one, atol=ROUNDING)
    np.testing.assert_allclose(untrained.encode_texts(["!", *texts])[1:], one_by_one, atol=ROUNDING)
    monkeypatch.setattr(model, "TEXT_BATCH", 4)
    np.testing.assert_allclose(untrained.encode_texts(texts), one_by_one, atol=ROUNDING)


def test_texts_too_long_are_refused_or_cut_on_request(untrained):
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
    assert first_count >= 1, "an encoder may have met this shape in another test"
    second_count, second = compilations(lambda: run(untrained, ["a cat", "b"]))
    # Nor for another model of the same configuration, nor for other texts of about this length.
    again = load_model(UNTRAINED)
    other_count, _ = compilations(lambda: run(again, ["other", "texts"]))
    assert second_count == 0
    assert other_count == 0
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_images_sharded_over_devices_stay_so(untrained):
    devices = jax.devices()
    assert len(devices) == 8
    mesh = jax.sharding.Mesh(devices, "batch")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    found = untrained.encode_images(jax.device_put(images(16), sharding))
    assert found.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(found, untrained.encode_images(images(16)), atol=ROUNDING)


def test_importing_the_room_is_light():
    heavy = {"transformers", "tokenizers", "huggingface_hub", "safetensors", "torch", "PIL"}
    code = f"import sys, bliss_jax.models; print(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert found.stdout.strip() == "[]"


def test_untrained_is_the_same_every_time_and_needs_nothing(untrained):
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


def test_untrained_reads_bytes(untrained):
    tokens = untrained.tokenize(["Zoë", ""])
    assert (tokens[:, 0] == 256).all()
    assert (tokens[0] != 257).sum() == 1 + len("zoë".encode())
    assert len(set(tokens[0, 1:5])) == 4
    assert (tokens[1, 1:] == 257).all()
    every_byte = untrained.tokenize(["".join(map(chr, range(0x20, 0x7F)))])[0]
    assert every_byte.max() == 257


def test_siglip_is_loaded_with_its_own_everything(tmp_path):
    import io
    import json

    import sentencepiece

    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat", "a dog", "the photo"] * 9),
        model_writer=writer,
        vocab_size=24,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(writer.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>"})
    )
    torch_model = tiny_siglip_model()
    torch_model.save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    fields = {"image_processor_type": "SiglipImageProcessor", "size": size, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    loaded = load_model(tmp_path)
    assert loaded.preprocessing.geometry == "squash"
    pixels = apply_preprocessing(jnp.asarray(images(2)), loaded.preprocessing)
    tokens = loaded.tokenize(["a cat", "A DOG!"])
    image, text = torch_embeddings(torch_model, np.asarray(pixels), tokens)
    np.testing.assert_allclose(loaded.encode_images(images(2)), image, atol=2e-6, rtol=0)
    np.testing.assert_allclose(loaded.encode_texts(["a cat", "A DOG!"]), text, atol=2e-6, rtol=0)
    assert loaded.encode_images(images(2), "clip").shape == (2, 32)


def test_unknown_names_list_the_near_misses():
    with pytest.raises(
        ValueError, match=r"(?s)cannot get 'openai/clip-vit-base-patch61'.*-patch16"
    ):
        load_model("openai/clip-vit-base-patch61")
    with pytest.raises(ValueError, match=r"(?s)not a directory either.*'bliss-jax/untrained'"):
        load_model("untrained")


def test_wrong_arguments_are_refused(saved, unchecked):
    with pytest.raises(ValueError, match=r"unknown dtype 'float16'.*float32.*bfloat16"):
        load_model(UNTRAINED, dtype="float16")
    with pytest.raises(ValueError, match="is a directory and has no revision, got 'main'"):
        load_model(saved[0], revision="main")


def test_a_repository_is_loaded_from_the_cache_and_checked_against_the_registry(
    saved, tmp_path, monkeypatch
):
    asked = []

    def fetch(name, revision):
        asked.append((name, revision))
        return saved[0]

    monkeypatch.setattr(model, "fetch", fetch)
    loaded = load_model("somebody/else")
    assert (loaded.name, loaded.revision) == ("somebody/else", saved[0].name)
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
    name, commit = "openai/clip-vit-base-patch32", saved[0].name
    monkeypatch.setattr(model, "fetch", lambda name, revision: saved[0])
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
