"""Weight files of a checkpoint, read into a parameter tree.

`layout` states which files are read. The names of PyTorch's parameters become those of Flax by one rule
(`to_flax`); the names of OpenCLIP are first translated to those of transformers (`open_clip.renamed`). The
tensors must agree exactly with the configuration: one error lists every tensor that is missing, unexpected,
of another shape or not floating-point. Three exceptions have no effect on embeddings: `logit_scale` and
`logit_bias` may be missing or have another shape of one element, and an unexpected `logit_bias` is ignored.

Each tensor is read, hashed and converted before the next one, so that memory holds the parameters once. File
hashes are computed at the same time in a second thread.
"""

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from bliss_jax.models import open_clip
from bliss_jax.models.families import ModelConfig
from bliss_jax.models.integrity import (
    check_content,
    remember_fingerprint,
    remembered_fingerprint,
)
from bliss_jax.models.layers import Dtype
from bliss_jax.models.layout import FLAX_MSGPACK, directory_layout, weight_files
from bliss_jax.models.positions import interpolate_positions
from bliss_jax.models.tensors import Tensor, flatten, in_order, msgpack_in, safetensors_in

# Buffers that old releases of transformers saved beside the parameters: each holds 0, 1, 2, ...
IGNORED = frozenset(f"{tower}/embeddings/position_ids" for tower in ("text_model", "vision_model"))
# Parameters of the loss. They have no effect on embeddings, so a default replaces a missing one.
LOSS_PARAMETERS = {"logit_scale": math.log(1 / 0.07), "logit_bias": 0.0}
POSITIONS = "vision_model/embeddings/position_embedding/embedding"

Params = dict[str, Any]
Tensors = dict[str, np.ndarray]


def load_params(
    directory: Path, config: ModelConfig, *, interpolate: bool = False
) -> tuple[Params, str]:
    """Reads a checkpoint's parameters.

    Args:
        directory: A directory with weight files in one of the layouts of `layout`.
        config: The configuration that the parameters must fit. They are converted to its `dtype` (see
            `as_params`).
        interpolate: Whether to interpolate the position table of the vision tower to the image size of
            `config` (see `positions`). Otherwise a table of another size is an error.

    Returns:
        The parameters as a nested dictionary of JAX arrays, and the `fingerprint` of the stored tensors. The
        fingerprint does not depend on `config.dtype`, on the image size, nor on the file format.

    Raises:
        ValueError: A file is missing, a pickle, or corrupt; or the tensors do not fit `config`.
    """
    files = weight_files(directory)
    tensors = {tensor.name: tensor for tensor in _tensors(directory, files)}
    expected = expected_shapes(config)
    for name in LOSS_PARAMETERS.keys() - expected.keys():
        tensors.pop(name, None)
    check(tensors, expected, directory, interpolate)
    known = remembered_fingerprint(files)
    digest = hashlib.sha256()
    params: dict[str, Array] = {}
    with ThreadPoolExecutor(2) as pool:
        checked = [] if known else [pool.submit(check_content, file) for file in files]
        for tensor, values in _read_ahead(pool, [tensors[name] for name in sorted(tensors)]):
            if known is None:
                _update(digest, tensor.name, values)
            if interpolate and tensor.name == POSITIONS and values.shape != expected[POSITIONS]:
                values = _interpolated(values, config)
            values = values.reshape(expected[tensor.name])
            params[tensor.name] = _converted(tensor.name, values, config.dtype, alias=True)
        for check_of_file in checked:
            check_of_file.result()
    for name, shape in expected.items():
        if name not in params:
            params[name] = jnp.full(shape, LOSS_PARAMETERS[name], jnp.float32)
    if known is None:
        known = digest.hexdigest()
        remember_fingerprint(files, known)
    return traverse_util.unflatten_dict(params, sep="/"), known


def read_tensors(directory: Path) -> Tensors:
    """Reads all tensors of a checkpoint under their Flax names, with the stored dtypes.

    Raises:
        ValueError: A file is missing, a pickle, or corrupt, or two tensors have one name.
    """
    files = weight_files(directory)
    for file in files:
        check_content(file)
    return {tensor.name: tensor.read() for tensor in _tensors(directory, files)}


def _tensors(directory: Path, files: list[Path]) -> Iterator[Tensor]:
    """Yields a checkpoint's tensors under their Flax names, without the ignored ones."""
    if files[0].name == FLAX_MSGPACK:
        check_content(files[0])  # before the file is parsed
        named: Iterable[Tensor] = msgpack_in(files[0])
    else:
        stored = chain.from_iterable(map(safetensors_in, _readable(files)))
        if directory_layout(directory).kind == "open_clip":
            stored = chain.from_iterable(map(open_clip.renamed, stored))
        named = chain.from_iterable(map(to_flax, stored))
    seen = set()
    for tensor in named:
        if tensor.name in seen:
            raise ValueError(f"two tensors in {directory} are named {tensor.name}")
        seen.add(tensor.name)
        if tensor.name not in IGNORED:
            yield tensor


def _readable(files: list[Path]) -> Iterator[Path]:
    """Yields the files. If the header of one cannot be read, a damaged file is named as such."""
    for file in files:
        try:
            list(safetensors_in(file))
        except ValueError:
            check_content(file)
            raise
        yield file


def _read_ahead(
    pool: ThreadPoolExecutor, tensors: list[Tensor], ahead: int = 2
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yields tensors with their values in C order; the next ones are read in the pool meanwhile."""
    waiting: deque[tuple[Tensor, Future]] = deque()
    for tensor in tensors:
        waiting.append((tensor, pool.submit(lambda tensor=tensor: in_order(tensor.read()))))
        if len(waiting) > ahead:
            first, values = waiting.popleft()
            yield first, values.result()
            del values
    while waiting:
        first, values = waiting.popleft()
        yield first, values.result()


def to_flax(tensor: Tensor) -> Iterator[Tensor]:
    """Yields a tensor of PyTorch under its Flax name and in its Flax layout.

    Dots become slashes, and `weight` becomes

    - `kernel` [height, width, in, out] for a convolution [out, in, height, width],
    - `scale` for a layer norm [width],
    - `embedding`, unchanged, for a table [rows, width],
    - `kernel` [in, out] for a linear map [out, in].

    The stacked `in_proj` of `nn.MultiheadAttention` becomes `q_proj`, `k_proj` and `v_proj`.
    """
    path, _, leaf = tensor.name.rpartition(".")
    prefix = path.replace(".", "/") + "/" if path else ""
    if leaf in ("in_proj_weight", "in_proj_bias") and tensor.shape and tensor.shape[0] % 3 == 0:
        kind = leaf.removeprefix("in_proj_")
        for block in tensor.blocks(tuple(f"{path}.{part}_proj.{kind}" for part in "qkv")):
            yield from to_flax(block)
    elif leaf != "weight":
        yield tensor.renamed(prefix + leaf)
    elif len(tensor.shape) == 4:
        yield tensor.transposed(prefix + "kernel", (2, 3, 1, 0))
    elif len(tensor.shape) == 1:
        yield tensor.renamed(prefix + "scale")
    elif path.endswith("_embedding") and not path.endswith("patch_embedding"):
        yield tensor.renamed(prefix + "embedding")
    else:
        yield tensor.transposed(prefix + "kernel")


@lru_cache(maxsize=8)
def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    tree = jax.eval_shape(config.module().init, jax.random.key(0), *config.example_inputs())
    return {name: leaf.shape for name, leaf in flatten(tree["params"]).items()}


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the parameters that a configuration needs.

    The initialisation is traced with one layer per tower, which takes a fraction of the time; the shapes of
    the other layers are equal.
    """
    towers = {"vision_model": config.vision, "text_model": config.text}
    shallow = replace(
        config,
        vision=replace(config.vision, num_hidden_layers=1),
        text=replace(config.text, num_hidden_layers=1),
    )
    shapes = {}
    for name, shape in _shapes(shallow).items():
        tower, _, rest = name.partition("/encoder/layers/0/")
        if rest:
            for layer in range(towers[tower].num_hidden_layers):
                shapes[f"{tower}/encoder/layers/{layer}/{rest}"] = shape
        else:
            shapes[name] = shape
    return shapes


def check(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    where: Path,
    interpolate: bool = False,
) -> None:
    """Raises one ValueError that lists every disagreement between tensors and expected shapes."""
    absent = expected.keys() - tensors.keys() - LOSS_PARAMETERS.keys()
    problems = [f"missing: {name} {list(expected[name])}" for name in sorted(absent)]
    hint = ""
    for name in sorted(tensors):
        tensor = tensors[name]
        if name not in expected:
            problems.append(f"unexpected: {name} {list(tensor.shape)}")
        elif tensor.shape != expected[name]:
            one = name in LOSS_PARAMETERS and math.prod(tensor.shape) == 1
            rows = name == POSITIONS and tensor.shape[1:] == expected[name][1:]
            if not (one or (rows and interpolate)):
                problems.append(
                    f"shape: {name} is {list(tensor.shape)}, expected {list(expected[name])}"
                )
                if rows:
                    hint = (
                        "\nThe position table belongs to another image size. `load_model(..., "
                        "image_size=PIXELS)` interpolates it."
                    )
        if name in expected and not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"dtype: {name} is {tensor.dtype}, expected a floating-point type")
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(
            f"the tensors in {where} do not fit its configuration, {len(problems)} differ:\n  {lines}{hint}"
        )


def _interpolated(table: np.ndarray, config: ModelConfig) -> np.ndarray:
    grid = math.isqrt(config.vision.num_patches)
    class_token = expected_shapes(config)[POSITIONS][0] != config.vision.num_patches
    return interpolate_positions(table.astype(np.float32), grid, class_token)


def as_params(tensors: Mapping[str, Float[np.ndarray | Array, "..."]], dtype: Dtype) -> Params:
    """Converts flat tensors to a nested tree of JAX arrays.

    With "bfloat16" the kernels, which enter matrix products, are bfloat16. All other parameters (biases,
    layer norms, embedding tables) are float32. With "float32" all parameters are float32.
    """
    tree = {name: _converted(name, tensor, dtype) for name, tensor in tensors.items()}
    return traverse_util.unflatten_dict(tree, sep="/")


def _converted(name: str, values: np.ndarray | Array, dtype: Dtype, alias: bool = False) -> Array:
    """Returns a parameter in its dtype. With `alias` the array may share the memory of `values`."""
    wanted = jnp.dtype(dtype if name.endswith("kernel") else "float32")
    if isinstance(values, np.ndarray):
        values = values.astype(wanted, copy=False)  # on the host, where nothing is compiled
        if alias:
            return jax.device_put(values, may_alias=True)
    return jnp.asarray(values, wanted)


def fingerprint(tensors: Mapping[str, Float[np.ndarray, "..."]]) -> str:
    """Returns the SHA-256, in hexadecimal, of names, dtypes, shapes and bytes in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _update(digest, name, in_order(tensors[name]))
    return digest.hexdigest()


def _update(digest: Any, name: str, values: np.ndarray) -> None:
    digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
    digest.update(values.reshape(-1).view(np.uint8).data)
