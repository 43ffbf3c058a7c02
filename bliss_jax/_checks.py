"""Checks of arguments and compilation, which all public numerical functions use. Failed checks raise ValueError.

Shapes, dtypes and types are known while JAX traces, so they are always checked. Values (finite, of unit norm,
labels in range) are checked if they are concrete. Under `jit`, `vmap` or `grad` they are not known; each function
documents its result for values that are not valid.

The value checks of one call run together, in one compiled program that returns the number of violations of
each check (`ValueChecks`). An eager call therefore needs one more dispatch, for any number of arguments.

The computation is compiled once (`compiled`), and runs on meshes whose axes are explicit. `jax.make_mesh` makes
axes explicit by default: then the type of an array contains its sharding, and operations that have no sharding rule
(top-k, sort, triangular solves) are errors. Functions therefore declare the sharding of their results and leave the
rest to the compiler (`jax.sharding.auto_axes`). On meshes with automatic axes, and inside `shard_map`, none of
this is needed.
"""

import warnings
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    NamedSharding,
    PartitionSpec,
    auto_axes,
    get_abstract_mesh,
)

Array = jax.Array | np.ndarray
"""Type of the arrays that public functions accept. They always return `jax.Array`."""

Precision = lax.PrecisionLike
"""Type of the argument `precision` of matrix products, see `jax.lax.dot_general`."""

HIGHEST = lax.Precision.HIGHEST
"""Default precision of similarities: full float32 on every backend."""

_UNIT_NORM_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2}
_MOMENTS_TOLERANCE = 0.04
"""Tolerance of the mean squared norm of the fitted embeddings, which is 1 for rows of unit norm."""


def is_concrete(array: Any) -> bool:
    """Returns whether the values of `array` are known, i.e. whether it is not a tracer."""
    return not isinstance(array, jax.core.Tracer)


def as_array(name: str, value: Any) -> jax.Array:
    """Returns `jnp.asarray(value)` for an array, with a warning if float64 is rounded to float32.

    Raises:
        ValueError: `value` is a list or another object without a dtype.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        raise ValueError(
            f"{name}: expected an array, got a {type(value).__name__}; pass np.asarray({name})"
        )
    if dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        warnings.warn(
            f"{name}: float64 is rounded to float32, because JAX's x64 mode is off; pass float32, or set "
            "jax_enable_x64 to compute in float64",
            stacklevel=4,
        )
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def accumulation_dtype(*values: Any) -> np.dtype:
    """Returns the dtype in which a function computes: the promoted dtype of its arguments, at least float32.

    This is the only rule of precision in the library. float16 and bfloat16 are promoted to float32, which holds
    them exactly; mixtures are promoted as by `jax.numpy`; Python numbers do not take part.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(jnp.result_type(*values), jnp.float32)


class _Check(NamedTuple):
    kind: str
    """Key of `_VIOLATIONS`."""
    limit: float | int
    """Tolerance or bound of the check."""
    arrays: tuple[Array, ...]
    message: Callable[..., str]
    """Returns the error message for the arrays, which are passed as NumPy arrays."""


class ValueChecks:
    """The checks of one call's arguments: shapes and dtypes immediately, values together in `run`."""

    def __init__(self):
        self._pending: list[_Check] = []

    def embeddings(self, name: str, embeddings: Any, *, unit_norm: bool = True) -> jax.Array:
        """Checks a matrix of embeddings and returns it as a JAX array of its own dtype.

        Args:
            name: Name of the argument, for messages.
            embeddings: A floating [n, dim] array.
            unit_norm: Whether rows must be of unit norm. They must always be finite.

        Raises:
            ValueError: The array is not floating or not a matrix.
        """
        shape = np.shape(embeddings) if hasattr(embeddings, "dtype") else None
        if shape is not None and len(shape) == 1:
            raise ValueError(
                f"{name}: expected a [n, dim] array, got one vector of shape {list(shape)}; "
                f"pass {name}[None] for a single row"
            )
        array = as_array(name, embeddings)
        if array.ndim != 2 or not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{name}: expected a floating [n, dim] array, got {array.dtype} {list(array.shape)}"
            )
        tolerance = _UNIT_NORM_TOLERANCE[array.dtype.name]

        def message(x: np.ndarray) -> str:
            norms = _norms(np, x)
            if not np.isfinite(norms).all():
                row = int(np.flatnonzero(~np.isfinite(norms))[0])
                return f"{name}: row {row} holds NaN or infinite values"
            worst = int(np.argmax(np.abs(norms - 1)))
            return (
                f"{name}: expected rows of unit norm, row {worst} has norm {norms[worst]:.4g}; "
                "divide each row by its norm"
            )

        self._pending.append(
            _Check("unit norm" if unit_norm else "finite", tolerance, (array,), message)
        )
        return array

    def normal_mask(self, normal: Any, num_classes: int, count: Any = None) -> Any:
        """Checks the mask of normal classes and returns it; None stands for all classes.

        Args:
            normal: A bool [num_classes] array, or None.
            num_classes: Number of classes.
            count: Number of fitted images per class. If it is given, each normal class must have images.

        Raises:
            ValueError: The mask is not a bool [num_classes] array.
        """
        mask = np.ones(num_classes, bool) if normal is None else as_array("normal", normal)
        if mask.shape != (num_classes,) or mask.dtype != jnp.bool_:
            raise ValueError(
                f"normal: expected a bool [{num_classes}] array, one entry per class, got {mask.dtype} "
                f"{list(mask.shape)}"
            )
        counts = np.ones(num_classes, np.int32) if count is None else count

        def message(mask: np.ndarray, counts: np.ndarray) -> str:
            if not mask.any():
                return "normal: expected at least one normal class, got none"
            empty = np.flatnonzero(mask & (counts == 0)).tolist()
            return f"normal: no images were fitted of the normal classes {empty}"

        self._pending.append(_Check("normal classes", 0, (mask, counts), message))
        return mask

    def class_labels(
        self, name: str, labels: Any, length: int, num_classes: int, where: Any = None
    ) -> jax.Array:
        """Checks integer labels and returns them as int32.

        Args:
            name: Name of the argument, for messages.
            labels: An integer [length] array with values in 0..num_classes-1.
            length: Number of images.
            num_classes: Number of classes.
            where: Mask of the rows whose labels count [length]; all if None.

        Raises:
            ValueError: The array is not an integer [length] array.
        """
        array = as_array(name, labels)
        if array.shape != (length,) or not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(
                f"{name}: expected an integer [{length}] array, got {array.dtype} {list(array.shape)}"
            )
        counted = np.ones(array.shape, bool) if where is None else where

        def message(labels: np.ndarray, counted: np.ndarray) -> str:
            found = labels[counted]
            return (
                f"{name}: expected values in 0..{num_classes - 1}, got {found.min()}..{found.max()}"
            )

        self._pending.append(_Check("labels", num_classes, (array, counted), message))
        return array.astype(jnp.int32)

    def unit_norm_moments(self, count: jax.Array, mean: jax.Array, cov: jax.Array) -> None:
        """Checks that moments are those of unit-norm embeddings: tr C_c + |m_c|^2 = E|x|^2 = 1."""

        def message(count: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> str:
            squared = np.where(count > 0, _mean_squared_norm(np, mean, cov), 1)
            c = int(np.argmax(np.abs(squared - 1)))
            return (
                "moments: expected moments of unit-norm embeddings, but the fitted images of class "
                f"{c} have a mean squared norm of {squared[c]:.4g}"
            )

        self._pending.append(_Check("moments", _MOMENTS_TOLERANCE, (count, mean, cov), message))

    def add(
        self, kind: str, limit: float | int, message: Callable[..., str], *arrays: jax.Array
    ) -> None:
        """Adds a check of another kind, see `_VIOLATIONS`."""
        self._pending.append(_Check(kind, limit, arrays, message))

    def run(self) -> None:
        """Evaluates the checks whose arrays are concrete.

        Raises:
            ValueError: A check is violated. The message is that of the first such check.
        """
        known = [check for check in self._pending if all(map(_has_values, check.arrays))]
        for check, violated in zip(known, _violated(known), strict=True):
            if violated:
                raise ValueError(check.message(*map(np.asarray, check.arrays)))


def _has_values(array: Any) -> bool:
    """Returns whether this process can read the values; parts of a global array may be on other processes."""
    return is_concrete(array) and getattr(array, "is_fully_addressable", True)


def _violated(checks: list[_Check]) -> np.ndarray | list[bool]:
    """Returns whether each check is violated."""
    if not checks:
        return []
    kinds = tuple((check.kind, check.limit) for check in checks)
    arrays = tuple(check.arrays for check in checks)
    devices = {_devices(array) for of_check in arrays for array in of_check} - {None}
    if len(devices) <= 1 and is_concrete(_identity(np.zeros((), bool))):
        return np.asarray(_count_violations(arrays, kinds)) > 0
    # JAX computes nothing while it traces a function that closes over concrete arrays, and arrays on different
    # devices cannot enter one program. In both cases the values are read and checked with NumPy.
    return [
        bool(_VIOLATIONS[kind](np, limit, *map(np.asarray, of_check)))
        for (kind, limit), of_check in zip(kinds, arrays, strict=True)
    ]


@jax.jit
def _identity(x: jax.Array) -> jax.Array:
    """Returns its argument, which is a tracer if JAX is tracing."""
    return x


def _devices(array: Any) -> Any:
    """Returns the devices that an array is committed to; None if it may enter a program on any device."""
    if not isinstance(array, jax.Array) or not array.committed:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    return frozenset(array.sharding.device_set)


@partial(jax.jit, static_argnames="kinds")
def _count_violations(
    arrays: tuple[tuple[Array, ...], ...], kinds: tuple[tuple[str, float | int], ...]
) -> jax.Array:
    return jnp.stack(
        [
            _VIOLATIONS[kind](jnp, limit, *of_check).astype(jnp.int32)
            for (kind, limit), of_check in zip(kinds, arrays, strict=True)
        ]
    )


def _norms(xp: Any, x: Any) -> Any:
    """Returns the norm of each row, at least in float32."""
    x = x.astype(xp.float32) if x.dtype.itemsize < 4 else x
    return xp.sqrt(xp.sum(x * x, axis=-1))


def _mean_squared_norm(xp: Any, mean: Any, cov: Any) -> Any:
    """Returns E|x|^2 = tr C + |m|^2 of each class."""
    return xp.einsum("cdd->c", cov) + xp.sum(mean * mean, axis=1)


def _normal_violations(xp: Any, limit: float | int, mask: Any, count: Any) -> Any:
    return xp.sum(mask & (count == 0)) + xp.where(xp.any(mask), 0, 1)


def _label_violations(xp: Any, limit: float | int, labels: Any, counted: Any) -> Any:
    return xp.sum(counted & ((labels < 0) | (labels >= limit)))


def _moments_violations(xp: Any, limit: float | int, count: Any, mean: Any, cov: Any) -> Any:
    squared = _mean_squared_norm(xp, mean, cov)
    return xp.sum((count > 0) & ~(xp.abs(squared - 1) <= limit))


_VIOLATIONS: dict[str, Callable[..., Any]] = {
    # Comparisons are negated so that NaN counts as a violation.
    "unit norm": lambda xp, limit, x: xp.sum(~(xp.abs(_norms(xp, x) - 1) <= limit)),
    "finite": lambda xp, limit, x: xp.sum(~xp.isfinite(_norms(xp, x))),
    "normal classes": _normal_violations,
    "labels": _label_violations,
    "moments": _moments_violations,
    "two classes": lambda xp, limit, labels, counted: (
        xp.where(xp.any(labels & counted), 0, 1) + xp.where(xp.any(~labels & counted), 0, 1)
    ),
    "at least": lambda xp, limit, mask: xp.sum(mask) < limit,
    "all": lambda xp, limit, mask: xp.sum(~mask),
    "no NaN": lambda xp, limit, values, counted: xp.sum(counted & xp.isnan(values)),
}
"""Functions of NumPy or `jax.numpy`, a limit and arrays that return the number of violations of a kind of check."""


def embeddings_as_float(name: str, embeddings: Any, *, unit_norm: bool = True) -> jax.Array:
    """Checks one matrix of embeddings, values included, and returns it in at least float32.

    Raises:
        ValueError: The array is not a floating [n, dim] array, or has concrete rows that are not finite or
            (unless `unit_norm` is False) not of unit norm.
    """
    checks = ValueChecks()
    array = checks.embeddings(name, embeddings, unit_norm=unit_norm)
    checks.run()
    return array.astype(accumulation_dtype(array))


def class_labels(name: str, labels: Any, length: int, num_classes: int) -> jax.Array:
    """Checks integer labels, values included, and returns them as int32.

    Raises:
        ValueError: The array is not an integer [length] array, or has concrete values out of range.
    """
    checks = ValueChecks()
    array = checks.class_labels(name, labels, length, num_classes)
    checks.run()
    return array


def scalar(name: str, value: Any, *, minimum: float = -np.inf, exclusive: bool = False) -> None:
    """Checks a number, which may be a traced scalar.

    Args:
        name: Name of the argument, for messages.
        value: A number, or an array of shape [].
        minimum: The smallest value allowed.
        exclusive: Whether `minimum` itself is excluded.

    Raises:
        ValueError: `value` is a bool, not a number, has a shape, or is concrete and out of range.
    """
    shape = np.shape(value) if hasattr(value, "dtype") or np.isscalar(value) else None
    dtype = getattr(value, "dtype", np.dtype(type(value)) if shape == () else None)
    numeric = dtype is not None and (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    )
    if shape != () or not numeric:
        found = type(value).__name__ if shape is None else f"{dtype} {list(shape)}"
        hint = "; a mask of classes is normal=" if dtype == np.bool_ and shape else ""
        raise ValueError(f"{name}: expected one number, got {found}{hint}")
    if not is_concrete(value):
        return
    number = float(np.asarray(value))
    if not np.isfinite(number) or number < minimum or (exclusive and number == minimum):
        bound = "" if minimum == -np.inf else f" {'>' if exclusive else '>='} {minimum:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {number:g}")


def static_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Checks an argument that must be a Python integer while JAX traces.

    Raises:
        ValueError: `value` is traced (the message says how to pass it), not an integer, or out of range.
    """
    if not is_concrete(value) or (hasattr(value, "dtype") and np.ndim(value) == 0):
        raise ValueError(
            f"{name}: expected a Python integer, got {_describe(value)}; {name} is static: pass it with "
            f"functools.partial(function, {name}=...) or jax.jit(function, static_argnames={name!r})"
        )
    outside = maximum is not None and isinstance(value, int) and value > maximum
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum or outside:
        allowed = f"of at least {minimum}" if maximum is None else f"in {minimum}..{maximum}"
        raise ValueError(f"{name}: expected an integer {allowed}, got {_describe(value)}")


def top_k_size(k: Any, available: int, of_what: str, *, name: str = "k") -> None:
    """Checks the number of neighbours k, which is static.

    Raises:
        ValueError: k is traced, not an integer, or outside 1..available.
    """
    try:
        static_integer(name, k, 1, available)
    except ValueError as error:
        if is_concrete(k) and not hasattr(k, "dtype"):
            raise ValueError(
                f"{name}: expected an integer in 1..{available} ({of_what}), got {_describe(k)}"
            ) from None
        raise error from None


def _describe(value: Any) -> str:
    if not is_concrete(value):
        return "a traced value"
    return (
        f"a {type(value).__name__} {list(np.shape(value))}"
        if hasattr(value, "dtype")
        else repr(value)
    )


# Compilation

Specs = Any
"""A pytree of `PartitionSpec`, a prefix of a function's result."""


def compiled(
    *, static: tuple[str, ...], out: Callable[..., Specs]
) -> Callable[[Callable], Callable]:
    """Returns a decorator that jits a function and runs it in automatic mode on explicit meshes.

    Args:
        static: Names of the keyword arguments that are static.
        out: Takes the function's array arguments and returns the `PartitionSpec`s of its result.
    """

    def decorate(function: Callable) -> Callable:
        jitted = jax.jit(function, static_argnames=static)

        @partial(jax.jit, static_argnames=("options", "mesh", "specs"))
        def automatic(arrays: tuple, options: tuple, mesh: AbstractMesh, specs: Specs) -> Any:
            inner, shardings = partial(function, **dict(options)), specs
            if get_abstract_mesh().empty:  # the shardings must then contain the mesh
                shardings = jax.tree.map(
                    lambda spec: NamedSharding(mesh, spec),
                    specs,
                    is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
                )
            return auto_axes(inner, axes=explicit_axes(mesh), out_sharding=shardings)(*arrays)

        @wraps(function)
        def call(*arrays: Any, **options: Any) -> Any:
            mesh = explicit_mesh(arrays)
            if mesh is None:
                return jitted(*arrays, **options)
            return automatic(arrays, tuple(options.items()), mesh, out(*arrays))

        return call

    return decorate


def rows(array: Any) -> PartitionSpec:
    """Returns the spec of results that have one entry for each row of `array`."""
    return PartitionSpec(row_axes(array))


def replicated(*arrays: Any) -> PartitionSpec:
    """Returns the spec of results that are replicated on every device."""
    return PartitionSpec()


def row_axes(array: Any) -> str | tuple[str, ...] | None:
    """Returns the explicit mesh axes over which the rows of `array` are sharded; None if there are none."""
    if explicit_mesh(array) is None:
        return None
    spec = jax.typeof(array).sharding.spec
    return spec[0] if spec else None


def explicit_mesh(tree: Any) -> AbstractMesh | None:
    """Returns the mesh with explicit axes that the arrays are on; None if there is none."""
    checked = None
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array):
            continue
        if is_concrete(leaf):
            # An encoder has hundreds of parameters on the same mesh, and its type takes longer to find than the mesh.
            placed = getattr(leaf.sharding, "mesh", None)
            if placed is None or placed is checked:
                continue
            checked = placed
        mesh = getattr(getattr(jax.typeof(leaf), "sharding", None), "mesh", None)
        if mesh is not None and not mesh.empty and explicit_axes(mesh):
            return mesh
    return None


def explicit_axes(mesh: AbstractMesh) -> tuple[str, ...]:
    """Returns the names of the explicit axes of a mesh."""
    named = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in named if kind == AxisType.Explicit)
