"""Loops over blocks of images, and over chunks of texts, in bounded memory.

Blocks of images are strided: block b of B holds the images b, b + B, b + 2 B, ... If the images are sharded over
devices, every device then has its share of every block, and the loop over blocks moves nothing between devices.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from bliss_jax.scores.reductions import zero_like_inputs
from bliss_jax.scores.shapes import is_traced_shape

Carry = TypeVar("Carry")

BLOCK = 2**22
"""Approximate size of a temporary array, in numbers: small enough for a cache, large enough for an accelerator."""


def map_images(
    function: Callable[[jax.Array], Any], images: Float[jax.Array, "images dim"], rows: int
) -> Any:
    """Computes `function(images)` in blocks of at most `rows` images.

    Args:
        function: Takes a block of images [block, dim] and returns a pytree of arrays [block, ...]. It treats images
            independently, so the result does not depend on the blocks.
        images: Rows [images, dim]. A symbolic number of images is one block.
        rows: Largest number of images in a block; static. If the number of images has no divisor between an
            eighth of `rows` and `rows`, the images are copied with padding.
    """
    number = images.shape[0]
    if is_traced_shape(number) or number <= rows:
        return function(images)
    size = _block_rows(number, rows)
    blocks = -(-number // size)
    if blocks * size != number:
        images = jnp.pad(images, ((0, blocks * size - number), (0, 0)))
    strided = images.reshape(size, blocks, -1)

    def of_block(block: jax.Array) -> Any:
        return function(lax.dynamic_index_in_dim(strided, block, axis=1, keepdims=False))

    results = lax.map(of_block, jnp.arange(blocks, dtype=jnp.int32))

    def in_order(leaf: jax.Array) -> jax.Array:
        return jnp.swapaxes(leaf, 0, 1).reshape(blocks * size, *leaf.shape[2:])[:number]

    return jax.tree.map(in_order, results)


def _block_rows(number: int, rows: int) -> int:
    """Returns the number of images in a block: a divisor of their number if one is at least `rows` / 8.

    The divisor is a multiple of the largest power of two that divides the number of images or, if this exceeds
    `rows`, of the largest one that divides `rows`. Devices, whose number is usually a power of two, then have equal
    shares of every block.
    """
    power = number & -number
    step = power if power <= rows else rows & -rows
    divisors = [n for n in range(step, rows + 1, step) if number % n == 0]
    best = max(divisors, default=1)
    return best if 8 * best >= rows else rows


def fold_chunks(
    step: Callable[[Carry, Int[jax.Array, ""], int], Carry],
    carry: Carry,
    length: int,
    chunk_size: int,
) -> Carry:
    """Folds `carry = step(carry, start, size)` over the chunks [start, start + size) of 0..length-1.

    Full chunks are steps of a loop, and the rest is one more step, so nothing is padded and `size` is static.
    """
    full, rest = divmod(length, chunk_size)
    if full:
        starts = jnp.arange(full, dtype=jnp.int32) * chunk_size
        carry, _ = lax.scan(
            lambda carry, start: (step(carry, start, chunk_size), None), carry, starts
        )
    return step(carry, jnp.int32(full * chunk_size), rest) if rest else carry


def block_map(
    function: Callable[..., Any], *arrays: jax.Array, size: int, block: int = BLOCK
) -> Any:
    """Computes `vmap(function)(*arrays)` with temporary arrays of at most about `block` numbers.

    Args:
        function: A function of one row of each array.
        arrays: Arrays of the same length.
        size: Size of the largest temporary array of one row, in numbers.
        block: Approximate size of a temporary array of all rows that are computed at once, in numbers.
    """
    length, rows = len(arrays[0]), max(1, block // max(1, size))
    if length <= rows:
        return jax.vmap(function)(*arrays)
    divisor = max(n for n in range(1, rows + 1) if length % n == 0)
    rows = divisor if 8 * divisor >= rows else rows
    return lax.map(lambda row: function(*row), arrays, batch_size=rows if rows > 1 else None)


def zeros_varying(shape: tuple[Any, ...], dtype: Any, *inputs: jax.Array) -> jax.Array:
    """Returns zeros that vary over the same mesh axes as the inputs, for the carry of a loop."""
    return jnp.zeros(shape, dtype) + zero_like_inputs(*inputs).astype(dtype)
