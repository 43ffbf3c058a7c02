"""Faster forms of matrix products and attention on NVIDIA GPUs, for encoders in bfloat16.

Both forms return the numbers of their definitions up to rounding, and they compose under the same transformations.
They are part of a program if it is traced on a machine that has such a GPU. The program uses them on the GPU alone:
the same program on a CPU computes the definition.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Float

from bliss_jax._checks import explicit_mesh, is_concrete

_AMPERE = 8.0
"""Compute capability of the first GPUs for which cuDNN has an attention that keeps no table of logits."""

_WIDEST_HEAD = 128
"""Largest dimension of a head in cuDNN's attention on all of these GPUs; it is a multiple of 8."""


_portable = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Traces programs for several kinds of devices inside the `with` block: cuDNN's attention exists for GPUs only.

    JAX does not trace a jitted function again inside the block, so the block contains calls of plain functions.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


@cache
def has_cuda() -> bool:
    """Returns whether JAX has NVIDIA GPUs on this machine, all of generation Ampere or later."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # JAX knows no such platform here
        return False
    return all(float(device.compute_capability) >= _AMPERE for device in devices)


_BIAS_IN_PRODUCT = {"xla_gpu_enable_triton_gemm": False}
"""XLA adds a bias inside cuBLAS's product only if Triton does not compete for the product."""


@cache
def compiler_options() -> dict[str, Any] | None:
    """Returns XLA's options for a program that is an encoder in bfloat16; None if there is no such GPU.

    None is also returned if XLA does not have the options, because they are not part of its stable interface.
    """
    if not has_cuda():
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_BIAS_IN_PRODUCT)(0).block_until_ready()
    except RuntimeError:
        return None
    return _BIAS_IN_PRODUCT


def with_compiler_options(
    compiled: Callable[[Callable], Callable],
) -> Callable[[Callable], Callable]:
    """Returns a decorator that adds the options of `compiler_options` to calls that run at once.

    JAX has no options for a part of a program, so calls inside another jitted function, and transformed calls, are
    those of `compiled`, which is a decorator too.
    """

    def decorate(function: Callable) -> Callable:
        composed = compiled(function)

        @cache
        def alone(options: tuple[tuple[str, Any], ...]) -> Callable:
            return jax.jit(function, compiler_options=dict(options))

        @wraps(function)
        def call(*arrays: Any) -> Any:
            options = compiler_options()
            if options is None or not _runs_at_once(arrays) or explicit_mesh(arrays) is not None:
                return composed(*arrays)
            return alone(tuple(options.items()))(*arrays)

        return call

    return decorate


def _runs_at_once(arrays: Any) -> bool:
    """Returns whether a call runs at once, i.e. is neither transformed nor a part of a larger program."""
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves(arrays)):
        return False
    # Inside `jax.jit` even the result of an operation without arguments is traced.
    return is_concrete(jnp.zeros(()))


def on_cuda(
    fast: Callable[..., Array], definition: Callable[..., Array], *arrays: Array
) -> Float[Array, "..."]:
    """Computes `fast(*arrays)` on an NVIDIA GPU and `definition(*arrays)` on other devices."""
    if not has_cuda():
        return definition(*arrays)
    return lax.platform_dependent(*arrays, cuda=fast, default=definition)


def can_fuse_attention(query: Float[Array, "n queries heads head_dim"], keys: int) -> bool:
    """Returns whether `fused_attention` can compute the attention of these queries to as many keys.

    A single query per image, as in the last layer of CLIP, gains nothing. Meshes with explicit or manual axes need
    rules that cuDNN's call does not have. Neither does it exist in programs for several kinds of devices (`portable`).
    """
    _, queries, _, head_dim = query.shape
    mesh = jax.sharding.get_abstract_mesh()
    return (
        queries == keys
        and not _portable.get()
        and head_dim % 8 == 0
        and head_dim <= _WIDEST_HEAD
        and all(kind == AxisType.Auto for kind in mesh.axis_types)
        and has_cuda()
    )


def fused_attention(
    definition: Callable[..., Array],
    query: Float[Array, "n length heads head_dim"],
    key: Float[Array, "n length heads head_dim"],
    value: Float[Array, "n length heads head_dim"],
) -> Float[Array, "n length heads head_dim"]:
    """Computes `definition(query, key, value)`, attention in bfloat16, without a table of logits in memory.

    The computation is that of cuDNN (Dao et al., "FlashAttention", NeurIPS 2022, describes the algorithm).
    Derivatives of any order are those of the definition, because cuDNN has none in forward mode.
    """

    @jax.custom_jvp
    def fused(query: Array, key: Array, value: Array) -> Array:
        half = (x.astype(jnp.bfloat16) for x in (query, key, value))
        mixed = jax.nn.dot_product_attention(*half, implementation="cudnn")
        return mixed.astype(jnp.float32)

    fused.defjvp(lambda primals, tangents: jax.jvp(definition, primals, tangents))
    return on_cuda(fused, definition, query, key, value)
