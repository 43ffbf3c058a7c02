"""Maps of patches at the pixels of the original image: the resize and the crop of the preprocessing, inverted.

    original [h, w]  --resize-->  [new_h, new_w]  --crop at (top, left)-->  [size, size]  --cut-->  [side, side] patches
    row of pixel y in patches = ((y + 1/2) new_h / h - top) / patch_size, and its column likewise
    map(y, x) = bilinear interpolation at (row, column) between the centres of the patches

Beyond the centres of the outer patches the map keeps their values. Pixels outside the crop, and those in a border that
is narrower than a patch, are in no patch: the model did not see them, and their value is NaN.
"""

import numpy as np
from jaxtyping import Float

from bliss_jax.models.families import ModelConfig
from bliss_jax.models.naflex import NaflexPreprocessing, grid_of
from bliss_jax.models.preprocessing import Preprocessing, crop_geometry


def maps_at_pixels(
    maps: Float[np.ndarray, "*maps patches"],
    height: int,
    width: int,
    config: ModelConfig,
    preprocessing: Preprocessing,
) -> Float[np.ndarray, "*maps height width"]:
    """Interpolates maps of one image's patches at the pixels of the original.

    Args:
        maps: Values of the patches, row by row as in `encode_patches`.
        height: Height of the original image.
        width: Width of the original image.
        config: The model's configuration.
        preprocessing: The model's preprocessing.

    Returns:
        Maps in float32, NaN where the model did not see the image.

    Raises:
        ValueError: The number of patches is not that of the model.
    """
    patch = config.vision.patch_size
    if isinstance(preprocessing, NaflexPreprocessing):
        rows, columns = grid_of(height, width, patch, preprocessing.max_patches)
        found = preprocessing.max_patches
        resized, corner = (rows * patch, columns * patch), (0, 0)
    else:
        rows = columns = preprocessing.size // patch
        found = rows * columns
        resized, corner = crop_geometry(height, width, preprocessing.size, preprocessing.geometry)
    if maps.shape[-1] != found:
        raise ValueError(f"maps: expected {found} patches, got {list(maps.shape)}")
    grid = maps[..., : rows * columns].reshape(*maps.shape[:-1], rows, columns)
    down, seen_rows = _interpolation(height, resized[0], corner[0], rows, patch)
    across, seen_columns = _interpolation(width, resized[1], corner[1], columns, patch)
    pixels = down @ grid.astype(np.float32) @ across.T
    return np.where(seen_rows[:, None] & seen_columns, pixels, np.float32(np.nan))


def _interpolation(
    length: int, resized: int, start: int, patches: int, patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights [length, patches] of one axis, and whether each pixel is in a patch."""
    place = ((np.arange(length) + 0.5) * resized / length - start) / patch
    seen = (place >= 0) & (place <= patches)
    between = np.clip(place - 0.5, 0, patches - 1)
    weights = np.maximum(1 - np.abs(between[:, None] - np.arange(patches)), 0)
    return weights.astype(np.float32), seen
