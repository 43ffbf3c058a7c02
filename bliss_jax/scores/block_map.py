"""`vmap` while its temporaries are small, and block after block where they are not."""

from collections.abc import Callable
from typing import Any

import jax
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
    # A last block of another size would be compiled as well: blocks of one size where that costs little.
    even = max(n for n in range(1, rows + 1) if length % n == 0)
    rows = even if 8 * even >= rows else rows
    return lax.map(lambda row: function(*row), arrays, batch_size=rows if rows > 1 else None)
