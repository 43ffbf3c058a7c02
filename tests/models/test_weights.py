"""Tests of reading weights: all formats give the same parameters, and invalid files are refused."""

import hashlib
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from random_checkpoints import (
    clip_config,
    random_tensors,
    save_random_checkpoint,
    siglip_config,
    split_into_shards,
)
from safetensors.numpy import load_file, save_file

from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.layout import has_weights
from bliss_jax.models.weights import (
    as_params,
    expected_shapes,
    fingerprint,
    flatten,
    load_params,
    read_tensors,
)


@pytest.fixture
def saved(tmp_path):
    save_random_checkpoint(tmp_path, clip_config())
    return tmp_path


def load(directory, dtype="float32"):
    return load_params(directory, read_config(directory, dtype))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def rewrite(directory, change):
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors) or tensors, directory / "model.safetensors")


def test_every_format_gives_the_same_parameters_and_hash(saved, tmp_path_factory):
    params, digest = load(saved)
    assert has_weights(saved)

    sharded = tmp_path_factory.mktemp("sharded")
    save_random_checkpoint(sharded, clip_config())
    assert len(split_into_shards(sharded)) == 4
    assert has_weights(sharded)
    found, found_digest = load(sharded)
    assert_same(found, params)
    assert found_digest == digest

    flax = tmp_path_factory.mktemp("flax")
    (flax / "config.json").write_text((saved / "config.json").read_text())
    assert not has_weights(flax)
    tree = unflatten_dict(read_tensors(saved), sep="/")
    (flax / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    assert has_weights(flax)
    found, found_digest = load(flax)
    assert_same(found, params)
    assert found_digest == digest


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"])
def test_stored_dtypes_are_converted_to_the_requested_one(saved, stored):
    exact, exact_digest = load(saved)
    rewrite(saved, lambda t: {name: tensor.astype(jnp.dtype(stored)) for name, tensor in t.items()})
    params, digest = load(saved)
    assert digest != exact_digest
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    rounded = jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(jnp.dtype(stored)).astype("float32"), exact
    )
    assert_same(params, rounded)


def test_with_bfloat16_only_kernels_are_bfloat16(saved):
    exact, digest = load(saved)
    params, fast_digest = load(saved, "bfloat16")
    assert fast_digest == digest
    for name, leaf in flatten(params).items():
        assert leaf.dtype == (jnp.bfloat16 if name.endswith("/kernel") else jnp.float32)
        np.testing.assert_array_equal(leaf, flatten(exact)[name].astype(leaf.dtype))


def test_position_ids_of_old_checkpoints_are_ignored(saved):
    expected = load(saved)

    def add(tensors):
        tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
        tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]

    rewrite(saved, add)
    found = load(saved)
    assert_same(found[0], expected[0])
    assert found[1] == expected[1]


def test_one_error_lists_all_tensors_that_do_not_fit(saved):
    def spoil(tensors):
        del tensors["text_model.final_layer_norm.weight"]
        del tensors["vision_model.pre_layrnorm.bias"]
        tensors["text_projection.weight"] = tensors["text_projection.weight"][:, 1:].copy()
        tensors["text_model.encoder.layers.7.mlp.fc1.bias"] = np.zeros(3, np.float32)
        tensors["vision_model.post_layernorm.weight"] = np.zeros(32, np.int8)

    rewrite(saved, spoil)
    with pytest.raises(ValueError, match="5 differ") as error:
        load(saved)
    for line in (
        "missing: text_model/final_layer_norm/scale [32]",
        "missing: vision_model/pre_layrnorm/bias [32]",
        "shape: text_projection/kernel is [31, 24], expected [32, 24]",
        "unexpected: text_model/encoder/layers/7/mlp/fc1/bias [3]",
        "dtype: vision_model/post_layernorm/scale is int8, expected a floating-point type",
    ):
        assert line in str(error.value)


def test_a_wrong_number_of_layers_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"16 differ(.|\n)*missing: text_model/encoder/layers/2/"):
        load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "noise"])
def test_damaged_files_are_named(saved, name, damage):
    if name == "flax_model.msgpack":
        tree = unflatten_dict(read_tensors(saved), sep="/")
        (saved / name).write_bytes(msgpack_serialize(tree))
        (saved / "model.safetensors").unlink()
    whole = (saved / name).read_bytes()
    damaged = {"truncated": whole[:-100], "empty": b"", "noise": bytes(range(255, 0, -1)) * 9}
    (saved / name).write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=f"{name} is truncated or corrupt"):
        load(saved)


def in_the_hub_s_cache(directory, blobs):
    """Moves weight files to the layout of the hub's cache: links to files named after their content."""
    blobs.mkdir()
    links = [file for file in directory.iterdir() if file.suffix in (".safetensors", ".msgpack")]
    for link in links:
        blob = blobs / hashlib.sha256(link.read_bytes()).hexdigest()
        link.rename(blob)
        link.symlink_to(blob)
    return sorted(links)


def flip(file, position, bit=1):
    content = bytearray(file.read_bytes())
    content[position] ^= bit
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["whole", "sharded", "flax"])
def test_a_flipped_byte_in_the_hub_s_cache_is_found_and_named(kind, tmp_path):
    snapshot = tmp_path / "snapshot"
    save_random_checkpoint(snapshot, clip_config())
    if kind == "sharded":
        split_into_shards(snapshot)
    if kind == "flax":
        tree = unflatten_dict(read_tensors(snapshot), sep="/")
        (snapshot / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
        (snapshot / "model.safetensors").unlink()
    links = in_the_hub_s_cache(snapshot, tmp_path / "blobs")
    params, digest = load(snapshot)
    damaged = links[-1]
    blob = damaged.resolve()
    flip(blob, -1)  # a byte of a number: the file stays readable and all sizes stay valid
    with pytest.raises(ValueError, match="its SHA-256 is") as error:
        load(snapshot)
    assert str(error.value).startswith(f"{damaged} is damaged")
    assert f"published with {blob.name}. Delete {blob} and load the model again" in str(error.value)
    flip(blob, -1)
    found, found_digest = load(snapshot)
    assert_same(found, params)
    assert found_digest == digest


def test_every_flipped_byte_of_a_file_in_the_hub_s_cache_is_found(saved, tmp_path_factory):
    links = in_the_hub_s_cache(saved, tmp_path_factory.mktemp("cache") / "blobs")
    blob = links[0].resolve()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, blob.stat().st_size, 20).tolist():
        bit = 1 << int(rng.integers(8))
        flip(blob, position, bit)
        with pytest.raises(ValueError, match="its SHA-256 is"):
            read_tensors(saved)
        flip(blob, position, bit)


def test_a_deleted_blob_counts_as_missing_weights(saved, tmp_path_factory):
    """`fetch` then downloads the file again."""
    links = in_the_hub_s_cache(saved, tmp_path_factory.mktemp("cache") / "blobs")
    assert has_weights(saved)
    links[0].resolve().unlink()
    assert not has_weights(saved)


@pytest.mark.parametrize("place", ["blobs/model-of-mine", "elsewhere/" + "0" * 64])
def test_a_link_to_a_file_of_another_name_is_loaded(saved, place, tmp_path_factory):
    target = tmp_path_factory.mktemp("cache") / place
    target.parent.mkdir()
    (saved / "model.safetensors").rename(target)
    (saved / "model.safetensors").symlink_to(target)
    load(saved)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_never_opened(saved, name):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(
        ValueError, match=r"pickle .* never loaded. To convert it once.*save_pretrained"
    ):
        load(saved)


def test_a_directory_without_weights_is_refused(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights in .*expected one of model.safetensors"):
        load(saved)


def test_a_missing_shard_is_named(tmp_path):
    save_random_checkpoint(tmp_path, clip_config())
    split_into_shards(tmp_path)
    shard = sorted(tmp_path.glob("model-*"))[1]
    shard.unlink()
    assert not has_weights(tmp_path)
    with pytest.raises(ValueError, match=f"lists files that are absent: \\['{shard.name}'\\]"):
        load(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    save_random_checkpoint(tmp_path, clip_config())
    split_into_shards(tmp_path)
    first, second, *_ = sorted(tmp_path.glob("model-*"))
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(ValueError, match=r"two tensors in .* are named"):
        load(tmp_path)


@pytest.mark.parametrize("stem", ["pytorch_model", "weights-part"])
def test_shards_of_any_name_load(tmp_path, stem):
    save_random_checkpoint(tmp_path, clip_config())
    params, digest = load(tmp_path)
    split_into_shards(tmp_path, stem=stem)
    found, found_digest = load(tmp_path)
    assert_same(found, params)
    assert found_digest == digest


def test_pytorch_model_safetensors_loads(saved):
    params, digest = load(saved)
    (saved / "model.safetensors").rename(saved / "pytorch_model.safetensors")
    found, found_digest = load(saved)
    assert_same(found, params)
    assert found_digest == digest


@pytest.mark.parametrize("shape", [None, (), (1,), (1, 1)])
def test_parameters_of_the_loss_may_differ(saved, shape):
    """`logit_scale` may be missing or have another shape, and an extra `logit_bias` is ignored."""
    params, _ = load(saved)

    def change(tensors):
        scale = tensors.pop("logit_scale")
        if shape is not None:
            tensors["logit_scale"] = scale.reshape(shape)
        tensors["logit_bias"] = np.zeros(1, np.float32)

    rewrite(saved, change)
    found, _ = load(saved)
    if shape is None:
        params["logit_scale"] = jnp.float32(np.log(1 / 0.07))
    assert_same(found, params)


def test_a_position_table_of_another_size_needs_image_size(saved):
    config = json.loads((saved / "config.json").read_text())
    config["vision_config"]["image_size"] = 48
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"position_embedding/embedding is \[17, 32\](.|\n)*image_size="
    ):
        load(saved)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd"])
def test_shards_outside_the_directory_are_refused(saved, shard):
    (saved / "model.safetensors").unlink()
    index = {"weight_map": {"logit_scale": shard}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index.json is not a valid .*outside the directory"):
        load(saved)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_invalid_indices_are_named(saved, text):
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index.json is not a valid safetensors index"):
        load(saved)


def test_stacked_attention_weights_are_split(tmp_path):
    save_random_checkpoint(tmp_path, siglip_config())
    attention = flatten(load(tmp_path)[0]["vision_model"]["head"]["attention"])
    stacked = random_tensors(siglip_config())
    weight, bias = (
        stacked[f"vision_model.head.attention.in_proj_{part}"] for part in ("weight", "bias")
    )
    for index, part in enumerate("qkv"):
        rows = slice(32 * index, 32 * (index + 1))
        np.testing.assert_array_equal(attention[f"{part}_proj/kernel"], weight[rows].T)
        np.testing.assert_array_equal(attention[f"{part}_proj/bias"], bias[rows])


def test_the_hash_depends_on_names_dtypes_shapes_and_every_byte():
    tensors = {"a/kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.float32([1])}
    digest = fingerprint(tensors)
    assert digest == fingerprint(dict(reversed(tensors.items())))
    assert digest == fingerprint(tensors | {"a/kernel": tensors["a/kernel"].T.copy().T})
    flipped = tensors["a/kernel"].copy()
    flipped.view(np.uint8)[1, 3] ^= 1
    others = [
        {"c/kernel": tensors["a/kernel"], "b": tensors["b"]},
        tensors | {"a/kernel": tensors["a/kernel"].reshape(3, 2)},
        tensors
        | {"a/kernel": tensors["a/kernel"].view(np.int32).view("float32").astype("float16")},
        tensors | {"a/kernel": flipped},
    ]
    assert len({digest, *map(fingerprint, others)}) == 5


def test_expected_shapes_equal_those_of_the_loaded_parameters(saved):
    params, _ = load(saved)
    shapes = {name: leaf.shape for name, leaf in flatten(params).items()}
    assert expected_shapes(read_config(saved, "float32")) == shapes
    assert_same(as_params(flatten(params), "float32"), params)
