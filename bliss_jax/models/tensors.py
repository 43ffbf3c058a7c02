"""Tensors of weight files, read one at a time.

A `Tensor` knows its name, shape and dtype from the header of its file; `read` returns its values. Reading one
tensor at a time bounds memory: a checkpoint is never in memory twice. Files are read and not memory-mapped,
because mapped pages count towards a process's memory, and because a file that is cut while it is mapped ends
the process.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import serialization

# The header of a safetensors file names these dtypes; all values are little-endian.
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "C64": np.dtype("<c8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


class Tensor(NamedTuple):
    """A named tensor whose values are read on demand.

    Attributes:
        name: Name of the tensor.
        shape: Shape of its values.
        dtype: Dtype of its values.
        read: Function that returns the values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def changed(
        self, name: str, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]
    ) -> "Tensor":
        """Returns a tensor of another name and shape with the values `change(self.read())`."""
        read = self.read
        return Tensor(name, shape, self.dtype, lambda: change(read()))

    def renamed(self, name: str) -> "Tensor":
        """Returns the same tensor under another name."""
        return self._replace(name=name)

    def transposed(self, name: str, axes: tuple[int, ...] | None = None) -> "Tensor":
        """Returns the tensor with permuted axes (reversed by default) under another name."""
        axes = axes or tuple(reversed(range(len(self.shape))))
        shape = tuple(self.shape[axis] for axis in axes)
        return self.changed(name, shape, lambda values: values.transpose(axes))

    def blocks(self, names: tuple[str, ...]) -> Iterator["Tensor"]:
        """Yields equal blocks of rows under the given names."""
        rows = self.shape[0] // len(names)
        for index, name in enumerate(names):
            part = slice(index * rows, (index + 1) * rows)
            yield self.changed(
                name, (rows, *self.shape[1:]), lambda values, part=part: values[part]
            )


def safetensors_in(file: Path) -> Iterator[Tensor]:
    """Yields the tensors of one safetensors file.

    Raises:
        ValueError: The file is truncated or corrupt, or holds a dtype that NumPy cannot represent.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):  # validates sizes and offsets
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is truncated or corrupt: {error}") from error
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        if fields["dtype"] not in _DTYPES:
            raise ValueError(
                f"{file}: the tensor {name} has the dtype {fields['dtype']}, expected one of "
                f"{list(_DTYPES)}"
            )
        dtype, shape = _DTYPES[fields["dtype"]], tuple(fields["shape"])
        start = 8 + length + fields["data_offsets"][0]
        yield Tensor(name, shape, dtype, _Section(file, start, shape, dtype))


class _Section(NamedTuple):
    """Values at a position of a file. Calling it reads them."""

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __call__(self) -> np.ndarray:
        values = aligned_empty((math.prod(self.shape),), self.dtype)
        with self.file.open("rb", buffering=0) as opened:
            opened.seek(self.start)
            view = values.view(np.uint8).data if values.size else memoryview(b"")
            while len(view):
                count = opened.readinto(view)
                if not count:
                    raise ValueError(f"{self.file} is truncated or corrupt: it became shorter")
                view = view[count:]
        return values.reshape(self.shape)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an uninitialised array at a multiple of 64 bytes, which JAX uses on the CPU without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def in_order(values: np.ndarray, block: int = 256) -> np.ndarray:
    """Returns the values in C order. Transposed matrices are copied in blocks that fit the CPU cache."""
    if values.flags.c_contiguous:
        return values
    ordered = aligned_empty(values.shape, values.dtype)
    if values.ndim != 2:
        ordered[...] = values
        return ordered
    rows, columns = values.shape
    for top in range(0, rows, block):
        for left in range(0, columns, block):
            part = (slice(top, top + block), slice(left, left + block))
            ordered[part] = values[part]
    return ordered


def msgpack_in(file: Path) -> Iterator[Tensor]:
    """Yields the tensors of a `flax_model.msgpack`, which is read as a whole.

    Raises:
        ValueError: The file is truncated or corrupt.
    """
    try:
        leaves = flatten(serialization.msgpack_restore(file.read_bytes()))
    # msgpack has no error class of its own for bytes that are not msgpack.
    except Exception as error:
        raise ValueError(f"{file} is truncated or corrupt: {error}") from error
    for name in list(leaves):
        values = np.asarray(leaves.pop(name))
        yield Tensor(name, values.shape, values.dtype, lambda values=values: values)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a nested parameter tree under names such as `text_model/embeddings/...`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
