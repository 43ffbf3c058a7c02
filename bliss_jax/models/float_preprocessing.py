"""Differentiable preprocessing of floating images, in addition to the exact preprocessing of uint8 images.

    images [n, h, w, 3] floating, 0 to 255  ->  resized [n, size, size, 3]  ->  (x / 255 - mean) / std

The resampling has the filter weights of `preprocessing.py`, but it rounds nothing to 8 bits and does not clip, so it
is linear in the image. For uint8 images the two results differ by the rounding of the two passes (at most about 1.1
grey levels) and by the overshoot of the bicubic filter at sharp edges, which the exact one clips to 0..255.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bliss_jax import _checks
from bliss_jax._checks import Array, compiled, rows
from bliss_jax.models.preprocessing import (
    FRACTION_BITS,
    Preprocessing,
    crop_geometry,
    filter_weights,
)


def preprocess_float(
    images: Float[Array, "n h w 3"], size: int = 224, stats: str = "clip"
) -> Float[jax.Array, "n size size 3"]:
    """Applies CLIP's preprocessing (resize(x) / 255 - mean) / std to floating images, as a linear function.

    Args:
        images: RGB images [n, h, w, 3], floating, in the range 0 to 255 of uint8 images.
        size: Height and width of the model's input; static.
        stats: A name in `STATS`: `clip`, `reference` or `siglip`; static.

    Returns:
        Pixels [n, size, size, 3], at least float32.

    Raises:
        ValueError: `images` is not a floating array [n, h, w, 3] with pixels, or `stats` is unknown.
    """
    return apply_float_preprocessing(images, Preprocessing(size=size).with_stats(stats))


def apply_float_preprocessing(
    images: Float[Array, "n h w 3"], preprocessing: Preprocessing
) -> Float[jax.Array, "n size size 3"]:
    """Computes (resize(x) / 255 - mean) / std of floating images with a model's preprocessing.

    Args:
        images: RGB images [n, h, w, 3], floating, 0 to 255.
        preprocessing: Size, geometry, filter and statistics; static.

    Returns:
        Pixels [n, size, size, 3], at least float32.

    Raises:
        ValueError: `images` is not a floating array [n, h, w, 3] with pixels.
    """
    x = _checks.as_array("images", images)
    if x.ndim != 4 or x.shape[-1] != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"images: expected a floating [n, h, w, 3] array, got {x.dtype} {list(x.shape)}; pass uint8 images to "
            "bj.preprocess"
        )
    if 0 in x.shape[1:3]:
        raise ValueError(f"images: expected images with pixels, got shape {list(x.shape)}")
    return _normalised(x, preprocessing=preprocessing)


@compiled(static=("preprocessing",), out=lambda images: rows(images))
def _normalised(images: Array, *, preprocessing: Preprocessing) -> jax.Array:
    dtype = _checks.accumulation_dtype(images)
    _, height, width, _ = images.shape
    (new_height, new_width), (top, left) = crop_geometry(
        height, width, preprocessing.size, preprocessing.geometry
    )
    down = _matrix(height, new_height, top, preprocessing)
    across = _matrix(width, new_width, left, preprocessing)
    resized = jnp.einsum(
        "or,nrcx,pc->nopx",
        jnp.asarray(down, dtype),
        images.astype(dtype),
        jnp.asarray(across, dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    mean = jnp.asarray(preprocessing.mean, dtype).reshape(1, 1, 1, 3)
    std = jnp.asarray(preprocessing.std, dtype).reshape(1, 1, 1, 3)
    return (resized / 255 - mean) / std


def _matrix(length: int, new_length: int, start: int, preprocessing: Preprocessing) -> Any:
    """Returns the matrix [size, length] that resamples one axis to `new_length` and crops it."""
    outputs = start + np.arange(preprocessing.size)
    if new_length == length:
        return np.eye(length)[outputs]
    first, fixed = filter_weights(length, new_length, outputs, preprocessing.resample)
    matrix = np.zeros((preprocessing.size, length))
    for tap in range(fixed.shape[1]):
        column = np.minimum(first + tap, length - 1)
        np.add.at(matrix, (np.arange(preprocessing.size), column), fixed[:, tap])
    return matrix / (1 << FRACTION_BITS)
