"""16-bit samples, TIFF's photometric interpretations, and transparency: right pixels, or a refusal."""

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bliss_jax as bj
from bliss_jax.datasets import FileReader, UnreadableImageError, decode_image

FILES = Path(__file__).parents[1] / "data" / "files"
RNG = np.random.default_rng(0)
H, W = 6, 8


def png(values: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Returns a PNG file by the specification; Pillow does not write 16-bit colours."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    height, width = values.shape[:2]
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    elif bits == 8:
        rows = [row.astype(np.uint8).tobytes() for row in values]
    else:
        shifts = np.arange(8 - bits, -1, -bits)
        rows = [
            (row.reshape(-1, 8 // bits) << shifts).sum(1).astype(np.uint8).tobytes()
            for row in values
        ]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        *chunks,
        (b"IDAT", zlib.compress(b"".join(b"\0" + r for r in rows))),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))


def tiff(values: np.ndarray, bits: int, photometric: int, order: str, **tags: tuple) -> bytes:
    """Returns an uncompressed TIFF file of one strip."""
    height, width, samples = values.shape
    if bits >= 8:
        data = values.astype(f"{order}u{bits // 8}" if bits in (8, 16, 32) else "u1").tobytes()
    else:
        shifts = np.arange(8 - bits, -1, -bits)
        data = (values.reshape(height, -1, 8 // bits) << shifts).sum(-1).astype(np.uint8).tobytes()
    known = {256: (4, width), 257: (4, height), 258: (3, *[bits] * samples), 259: (3, 1),
             262: (3, photometric), 273: (4, 8), 277: (3, samples), 278: (4, height),
             279: (4, len(data))}  # fmt: skip
    known |= {int(name.removeprefix("t")): value for name, value in tags.items()}
    data += bytes(len(data) % 2)
    entries, more = b"", b""
    after = 8 + len(data) + 2 + 12 * len(known) + 4
    for tag, (kind, *content) in sorted(known.items()):
        packed = struct.pack(order + {3: "H", 4: "I"}[kind] * len(content), *content)
        if len(packed) > 4:
            packed, more = struct.pack(order + "I", after + len(more)), more + packed
        entries += struct.pack(order + "HHI", tag, kind, len(content)) + packed.ljust(4, b"\0")
    directory = struct.pack(order + "H", len(known)) + entries + bytes(4) + more
    start = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    return start + data + directory


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.reshape(H, W, 1), 3, axis=-1).astype(np.uint8)


# TIFF


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_tiffs_are_read_with_black_as_zero_or_refused(photometric, bits, order):
    values = RNG.integers(0, 1 << bits, (H, W, 1))
    expected = values >> 8 if bits == 16 else values * 255 // ((1 << bits) - 1)
    expected = 255 - expected if photometric == 0 else expected
    content = tiff(values, bits, photometric, order)
    if (photometric, bits, order) == (0, 16, ">"):  # Pillow does not open this combination
        with pytest.raises(UnreadableImageError, match=r"TIFF, damaged \(unknown pixel mode"):
            decode_image(content, "image")
    else:
        np.testing.assert_array_equal(decode_image(content, "image"), grey(expected))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("photometric", "samples", "bits"), [(2, 3, 8), (2, 3, 16), (5, 4, 8), (5, 4, 16)]
)
def test_colour_tiffs_are_read_in_both_byte_orders(photometric, samples, bits, order):
    values = RNG.integers(0, 1 << bits, (H, W, samples))
    high = (values >> (bits - 8)).astype(np.uint8)
    mode = {2: "RGB", 5: "CMYK"}[photometric]
    expected = np.asarray(Image.fromarray(high, mode).convert("RGB"))
    image = decode_image(tiff(values, bits, photometric, order), "image")
    np.testing.assert_array_equal(image, expected)


def test_palette_tiffs_are_read():
    values = RNG.integers(0, 256, (H, W, 1))
    palette = RNG.integers(0, 256, (3, 256))
    content = tiff(values, 8, 3, "<", t320=(3, *(palette.ravel() * 257).tolist()))
    np.testing.assert_array_equal(decode_image(content, "image"), palette.T[values[..., 0]])


REFUSED = {
    "signed 8-bit": ((8, 1, "<"), {"t339": (3, 2)}, "TIFF, signed 8-bit samples"),
    "signed 16-bit": ((16, 1, "<"), {"t339": (3, 2)}, "TIFF, signed 16-bit samples"),
    "signed 16-bit, other order": ((16, 1, ">"), {"t339": (3, 2)}, "TIFF, signed 16-bit samples"),
    "32-bit": ((32, 1, "<"), {}, "TIFF, 32-bit integer samples"),
    "transparency mask": ((8, 4, "<"), {}, "TIFF, damaged (unknown pixel mode"),
    "colour filter array": ((8, 32803, "<"), {}, "TIFF, damaged (unknown pixel mode"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_tiffs_without_a_fixed_range_or_with_unknown_colours_are_refused(kind):
    (bits, photometric, order), tags, reason = REFUSED[kind]
    content = tiff(RNG.integers(0, 1 << min(bits, 16), (H, W, 1)), bits, photometric, order, **tags)
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(content, "image")
    assert caught.value.reason.startswith(reason)


def test_colour_tiffs_that_pillow_would_decode_wrongly_are_refused():
    colours = RNG.integers(0, 256, (H, W, 3))
    inks = tiff(RNG.integers(0, 256, (H, W, 4)), 8, 5, "<", t332=(3, 2))
    lab, subsampled = tiff(colours, 8, 8, "<"), tiff(colours, 8, 6, "<")
    planes = tiff(colours * 257, 16, 2, "<", t284=(3, 2))
    for content, reason in [
        (inks, "inks other than cyan"),
        (lab, "colours in LAB"),
        (subsampled, "YCbCr samples with subsampling"),
        (planes, "16-bit samples in separate planes"),
    ]:
        with pytest.raises(UnreadableImageError, match=f"TIFF, .*{reason}"):
            decode_image(content, "image")
    plain = decode_image(tiff(colours, 8, 6, "<", t530=(3, 1, 1)), "image")
    expected = Image.fromarray(colours.astype(np.uint8), "YCbCr").convert("RGB")
    np.testing.assert_array_equal(plain, np.asarray(expected))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiffs_are_read_like_uncompressed_ones(compression):
    values = RNG.integers(0, 65536, (H, W)).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode_image(file.getvalue(), "image"), grey(values >> 8))


def test_the_files_of_the_issue_show_one_picture():
    sixteen, eight = (bj.read_image(FILES / "tiff" / f"grey{n}_miniswhite.tif") for n in (16, 8))
    np.testing.assert_array_equal(sixteen, eight)
    with pytest.raises(UnreadableImageError, match="TIFF, signed 16-bit samples"):
        bj.read_image(FILES / "tiff" / "int16signed.tif")


# Significant bits


def reader_of(content: bytes, tmp_path, **options) -> tuple[np.ndarray, list[str]]:
    """Returns the pixels of a file and the notes on it."""
    file = tmp_path / "image"
    file.write_bytes(content)
    reader = FileReader(**options)
    return reader.read(file, "image"), reader.lines()


@pytest.mark.parametrize(
    ("bits", "kind"), list(itertools.product([10, 12, 14], ["grey", "grey-alpha", "rgb", "rgba"]))
)
def test_bit_depth_scales_samples_of_fewer_bits(bits, kind, tmp_path):
    colour, samples = {"grey": (0, 1), "grey-alpha": (4, 2), "rgb": (2, 3), "rgba": (6, 4)}[kind]
    values = RNG.integers(0, 1 << bits, (H, W, samples))
    values[0, 0, 0] = (1 << bits) - 1
    opaque = kind in ("grey-alpha", "rgba")
    if opaque:
        values[..., -1] = 65535
    shown = values[..., : samples - opaque]
    content = png(values.reshape(H, -1), 16, colour) if samples == 1 else png(values, 16, colour)
    given, notes = reader_of(content, tmp_path, bit_depth=bits)
    assert notes == []
    np.testing.assert_array_equal(given, np.broadcast_to(shown >> (bits - 8), (H, W, 3)))
    default, notes = reader_of(content, tmp_path)
    np.testing.assert_array_equal(default, np.broadcast_to(shown >> 8, (H, W, 3)))
    [note] = notes
    assert f"16-bit samples of 0 to {(1 << bits) - 1} only" in note
    assert f"bit_depth={bits}" in note


def test_samples_above_the_bit_depth_are_white(tmp_path):
    values = np.full((H, W), 5000)
    pixels, _ = reader_of(png(values, 16, 0), tmp_path, bit_depth=12)
    assert (pixels == 255).all()


def test_sixteen_significant_bits_keep_their_high_byte_without_a_note(tmp_path):
    for samples, colour in [((H, W), 0), ((H, W, 3), 2)]:
        values = RNG.integers(0, 65536, samples)
        pixels, notes = reader_of(png(values, 16, colour), tmp_path)
        expected = values >> 8 if len(samples) == 3 else grey(values >> 8)
        np.testing.assert_array_equal(pixels, expected)
        assert notes == []


def test_the_bits_that_a_png_states_are_used_if_its_samples_are_not_scaled(tmp_path):
    low = RNG.integers(0, 1 << 12, (H, W))
    pixels, notes = reader_of(png(low, 16, 0, (b"sBIT", b"\x0c")), tmp_path)
    np.testing.assert_array_equal(pixels, grey(low >> 4))
    assert notes == []
    scaled = low << 4 | low >> 8  # as the specification asks
    pixels, notes = reader_of(png(scaled, 16, 0, (b"sBIT", b"\x0c")), tmp_path)
    np.testing.assert_array_equal(pixels, grey(scaled >> 8))
    assert notes == []
    colour = RNG.integers(0, 1 << 10, (H, W, 3))
    pixels, notes = reader_of(png(colour, 16, 2, (b"sBIT", b"\x0a\x0a\x0a")), tmp_path)
    np.testing.assert_array_equal(pixels, colour >> 2)
    assert notes == []


@pytest.mark.parametrize("tag", ["t281", "t341"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_the_bits_that_a_tiff_states_are_used(tag, photometric, tmp_path):
    values = RNG.integers(0, 1 << 12, (H, W, 1))
    content = tiff(values, 16, photometric, "<", **{tag: (3, 4095)})
    pixels, notes = reader_of(content, tmp_path)
    expected = values >> 4
    np.testing.assert_array_equal(pixels, grey(255 - expected if photometric == 0 else expected))
    assert notes == []


def test_a_pgm_is_scaled_by_its_maximum():
    values = RNG.integers(0, 1 << 12, (H, W)).astype(">u2")
    pixels = decode_image(b"P5 8 6 4095\n" + values.tobytes(), "image")
    assert np.abs(pixels[..., 0].astype(int) - (values >> 4)).max() <= 1


def test_the_note_of_a_camera_file_names_its_range_and_the_option():
    for name, largest, bits in [
        ("white_chess_king_camera12bit", 3104, 12),
        ("cross_of_lorraine_camera10bit", 1016, 10),
    ]:
        file = FILES / "sixteen_bit" / f"{name}.png"
        reader = FileReader()
        reader.read(file, name)
        [note] = reader.lines(command_line=True)
        assert f"0 to {largest} only" in note
        assert f"--bit-depth {bits}" in note
        scaled = bj.read_image(file, bit_depth=bits)
        np.testing.assert_array_equal(scaled[..., 0], np.asarray(Image.open(file)) >> (bits - 8))
        assert scaled.max() > 190


@pytest.mark.parametrize("depth", [0, 7, 17])
def test_an_impossible_bit_depth_is_rejected(depth):
    with pytest.raises(ValueError, match=f"bit_depth: expected 8 to 16, got {depth}"):
        bj.read_image(b"", bit_depth=depth)


# Transparency

INK = np.array([40, 90, 200])
ALPHA = RNG.integers(0, 256, (H, W))


def on(background: int, colour=INK) -> np.ndarray:
    """Returns the colour over a grey background, by exact arithmetic."""
    mixed = ALPHA[..., None] * colour + (255 - ALPHA[..., None]) * background
    return np.floor(mixed / 255 + 0.5).astype(np.uint8)


def test_transparency_is_composited_on_the_background(tmp_path):
    drawing = np.dstack([np.broadcast_to(INK, (H, W, 3)), ALPHA])
    content = png(drawing, 8, 6)
    pixels, [note] = reader_of(content, tmp_path)
    np.testing.assert_array_equal(pixels, on(255))
    assert "1 image (image) has transparent pixels, composited on white" in note
    for name, level in [("black", 0), ("#808080", 128), ("white", 255)]:
        pixels, _ = reader_of(content, tmp_path, background=name)
        np.testing.assert_array_equal(pixels, on(level))


def test_white_ink_that_would_be_blank_on_white_is_composited_on_black(tmp_path):
    drawing = np.dstack([np.full((H, W, 3), 255), ALPHA])
    pixels, _ = reader_of(png(drawing, 8, 6), tmp_path)
    np.testing.assert_array_equal(pixels, on(0, np.full(3, 255)))
    pixels, _ = reader_of(png(drawing, 8, 6), tmp_path, background="white")
    assert (pixels == 255).all()


@pytest.mark.parametrize("name", ["cross_of_lorraine", "white_chess_king"])
def test_drawings_whose_shape_is_in_the_alpha_channel_equal_their_flat_twins(name):
    drawing, flat = (
        bj.read_image(FILES / "alpha" / f"{name}_{kind}.png") for kind in ("alpha", "flat")
    )
    np.testing.assert_array_equal(drawing, flat)


def test_an_opaque_alpha_channel_leads_to_no_note(tmp_path):
    colours = RNG.integers(0, 256, (H, W, 3))
    pixels, notes = reader_of(png(np.dstack([colours, np.full((H, W), 255)]), 8, 6), tmp_path)
    np.testing.assert_array_equal(pixels, colours)
    assert notes == []


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_value_of_a_png_becomes_the_background(bits, tmp_path):
    values = RNG.integers(0, 1 << bits, (H, W))
    key = int(values[0, 0])
    pixels, notes = reader_of(
        png(values, bits, 0, (b"tRNS", struct.pack(">H", key))), tmp_path, background="#123456"
    )
    shown = values >> 8 if bits == 16 else values * 255 // ((1 << bits) - 1)
    expected = np.where((values == key)[..., None], [0x12, 0x34, 0x56], grey(shown))
    np.testing.assert_array_equal(pixels, expected)
    assert "transparent pixels" in notes[0]


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_of_a_png_becomes_the_background(bits, tmp_path):
    values = RNG.integers(0, 1 << bits, (H, W, 3))
    values[2, 3] = values[0, 0]
    values[1, 1] = values[0, 0] + [0, 0, 1 if values[0, 0, 2] == 0 else -1]  # the same high byte
    key = struct.pack(">HHH", *values[0, 0].tolist())
    pixels, _ = reader_of(png(values, bits, 2, (b"tRNS", key)), tmp_path, background="black")
    transparent = (values == values[0, 0]).all(-1)
    assert transparent.sum() == 2
    np.testing.assert_array_equal(pixels, np.where(transparent[..., None], 0, values >> (bits - 8)))


def test_transparency_of_other_formats_and_modes_is_composited(tmp_path):
    palette = Image.fromarray(np.broadcast_to(INK, (H, W, 3)).astype(np.uint8)).quantize(4)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes([64] * 4))
    level = round((64 * 40 + 191 * 255) / 255)
    assert (decode_image(file.getvalue(), "image")[..., 0] == level).all()
    rgba = Image.fromarray(
        np.dstack([np.broadcast_to(INK, (H, W, 3)), ALPHA]).astype(np.uint8), "RGBA"
    )
    for kind, options in [("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})]:
        file = io.BytesIO()
        rgba.save(file, kind, **options)
        np.testing.assert_array_equal(decode_image(file.getvalue(), "image"), on(255))
    grey_alpha = tiff(np.dstack([np.full((H, W), 40), ALPHA]), 8, 1, "<", t338=(3, 2))
    np.testing.assert_array_equal(decode_image(grey_alpha, "image")[..., 0], on(255)[..., 0])
    premultiplied = np.dstack([np.zeros((H, W, 3), int), ALPHA])
    content = tiff(premultiplied, 8, 2, "<", t338=(3, 1))
    np.testing.assert_array_equal(decode_image(content, "image"), on(255, np.zeros(3)))


def test_an_unknown_background_is_rejected():
    with pytest.raises(
        ValueError, match=r"background: expected a colour such as white, .* got 'whyte'"
    ):
        bj.read_image(b"", background="whyte")
