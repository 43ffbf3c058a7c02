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
import jax.core
from jax.sharding import (
    AbstractMesh,
    AxisType,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
    auto_axes,
    get_abstract_mesh,
)

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
            if get_abstract_mesh().empty:  # then the shardings tell the mesh
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
    """Returns the spec of results that every device holds as a whole."""
    return PartitionSpec()


def row_axes(array: Any) -> str | tuple[str, ...] | None:
    """Returns the explicit mesh axes over which the rows of `array` are sharded; None if there are none."""
    if explicit_mesh(array) is None:
        return None
    spec = jax.typeof(array).sharding.spec
    return spec[0] if spec else None


def explicit_mesh(tree: Any) -> AbstractMesh | None:
    """Returns the mesh with explicit axes that the arrays are on; None if there is none."""
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array) or _on_one_device(leaf):
            continue
        mesh = getattr(getattr(jax.typeof(leaf), "sharding", None), "mesh", None)
        if mesh is not None and not mesh.empty and explicit_axes(mesh):
            return mesh
    return None


def explicit_axes(mesh: AbstractMesh) -> tuple[str, ...]:
    """Returns the names of the explicit axes of a mesh."""
    named = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in named if kind == AxisType.Explicit)


def _on_one_device(array: jax.Array) -> bool:
    concrete = not isinstance(array, jax.core.Tracer)
    return concrete and isinstance(array.sharding, SingleDeviceSharding)
