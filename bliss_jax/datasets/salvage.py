"""Copies of damaged image files that keep only the parts that determine the pixels.

Viewers ignore a damaged comment, profile or tag. Pillow refuses the whole file for some of them. `essential`
returns the content without such parts, so that the file can be read like any other.

    PNG     IHDR, PLTE, tRNS, IDAT, IEND (and acTL: an animation must stay one)
    JPEG    all segments except APP1 to APP13, APP15 and comments (JFIF and Adobe's segment stay)
    TIFF    a first directory with the tags that describe samples, layout and compression
"""

import struct
import zlib
from collections.abc import Iterator

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"IDAT", b"IEND")
_JPEG_DROPPED = frozenset([*range(0xE1, 0xEE), 0xEF, 0xFE])
# fmt: off
_TIFF_TAGS = frozenset([
    256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320, 322, 323, 324,
    325, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532,
])
# fmt: on


def essential(kind: str | None, content: bytes) -> bytes | None:
    """Returns a copy of a file with its essential parts only; None if its structure is damaged."""
    rebuild = {"PNG": _essential_png, "JPEG": _essential_jpeg, "TIFF": _essential_tiff}.get(
        kind or ""
    )
    try:
        return None if rebuild is None else rebuild(content)
    except (struct.error, IndexError):
        return None


def png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yields type, data and "checksum is right" of the chunks of a PNG file, up to a truncated one."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        end = position + 12 + length
        if end > len(content):
            return
        kind, data = content[position + 4 : position + 8], content[position + 8 : end - 4]
        yield kind, data, zlib.crc32(kind + data).to_bytes(4, "big") == content[end - 4 : end]
        position = end


def _essential_png(content: bytes) -> bytes:
    parts = [_PNG_SIGNATURE]
    for kind, data, intact in png_chunks(content):
        # Ancillary chunks have a small first letter. Like libpng, drop those with a wrong checksum.
        if kind in _PNG_CHUNKS and (intact or kind[:1].isupper()):
            parts.append(len(data).to_bytes(4, "big") + kind + data)
            crc = zlib.crc32(kind + data)
            parts.append((crc if intact else crc ^ 1).to_bytes(4, "big"))
    return b"".join(parts)


def _essential_jpeg(content: bytes) -> bytes | None:
    parts, position = [content[:2]], 2
    while content[position] == 0xFF and content[position + 1] != 0xDA:
        marker = content[position + 1]
        (length,) = struct.unpack_from(">H", content, position + 2)
        end = position + 2 + length
        if length < 2 or end > len(content):
            return None
        if marker not in _JPEG_DROPPED:
            parts.append(content[position:end])
        position = end
    parts.append(content[position:])
    return b"".join(parts) if content[position] == 0xFF else None


def _essential_tiff(content: bytes) -> bytes | None:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    if order is None:  # BigTIFF has another layout
        return None
    (start,) = struct.unpack_from(order + "I", content, 4)
    (number,) = struct.unpack_from(order + "H", content, start)
    entries = [content[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(number)]
    kept = [e for e in entries if struct.unpack_from(order + "H", e)[0] in _TIFF_TAGS]
    (following,) = struct.unpack_from(order + "I", content, start + 2 + 12 * number)
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept)
    directory += struct.pack(order + "I", following)
    padding = bytes(len(content) % 2)
    offset = struct.pack(order + "I", len(content) + len(padding))
    return content[:4] + offset + content[8:] + padding + directory
