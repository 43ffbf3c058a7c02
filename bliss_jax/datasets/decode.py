"""Decodes image files to uint8 RGB [h, w, 3] with Pillow.

Images that are not plain 8-bit RGB are treated as follows:

    orientation          of EXIF or XMP is applied; other tags are ignored (`orientation.py`)
    transparency         is composited on white, or on black if the picture would be blank on white (white ink
                         on a transparent ground); or on a background that the caller chooses
    grey, palette, CMYK  are converted by Pillow's `convert("RGB")`, which ignores colour profiles
    16-bit samples       keep the high byte of their significant bits (`samples.py`)
    other samples        (signed, 32-bit) are refused because they have no fixed range
    several frames       are refused (animated GIF, PNG or WebP, multi-page TIFF); exception: the primary
                         picture of a camera's multi-picture JPEG (MPO) or of a HEIC file is read
    large images         are refused before decoding if they exceed `MAX_PIXELS` or `MAX_BYTES`
    irregular files      (pipes, devices) are refused without opening them
    damaged metadata     is ignored if the pixels are intact (`salvage.py`)

The format is recognised by the content of the file, not by its name (`image_formats.py`).
"""

import io
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from bliss_jax import _require
from bliss_jax.datasets import image_formats
from bliss_jax.datasets.image_notes import IGNORED_METADATA, LOW_SAMPLES, TRANSPARENT, Note
from bliss_jax.datasets.orientation import apply_orientation, orientation_of
from bliss_jax.datasets.pillow_warnings import named_warnings
from bliss_jax.datasets.salvage import essential, png_chunks
from bliss_jax.datasets.samples import samples_of

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 89_478_485
"""Largest number of pixels: the limit of Pillow (a quarter of a GiB of RGB), which itself only warns."""

MAX_BYTES = 8 * MAX_PIXELS
"""Largest size of a file: `MAX_PIXELS` uncompressed pixels of four 16-bit samples. Pillow keeps the tags of a
TIFF in memory, where they take about three times their size in the file."""

AUTO = "auto"
Colour = tuple[int, int, int]

_BLANK = 8
"""Largest range of the values of a channel with which a picture counts as blank."""

_TOO_MUCH = ("too large", "Too much memory", "exceeds limit", "expected at most")
"""Parts of the messages about images that would take too much memory."""


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


@dataclass(frozen=True)
class Decoding:
    """The choices between a file and its pixels.

    Raises:
        ValueError: The background is not a colour that Pillow knows, or `bit_depth` is not in 8 to 16.
    """

    background: str = AUTO
    """Colour behind transparent pixels: a name or #rrggbb, as in `PIL.ImageColor`; or "auto": white, and
    black for pictures that would be blank on white."""
    bit_depth: int | None = None
    """Significant bits of 16-bit samples; None for the number that the file states, or 16."""

    def __post_init__(self):
        _ = self.colours
        if self.bit_depth is not None and not 8 <= self.bit_depth <= 16:
            raise ValueError(f"bit_depth: expected 8 to 16, got {self.bit_depth}")

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Backgrounds as RGB. The second one is for pictures that would be blank on the first."""
        if self.background == AUTO:
            return (255, 255, 255), (0, 0, 0)
        _require("PIL", "datasets")
        from PIL import ImageColor

        try:
            return (ImageColor.getrgb(self.background)[:3],)
        except (ValueError, AttributeError, TypeError):
            raise ValueError(
                f"background: expected a colour such as white, black or #808080, got {self.background!r}"
            ) from None

    def describe(self) -> dict[str, Any]:
        """Returns the choices as JSON values, for the provenance of a result."""
        names = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in self.colours]
        return {
            "background": " or ".join(names),
            "bit_depth": self.bit_depth or "as stated by the file",
        }


def read_image(
    source: "str | Path | bytes | Image.Image",
    *,
    background: str = AUTO,
    bit_depth: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image as every function and command of this library reads it.

    The orientation of a photograph is applied, transparent pixels are composited on the background, and
    16-bit samples are reduced to 8 bits. `np.asarray(Image.open(path).convert("RGB"))` does none of this.

    Args:
        source: Path of an image file, its content, or an image that Pillow opened.
        background: Colour behind transparent pixels: a name or #rrggbb; "auto" for white, and for black if
            the picture would be blank on white.
        bit_depth: Significant bits of 16-bit samples, e.g. 12 for a camera with 12 bits; None for the number
            that the file states, or 16.

    Returns:
        RGB, uint8 [h, w, 3].

    Raises:
        UnreadableImageError: The image cannot be read (a ValueError; it names the file and the reason).
        ValueError: The background is not a colour, or `bit_depth` is not in 8 to 16.
    """
    decoding = Decoding(background, bit_depth)
    if isinstance(source, bytes):
        return decode_image(source, f"{len(source)} bytes", decoding)
    if isinstance(source, str | Path):
        return decode_image(Path(source), str(source), decoding)
    return pixels_of(source, decoding)


def decode_image(
    source: bytes | Path,
    name: str,
    decoding: Decoding = Decoding(),
    note: Callable[[Note], None] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes one image by the rules in the module's docstring.

    Args:
        source: An image file, or its content.
        name: Name of the image in error messages.
        decoding: Background and bit depth.
        note: Called with each fact about the image that its user should know.

    Returns:
        RGB, uint8 [h, w, 3], writable.

    Raises:
        UnreadableImageError: The file is missing, not a regular file, damaged, not an image, too large,
            or has several frames or samples without a fixed range.
    """
    _require("PIL", "datasets")
    note = note or (lambda found: None)
    try:
        _check_file(source)
        with _opened(source) as file:
            head = file.read(image_formats.HEAD)
            if not head:
                raise ValueError("the file is empty")
        kind = image_formats.format_of(head)
        with named_warnings(name):
            return _decode(source, kind, decoding, note)
    # Pillow's decoders raise errors of many types: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImageError(name, reason or type(error).__name__) from error


def pixels_of(
    image: "Image.Image",
    decoding: Decoding = Decoding(),
    name: str | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of an image that Pillow opened or made, by the same rules as for files.

    Raises:
        UnreadableImageError: The image is damaged, has several frames or samples without a fixed range.
    """
    try:
        with named_warnings(name or getattr(image, "filename", "") or "image"):
            return _pixels(image, decoding, lambda found: None, None)
    except Exception as error:
        shown = name or getattr(image, "filename", "") or f"<{type(image).__name__}>"
        raise UnreadableImageError(shown, str(error) or type(error).__name__) from error


def _decode(
    source: bytes | Path, kind: str | None, decoding: Decoding, note: Callable[[Note], None]
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a file, or if that fails a copy of it without damaged metadata."""
    from PIL import Image

    formats = image_formats.decodable_formats()
    if kind not in formats:
        raise ValueError(_unsupported(kind, formats))
    try:
        with _opened(source) as file:
            reopen = partial(Image.open, file, formats=formats)
            with reopen() as image:
                if kind == "PNG":
                    image.info["significant_bits"] = _significant_bits(file)
                return _pixels(image, decoding, note, reopen)
    except (MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:
        if any(part in str(error) for part in _TOO_MUCH) or isinstance(error, _RefusedError):
            raise
        content = source if isinstance(source, bytes) else source.read_bytes()
        copy = essential(kind, content)
        if copy is not None and copy != content:
            try:
                pixels = _decode_copy(content, copy, kind, decoding, note)
            except Exception as second:  # the pixels are damaged, too
                error = second if isinstance(second, _RefusedError) else error
            else:
                note(Note(IGNORED_METADATA, _reason(kind, content, error)))
                return pixels
        raise ValueError(_fault(kind, content, error)) from error


def _decode_copy(
    content: bytes,
    copy: bytes,
    kind: str | None,
    decoding: Decoding,
    note: Callable[[Note], None],
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a copy without metadata; the orientation comes from the original."""
    from PIL import Image

    reopen = partial(Image.open, io.BytesIO(copy), formats=image_formats.decodable_formats())
    with reopen() as image:
        image.info.update(_metadata(kind, content))
        return _pixels(image, decoding, note, reopen)


def _pixels(
    image: "Image.Image",
    decoding: Decoding,
    note: Callable[[Note], None],
    reopen: "Callable[[], Image.Image] | None",
) -> UInt8[np.ndarray, "h w 3"]:
    if image.width * image.height > MAX_PIXELS:
        raise _RefusedError(f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS}")
    if (frames := _frames(image)) != "1":
        raise _RefusedError(f"{frames} frames, expected a single image")
    colour, alpha, largest = samples_of(image, decoding.bit_depth, reopen)
    # After the samples: a PNG file may have its EXIF block behind the pixels.
    orientation = orientation_of(image)
    if largest is not None:
        note(Note(LOW_SAMPLES, f"0 to {largest}", largest))
    if alpha is not None and alpha.min(initial=255) < 255:
        note(Note(TRANSPARENT))
        colour = _composite(colour, alpha, decoding.colours)
    return np.array(apply_orientation(colour, orientation), order="C")


def _composite(
    colour: UInt8[np.ndarray, "h w 3"],
    alpha: UInt8[np.ndarray, "h w"],
    backgrounds: tuple[Colour, ...],
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns (alpha colour + (255 - alpha) background) / 255, rounded, on the first background.

    The next background is taken if the result is blank although alpha varies.
    """
    a = alpha[..., None].astype(np.uint32)
    first = None
    for background in backgrounds:
        mixed = a * colour + (255 - a) * np.array(background, np.uint32)
        pixels = ((mixed + 127) // 255).astype(np.uint8)
        if np.ptp(pixels.reshape(-1, 3), axis=0).max() > _BLANK or np.ptp(alpha) <= _BLANK:
            return pixels
        first = pixels if first is None else first
    return colour if first is None else first


class _RefusedError(ValueError):
    """An image that is intact but not accepted."""


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


@contextmanager
def _opened(source: bytes | Path) -> Iterator[Any]:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        yield file


def _unsupported(kind: str | None, formats: list[str]) -> str:
    if kind == image_formats.HEIF:
        return image_formats.HEIF_ADVICE
    expected = f"expected one of {', '.join(formats)}"
    return (
        f"not an image, {expected}" if kind is None else f"a file in the format {kind}, {expected}"
    )


def _reason(kind: str | None, content: bytes, error: Exception) -> str:
    """Returns the reason of an error; that of the format's own reader, which Pillow hides."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError) and kind is not None:
        try:
            Image.OPEN[kind][0](io.BytesIO(content), "")
        except Exception as own:
            error = own
    return " ".join(str(error).split()) or type(error).__name__


def _fault(kind: str | None, content: bytes, error: Exception) -> str:
    """Returns the format and the fault of a file that cannot be decoded."""
    if isinstance(error, _RefusedError):
        return str(error)
    reason = _reason(kind, content, error)
    if image_formats.is_truncated(kind, content) or "truncated" in reason.lower():
        return f"{kind}, truncated ({reason})"
    return f"{kind}, {reason}" if isinstance(error, ValueError) else f"{kind}, damaged ({reason})"


def _significant_bits(file: Any) -> int | None:
    """Returns the number in the sBIT chunk of a PNG file, if all channels have the same."""
    position = file.tell()
    file.seek(8)
    found = None
    while len(head := file.read(8)) == 8 and head[4:] not in (b"PLTE", b"IDAT"):
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"sBIT" and 1 <= length <= 4:
            bits = file.read(length)
            colour = bits[:1] if length == 2 else bits[:3]  # the last of 2 or 4 is that of alpha
            found = colour[0] if len(set(colour)) == 1 else None
            break
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(position)
    return found


def _metadata(kind: str | None, content: bytes) -> dict[str, Any]:
    """Returns the metadata of a damaged file that determine the pixels, as in `Image.info`."""
    found: dict[str, Any] = {}
    if kind == "PNG":
        for chunk, data, _ in png_chunks(content):
            if chunk == b"eXIf":
                found["exif"] = data
        found["significant_bits"] = _significant_bits(io.BytesIO(content))
    elif kind == "JPEG":
        start = content.find(b"Exif\0\0")
        if start >= 4:
            length = int.from_bytes(content[start - 2 : start], "big")
            found["exif"] = content[start : start + length - 2]
    return found


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
    if image.format in ("MPO", image_formats.HEIF) or not getattr(image, "is_animated", False):
        return "1"
    return str(getattr(image, "n_frames", "several"))
