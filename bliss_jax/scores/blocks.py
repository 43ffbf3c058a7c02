"""`vmap` while its temporaries are small, and block after block where they are not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 2**22
"""Numbers in a temporary array, about: what a cache or a fraction of an accelerator's memory holds."""


def block_map(
    function: Callable[..., Any], *arrays: jax.Array, size: int, block: int = BLOCK
) -> Any:
    """`vmap(function)(*arrays)`, at most about `block` numbers at a time.

    Args:
        function: Of one row of each array.
        arrays: Of the same length.
        size: Numbers in the largest temporary of one row.
        block: Numbers in a temporary of all rows that are computed at once.
    """
    length, rows = len(arrays[0]), max(1, block // size)
    if length <= rows:
        return jax.vmap(function)(*arrays)
    rows = _even_rows(length, rows)
    return lax.map(lambda row: function(*row), arrays, batch_size=rows if rows > 1 else None)


def map_blocks(function: Callable[..., Any], *arrays: jax.Array, rows: int) -> Any:
    """The function of at most `rows` rows of the arrays at a time, its results joined.

    Args:
        function: Of a block of each array, to a pytree of arrays of as many rows. It treats rows apart
            from each other, so that the result does not depend on how they are cut.
        arrays: Of the same length.
        rows: Rows in a block, at most.
    """
    length = len(arrays[0])
    if length <= rows:
        return function(*arrays)
    rows = _even_rows(length, rows)

    # Slices, not a reshape: where a rest is left, that would copy the arrays.
    def at(start, size):
        return function(*(lax.dynamic_slice_in_dim(array, start, size) for array in arrays))

    full, rest = divmod(length, rows)
    blocks = lax.map(lambda start: at(start, rows), jnp.arange(full, dtype=jnp.int32) * rows)
    joined = jax.tree.map(lambda leaf: leaf.reshape(full * rows, *leaf.shape[2:]), blocks)
    if not rest:
        return joined
    return jax.tree.map(
        lambda first, last: jnp.concatenate([first, last]), joined, at(full * rows, rest)
    )


def _even_rows(length: int, rows: int) -> int:
    """Rows of blocks of one size, where that costs little: a last block of another is compiled as well."""
    even = max(n for n in range(1, rows + 1) if length % n == 0)
    return even if 8 * even >= rows else rows
