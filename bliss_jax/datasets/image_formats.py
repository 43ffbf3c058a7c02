"""Image file formats: supported ones, recognition by content, and signs of truncation.

The format of a file is recognised by its first bytes, not by its name. Only the formats in `FORMATS` (and
HEIF, if the package pillow-heif is installed) are decoded, because the other formats of Pillow are rare and
some run other programs (EPS).
"""

import os
import threading
from functools import cache
from importlib.util import find_spec
from pathlib import Path

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Pillow's names of the supported formats."""

HEIF = "HEIF"
HEIF_ADVICE = "HEIC images need the package pillow-heif: pip install 'bliss-jax[heif]'"

# fmt: off
SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".hif",
])
# fmt: on
"""Extensions of image files, in lower case."""

HEAD = 64
"""Number of bytes that `format_of` needs."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"%!PS", "PostScript"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\0\0\x01\0", "icon"),
    (b"PK\x03\x04", "ZIP"),
    (b"<svg", "SVG"),
    (b"v/1\x01", "OpenEXR"),
)
_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": HEIF, b"heix": HEIF, b"hevc": HEIF, b"heim": HEIF,
    b"heis": HEIF, b"mif1": HEIF, b"msf1": HEIF, b"qt  ": "QuickTime", b"mp42": "MP4", b"isom": "MP4",
    b"M4V ": "MP4", b"crx ": "Canon raw",
}  # fmt: skip
"""Brands of the ISO base media file format, whose files start with a box "ftyp"."""

_REGISTERING = threading.Lock()


def format_of(head: bytes) -> str | None:
    """Returns the format of a file by its first bytes, or None if they are of no known format."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        # A file of brand mif1 is AVIF or HEIF by its compatible brands.
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, len(head) - 3, 4))]
        known = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "AVIF" if "AVIF" in known else next(iter(known), None)
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    return next((name for start, name in _SIGNATURES if head.startswith(start)), None)


def is_truncated(kind: str | None, content: bytes) -> bool:
    """Returns whether a damaged file of a format lacks its end."""
    size = len(content)
    if kind == "PNG":
        return b"IEND" not in content[-64:]
    if kind == "JPEG":
        return not content.rstrip(b"\0").endswith(b"\xff\xd9")
    if kind == "WEBP":
        return size < 8 + int.from_bytes(content[4:8], "little")
    if kind == "GIF":
        return not content.rstrip(b"\0").endswith(b";")
    if kind == "BMP":
        return size < int.from_bytes(content[2:6], "little")
    if kind in ("AVIF", HEIF):
        return _boxes_exceed(content)
    return False


def _boxes_exceed(content: bytes) -> bool:
    """Returns whether a top-level box of an ISO base media file is longer than the file."""
    position = 0
    while position + 8 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        if length == 1:
            length = int.from_bytes(content[position + 8 : position + 16], "big")
        if length == 0:  # the box extends to the end of the file
            return False
        if length < 8 or position + length > len(content):
            return True
        position += length
    return position != len(content)


def decodable_formats() -> list[str]:
    """Returns the formats that this build of Pillow decodes: AVIF came with 11.3, HEIF needs pillow-heif."""
    from PIL import Image

    # Pillow registers its formats one after the other. Images are read in several threads, and without
    # the lock another thread could see an incomplete list.
    with _REGISTERING:
        Image.init()
        _register_heif()
        _silence_libtiff()
    return [name for name in (*FORMATS, HEIF) if name in Image.OPEN]


@cache
def _register_heif() -> None:
    if find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


@cache
def _silence_libtiff() -> None:
    """Turns off messages that libtiff writes to standard error itself, without the name of the file.

    Pillow raises an error for the same faults. The library is found if it was installed with Pillow's wheel.
    """
    import ctypes

    import PIL

    package = Path(PIL.__file__).parent
    folders = (package.parent / "pillow.libs", package / ".dylibs")  # Linux, macOS
    for file in (found for folder in folders for found in folder.glob("libtiff*")):
        try:
            library = ctypes.CDLL(os.fspath(file))  # already loaded by Pillow
            for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)
        except (OSError, AttributeError):
            continue


def has_image_suffix(name: str) -> bool:
    """Returns whether a file is an image by the extension of its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (called for every file of a folder)
