"""Position tables of vision towers, interpolated for another image size.

The table of a grid of h x h patches becomes one of H x H by separable cubic convolution with a = -0.75,
without antialiasing:

    source(i) = (i + 1/2) h / H - 1/2        new = R old R^T,   R[i, j] = sum of kernel(source(i) - k) over k

where k runs over the four nearest rows and j is k clamped to the grid. This is `interpolate_pos_encoding` of
transformers, i.e. PyTorch's bicubic `interpolate` with `align_corners=False`. The row of a class token stays.
"""

import math

import numpy as np
from jaxtyping import Float

_A = -0.75
"""Parameter of the cubic kernel in PyTorch. Pillow's is -0.5."""


def _kernel(distance: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    x = np.abs(distance)
    inner = ((_A + 2) * x - (_A + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * _A
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _resizing(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns the matrix R of the module's docstring."""
    source = (np.arange(new) + 0.5) * (old / new) - 0.5
    matrix = np.zeros((new, old))
    for offset in range(-1, 3):
        row = np.floor(source).astype(int) + offset
        np.add.at(matrix, (np.arange(new), np.clip(row, 0, old - 1)), _kernel(source - row))
    return matrix


def interpolate_positions(
    table: Float[np.ndarray, "rows width"], grid: int, class_token: bool
) -> Float[np.ndarray, "new_rows width"]:
    """Interpolates a position table to a square grid of patches.

    Args:
        table: One row per patch, in row-major order, after the row of the class token if there is one.
        grid: Patches per side of the new grid.
        class_token: Whether the first row belongs to a class token.

    Raises:
        ValueError: The table does not belong to a square grid.
    """
    first, patches = table[: int(class_token)], table[int(class_token) :]
    side = math.isqrt(len(patches))
    if side * side != len(patches):
        raise ValueError(
            f"a position table of {len(patches)} patches does not belong to a square image and cannot be "
            "interpolated; load the model without image_size="
        )
    matrix = _resizing(side, grid)
    square = patches.astype(np.float64).reshape(side, side, -1)
    resized = np.einsum("ia,jb,abw->ijw", matrix, matrix, square, optimize=True)
    resized = resized.reshape(grid * grid, -1).astype(table.dtype)
    return np.concatenate([first, resized])
