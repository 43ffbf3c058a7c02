"""Odd metadata never changes the pixels of an image or makes it unreadable: mutations of EXIF, TIFF and PNG.

Each mutated file must have the pixels of its upright twin, which has no metadata at all.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bliss_jax as bj
from bliss_jax.datasets import FileReader, ImageWarning, UnreadableImageError, decode_image

FILES = Path(__file__).parents[1] / "data" / "files"
RNG = np.random.default_rng(0)
UPRIGHT = RNG.integers(0, 256, (12, 8, 3)).astype(np.uint8)
STORED = np.rot90(UPRIGHT)
"""As a camera stores it that was turned: orientation 6."""

TYPES = range(14)
MUTATIONS = 400


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack(">HHI", tag, kind, count) + value[:4].ljust(4, b"\0")


def exif(others: list[bytes], tail: bytes = b"") -> bytes:
    """Returns an EXIF block with orientation 6 among other entries of its first directory."""
    entries = sorted([entry(0x0112, 3, 1, b"\0\6"), *others])
    return (
        b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4) + tail
    )


def random_entry(rng: np.random.Generator) -> bytes:
    tags = [
        0x10E,
        0x10F,
        0x110,
        0x11A,
        0x11B,
        0x128,
        0x131,
        0x132,
        0x13B,
        0x213,
        0x8298,
        0x8769,
        0x8825,
        0xA005,
    ]
    tag = int(rng.choice([*tags, *rng.integers(0x113, 0xFFFF, 6)]))
    count = int(rng.choice([0, 1, 2, 5, 70_000, 2**31, 2**32 - 1]))
    value = [rng.bytes(4), struct.pack(">I", int(rng.integers(0, 300))), b"\xff" * 4][
        rng.integers(3)
    ]
    return entry(tag, int(rng.integers(0, 15)), count, value)


def random_exif(rng: np.random.Generator) -> bytes:
    return exif(
        [random_entry(rng) for _ in range(rng.integers(1, 6))], rng.bytes(int(rng.integers(0, 200)))
    )


def saved(format: str, pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def with_app1(jpeg: bytes, block: bytes) -> bytes:
    data = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def chunk(kind: bytes, data: bytes, error: int = 0) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data) ^ error)
    )


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Inserts chunks behind the header of a PNG file."""
    return png[:33] + b"".join(chunks) + png[33:]


def quietly(content: bytes) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"):
        return decode_image(content, "image")


def test_mutated_exif_changes_no_pixel_of_a_jpeg():
    rng = np.random.default_rng(1)
    plain = saved("JPEG", STORED, quality=90)
    upright = np.rot90(decode_image(plain, "plain"), -1)
    for _ in range(MUTATIONS):
        content = with_app1(plain, random_exif(rng))
        np.testing.assert_array_equal(quietly(content), upright)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_mutated_exif_changes_no_pixel_of_other_formats(format):
    rng = np.random.default_rng(2)
    for _ in range(MUTATIONS // 2):
        block = random_exif(rng)
        if format == "PNG":
            content = with_chunks(saved("PNG", STORED), chunk(b"eXIf", block))
        else:
            content = saved("WEBP", STORED, lossless=True, exif=b"Exif\0\0" + block)
        np.testing.assert_array_equal(quietly(content), UPRIGHT)


def test_a_damaged_exif_block_is_ignored_or_applied_but_never_fatal():
    """Any byte of the block may change, also those of the orientation."""
    rng = np.random.default_rng(3)
    plain = saved("JPEG", STORED, quality=90)
    stored = decode_image(plain, "plain")
    turned = {np.rot90(stored, k).tobytes() for k in range(4)}
    turned |= {np.rot90(stored[::-1], k).tobytes() for k in range(4)}
    block = random_exif(rng)
    for _ in range(MUTATIONS):
        damaged = bytearray(block)
        for position in rng.integers(0, len(damaged), 3):
            damaged[position] = rng.integers(256)
        cut = bytes(damaged[: rng.integers(1, len(damaged) + 1)])
        assert quietly(with_app1(plain, cut)).tobytes() in turned


ANCILLARY = [b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"gAMA", b"cHRM", b"iCCP", b"sRGB", b"tIME", b"bKGD",
             b"hIST", b"sPLT", b"oFFs", b"pCAL", b"sCAL", b"fRAc", b"vpAg", b"caNv"]  # fmt: skip


def test_mutated_ancillary_chunks_change_no_pixel_of_a_png():
    """Chunks of any content, with right and wrong checksums, also beside an orientation."""
    rng = np.random.default_rng(4)
    upright, stored = saved("PNG", UPRIGHT), saved("PNG", STORED)
    orientation = chunk(b"eXIf", exif([]))
    for _ in range(MUTATIONS):
        odd = [
            chunk(
                ANCILLARY[rng.integers(len(ANCILLARY))], rng.bytes(int(rng.integers(0, 40))), error
            )
            for error in rng.integers(0, 2, rng.integers(1, 4)).tolist()
        ]
        np.testing.assert_array_equal(quietly(with_chunks(upright, *odd)), UPRIGHT)
        np.testing.assert_array_equal(quietly(with_chunks(stored, orientation, *odd)), UPRIGHT)
        np.testing.assert_array_equal(quietly(with_chunks(stored, *odd, orientation)), UPRIGHT)


def test_a_png_with_a_damaged_critical_chunk_stays_refused():
    content = bytearray(saved("PNG", UPRIGHT))
    content[-20] ^= 1  # in IDAT
    with pytest.raises(UnreadableImageError, match="PNG, damaged"):
        decode_image(bytes(content), "image")


def mutated_tiff(content: bytes, rng: np.random.Generator) -> bytes:
    """Adds entries with tags that do not describe samples to the directory of a little-endian TIFF file."""
    (start,) = struct.unpack_from("<I", content, 4)
    (number,) = struct.unpack_from("<H", content, start)
    entries = [content[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(number)]
    known = {struct.unpack_from("<H", e)[0] for e in entries}
    odd = (
        269,
        270,
        271,
        272,
        282,
        283,
        296,
        305,
        306,
        315,
        700,
        33432,
        34377,
        34665,
        34675,
        34853,
        65000,
    )
    free = [tag for tag in odd if tag not in known]
    for tag in rng.choice(free, int(rng.integers(1, 4)), replace=False).tolist():
        kind, count = int(rng.integers(0, 15)), int(rng.choice([0, 1, 2, 9, 70_000]))
        value = [rng.bytes(4), struct.pack("<I", int(rng.integers(0, len(content))))][
            rng.integers(2)
        ]
        entries.append(struct.pack("<HHI", tag, kind, count) + value)
    directory = (
        struct.pack("<H", len(entries))
        + b"".join(sorted(entries, key=lambda e: e[1::-1]))
        + bytes(4)
    )
    content += bytes(len(content) % 2)
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_mutated_tags_change_no_pixel_of_a_tiff(compression):
    rng = np.random.default_rng(5)
    info = {274: 6} if compression != "jpeg" else {}
    plain = saved("TIFF", STORED, compression=compression, tiffinfo=info)
    upright = decode_image(plain, "plain")
    if compression != "jpeg":
        np.testing.assert_array_equal(upright, UPRIGHT)
    for _ in range(MUTATIONS // 2):
        np.testing.assert_array_equal(quietly(mutated_tiff(plain, rng)), upright)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("source", ["short", "long", "xmp", "png text"])
def test_all_orientations_are_applied_from_every_source(value, source):
    from PIL import ImageOps

    tag = Image.Exif()
    tag[0x0112] = value
    expected = np.asarray(ImageOps.exif_transpose(_opened(saved("PNG", STORED, exif=tag))))
    if source == "short":
        content = saved("PNG", STORED, exif=tag)
    elif source == "long":
        block = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 4, 1, value) + bytes(4)
        content = with_chunks(saved("PNG", STORED), chunk(b"eXIf", block))
    elif source == "xmp":
        packet = f'<x:xmpmeta><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'
        content = with_chunks(
            saved("PNG", STORED), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet.encode())
        )
    else:
        digits = (b"Exif\0\0" + tag.tobytes().removeprefix(b"Exif\0\0")).hex()
        text = f"\nexif\n{len(digits) // 2:8d}\n{digits}\n"
        data = b"Raw profile type exif\0\0" + zlib.compress(text.encode())
        content = with_chunks(saved("PNG", STORED), chunk(b"zTXt", data))
    np.testing.assert_array_equal(decode_image(content, "image"), expected)


def _opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_out_of_range_is_ignored(value):
    block = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, value, 0) + bytes(4)
    content = with_chunks(saved("PNG", STORED), chunk(b"eXIf", block))
    np.testing.assert_array_equal(decode_image(content, "image"), STORED)


def test_the_files_of_the_issue_equal_their_clean_twins():
    clean = bj.read_image(FILES / "exif" / "clean_orientation_6.jpg")
    stored = bj.read_image(FILES / "exif" / "same_but_orientation_1.jpg")
    np.testing.assert_array_equal(clean, np.rot90(stored, -1))
    for name in ("resolution_minus_one_over_zero", "gps_latitude_as_ascii", "artist_as_short"):
        np.testing.assert_array_equal(bj.read_image(FILES / "exif" / f"{name}.jpg"), clean)
    upright = bj.read_image(FILES / "python_recipe" / "upright.png")
    np.testing.assert_array_equal(
        bj.read_image(FILES / "python_recipe" / "phone_exif6.png"), upright
    )
    sixteen, eight = (bj.read_image(FILES / "python_recipe" / f"grey{n}.png") for n in (16, 8))
    np.testing.assert_array_equal(sixteen, eight)
    reader = FileReader()
    odd = reader.read(FILES / "png_badcrc_text.png", "png_badcrc_text.png")
    assert odd.shape == (60, 90, 3)
    [note] = reader.lines()
    assert note.startswith(
        "1 image (png_badcrc_text.png) has damaged metadata, which was ignored: "
    )
    with pytest.raises(UnreadableImageError, match=r"truncated\.avif': AVIF, truncated"):
        bj.read_image(FILES / "truncated.avif")


def test_read_image_accepts_paths_content_and_images_of_pillow():
    file = FILES / "exif" / "clean_orientation_6.jpg"
    expected = bj.read_image(file)
    for source in (str(file), file.read_bytes(), Image.open(file)):
        np.testing.assert_array_equal(bj.read_image(source), expected)
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    np.testing.assert_array_equal(bj.read_image(Image.fromarray(grey))[..., 0], grey >> 8)
    with pytest.raises(
        UnreadableImageError, match=r"cannot read image 'no/such\.png': No such file"
    ):
        bj.read_image("no/such.png")


def test_warnings_of_pillow_name_the_image():
    for seed in range(40):  # some mutations lead to warnings
        odd = mutated_tiff(saved("TIFF", STORED), np.random.default_rng(seed))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for name in ("first.tif", "second.tif"):
                decode_image(odd, name)
            decode_image(saved("PNG", UPRIGHT), "third.png")
        if caught:
            break
    assert {w.category for w in caught} == {ImageWarning}
    names = {str(w.message).split(":")[0] for w in caught}
    assert names == {"first.tif", "second.tif"}
    hook = warnings.showwarning
    decode_image(saved("PNG", UPRIGHT), "image")
    assert warnings.showwarning is hook, "the hook is removed after each image"


def test_libtiff_writes_no_message_of_its_own(capfd):
    content = bytearray(saved("TIFF", UPRIGHT, compression="tiff_lzw"))
    content[20:60] = b"\xff" * 40  # in the compressed samples
    with pytest.raises(UnreadableImageError, match="TIFF, damaged"):
        quietly(bytes(content))
    assert capfd.readouterr().err == ""


def test_heic_files_are_read_with_pillow_heif_and_otherwise_name_it(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    from bliss_jax.datasets import image_formats

    image_formats.decodable_formats()
    file = io.BytesIO()
    colour = np.full((64, 64, 3), (200, 40, 40), np.uint8)
    pillow_heif.from_pillow(Image.fromarray(colour)).save(file, quality=90)
    pixels = decode_image(file.getvalue(), "photo.heic")
    assert pixels.shape == (64, 64, 3)
    assert np.abs(pixels.astype(int) - colour).max() < 12
    with pytest.raises(UnreadableImageError, match="HEIF, truncated"):
        decode_image(file.getvalue()[:-50], "photo.heic")
    monkeypatch.delitem(Image.OPEN, "HEIF")
    with pytest.raises(UnreadableImageError, match=r"pip install 'bliss-jax\[heif\]'"):
        decode_image(file.getvalue(), "photo.heic")
