"""Errors at the edge: what every public function asks of its arguments, said once.

Shapes and dtypes are known even while JAX traces, so they are always checked. Values (finite, unit norm,
label ranges) can only be looked at where they are concrete: inside `jit`, `vmap` or `grad` those checks
are skipped, and the functions say what they return instead.
"""

import warnings
from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
"""What the public functions accept; what they return is always a `jax.Array`."""

_UNIT_NORM_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2}


def is_concrete(array: Array) -> bool:
    """Whether the values of `array` can be looked at now, that is, whether nothing is being traced."""
    return not isinstance(array, jax.core.Tracer)


def as_jax(name: str, array: Array) -> jax.Array:
    """`jnp.asarray`, which rounds float64 to float32 while JAX's x64 mode is off, but not silently."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype and array.dtype == np.float64:
        warnings.warn(
            f"{name}: float64 is rounded to float32, since JAX's x64 mode is off; pass float32, or set "
            "jax_enable_x64 to compute in float64",
            stacklevel=4,
        )
    return jnp.asarray(array)


def embeddings_as_float(name: str, embeddings: Array, *, unit_norm: bool = True) -> jax.Array:
    """Checks a matrix of embeddings and returns it in the precision that scores are computed in.

    float32 and (in x64 mode) float64 stay as they are; float16 and bfloat16, which float32 holds
    exactly, become float32.

    Raises:
        ValueError: not a floating [n, dim] array; and, where values are concrete, rows that are not
            finite or (unless `unit_norm` is False) not of unit norm.
    """
    shape, dtype = np.shape(embeddings), np.dtype(getattr(embeddings, "dtype", np.object_))
    if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name}: expected a floating [n, dim] array, got {dtype} {list(shape)}")
    array = as_jax(name, embeddings)
    array = array.astype(jnp.float32 if dtype.itemsize < 4 else array.dtype)
    norms = look_at(lambda x: jnp.linalg.norm(x, axis=1), array)
    if norms is not None and norms.size:
        if not np.isfinite(norms).all():
            row = int(np.flatnonzero(~np.isfinite(norms))[0])
            raise ValueError(f"{name}: row {row} holds NaN or infinite values")
        worst = int(np.argmax(np.abs(norms - 1)))
        if unit_norm and abs(norms[worst] - 1) > _UNIT_NORM_TOLERANCE[dtype.name]:
            raise ValueError(
                f"{name}: expected rows of unit norm, row {worst} has norm {norms[worst]:.4g}; "
                "divide each row by its norm"
            )
    return array


def look_at(compute: Callable[..., jax.Array], *arrays: jax.Array) -> np.ndarray | None:
    """`compute(*arrays)` as values, or None where the arrays have none yet.

    Works also where a function that is being jitted has closed over concrete arrays. Inside `shard_map`
    that runs eagerly even those cannot be looked at.
    """
    if not all(map(is_concrete, arrays)):
        return None
    try:
        with jax.ensure_compile_time_eval():
            return np.asarray(compute(*arrays))
    except jax.errors.TracerArrayConversionError:
        return None


def scalar(
    name: str, value: float | Array, *, minimum: float = -np.inf, exclusive: bool = False
) -> None:
    """Raises ValueError unless a number is finite and at least (or above) `minimum`; tracers pass."""
    if isinstance(value, jax.core.Tracer):
        return
    number = float(np.asarray(value))
    if not np.isfinite(number) or number < minimum or (exclusive and number == minimum):
        bound = "" if minimum == -np.inf else f" {'>' if exclusive else '>='} {minimum:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {number:g}")


def same_dim(**embeddings: jax.Array) -> None:
    """Raises ValueError unless all arrays share their last axis, naming each with its shape."""
    if len({array.shape[-1] for array in embeddings.values()}) > 1:
        shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in embeddings.items())
        raise ValueError(f"expected embeddings of one dimension, got {shapes}")


def normal_mask(
    normal: Array | None, num_classes: int, count: jax.Array | None = None
) -> jax.Array:
    """Checks the mask of normal classes and returns it; `None` means that every class is normal.

    Raises:
        ValueError: not a boolean [num_classes] array; no normal class; a normal class of which `count`
            says that no image was seen (the last two only where values are concrete).
    """
    mask = jnp.ones(num_classes, bool) if normal is None else jnp.asarray(normal)
    if mask.shape != (num_classes,) or mask.dtype != jnp.bool_:
        raise ValueError(
            f"normal: expected a bool [{num_classes}] array, one entry per class, got {mask.dtype} "
            f"{list(mask.shape)}"
        )
    if is_concrete(mask):
        if not np.asarray(mask).any():
            raise ValueError("normal: expected at least one normal class, got none")
        if count is not None and is_concrete(count):
            empty = np.flatnonzero(np.asarray(mask) & (np.asarray(count) == 0)).tolist()
            if empty:
                raise ValueError(f"normal: no images were fitted of the normal classes {empty}")
    return mask


def class_labels(
    name: str, labels: Array, length: int, num_classes: int, *, where: Array | None = None
) -> jax.Array:
    """Checks integer labels [length], and that those at `where` are in 0..num_classes-1.

    Raises:
        ValueError: wrong shape or dtype; out of range (only where values are concrete).
    """
    array = jnp.asarray(labels)
    if array.shape != (length,) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name}: expected an integer [{length}] array, got {array.dtype} {list(array.shape)}"
        )
    if is_concrete(array) and (where is None or is_concrete(where)):
        values = np.asarray(array) if where is None else np.asarray(array)[np.asarray(where)]
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(
                f"{name}: expected values in 0..{num_classes - 1}, got {values.min()}..{values.max()}"
            )
    return array.astype(jnp.int32)


def top_k_size(k: int, available: int, of_what: str) -> None:
    """Raises ValueError unless 1 <= k <= available."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= available:
        raise ValueError(f"k: expected an integer in 1..{available} ({of_what}), got {k!r}")
