"""Shards are written atomically and refused if damaged, and a killed run loses only the last shards.

The environment variable BLISS_JAX_KILLS sets how often the run is killed (default 4).
"""

import dataclasses
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from embedding_process import (
    BATCH,
    SHARDS,
    encoded_by,
    read_by,
    rows_of,
    shards_in,
    start,
    wait_for,
)
from PIL import Image

from bliss_jax.datasets import ImageDataset, UnreadableImageError, load_dataset
from bliss_jax.datasets.image_dataset import LazyImages
from bliss_jax.embedding import embed_images, embed_texts
from bliss_jax.embedding.shards import (
    JoinedShards,
    Shard,
    ShardFolder,
    Span,
    decode_shard,
    encode_shard,
    spans,
)
from bliss_jax.models import load_model

KEY = {"model": {"weights_sha256": "00"}, "classes": ["a", "b"]}
SPAN = Span(10, 14)


@pytest.fixture(scope="module")
def model():
    return load_model("bliss-jax/untrained")


@pytest.fixture
def shard():
    embeddings = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    return Shard(embeddings, np.array([10, 11, 13], np.int32), ("12.png: the file is empty",))


class NoisyImages(LazyImages):
    """Random images, some of them damaged; `seen` has the positions that were read."""

    def __init__(self, number, damaged=()):
        self.number, self.damaged, self.seen = number, damaged, []

    def __len__(self):
        return self.number

    def read(self, position):
        self.seen.append(position)
        if position in self.damaged:
            raise UnreadableImageError(f"image {position}", "damaged")
        return np.random.default_rng(position).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    def identity(self):
        yield b"noise"


def dataset(images, **changes) -> ImageDataset:
    made = ImageDataset("some", images, np.arange(len(images)) % 3, ("a", "b", "c"), "made here")
    return dataclasses.replace(made, **changes)


def same(a, b):
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.rows, b.rows)
    assert a.unreadable == b.unreadable


def test_spans_divide_all_positions():
    assert spans(10, 4) == ((0, 4), (4, 8), (8, 10))
    assert spans(8, 4) == ((0, 4), (4, 8))


def test_a_shard_is_read_as_it_was_written(shard, tmp_path):
    content = encode_shard(shard, SPAN, KEY)
    same(decode_shard(content, SPAN, KEY), shard)
    assert encode_shard(shard, SPAN, KEY) == content, "encoding is not deterministic"
    folder = ShardFolder(tmp_path / "new", "some/model: x", KEY)
    assert folder.read(SPAN) is None
    folder.prepare()
    folder.write(SPAN, shard)
    same(folder.read(SPAN), shard)
    assert folder.file(SPAN).name == "0000000010-0000000014.safetensors"
    none = Shard(np.empty((0, 8), np.float32), np.empty(0, np.int32), ("a", "b", "c", "d"))
    same(decode_shard(encode_shard(none, SPAN, KEY), SPAN, KEY), none)


def test_a_flipped_bit_and_a_truncation_anywhere_in_a_shard_are_refused(shard):
    content = encode_shard(shard, SPAN, KEY)
    rng = np.random.default_rng(0)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError, match=r"damaged|another input"):
            decode_shard(bytes(damaged), SPAN, KEY)
    for length in range(0, len(content), 7):
        with pytest.raises(ValueError, match="damaged"):
            decode_shard(content[:length], SPAN, KEY)


def test_a_shard_of_another_span_or_key_is_refused(shard):
    content = encode_shard(shard, SPAN, KEY)
    for span, key in [(Span(10, 15), KEY), (SPAN, KEY | {"classes": ["a"]})]:
        with pytest.raises(ValueError, match="belongs to another input"):
            decode_shard(content, span, key)


def test_a_damaged_file_is_named_and_only_it_is_embedded_again_after_deletion(model, tmp_path):
    images = dataset(NoisyImages(40))
    whole = embed_images(model, images, batch_size=8, cache=tmp_path)
    damaged = shards_in(tmp_path)[2]
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 4
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{damaged.name} cannot be used: .*Delete this file"):
        embed_images(model, images, batch_size=8, cache=tmp_path)
    damaged.unlink()
    images.images.seen.clear()
    same(embed_images(model, images, batch_size=8, cache=tmp_path), whole)
    assert sorted(images.images.seen) == list(rows_of(damaged)), (
        "only the deleted shard is embedded again"
    )


def test_a_second_run_reads_no_image_and_knows_the_unreadable_ones(model, tmp_path):
    images = dataset(NoisyImages(50, damaged=range(16, 33)))  # two shards contain no image
    uncached = embed_images(model, images, batch_size=8)
    counts = []
    first = embed_images(model, images, batch_size=8, cache=tmp_path, progress=counts.append)
    same(first, uncached)
    assert sum(counts) == 33
    images.images.seen.clear()
    counts.clear()
    same(embed_images(model, images, batch_size=8, cache=tmp_path, progress=counts.append), first)
    assert images.images.seen == []
    assert counts == [33]
    assert first.unreadable == tuple(
        str(UnreadableImageError(f"image {i}", "damaged")) for i in range(16, 33)
    )


def test_each_input_that_changes_embeddings_has_its_own_folder(model, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    changed = images.copy()
    changed[7, 3, 3, 1] ^= 1
    plain = {"model": model, "dataset": dataset(images), "batch_size": 8}
    runs = [
        {},
        {"preprocess": "reference"},
        {"batch_size": 16},
        {"shard_size": 16},
        {"model": load_model("bliss-jax/untrained", dtype="bfloat16")},
        {"model": dataclasses.replace(model, weights_hash="another")},
        {"dataset": dataset(changed)},
        {"dataset": dataset(images, labels=np.zeros(24, int))},
        {"dataset": dataset(images, class_names=("a", "b", "d"))},
    ]
    for number, run in enumerate(runs, 1):
        embed_images(**(plain | run), cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == number, run
    embed_images(**plain, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(runs)


def test_texts_are_cached_like_images(model, tmp_path, monkeypatch):
    monkeypatch.setattr("bliss_jax.embedding.texts._TEXTS_AT_ONCE", 16)
    texts = [f"text {i}" for i in range(40)]
    embedded = embed_texts(model, texts, cache=tmp_path)
    np.testing.assert_array_equal(embedded, embed_texts(model, texts))
    assert len(shards_in(tmp_path)) == 3
    monkeypatch.setattr(type(model), "encode_texts", None)
    np.testing.assert_array_equal(embedded, embed_texts(model, texts, cache=tmp_path))


def test_a_failed_write_is_an_error_and_earlier_shards_are_kept(model, tmp_path):
    """A limit on the size of files simulates a full disk: the first shard fits, the second does not."""
    images = dataset(NoisyImages(24, damaged=range(1, 8)))  # the first shard has one image
    whole = embed_images(model, images, batch_size=8)
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3500, most))
    try:
        with pytest.raises(OSError, match=r"cannot write .*shards written before are kept"):
            embed_images(model, images, batch_size=8, cache=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        signal.signal(signal.SIGXFSZ, handler)
    assert len(shards_in(tmp_path)) == 1
    assert [file.name for file in tmp_path.glob("*/.*")] == []
    images.images.seen.clear()
    same(embed_images(model, images, batch_size=8, cache=tmp_path), whole)
    assert min(images.images.seen) == 8


def test_a_full_file_system_is_an_error_and_earlier_shards_are_kept(model, tmp_path):
    """Mounts a file system of two pages in memory, on which two shards fit; needs the right to mount."""
    images = dataset(NoisyImages(24))
    whole = embed_images(model, images, batch_size=8)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:  # noqa: S603
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(OSError, match=r"No space left on device. The shards written before"):
            embed_images(model, images, batch_size=8, cache=tmp_path)
        assert [rows_of(shard) for shard in shards_in(tmp_path)] == [range(8), range(8, 16)]
        assert list(tmp_path.glob("*/.*")) == []
        room = ["mount", "-o", "remount,size=64k", str(tmp_path)]
        subprocess.run(room, check=True)  # noqa: S603
        images.images.seen.clear()
        same(embed_images(model, images, batch_size=8, cache=tmp_path), whole)
        assert sorted(images.images.seen) == list(range(16, 24))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)  # noqa: S603, S607


def test_images_deleted_or_replaced_during_a_run_are_embedded_as_they_are_then(model, tmp_path):
    """The next run, which finds other files, does not use the shards of the first."""
    folder, cache = tmp_path / "pets", tmp_path / "cache"
    (folder / "cat").mkdir(parents=True)
    files = [folder / "cat" / f"{i:02d}.png" for i in range(40)]
    for i, file in enumerate(files):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(file)
    replaced, gone = files[30], files[33]

    def disturb(done):
        if gone.exists():  # after the first batch; at most three further batches have been read
            Image.new("RGB", (11, 9), (0, 255, 0)).save(replaced)  # read after the next line only
            gone.unlink()

    sizes = {"batch_size": 8, "shard_size": 8}
    listed = load_dataset(folder)
    slow = dataclasses.replace(listed, images=SlowFiles(listed.images))
    disturbed = embed_images(model, slow, cache=cache, progress=disturb, **sizes)
    assert [*disturbed.rows] == [i for i in range(40) if i != 33]
    assert disturbed.unreadable == ("cannot read image 'cat/33.png': No such file or directory",)
    now = load_dataset(folder)
    assert len(now) == 39
    np.testing.assert_array_equal(
        embed_images(model, now, cache=cache, **sizes).embeddings,
        embed_images(model, now, **sizes).embeddings,
    )
    np.testing.assert_allclose(
        disturbed.embeddings, embed_images(model, now, **sizes).embeddings, atol=1e-6
    )


class SlowFiles(LazyImages):
    """Images of a folder; those from position 30 are read only after the file 33 was deleted."""

    def __init__(self, files):
        self.files, self.gone = files, files._root / files._names[33]

    def __len__(self):
        return len(self.files)

    def read(self, position):
        if position >= 30:
            wait_for(lambda: not self.gone.exists())
        return self.files.read(position)

    def identity(self):
        return self.files.identity()


def test_a_read_only_folder_is_an_error_before_any_image_is_read(model, tmp_path, monkeypatch):
    images = dataset(NoisyImages(16))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="cannot write"):
        embed_images(model, images, batch_size=8, cache=file)
    assert images.images.seen == []
    whole = embed_images(model, images, batch_size=8, cache=tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to any folder
    same(embed_images(model, images, batch_size=8, cache=tmp_path), whole)
    shards_in(tmp_path)[0].unlink()
    images.images.seen.clear()
    with pytest.raises(ValueError, match="read-only"):
        embed_images(model, images, batch_size=8, cache=tmp_path)
    assert images.images.seen == []


def test_denied_permissions_are_reported_with_the_reason(tmp_path):
    """Runs in a process that cannot override permissions, which root can."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bliss_jax.datasets.decode import decode_image\n"
        "from bliss_jax.embedding.shards import ShardFolder\n"
        "for function, *arguments in (\n"
        "    (ShardFolder(Path(sys.argv[1]) / 'new', 'some', {}).prepare,),\n"
        "    (ShardFolder(Path(sys.argv[1]), 'some', {}).prepare,),\n"
        "    (decode_image, Path(sys.argv[2]), 'cat.png'),\n"
        "):\n"
        "    try:\n"
        "        function(*arguments)\n"
        "    except (ValueError, OSError) as error:\n"
        "        print(error)\n"
    )
    powerless = ["unshare", "--user"] if os.geteuid() == 0 else []
    if powerless and (
        shutil.which("unshare") is None
        or subprocess.run([*powerless, "true"], capture_output=True).returncode  # noqa: S603
    ):
        pytest.skip("root cannot drop its privileges here (unshare --user)")
    folder, image = tmp_path / "cache", tmp_path / "cat.png"
    existing = ShardFolder(folder, "some", {}).folder
    existing.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(image)
    modes = {image: 0o000, existing: 0o500, folder: 0o500}
    for path, mode in modes.items():
        path.chmod(mode)
    try:
        command = [*powerless, sys.executable, "-c", program, str(folder), str(image)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    finally:
        for path in reversed(modes):
            path.chmod(0o700)
    first, second, third = printed.stdout.splitlines()
    assert "Permission denied. The shards written before are kept" in first
    assert second.endswith(f"the folder {existing} is read-only")
    assert third == "cannot read image 'cat.png': Permission denied"


def test_old_unfinished_files_of_killed_processes_are_deleted(shard, tmp_path):
    folder = ShardFolder(tmp_path, "some", KEY)
    folder.prepare()
    old, young = (folder.folder / f".0-1.safetensors.{name}" for name in ("old", "young"))
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    folder.prepare()
    assert list(folder.folder.iterdir()) == [young]


def test_a_failed_write_gives_the_reason_of_the_operating_system(shard, tmp_path, monkeypatch):
    folder = ShardFolder(tmp_path, "some", KEY)
    folder.prepare()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        folder.write(SPAN, shard)
    assert list(folder.folder.iterdir()) == []


@pytest.mark.slow
def test_a_killed_process_does_not_affect_another_process_on_the_same_folder(tmp_path):
    code, printed = start(tmp_path / "one", tmp_path / "whole.npz").finish()
    assert code == 0, printed
    whole = (tmp_path / "whole.npz").read_bytes()
    written = {shard.name: shard.read_bytes() for shard in shards_in(tmp_path / "one")}
    folder = tmp_path / "shared"
    killed = start(folder, tmp_path / "killed.npz", halt=(3, 0.5))  # halts in its fourth write
    other = start(folder, tmp_path / "other.npz", delay=0.2 / BATCH)
    wait_for((tmp_path / "killed.npz.halted").exists)
    killed.kill()
    assert killed.finish()[0] == -signal.SIGKILL
    code, printed = other.finish()
    assert code == 0, printed
    assert (tmp_path / "other.npz").read_bytes() == whole
    assert {shard.name: shard.read_bytes() for shard in shards_in(folder)} == written
    (tmp_path / "killed.npz.encoded-0").unlink()
    code, printed = start(folder, tmp_path / "killed.npz").finish()
    assert code == 0, printed
    assert (tmp_path / "killed.npz").read_bytes() == whole
    assert encoded_by(tmp_path / "killed.npz") == 0, "all shards exist already"


@pytest.mark.slow
def test_a_repeatedly_killed_run_ends_with_the_same_bits(tmp_path):
    reference, output = tmp_path / "whole.npz", tmp_path / "killed.npz"
    # Two independent processes use one folder at the same time.
    pair = [start(tmp_path / "one", reference), start(tmp_path / "one", tmp_path / "twin.npz")]
    for started in pair:
        code, printed = started.finish()
        assert code == 0, printed
    whole = reference.read_bytes()
    assert (tmp_path / "twin.npz").read_bytes() == whole

    folder = tmp_path / "shards"
    log, encoded, halted = (
        tmp_path / f"killed.npz.{name}" for name in ("read-0", "encoded-0", "halted")
    )
    written = {shard.name: shard.read_bytes() for shard in shards_in(tmp_path / "one")}
    rng = np.random.default_rng(0)
    kills = int(os.environ.get("BLISS_JAX_KILLS", "4"))
    again = 0
    for number in range(kills):
        kept, unfinished = shards_in(folder), set(folder.glob("*/.*"))
        for file in (log, encoded, halted):
            file.unlink(missing_ok=True)
        # The kills are spread over the run; the first one comes before the first shard is written.
        wanted = number * (SHARDS - 6) // kills
        if number % 2:  # during a write, after none, some or all bytes of a shard
            halt = (max(0, wanted - len(kept)), [0.0, rng.uniform(), 1.0][number // 2 % 3])
            started = start(folder, output, halt=halt)
            wait_for(halted.exists)
        else:  # at a random moment
            started = start(folder, output, delay=0.4 / BATCH)
            wait_for(lambda wanted=wanted: len(shards_in(folder)) >= wanted and log.exists())
            time.sleep(rng.uniform(0, 0.2))
        started.kill()
        assert started.finish()[0] == -signal.SIGKILL, f"kill {number} came too late"
        if number % 2:
            (half,) = set(folder.glob("*/.*")) - unfinished
            whole_shard = written[half.name.removeprefix(".").rsplit(".", 1)[0]]
            assert half.read_bytes() == whole_shard[: int(halt[1] * len(whole_shard))]
        known = {row for shard in kept for row in rows_of(shard)}
        assert not known & set(read_by(output)), "an existing shard was embedded again"
        # At most three shards are lost: one in a write, one waiting for it, one in the encoder.
        lost = encoded_by(output) - (len(shards_in(folder)) - len(kept))
        assert 0 <= lost <= 3
        again += lost
    assert not output.exists()
    kept = shards_in(folder)
    encoded.unlink(missing_ok=True)
    code, printed = start(folder, output).finish()
    assert code == 0, printed
    assert output.read_bytes() == whole
    assert {shard.name: shard.read_bytes() for shard in shards_in(folder)} == written
    assert encoded_by(output) == SHARDS - len(kept)
    print(f"{kills} kills, {kills // 2} of them in a write: {again} shards embedded more than once")


def test_joined_shards_are_in_the_order_of_the_data_set():
    rows = np.arange(7, dtype=np.int32)
    joined = JoinedShards(7)
    for span in (Span(4, 7), Span(0, 4)):
        own = rows[slice(*span)]
        joined[span] = Shard(own[:, None] * np.ones(2, np.float32), own)
    whole = joined.joined()
    np.testing.assert_array_equal(whole.rows, rows)
    np.testing.assert_array_equal(whole.embeddings, rows[:, None] * np.ones(2))
    assert np.shares_memory(whole.embeddings, joined[Span(0, 4)].embeddings)


def test_joined_shards_leave_out_rows_that_could_not_be_read():
    joined = JoinedShards(6)
    joined[Span(3, 6)] = Shard(np.full((3, 2), 5, np.float32), np.arange(3, 6, dtype=np.int32))
    joined[Span(0, 3)] = Shard(np.full((1, 2), 1, np.float32), np.array([2], np.int32), ("a", "b"))
    whole = joined.joined()
    np.testing.assert_array_equal(whole.rows, [2, 3, 4, 5])
    np.testing.assert_array_equal(whole.embeddings[:, 0], [1, 5, 5, 5])
    assert whole.unreadable == ("a", "b")


def test_joined_shards_of_different_dimensions_are_refused():
    joined = JoinedShards(2)
    joined[Span(0, 1)] = Shard(np.ones((1, 3), np.float32), np.array([0], np.int32))
    with pytest.raises(ValueError, match=r"expected shape \[1, 3\], got \[1, 1\]"):
        joined[Span(1, 2)] = Shard(np.ones((1, 1), np.float32), np.array([1], np.int32))
