"""Atomic writes replace a file completely or not at all; sealed content is restored or refused."""

import numpy as np
import pytest

from bliss_jax.storage import check_writable, replacing, seal, unseal


def test_the_earlier_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with replacing(path) as file:
        file.write(b"later")
        assert path.read_bytes() == b"earlier"
    assert path.read_bytes() == b"later"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_write_keeps_the_earlier_file_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_check_writable_refuses_a_missing_folder_and_a_folder_as_the_file(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        check_writable(tmp_path / "missing" / "file")
    with pytest.raises(ValueError, match="it is a folder"):
        check_writable(tmp_path)


def test_unseal_returns_the_description_and_arrays_given_to_seal():
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1], np.int32)}
    description, restored = unseal("kind", seal("kind", {"name": "x", "list": [1, 2]}, arrays))
    assert description == {"name": "x", "list": [1, 2]}
    assert restored.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(restored[name], array, strict=True)


def test_sealed_content_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="other"):
        unseal("other", seal("kind", {}, {"a": np.zeros(1, np.float32)}))


@pytest.mark.parametrize("position", range(0, 100, 7))
def test_unseal_refuses_content_with_a_changed_byte(position):
    content = bytearray(seal("kind", {"name": "x"}, {"a": np.zeros(16, np.float32)}))
    content[position - 100] ^= 1
    with pytest.raises(ValueError, match=r"damaged|not|kind"):
        unseal("kind", bytes(content))
