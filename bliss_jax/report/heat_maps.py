"""Heat maps over images, as PNG.

    strength = max(map, 0) / largest value of the map        colour = cividis(strength), opacity = sqrt(strength)

Only positive values are drawn: the parts of the image that raise the score. Each map is scaled by its own maximum, so
colours of two images cannot be compared. Pixels that the model did not see (NaN) have grey stripes.

Colours are those of cividis (Nunez, Anderton, Renslow, "Optimizing colormaps with consideration for color vision
deficiency", PLOS ONE 2018), which is perceptually uniform and looks nearly the same with a colour vision deficiency.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8

from bliss_jax.report.drawing import data_uri
from bliss_jax.storage import replacing

_STRIPE = 4
"""Width of the stripes over pixels that the model did not see."""


def heat_map(values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 4"]:
    """Returns a map as an RGBA image."""
    seen = np.isfinite(values)
    positive = np.where(seen, np.maximum(values, 0), 0)
    strength = positive / max(float(positive.max(initial=0)), np.finfo(np.float32).tiny)
    colours = matplotlib.colormaps["cividis"](strength, bytes=True)
    colours[..., 3] = np.round(255 * np.sqrt(strength))
    row, column = np.indices(values.shape)
    stripes = (row + column) // _STRIPE % 2
    unseen = np.stack([np.full_like(stripes, 128)] * 3 + [np.where(stripes, 230, 130)], axis=-1)
    colours[~seen] = unseen[~seen]
    return colours


def overlay(
    image: UInt8[np.ndarray, "h w 3"], values: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image in shades of grey under its map, so that all colour is that of the map."""
    colours = heat_map(values).astype(np.float32)
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    opacity = colours[..., 3:] / 255
    mixed = luma[..., None] * (1 - opacity) + colours[..., :3] * opacity
    return np.round(mixed).astype(np.uint8)


def as_png(pixels: UInt8[np.ndarray, "h w channels"]) -> bytes:
    """Returns RGB or RGBA pixels as the content of a PNG file."""
    from PIL import Image

    content = io.BytesIO()
    picture: Any = Image.fromarray(pixels)
    picture.save(content, format="png", optimize=True)
    return content.getvalue()


def write_map(
    file: Path, image: UInt8[np.ndarray, "h w 3"], values: Float[np.ndarray, "h w"]
) -> tuple[Path, Path]:
    """Writes the image under its map as PNG, and the map as an array in the image's pixels.

    Args:
        file: Name of the files; their suffixes are .png and .npy.
        image: Image.
        values: Map of the image.

    Returns:
        Both files.

    Raises:
        OSError: A file cannot be written.
    """
    array = io.BytesIO()
    np.save(array, values, allow_pickle=False)
    files = file.with_suffix(".png"), file.with_suffix(".npy")
    for written, content in zip(
        files, (as_png(overlay(image, values)), array.getvalue()), strict=True
    ):
        with replacing(written) as opened:
            opened.write(content)
    return files


def heat_map_uri(values: Float[np.ndarray, "h w"]) -> str:
    """Returns a map as a data URI of a PNG with an alpha channel."""
    return data_uri(as_png(heat_map(values)), "image/png")
