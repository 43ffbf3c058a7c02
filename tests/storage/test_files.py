"""Files are written as a whole or not at all, and sealed content is returned as it was sealed."""

import numpy as np
import pytest

from bliss_jax.storage import check_writable, replacing, seal, unseal


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with replacing(path) as file:
        file.write(b"later")
        assert path.read_bytes() == b"earlier"
    assert path.read_bytes() == b"later"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_keeps_the_earlier_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        check_writable(tmp_path / "missing" / "file")
    with pytest.raises(ValueError, match="it is a folder"):
        check_writable(tmp_path)


def test_sealed_content_comes_back_as_it_was():
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
def test_a_changed_byte_is_refused(position):
    content = bytearray(seal("kind", {"name": "x"}, {"a": np.zeros(16, np.float32)}))
    content[position - 100] ^= 1
    with pytest.raises(ValueError, match=r"damaged|not|kind"):
        unseal("kind", bytes(content))
