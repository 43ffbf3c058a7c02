"""The orientation of a photograph: read from EXIF or XMP, and applied to the pixels.

Only the tag of the orientation is read. Other tags cannot make an image unreadable, however odd their types
and values are. (Pillow's `exif_transpose` rewrites the whole block of tags and raises for some of them.)
"""

import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_TAG = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I"}
"""Formats of `struct` for the TIFF types BYTE, SHORT and LONG."""
_XMP = re.compile(rb'tiff:Orientation(?:\s*=\s*["\']|>)\s*([1-8])')


def orientation_of(image: "Image.Image") -> int:
    """Returns the orientation of an opened image, 1 to 8; 1 if none is stated.

    EXIF takes precedence over XMP, as in Pillow. In a TIFF file the tag is in the file's own directory.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        found = _tiff_tag(tags)
    else:
        found = next(filter(None, map(_orientation_in, _exif_blocks(image.info))), None)
    if found is None:
        for name in ("xmp", "XML:com.adobe.xmp"):
            packet = image.info.get(name)
            packet = packet.encode("utf-8", "replace") if isinstance(packet, str) else packet
            if isinstance(packet, bytes) and (match := _XMP.search(packet)):
                found = int(match[1])
                break
    return found or 1


def apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns an image [h, w, ...] turned and mirrored such that it is upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _tiff_tag(tags: Any) -> int | None:
    try:
        return _valid(tags.get(_TAG))
    except Exception:  # Pillow decodes a tag when it is read, and raises errors of many types
        return None


def _exif_blocks(info: dict[Any, Any]) -> Iterator[bytes]:
    """Yields the EXIF blocks of an opened image; PNG files may have one as text."""
    if isinstance(block := info.get("exif"), bytes):
        yield block
    if isinstance(text := info.get("Raw profile type exif"), str):
        digits = re.sub(r"\s", "", "".join(text.split("\n")[3:]))
        if len(digits) % 2 == 0 and re.fullmatch("[0-9a-fA-F]*", digits):
            yield bytes.fromhex(digits)


def _orientation_in(block: bytes) -> int | None:
    """Returns the orientation in the first directory of an EXIF block; None if there is no valid one."""
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", block, 4)
    if start + 2 > len(block):
        return None
    (entries,) = struct.unpack_from(order + "H", block, start)
    for position in range(start + 2, min(start + 2 + 12 * entries, len(block) - 11), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", block, position)
        if tag == _TAG and kind in _FORMATS and count == 1:
            return _valid(struct.unpack_from(order + _FORMATS[kind], block, position + 8)[0])
    return None


def _valid(value: Any) -> int | None:
    """Returns an orientation, or None for any other value."""
    return value if isinstance(value, int) and 1 <= value <= 8 else None
