"""Decodes image files to uint8 RGB [h, w, 3] with Pillow.

Images that are not plain 8-bit RGB are treated as follows. The first three rules are those of
transformers' `load_image` and of CLIP's preprocessing, so a file gives the same pixels in all three.

    EXIF orientation     is applied
    transparency         is dropped; colours of transparent pixels become visible (Pillow's
                         `convert("RGB")`)
    grey, palette, CMYK  are converted by Pillow's `convert("RGB")`, which ignores colour profiles
    16-bit samples       keep their high byte (as Pillow does for RGB; Pillow clips grey samples at 255)
    32-bit samples       are refused because they have no fixed range
    several frames       are refused (animated GIF, PNG or WebP, multi-page TIFF); exception: the primary
                         picture of a camera's multi-picture JPEG (MPO) is read
    large images         are refused before decoding if they exceed `MAX_PIXELS` or `MAX_BYTES`
    irregular files      (pipes, devices) are refused without opening them

The format is recognised by the content of the file, not by its name. Only the formats in `FORMATS` are
tried, because the other formats of Pillow are rare and some run other programs (EPS).
"""

import io
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")

MAX_PIXELS = 89_478_485
"""Largest number of pixels: the limit of Pillow (a quarter of a GiB of RGB), which itself only warns."""

MAX_BYTES = 8 * MAX_PIXELS
"""Largest size of a file: `MAX_PIXELS` uncompressed pixels of four 16-bit samples. Pillow keeps the tags of a
TIFF in memory, where they take about three times their size in the file."""


_REGISTERING = threading.Lock()


class UnreadableImageError(ValueError):
    """Error for an image that cannot be read.

    Attributes:
        name: The image: its file, or its position in a named data set.
        reason: Reason why it cannot be read.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.name!r}: {self.reason}"


def decode_image(source: bytes | Path, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes one image by the rules in the module's docstring.

    Args:
        source: An image file, or its content.
        name: Name of the image in error messages.

    Returns:
        RGB, uint8 [h, w, 3], writable.

    Raises:
        UnreadableImageError: The file is missing, not a regular file, damaged, not an image, too large,
            or has several frames or samples without a fixed range.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        _check_file(source)
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            if not file.read(1):
                raise ValueError("the file is empty")
            with Image.open(file, formats=_formats()) as image:
                return np.array(_to_rgb(image))
    except UnidentifiedImageError:
        raise UnreadableImageError(name, f"not one of {', '.join(_formats())}") from None
    # Pillow's decoders raise errors of many types: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImageError(name, reason or type(error).__name__) from error


def _check_file(source: bytes | Path) -> None:
    """Raises ValueError if the source is not a regular file or exceeds `MAX_BYTES`."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        facts = source.stat()
        # Reading a pipe or a device may block for ever. Opening a folder fails later with its own reason.
        if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
            raise ValueError("not a regular file")
        size = facts.st_size
    if size > MAX_BYTES:
        raise ValueError(f"the file has {size} bytes, expected at most {MAX_BYTES}")


def _formats() -> list[str]:
    """Returns the formats of `FORMATS` that this build of Pillow supports (AVIF since 11.3)."""
    from PIL import Image

    # Pillow registers its formats one after the other. Images are read in several threads, and without
    # the lock another thread could see an incomplete list.
    with _REGISTERING:
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(image: "Image.Image") -> "Image.Image | UInt8[np.ndarray, 'h w 3']":
    from PIL import ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS}")
    if (frames := _frames(image)) != "1":
        raise ValueError(f"{frames} frames, expected a single image")
    # Pillow reads 16-bit grey as mode "I;16", or as "I" from PGM (and from PNG in older releases).
    sixteen_bit = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    )
    if image.mode in ("I", "F") and not sixteen_bit:
        raise ValueError(f"32-bit samples (Pillow's mode {image.mode}) have no fixed range")
    ImageOps.exif_transpose(image, in_place=True)
    if sixteen_bit:
        high_byte = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(high_byte[..., None], 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        # Direct conversion to RGB gives the same colours, but Pillow warns about it.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _frames(image: "Image.Image") -> str:
    """Returns the number of frames, as text for a message."""
    if image.format == "TIFF":
        # `n_frames` would follow the whole chain of pages, in time quadratic in its length.
        for number in range(1, 4):
            try:
                image.seek(number)
            except EOFError:
                image.seek(0)
                return str(number)
        return "more than 3"
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return "1"
    return str(getattr(image, "n_frames", "several"))
