"""Decoded pixels equal those of transformers' `load_image` and Pillow; unreadable images are refused."""

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from bliss_jax.datasets import UnreadableImageError, decode_image, image_formats

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 7, 3), np.uint8)
GREY16 = RNG.integers(0, 65536, (9, 7)).astype(np.uint16)


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def palette_with_transparency() -> Image.Image:
    image = Image.fromarray(RGB).quantize(16)
    image.info["transparency"] = bytes(range(16))
    return image


VARIANTS = {
    "jpeg": lambda: encode(Image.fromarray(RGB), "JPEG"),
    "grey jpeg": lambda: encode(Image.fromarray(RGB[..., 0]), "JPEG"),
    "cmyk jpeg": lambda: encode(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "cmyk tiff": lambda: encode(Image.fromarray(RGB).convert("CMYK"), "TIFF"),
    "progressive jpeg": lambda: encode(Image.fromarray(RGB), "JPEG", progressive=True),
    "png": lambda: encode(Image.fromarray(RGB), "PNG"),
    "rgba png": lambda: encode(Image.fromarray(np.dstack([RGB, RGB[..., :1]]), "RGBA"), "PNG"),
    "grey png": lambda: encode(Image.fromarray(RGB[..., 0]), "PNG"),
    "grey-alpha png": lambda: encode(Image.fromarray(RGB[..., 0]).convert("LA"), "PNG"),
    "bilevel png": lambda: encode(Image.fromarray(RGB[..., 0]).convert("1"), "PNG"),
    "palette png": lambda: encode(Image.fromarray(RGB).quantize(16), "PNG"),
    "transparent palette png": lambda: encode(
        palette_with_transparency(), "PNG", transparency=bytes(range(16))
    ),
    "gif": lambda: encode(Image.fromarray(RGB).quantize(16), "GIF"),
    "bmp": lambda: encode(Image.fromarray(RGB), "BMP"),
    "webp": lambda: encode(Image.fromarray(RGB), "WEBP", lossless=True),
    "ppm": lambda: encode(Image.fromarray(RGB), "PPM"),
    "tiff": lambda: encode(Image.fromarray(RGB), "TIFF"),
} | {
    f"orientation {n}": lambda n=n: encode(Image.fromarray(RGB), "PNG", exif=orientation(n))
    for n in range(1, 9)
}


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


TRANSPARENT = ("rgba png", "transparent palette png")
"""Variants whose transparent pixels `load_image` shows in their hidden colours."""


@pytest.mark.parity
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in TRANSPARENT])
def test_pixels_equal_those_of_transformers_load_image(variant, tmp_path):
    from transformers.image_utils import load_image

    file = tmp_path / "image"
    file.write_bytes(VARIANTS[variant]())
    with warnings.catch_warnings(action="ignore"):
        expected = np.asarray(load_image(str(file)))
    for source in (file, file.read_bytes()):
        image = decode_image(source, "image")
        assert image.dtype == np.uint8
        assert image.flags.writeable
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_emits_no_warning(variant):
    with warnings.catch_warnings(action="error"):
        decode_image(VARIANTS[variant](), "image")


def test_the_exif_orientation_is_applied():
    turned = decode_image(VARIANTS["orientation 6"](), "image")
    np.testing.assert_array_equal(turned, np.rot90(RGB, -1))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encode(Image.fromarray(GREY16), "PNG"), id="PNG"),
        pytest.param(encode(Image.fromarray(GREY16), "TIFF"), id="TIFF"),
        pytest.param(b"P5 7 9 65535\n" + GREY16.astype(">u2").tobytes(), id="PGM"),
    ],
)
def test_sixteen_bit_grey_keeps_its_high_byte(content):
    expected = (GREY16 >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(content, "image"), np.stack([expected] * 3, axis=-1))


def test_the_exif_orientation_is_applied_to_sixteen_bit_grey():
    content = encode(Image.fromarray(GREY16), "PNG", exif=orientation(6))
    expected = np.rot90((GREY16 >> 8).astype(np.uint8), -1)
    np.testing.assert_array_equal(decode_image(content, "image")[..., 0], expected)


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """Encodes a PNG of a kind that Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_sixteen_bit_rgb_keeps_its_high_byte():
    samples = RNG.integers(0, 65536, (9, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    image = decode_image(png(7, 9, 16, 2, rows), "image")
    np.testing.assert_array_equal(image, samples >> 8)


def test_the_primary_picture_of_a_multi_picture_jpeg_is_read():
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    content = encode(first, "MPO", save_all=True, append_images=[second])
    expected = np.asarray(Image.open(io.BytesIO(encode(first, "JPEG"))))
    np.testing.assert_array_equal(decode_image(content, "image"), expected)


def frames(file_format: str) -> bytes:
    others = [Image.fromarray(255 - RGB)]
    return encode(Image.fromarray(RGB), file_format, save_all=True, append_images=others)


JPEG = encode(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
REFUSED = {
    "empty": (b"", "the file is empty"),
    "text": (b"not an image at all", "not an image, expected one of JPEG, PNG, WEBP"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], ": JPEG, truncated"),
    "header only": (JPEG[:4], ": JPEG, truncated"),
    "truncated png": (VARIANTS["png"]()[:60], ": PNG, truncated"),
    "damaged png": (
        VARIANTS["png"]()[:45] + b"\xff" * 40 + VARIANTS["png"]()[-12:],
        ": PNG, damaged",
    ),
    "truncated webp": (VARIANTS["webp"]()[:-9], ": WEBP, truncated"),
    "truncated gif": (VARIANTS["gif"]()[:-20], ": GIF, truncated"),
    "truncated bmp": (VARIANTS["bmp"]()[:-20], ": BMP, truncated"),
    "damaged tiff": (b"II*\0\x08\0\0\0" + b"\xff" * 200, ": TIFF, "),
    "truncated tiff": (VARIANTS["tiff"]()[:60], ": TIFF, "),
    "animated gif": (frames("GIF"), "2 frames"),
    "animated png": (frames("PNG"), "2 frames"),
    "animated webp": (frames("WEBP"), "2 frames"),
    "tiff of two pages": (frames("TIFF"), "2 frames"),
    "32-bit float tiff": (
        encode(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"),
        "TIFF, 32-bit floating-point samples",
    ),
    "32-bit integer tiff": (
        encode(Image.fromarray(RGB[..., 0].astype(np.int32)), "TIFF"),
        "TIFF, (signed )?32-bit( integer)? samples",
    ),
    "postscript": (encode(Image.fromarray(RGB), "EPS"), "format PostScript, expected one of JPEG"),
    "pdf": (encode(Image.fromarray(RGB), "PDF"), "format PDF, expected one of JPEG"),
    "bomb": (png(20_000, 20_000, 8, 2, b"\0"), "exceeds limit|at most"),
    "small bomb": (
        png(10_000, 10_000, 8, 2, b"\0"),
        "10000 x 10000 pixels, expected at most 89478485",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_an_unreadable_image_is_refused_with_its_name_and_reason(kind, tmp_path):
    content, reason = REFUSED[kind]
    file = tmp_path / "cat.jpg"
    file.write_bytes(content)
    for source in (file, content):
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            decode_image(source, "cat/cat.jpg")
        assert caught.value.name == "cat/cat.jpg"
        assert str(caught.value).startswith("cannot read image 'cat/cat.jpg': ")
        assert isinstance(caught.value, ValueError)


def test_a_decompression_bomb_is_refused_even_if_pillows_limit_is_disabled(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImageError, match="20000 x 20000 pixels"):
        decode_image(REFUSED["bomb"][0], "bomb.png")


def test_a_missing_file_and_a_folder_are_refused_with_the_reason(tmp_path):
    with pytest.raises(UnreadableImageError, match="No such file"):
        decode_image(tmp_path / "gone.jpg", "gone.jpg")
    with pytest.raises(UnreadableImageError, match="Is a directory"):
        decode_image(tmp_path, "folder")


def test_control_characters_in_names_are_escaped_in_errors():
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(b"", "a\nb\x1b[31m\udcff.jpg")
    assert str(caught.value).isprintable()


def test_a_truncated_jpeg_is_never_decoded_in_part():
    """A JPEG cut at any length is refused; trailing bytes do not change the image."""
    whole = decode_image(JPEG, "whole")
    for length in range(0, len(JPEG) - 2, 37):
        with pytest.raises(UnreadableImageError):
            decode_image(JPEG[:length], "cut")
    np.testing.assert_array_equal(decode_image(JPEG + b"trailing", "whole"), whole)


def test_only_the_listed_formats_are_tried():
    formats = set(image_formats.decodable_formats())
    assert formats <= {*image_formats.FORMATS, "HEIF"}
    assert {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"} <= formats


@pytest.mark.slow
def test_eight_threads_can_read_the_first_images_of_a_process(tmp_path):
    """Pillow registers its formats when the first image is opened, here by eight threads at once."""
    for number in range(16):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    program = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from bliss_jax.datasets.decode import decode_image\n"
        "files = sorted(Path(sys.argv[1]).iterdir())\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    assert len(list(pool.map(lambda f: decode_image(f, f.name), files))) == 16\n"
    )
    for _ in range(5):
        subprocess.run([sys.executable, "-c", program, tmp_path], check=True, timeout=60)  # noqa: S603
