"""Checkpoints in transformers' formats, read into parameter pytrees.

A checkpoint directory holds its tensors in one of three forms, looked for in this order:

- `model.safetensors`, with the names and layouts of the PyTorch model;
- the shards listed in `model.safetensors.index.json`, the same;
- `flax_model.msgpack`, the Flax model's own tree.

`pytorch_model.bin` is a pickle, which can run code when it is opened: it is never read. The names
of PyTorch become those of Flax by one rule (`to_flax`). What a configuration expects and what the
files hold must agree exactly: one error lists every tensor that is missing, unexpected, of another
shape or not floating-point.

In the hub's cache a weight file is a link to `blobs/SHA256`, named after its content: there, a file of
other content is refused by name before it is read.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from jaxtyping import Array, Float

from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.layers import Dtype
from bliss_jax.models.siglip import SiglipConfig

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
FLAX_MSGPACK = "flax_model.msgpack"
PYTORCH_PICKLE = "pytorch_model.bin"

# Buffers that old releases of transformers saved beside the parameters: each is 0, 1, 2, ...
IGNORED = frozenset(f"{tower}/embeddings/position_ids" for tower in ("text_model", "vision_model"))

Params = dict[str, Any]
Tensors = dict[str, np.ndarray]


def load_params(directory: Path, config: CLIPConfig | SiglipConfig) -> tuple[Params, str]:
    """Reads a checkpoint's parameters.

    Args:
        directory: A directory with one of the weight files named at the top of this module.
        config: What the parameters must fit; its `dtype` is what they are converted to (see
            `as_params`).

    Returns:
        The parameters as a nested dictionary of JAX arrays, and their `fingerprint` as stored,
        which does not depend on `config.dtype` nor on the file format.

    Raises:
        ValueError: A file is missing, a pickle, or corrupt; or the tensors do not fit `config`.
    """
    tensors = read_tensors(directory)
    check(tensors, config, directory)
    return as_params(tensors, config.dtype), fingerprint(tensors)


def read_tensors(directory: Path) -> Tensors:
    """All tensors of a checkpoint under their Flax names, as stored."""
    if (directory / FLAX_MSGPACK).is_file() and not has_safetensors(directory):
        check_content(directory / FLAX_MSGPACK)
        named = read_msgpack(directory / FLAX_MSGPACK)
    else:
        files = safetensors_files(directory)
        for file in files:
            check_content(file)
        named = (
            converted
            for file in files
            for name, tensor in read_safetensors(file)
            for converted in to_flax(name, tensor)
        )
    tensors: Tensors = {}
    for name, tensor in named:
        if name in tensors:
            raise ValueError(f"two tensors in {directory} are named {name}")
        if name not in IGNORED:
            tensors[name] = tensor
    return tensors


def has_safetensors(directory: Path) -> bool:
    """Whether a directory holds weights as safetensors, whole or sharded."""
    return any((directory / name).is_file() for name in (SAFETENSORS, SAFETENSORS_INDEX))


def has_weights(directory: Path) -> bool:
    """Whether a directory holds complete weights in one of the formats read here."""
    if (directory / SAFETENSORS_INDEX).is_file():
        names = shard_names(directory / SAFETENSORS_INDEX)
        if all((directory / name).is_file() for name in names):
            return True
    return any((directory / name).is_file() for name in (SAFETENSORS, FLAX_MSGPACK))


def pickle_refused(where: str) -> str:
    """Why a pickle is not loaded, and how to convert it."""
    return (
        f"{where} holds its weights only as {PYTORCH_PICKLE}, a pickle, which can run code when it "
        f"is opened and is never loaded. Convert it once, where you trust it: "
        f"`AutoModel.from_pretrained({where!r}).save_pretrained(directory)` in transformers with "
        f"PyTorch writes {SAFETENSORS} and config.json; put the tokenizer's and the preprocessor's "
        f"files beside them and load that directory."
    )


def safetensors_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards of its index."""
    if (directory / SAFETENSORS).is_file():
        return [directory / SAFETENSORS]
    if (directory / SAFETENSORS_INDEX).is_file():
        files = [directory / name for name in shard_names(directory / SAFETENSORS_INDEX)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{directory / SAFETENSORS_INDEX} lists files that are absent: {missing}"
            )
        return files
    if any(directory.glob("pytorch_model*.bin*")):
        raise ValueError(pickle_refused(str(directory)))
    raise ValueError(
        f"no weights in {directory}: expected {SAFETENSORS}, {SAFETENSORS_INDEX} or {FLAX_MSGPACK}"
    )


def shard_names(index: Path) -> list[str]:
    """File names in a safetensors index, each once; names that leave the directory are refused."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a shard lies outside the directory")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a valid safetensors index: {error}") from error
    return names


def check_content(file: Path) -> None:
    """Compares a file of the hub's cache with the SHA-256 it is named after.

    Files elsewhere have no such name, and nothing is asked of them.

    Raises:
        ValueError: the content is another; says what to delete.
    """
    blob = file.resolve()
    if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    if sha256 != blob.name:
        raise ValueError(
            f"{file} is damaged: its SHA-256 is {sha256}, but it was published with {blob.name}. Delete "
            f"{blob} and load the model again, which fetches that file anew"
        )


def read_safetensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of one safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt: {error}") from error


def read_msgpack(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of a `flax_model.msgpack`."""
    try:
        tensors = flatten(serialization.msgpack_restore(file.read_bytes()))
    # msgpack has no error class of its own for bytes that are not msgpack.
    except Exception as error:
        raise ValueError(f"{file} is truncated or corrupt: {error}") from error
    yield from ((name, np.asarray(tensor)) for name, tensor in tensors.items())


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a nested parameter tree under names such as `text_model/embeddings/...`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def to_flax(name: str, tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """One PyTorch tensor under its Flax name and in its Flax layout.

    Dots become slashes, and `weight` becomes

    - `kernel` [height, width, in, out] for a convolution [out, in, height, width],
    - `scale` for a layer norm [width],
    - `embedding`, unchanged, for a table [rows, width],
    - `kernel` [in, out] for a linear map [out, in].

    `nn.MultiheadAttention`'s stacked `in_proj` becomes `q_proj`, `k_proj` and `v_proj`.
    """
    path, _, leaf = name.rpartition(".")
    prefix = path.replace(".", "/") + "/" if path else ""
    if leaf in ("in_proj_weight", "in_proj_bias") and tensor.size % 3 == 0:
        for part, block in zip("qkv", np.split(tensor, 3), strict=True):
            yield from to_flax(f"{path}.{part}_proj.{leaf.removeprefix('in_proj_')}", block)
    elif leaf != "weight":
        yield prefix + leaf, tensor
    elif tensor.ndim == 4:
        yield prefix + "kernel", tensor.transpose(2, 3, 1, 0)
    elif tensor.ndim == 1:
        yield prefix + "scale", tensor
    elif path.endswith("_embedding"):
        yield prefix + "embedding", tensor
    else:
        yield prefix + "kernel", tensor.T


def expected_shapes(config: CLIPConfig | SiglipConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters that a configuration needs."""
    size, length = config.vision.image_size, config.text.max_position_embeddings
    inputs = (
        jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
    )
    tree = jax.eval_shape(config.module().init, jax.random.key(0), *inputs)["params"]
    return {name: leaf.shape for name, leaf in flatten(tree).items()}


def check(
    tensors: Mapping[str, np.ndarray], config: CLIPConfig | SiglipConfig, where: Path
) -> None:
    """Raises one ValueError that lists every disagreement between tensors and configuration."""
    expected = expected_shapes(config)
    problems = [
        f"missing: {name} {list(expected[name])}" for name in sorted(expected.keys() - tensors)
    ]
    for name in sorted(tensors):
        shape, dtype = tensors[name].shape, tensors[name].dtype
        if name not in expected:
            problems.append(f"unexpected: {name} {list(shape)}")
        elif shape != expected[name]:
            problems.append(f"shape: {name} is {list(shape)}, expected {list(expected[name])}")
        elif not jnp.issubdtype(dtype, jnp.floating):
            problems.append(f"dtype: {name} is {dtype}, expected a floating-point type")
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(
            f"the tensors in {where} do not fit its configuration, {len(problems)} differ:\n  {lines}"
        )


def as_params(tensors: Mapping[str, Float[np.ndarray | Array, "..."]], dtype: Dtype) -> Params:
    """Flat tensors to a nested tree of JAX arrays in the dtype they are computed with.

    Under "bfloat16" that is bfloat16 for kernels, which enter matrix products, and float32 for all
    else (biases, layer norms, embedding tables); under "float32" it is float32 throughout.
    """
    tree = {
        name: jnp.asarray(tensor, dtype if name.endswith("kernel") else jnp.float32)
        for name, tensor in tensors.items()
    }
    return traverse_util.unflatten_dict(tree, sep="/")


def fingerprint(tensors: Mapping[str, Float[np.ndarray, "..."]]) -> str:
    """SHA-256, in hexadecimal, over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype} {tensors[name].shape}\n".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
