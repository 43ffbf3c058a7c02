"""Tests of the SHA-256 check in the hub's cache layouts, and of remembered checks."""

import hashlib
import os

import numpy as np
import pytest
from random_checkpoints import clip_config, save_random_checkpoint

from bliss_jax.models import integrity
from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.weights import load_params


@pytest.fixture
def snapshot(tmp_path):
    """Returns a snapshot whose weights link to a blob in a store that uses another hash."""
    folder = tmp_path / "hub" / "models--a--b"
    directory = folder / "snapshots" / ("c" * 40)
    save_random_checkpoint(directory, clip_config())
    file = directory / "model.safetensors"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    stored = tmp_path / "hub" / "blobs" / "ab" / ("ab" * 32)
    blob = folder / "blobs" / sha256
    for parent in (stored.parent, blob.parent):
        parent.mkdir(parents=True)
    file.rename(stored)
    blob.symlink_to(os.path.relpath(stored, blob.parent))
    file.symlink_to(os.path.relpath(blob, directory))
    return directory


def load(directory):
    return load_params(directory, read_config(directory, "float32"))


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_in_a_shared_store_is_found(snapshot):
    load(snapshot)
    file = snapshot / "model.safetensors"
    flip(file.resolve())
    with pytest.raises(ValueError, match="its SHA-256 is") as error:
        load(snapshot)
    assert str(error.value).startswith(f"{file} is damaged")
    assert f"Delete {file.resolve()} and load the model again" in str(error.value)


def test_files_outside_the_cache_have_no_published_hash(tmp_path):
    file = tmp_path / ("0" * 64)
    file.touch()
    assert integrity.published_sha256(file) is None
    link = tmp_path / "link"
    link.symlink_to(link)
    assert integrity.published_sha256(link) is None


def test_a_finished_check_is_remembered_until_the_file_changes(snapshot, tmp_path, monkeypatch):
    monkeypatch.setenv("BLISS_JAX_WEIGHT_HASHES", str(tmp_path / "hashes"))
    params, digest = load(snapshot)
    checks = []
    monkeypatch.setattr("bliss_jax.models.weights.check_content", checks.append)
    found, remembered = load(snapshot)
    assert (remembered, checks) == (digest, [])
    np.testing.assert_array_equal(found["logit_scale"], params["logit_scale"])
    monkeypatch.undo()
    monkeypatch.setenv("BLISS_JAX_WEIGHT_HASHES", str(tmp_path / "hashes"))
    flip((snapshot / "model.safetensors").resolve())
    with pytest.raises(ValueError, match="is damaged"):
        load(snapshot)


def test_a_changed_file_elsewhere_has_another_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("BLISS_JAX_WEIGHT_HASHES", str(tmp_path / "hashes"))
    save_random_checkpoint(tmp_path / "model", clip_config(), seed=0)
    first = load(tmp_path / "model")[1]
    assert load(tmp_path / "model")[1] == first
    save_random_checkpoint(tmp_path / "model", clip_config(), seed=1)
    assert load(tmp_path / "model")[1] != first


def test_unusable_memories_are_ignored(snapshot, tmp_path, monkeypatch):
    folder = tmp_path / "hashes"
    monkeypatch.setenv("BLISS_JAX_WEIGHT_HASHES", str(folder))
    digest = load(snapshot)[1]
    for text in ("{", "[]", '{"fingerprint": "00"}', '{"fingerprint": 3}'):
        for entry in folder.glob("*.json"):
            entry.write_text(text)
        assert load(snapshot)[1] == digest
    monkeypatch.setenv("BLISS_JAX_WEIGHT_HASHES", str(snapshot / "config.json"))  # not a folder
    assert load(snapshot)[1] == digest


def test_the_number_of_memories_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("BLISS_JAX_WEIGHT_HASHES", str(tmp_path / "hashes"))
    monkeypatch.setattr(integrity, "_KEPT", 3)
    for index in range(5):
        file = tmp_path / f"{index}.safetensors"
        file.write_bytes(b"x")
        integrity.remember_fingerprint([file], "0" * 64)
    assert len(list((tmp_path / "hashes").iterdir())) == 3
    assert integrity.remembered_fingerprint([tmp_path / "4.safetensors"]) == "0" * 64
