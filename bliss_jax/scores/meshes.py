"""Compiles a numerical function once, and runs it on meshes whose axes are explicit.

`jax.make_mesh` makes axes explicit by default: then the type of an array holds its sharding, and operations that
have no sharding rule (top-k, sort, triangular solves) are errors. The functions of this library say how
their results are sharded, and leave what happens inside to the compiler (`jax.sharding.auto_axes`). On meshes
with automatic axes, and inside `shard_map`, nothing of this is needed.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec, auto_axes

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

        @partial(jax.jit, static_argnames=("options", "axes", "specs"))
        def automatic(arrays: tuple, options: tuple, axes: tuple, specs: Specs) -> Any:
            inner = partial(function, **dict(options))
            return auto_axes(inner, axes=axes, out_sharding=specs)(*arrays)

        @wraps(function)
        def call(*arrays: Any, **options: Any) -> Any:
            axes = _explicit_axes(arrays)
            if not axes:
                return jitted(*arrays, **options)
            return automatic(arrays, tuple(options.items()), axes, out(*arrays))

        return call

    return decorate


def rows(array: Any) -> PartitionSpec:
    """Returns the spec of results that have one entry for each row of `array`."""
    return PartitionSpec(row_axes(array))


def replicated(*arrays: Any) -> PartitionSpec:
    """Returns the spec of results that every device holds as a whole."""
    return PartitionSpec()


def row_axes(array: Any) -> str | tuple[str, ...] | None:
    """Returns the explicit mesh axes over which the rows of `array` are sharded; None if there are none."""
    spec = _sharding(array).spec if _explicit_axes((array,)) else ()
    return spec[0] if spec else None


def _sharding(leaf: Any) -> Any:
    return getattr(jax.typeof(leaf), "sharding", None)


def _explicit_axes(tree: Any) -> tuple[str, ...]:
    """Returns the names of the explicit axes of the mesh that the arrays are on."""
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array):
            continue
        mesh = getattr(_sharding(leaf), "mesh", None)
        if mesh is None or mesh.empty:
            continue
        named = zip(mesh.axis_names, mesh.axis_types, strict=True)
        explicit = tuple(name for name, kind in named if kind == AxisType.Explicit)
        if explicit:
            return explicit
    return ()
