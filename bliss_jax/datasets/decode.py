"""Image files to uint8 RGB [h, w, 3], with Pillow.

What becomes of what is not plain 8-bit RGB; the first three are the rules of transformers' `load_image`
and of CLIP's own preprocessing, so that the same file gives the same pixels here:

    EXIF orientation     applied
    transparency         dropped; colours under transparent pixels show (Pillow's `convert("RGB")`)
    grey, palette, CMYK  Pillow's `convert("RGB")`, without colour profiles
    16-bit samples       their high byte (Pillow does so for RGB, but clips grey ones at 255)
    32-bit samples       refused: they have no fixed range
    several frames       refused (animated GIF, PNG, WebP, multi-page TIFF), but of a camera's
                         multi-picture JPEG (MPO) the primary picture is read
    size                 at most `MAX_PIXELS` and `MAX_BYTES`; larger ones are refused before they are
                         decoded
    no regular file      refused without opening it

A file's content, not its name, decides its format, and only the formats in `FORMATS` are tried: the rest
of Pillow's list is rare, and some of it runs other programs (EPS).
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
"""Pillow's own bound on a decoded image (a quarter of a GiB of RGB), here an error and not a warning."""

MAX_BYTES = 8 * MAX_PIXELS
"""Of a file: so many pixels of four 16-bit samples, uncompressed. Pillow holds a TIFF's tags in memory, in
about three times the space they take in the file."""


_REGISTERING = threading.Lock()


class UnreadableImageError(ValueError):
    """An image that cannot be read.

    Attributes:
        name: Which image: its file, or its position in a named data set.
        reason: Why not.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.name!r}: {self.reason}"


def decode_image(source: bytes | Path, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes one image by the rules above.

    Args:
        source: A file, or its content.
        name: What an error calls the image.

    Returns:
        RGB, uint8 [h, w, 3], writable.

    Raises:
        UnreadableImageError: if the file is missing, no regular one, damaged, not an image, too large or
            ambiguous.
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
    # Pillow's decoders raise what they come upon: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImageError(name, reason or type(error).__name__) from error


def _check_file(source: bytes | Path) -> None:
    """Raises ValueError for what is no regular file, or one of more than `MAX_BYTES`."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        facts = source.stat()
        # A pipe or a device would be waited for, perhaps for ever. A folder is refused when it is opened.
        if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
            raise ValueError("not a regular file")
        size = facts.st_size
    if size > MAX_BYTES:
        raise ValueError(f"the file has {size} bytes, at most {MAX_BYTES} are read")


def _formats() -> list[str]:
    """`FORMATS`, as far as this build of Pillow has them (AVIF came with 11.3)."""
    from PIL import Image

    # Images are read in threads, and Pillow registers its formats one after the other: a thread that
    # came between would find some of them missing.
    with _REGISTERING:
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(image: "Image.Image") -> "Image.Image | UInt8[np.ndarray, 'h w 3']":
    from PIL import ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are decoded")
    if (frames := _frames(image)) != "1":
        raise ValueError(f"{frames} frames, expected a single image")
    # Pillow gives 16-bit grey as mode "I;16", or as "I" from PGM (and, in older releases, from PNG).
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
        # The same colours as by the direct way, about which Pillow warns.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _frames(image: "Image.Image") -> str:
    """How many frames, of which one is expected."""
    if image.format == "TIFF":
        # Not `n_frames`: it follows the whole chain of pages, in time that grows with its square.
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
