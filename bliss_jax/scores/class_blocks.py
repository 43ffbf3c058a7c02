"""Division of labelled images into blocks of one class each, with static shapes.

With these blocks, work per class (moments, nearest neighbours) takes one pass over the images for any number of
classes, instead of one masked pass per class.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int


def class_blocks(
    labels: Int[jax.Array, " images"], num_classes: int, max_block: int
) -> tuple[
    Int[jax.Array, "blocks block"], Bool[jax.Array, "blocks block"], Int[jax.Array, " blocks"]
]:
    """Sorts the images by class and cuts them into blocks.

    The number of blocks is static: sum_c ceil(n_c / block) is at most n // block + C. Unused blocks have no valid
    row.

    Args:
        labels: Class of each image [images], at least one; images labelled `num_classes` are in no block.
        num_classes: C; static.
        max_block: Largest number of images per block; static. Blocks are smaller if classes are small.

    Returns:
        The rows of each block [blocks, block], whether each row is valid, and the class of each block [blocks].
    """
    block = _block_size(len(labels), num_classes, max_block)
    num_blocks = len(labels) // block + num_classes
    order = jnp.argsort(labels, stable=True)
    count = jnp.bincount(labels, length=num_classes)
    first_row = jnp.cumsum(count) - count
    last_block = jnp.cumsum((count + block - 1) // block)
    first_block = last_block - (count + block - 1) // block

    blocks = jnp.arange(num_blocks)
    block_class = jnp.searchsorted(last_block, blocks, side="right").astype(jnp.int32)
    block_class = jnp.minimum(block_class, num_classes - 1)
    in_class = (blocks - first_block[block_class])[:, None] * block + jnp.arange(block)[None, :]
    valid = in_class < count[block_class][:, None]
    rows = order[jnp.minimum(first_row[block_class][:, None] + in_class, len(labels) - 1)]
    return rows, valid, block_class


def _block_size(num_images: int, num_classes: int, max_block: int) -> int:
    """Returns a power of two near the mean class size, so that few rows of a block are padding."""
    per_class = max(1, num_images // max(1, num_classes))
    return min(max_block, max(8, 1 << (per_class - 1).bit_length()))
