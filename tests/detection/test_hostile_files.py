"""Hostile files, folders and texts neither stop a run nor exhaust its memory."""

import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bliss_jax as bj
from bliss_jax.datasets import FileReader, UnreadableImageError, decode_image
from bliss_jax.datasets.archives import OfficialArchive
from bliss_jax.datasets.decode import MAX_BYTES


@pytest.fixture(scope="module")
def detector():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 16, 16, 3)).astype(np.uint8)
    model = bj.load_model("bliss-jax/untrained")
    # Sizes as in the other tests of folders, which share the compiled programs.
    return bj.Detector.fit(
        model, images, None, ["noise"], dictionary=[f"word {i}" for i in range(20)]
    )


def picture(path: Path, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + crc


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes(1 << 20), 9)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


TINY = ((256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 400), (277, 3, 1, 1), (278, 3, 1, 4), (279, 4, 1, 16))  # fmt: skip
"""Tags of a greyscale TIFF of 4 x 4 pixels: number, type, count, value."""


def tiff(*tags: tuple[int, int, int, int], pages: int = 1) -> bytes:
    entries = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    following = [8 + (len(entries) + 4) * page for page in range(1, pages)]
    return b"II*\0\x08\0\0\0" + b"".join(entries + struct.pack("<I", n) for n in [*following, 0])


def bombs(folder: Path) -> list[Path]:
    """Returns files of at most a few hundred kilobytes that would need gigabytes of memory."""
    much = zlib.compress(bytes(300 << 20), 9)
    made = {
        "pixels.png": png(30_000, 30_000),
        "text.png": png(8, 8, chunk(b"zTXt", b"a\0\0" + much)),
        "profile.png": png(8, 8, chunk(b"iCCP", b"a\0\0" + much)),
        # A TIFF whose directory claims 65,535 entries, and whose strip has 4 GB.
        "directory.tif": b"II*\0\x08\0\0\0\xff\xff"
        + b"\x17\x01\x04\0\x01\0\0\0\xff\xff\xff\xff" * 9,
    }
    made["tag.tif"] = tiff(*TINY, (34675, 7, 1 << 30, 4096))
    for name, content in made.items():
        (folder / name).write_bytes(content)
    # The file contains the whole tag, but it is sparse and takes no space on the disk.
    os.truncate(folder / "tag.tif", (1 << 30) + 4096)
    return [folder / name for name in made]


def test_decompression_bombs_are_rejected_by_name_in_bounded_memory(tmp_path):
    files = bombs(tmp_path)
    assert max(file.stat().st_blocks * 512 for file in files) < 1 << 20
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from bliss_jax.datasets.decode import UnreadableImageError, decode_image\n"
        "from PIL import Image; Image.init()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        print(name, decode_image(Path(name), name).shape)\n"
        "    except UnreadableImageError as error:\n"
        "        assert name in str(error)\n"
        "        print(error)\n"
        "print('grown by', peak() - before)\n"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *said, grown = done.stdout.splitlines()
    assert len(said) == len(files)
    assert all(line.startswith("cannot read image ") for line in said)
    assert "900000000 pixels" in said[0] or "30000 x 30000 pixels" in said[0]
    assert int(grown.split()[-1]) < 64 << 10, done.stdout  # kB: 64 MB


def test_a_file_may_have_at_most_max_bytes(tmp_path):
    file = tmp_path / "large.tif"
    file.write_bytes(tiff(*TINY) + bytes(400))
    os.truncate(file, MAX_BYTES)
    assert decode_image(file, "large.tif").shape == (4, 4, 3)
    os.truncate(file, MAX_BYTES + 1)
    with pytest.raises(
        UnreadableImageError, match=f"{MAX_BYTES + 1} bytes, expected at most {MAX_BYTES}"
    ):
        decode_image(file, "large.tif")


def test_at_most_three_pages_of_a_tiff_are_visited(monkeypatch):
    from PIL import TiffImagePlugin

    seek, sought = TiffImagePlugin.TiffImageFile.seek, []

    def counted(self, frame):
        sought.append(frame)
        seek(self, frame)

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "seek", counted)
    with pytest.raises(UnreadableImageError, match="more than 3 frames"):
        decode_image(tiff(*TINY, pages=100_000), "many.tif")
    assert max(sought) == 3


def test_only_regular_members_of_an_archive_are_read_and_nothing_is_written(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "in"
    folder.mkdir()
    archive = OfficialArchive("https://example.org/a.tar.gz", 0, "", "data")
    kinds = {
        "data/link": (tarfile.SYMTYPE, str(tmp_path / "secret")),
        "data/up": (tarfile.SYMTYPE, "../../secret"),
        "data/hard": (tarfile.LNKTYPE, "../secret"),
        "data/loop": (tarfile.SYMTYPE, "loop"),
        "data/device": (tarfile.CHRTYPE, ""),
        "data/pipe": (tarfile.FIFOTYPE, ""),
        "../escaped": (tarfile.REGTYPE, ""),
        str(tmp_path / "absolute"): (tarfile.REGTYPE, ""),
        "data/good": (tarfile.REGTYPE, ""),
    }
    with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
        for name, (kind, target) in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    assert archive.read_tar(folder / "a.tar.gz", ["good"]) == {"good": b""}
    for name in ("link", "up", "hard", "loop", "device", "pipe"):
        with pytest.raises(ValueError, match=f"data does not contain {name}"):
            archive.read_tar(folder / "a.tar.gz", ["good", name])
    assert sorted(tmp_path.rglob("*")) == before


def test_pipes_links_and_vanished_files_get_rows_with_a_reason(detector, tmp_path, monkeypatch):
    outside = picture(tmp_path / "outside.png")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    picture(folder / "good.png")
    picture(folder / "gone.png")
    picture(folder / "secret.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "inside.png").symlink_to(folder / "good.png")
    (folder / "outside.png").symlink_to(outside)
    (folder / "nowhere.png").symlink_to(folder / "none.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "sub" / "up").symlink_to(folder)
    opened = Path.open

    def deny(self, *arguments, **options):  # root may read any file, so chmod would not deny it
        if self.name == "secret.png":
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)
    found = FileReader().find([folder, folder / "pipe.png", tmp_path / "never.png"])
    paths = []
    for file in found:  # a listed file may be gone when it is read
        paths.append(file.path)
        (folder / "gone.png").unlink(missing_ok=True)
    rows = {}
    for row in bj.score_files(detector, [folder, folder / "pipe.png", tmp_path / "never.png"]):
        rows.setdefault(Path(row.path).name, row)
    assert {name for name, row in rows.items() if row.score is not None} == {
        "good.png",
        "inside.png",
    }
    assert rows["inside.png"].score == rows["good.png"].score
    reasons = {name: row.error for name, row in rows.items() if row.error}
    assert reasons == {
        "pipe.png": "not a regular file",
        "secret.png": "Permission denied",
        "outside.png": "a link that leads out of the folder",
        "nowhere.png": "a broken link",
        "loop.png": "a broken link",
        "up": "a link to a folder, which is not followed",
        "never.png": "No such file or directory",
    }
    assert str(folder / "gone.png") in paths


def test_rows_are_in_order_for_every_batch_size(detector, tmp_path):
    for i in range(23):
        picture(tmp_path / f"{i:02d}.png", seed=i)
        if i % 5 == 0:
            (tmp_path / f"{i:02d}.png").write_bytes(b"")
    whole = list(bj.score_files(detector, [tmp_path]))
    assert [Path(row.path).name for row in whole] == [f"{i:02d}.png" for i in range(23)]
    assert [i for i, row in enumerate(whole) if row.error] == [0, 5, 10, 15, 20]
    for size in (1, 7):
        again = list(bj.score_files(detector, [tmp_path], batch_size=size))
        assert [row.path for row in again] == [row.path for row in whole]
        for a, b in zip(again, whole, strict=True):
            assert a.error == b.error
            assert a.score is None or np.isclose(a.score, b.score, rtol=1e-3, atol=1e-3)


def test_an_error_of_the_path_iterator_is_raised_after_the_rows_before_it(detector, tmp_path):
    def names():
        yield picture(tmp_path / "a.png")
        raise RuntimeError("the source broke")

    rows = bj.score_files(detector, names(), batch_size=1)
    assert next(rows).score is not None
    with pytest.raises(RuntimeError, match="the source broke"):
        next(rows)
    endless = bj.score_files(detector, iter(lambda: tmp_path / "a.png", None), batch_size=2)
    assert next(endless).score is not None
    endless.close()


@pytest.mark.slow
def test_thirty_thousand_files_are_listed_in_order_in_less_than_20_megabytes(tmp_path):
    number = 30_000
    (tmp_path / "one").mkdir()
    for i in range(number):
        os.close(os.open(tmp_path / "one" / f"{i:06d}.png", os.O_CREAT, 0o644))
    tracemalloc.start()
    count, last = 0, ""
    for file in FileReader().find([tmp_path]):
        assert file.problem is None
        assert file.path > last
        last, count = file.path, count + 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == number
    assert peak < 20e6
    dataset = bj.load_dataset(tmp_path)
    assert len(dataset) == number
    with pytest.raises(UnreadableImageError, match="the file is empty"):
        dataset.images[number - 1]


@pytest.mark.slow
def test_a_caption_of_a_megabyte_is_rejected_or_truncated():
    model = bj.load_model("bliss-jax/tiny")
    caption = "a photo of a cat and " * 50_000
    with pytest.raises(ValueError, match="more than the context of 77"):
        model.encode_texts([caption])
    [cut] = np.asarray(model.encode_texts([caption], truncate=True))
    assert np.isclose(np.linalg.norm(cut), 1)
    [same] = np.asarray(model.encode_texts([caption[:4000]], truncate=True))
    np.testing.assert_allclose(cut, same, atol=1e-6)


def test_a_replaced_file_is_read_as_the_new_file(tmp_path):
    file = picture(tmp_path / "a.png", seed=1)
    first = decode_image(file, "a.png")
    picture(tmp_path / "b.png", seed=2).replace(file)
    assert not np.array_equal(decode_image(file, "a.png"), first)
