"""Conversion of decoded samples to RGB and alpha, 8 bits each.

16-bit samples are reduced to the high byte of their significant bits: of b significant bits, a sample v
becomes v >> (b - 8), and values of 2^b and more become 255. The number b is

    1. the bit depth that the caller gives;
    2. the number that the file states: BitsPerSample, SMaxSampleValue or MaxSampleValue of a TIFF file, or
       sBIT of a PNG file whose samples are not scaled to 16 bits (the PNG specification asks for scaled ones,
       but cameras write unscaled ones);
    3. 16.

Pillow decodes coloured 16-bit images to the high bytes of their samples only. If these are low enough for
fewer significant bits, the file is decoded a second time for the low bytes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL import Image

FEWER_BITS = 14
"""Samples of at most this many bits in a 16-bit file look nearly black and lead to a note."""

_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE, _BITS_PER_SAMPLE = 281, 341, 258
_HIGH_BYTES = {
    "RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGBX;16B": "RGBX;16L", "RGBX;16L": "RGBX;16B",
    "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B",
}  # fmt: skip
"""Pillow's raw modes that take the high bytes of coloured samples, with those that take the low bytes: for
big-endian samples the low byte is where little-endian samples have the high one."""


class Samples(NamedTuple):
    """The samples of an image, 8 bits each."""

    colour: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None = None
    """None if the image has no alpha channel."""
    largest: int | None = None
    """Largest sample, if the samples have 16 bits and the number of their significant bits is not known."""


def samples_of(
    image: "Image.Image", bit_depth: int | None, reopen: Callable[[], "Image.Image"] | None
) -> Samples:
    """Converts an opened image.

    Args:
        image: Image opened by Pillow.
        bit_depth: Significant bits of 16-bit samples; None for those that the file states.
        reopen: Opens the image again, which coloured 16-bit images need; None if that is impossible.

    Raises:
        ValueError: The samples have no fixed range, or a colour space that is not supported.
    """
    _refuse_tiff(image)
    raw = _raw_mode(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _sixteen_bit_grey(image, bit_depth)
    if image.mode in ("I", "F"):
        kind = "integer" if image.mode == "I" else "floating-point"
        raise ValueError(f"32-bit {kind} samples, which have no fixed range")
    if image.mode in ("LAB", "HSV"):
        raise ValueError(f"colours in {image.mode}, expected grey, RGB, CMYK or YCbCr")
    if raw in _HIGH_BYTES or raw == "LA;16B":
        return _sixteen_bit_colour(image, raw, bit_depth, reopen)
    return _eight_bit(image)


def _eight_bit(image: "Image.Image") -> Samples:
    transparent = _scaled_transparency(image)
    if transparent is not None:
        grey = np.asarray(image.convert("L"))
        return Samples(_grey(grey), np.where(grey == transparent, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        pixels = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
        return Samples(pixels[..., :3], pixels[..., 3])
    return Samples(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def _scaled_transparency(image: "Image.Image") -> int | None:
    """Returns the transparent grey value of a PNG file, scaled to 8 bits like its samples."""
    value = image.info.get("transparency")
    raw = _raw_mode(image)
    if image.format != "PNG" or not isinstance(value, int) or image.mode not in ("1", "L"):
        return None
    return value * {"L;2": 85, "L;4": 17}.get(raw, 255 if image.mode == "1" else 1)


def _sixteen_bit_grey(image: "Image.Image", bit_depth: int | None) -> Samples:
    values = np.asarray(image).astype(np.uint16)  # native byte order; mode "I" has 32 bits
    transparent = image.info.get("transparency")
    alpha = None
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    reduced, largest = _reduce(values, image, bit_depth)
    if _tag(image, 262) == 0:  # WhiteIsZero, which Pillow inverts for samples of up to 8 bits only
        reduced = 255 - reduced
    return Samples(_grey(reduced), alpha, largest)


def _sixteen_bit_colour(
    image: "Image.Image",
    raw: str,
    bit_depth: int | None,
    reopen: Callable[[], "Image.Image"] | None,
) -> Samples:
    high = np.asarray(image)
    few = high[..., : 1 if raw == "LA;16B" else 3].max(initial=0) < 1 << (FEWER_BITS - 8)
    transparent = image.info.get("transparency") if image.mode == "RGB" else None
    if reopen is None or not (few or bit_depth is not None or transparent is not None):
        return _eight_bit(image)
    if raw == "LA;16B":
        pairs = _decoded_as(reopen, "RGBA", "RGBA")
        values = pairs[..., 0].astype(np.uint16) << 8 | pairs[..., 1]
        alpha = pairs[..., 2]
    else:
        low = _decoded_as(reopen, image.mode, _HIGH_BYTES[raw])
        values = high[..., :3].astype(np.uint16) << 8 | low[..., :3]
        alpha = high[..., 3] if high.shape[-1] == 4 else None
    if isinstance(transparent, tuple):
        alpha = np.where((values == transparent).all(axis=-1), 0, 255).astype(np.uint8)
    reduced, largest = _reduce(values, image, bit_depth)
    return Samples(reduced if reduced.ndim == 3 else _grey(reduced), alpha, largest)


def _decoded_as(reopen: Callable[[], "Image.Image"], mode: str, raw: str) -> np.ndarray:
    """Decodes an image with another raw mode, whose samples have the same number of bits."""
    with reopen() as opened:
        image: Any = opened
        image._mode = mode
        tiles = []
        for decoder, extents, offset, arguments in image.tile:
            arguments = (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
            tiles.append((decoder, extents, offset, arguments))
        image.tile = tiles
        return np.asarray(image)


def _reduce(
    values: np.ndarray, image: "Image.Image", bit_depth: int | None
) -> tuple[np.ndarray, int | None]:
    """Reduces 16-bit samples to 8 bits; also returns the largest if there may be fewer significant bits."""
    largest = int(values.max(initial=0))
    bits = bit_depth or _stated_bits(image, largest)
    unknown = bits is None and largest < 1 << FEWER_BITS
    bits = 16 if bits is None else bits
    reduced = np.minimum(values, (1 << bits) - 1) >> (bits - 8)
    return reduced.astype(np.uint8), largest if unknown else None


def _stated_bits(image: "Image.Image", largest: int) -> int | None:
    """Returns the significant bits that a file states, if the largest sample does not contradict them."""
    if image.format == "PNG":
        stated = image.info.get("significant_bits")
    elif image.format == "PPM":
        return 16  # Pillow scales the samples by the file's maximum
    else:
        most = _tag(image, _S_MAX_SAMPLE_VALUE) or _tag(image, _MAX_SAMPLE_VALUE)
        own = _tag(image, _BITS_PER_SAMPLE)
        stated = int(most).bit_length() if most else own if own and own != 16 else None
    if stated is None or not 8 <= stated <= 16 or largest >> stated:
        return None
    return stated


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def _raw_mode(image: "Image.Image") -> str:
    """Returns the raw mode of the samples in the file, e.g. "RGB;16B"; empty if the format has none."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    # libtiff swaps the bytes to native order.
    return raw.replace(";16N", ";16L") if isinstance(raw, str) else ""


def _tag(image: "Image.Image", number: int) -> int | None:
    """Returns the first value of an integer tag of a TIFF file; None for other files and values."""
    tags = getattr(image, "tag_v2", None)
    try:
        value = None if tags is None else tags.get(number)
    except Exception:  # Pillow decodes a tag when it is read, and raises errors of many types
        return None
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int | float) else None


def _refuse_tiff(image: "Image.Image") -> None:
    """Raises ValueError for TIFF files that Pillow opens but decodes wrongly."""
    if getattr(image, "tag_v2", None) is None:
        return
    bits = _tag(image, _BITS_PER_SAMPLE) or 1
    if _tag(image, 339) == 2:
        raise ValueError(f"signed {bits}-bit samples, expected unsigned ones")
    if _tag(image, 262) == 5 and (_tag(image, 332) or 1) != 1:
        raise ValueError("inks other than cyan, magenta, yellow and black")
    if _tag(image, 284) == 2 and bits > 8 and (_tag(image, 277) or 1) > 1:
        raise ValueError(f"{bits}-bit samples in separate planes")
    subsampling = image.tag_v2.get(530, (2, 2))  # pyright: ignore[reportAttributeAccessIssue]
    is_plain = (
        _tag(image, 262) == 6 and (_tag(image, 277) or 1) > 1 and _tag(image, 259) in (None, 1)
    )
    if is_plain and tuple(subsampling) != (1, 1):
        raise ValueError("uncompressed YCbCr samples with subsampling")
