"""Data sets prepared by tensorflow-datasets from archives in the official layout equal the raw arrays."""

import csv
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from official_archives import (
    SMALL_TEST,
    SMALL_TRAIN,
    SMALL_TRAIN_PER_CLASS,
    as_binary,
    cifar10_members,
    point_at,
    published_as,
    random_cifar,
    write_tar,
)
from PIL import Image

from bliss_jax.datasets import UnreadableImageError, load_dataset, records
from bliss_jax.datasets.cifar import CIFAR10, CIFAR100, Cifar10, Cifar100
from bliss_jax.datasets.tiny_imagenet import TINY_IMAGENET, TinyImagenet, class_table

PINS = (
    (CIFAR10, 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    (CIFAR100, 168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    (TINY_IMAGENET, 248100043, "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"),
)


def all_images(dataset) -> np.ndarray:
    with ThreadPoolExecutor(4) as pool:
        return np.stack(list(pool.map(dataset.images.__getitem__, range(len(dataset)))))


CUT_OFF = """
import socket, sys
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def without_optional(name, path=None, target=None):
    absent = name.split(".")[0] in ("tensorflow", "torch", "importlib_resources", "cv2")
    return None if absent else find_spec(name, path, target)

def refuse(*args, **kwargs):
    raise AssertionError("the network was accessed")

PathFinder.find_spec = without_optional
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""


def run_cut_off(program: str, *arguments) -> str:
    """Runs a program without TensorFlow and without a network, and returns its output."""
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", CUT_OFF + program, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


# CIFAR-10: the archive in a manual directory, small and in full size.


@pytest.mark.parity
@pytest.mark.parametrize("split", ["test", "train"])
def test_cifar10_has_every_image_and_label_of_the_archive_in_order(cifar10, split):
    dataset = load_dataset("cifar10", split, **cifar10.folders)
    assert len(dataset) == len(dataset.images) == len(cifar10.images[split])
    np.testing.assert_array_equal(dataset.labels, cifar10.labels[split])
    np.testing.assert_array_equal(all_images(dataset), cifar10.images[split])
    assert dataset.class_names == (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    assert dataset.source == f"tfds cifar10:3.0.2 {split}"


def test_several_threads_read_the_same_records_as_one(small_cifar10):
    dataset = load_dataset("cifar10", "test", **small_cifar10.folders)
    chosen = np.random.default_rng(0).integers(0, len(dataset), 1000)
    with ThreadPoolExecutor(16) as pool:
        threaded = list(pool.map(lambda i: dataset.images[int(i)], chosen))
    np.testing.assert_array_equal(np.stack(threaded), small_cifar10.images["test"][chosen])


def test_a_prepared_data_set_needs_no_network_no_archive_and_no_tensorflow(small_cifar10):
    load_dataset("cifar10", "test", **small_cifar10.folders)
    program = """
from bliss_jax.datasets import load_dataset
dataset = load_dataset("cifar10", "test", data_dir=sys.argv[1])
print(len(dataset), dataset.images[0].sum())
"""
    printed = run_cut_off(program, small_cifar10.data_dir)
    assert printed.split() == [str(SMALL_TEST), str(small_cifar10.images["test"][0].sum())]


def test_a_data_set_is_prepared_without_tensorflow_and_without_a_network(tmp_path):
    images, labels = random_cifar(2, 10)
    for name, content in cifar10_members(images, labels).items():
        (tmp_path / "manual" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "manual" / name).write_bytes(content)
    program = f"""
from bliss_jax.datasets import cifar, load_dataset, records
records._SHARDS = 1
cifar.Cifar10.IMAGES = {{"train": {SMALL_TRAIN}, "test": {SMALL_TEST}}}
load_dataset("cifar10", "train", data_dir=sys.argv[2], manual_dir=sys.argv[1])
"""
    run_cut_off(program, tmp_path / "manual", tmp_path / "data")
    dataset = load_dataset("cifar10", "train", data_dir=tmp_path / "data")
    np.testing.assert_array_equal(all_images(dataset), images["train"])


def test_name_version_features_and_archive_are_those_of_the_builders_of_tfds():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    for ours, theirs in (
        (Cifar10, tfds.image_classification.Cifar10),
        (Cifar100, tfds.image_classification.Cifar100),
    ):
        assert ours.name == theirs.name
        assert ours.VERSION == theirs.VERSION
        assert ours._info is theirs._info
    for name, archive in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        pinned = checksums.load_url_infos(tfds.core.tfds_path("url_checksums") / f"{name}.txt")
        assert archive.url_infos()[archive.url] == pinned[archive.url]


@pytest.mark.parametrize(("archive", "size", "sha256"), PINS)
def test_archives_have_the_recorded_size_and_checksum(archive, size, sha256):
    assert (archive.size, archive.sha256) == (size, sha256)


# CIFAR-100: downloaded from a local web server.


def small_cifar100():
    images, fine = random_cifar(0, 100)
    names = [f"fine_{label:02d}" for label in range(100)]
    members = {
        f"{split}.bin": as_binary(images[split], fine[split] // 5, fine[split])
        for split in ("train", "test")
    }
    members["fine_label_names.txt"] = ("\n".join(names) + "\n\n").encode()
    members["coarse_label_names.txt"] = "\n".join(f"coarse_{i}" for i in range(20)).encode()
    return images, fine, names, {f"{CIFAR100.folder}/{k}": v for k, v in members.items()}


@pytest.fixture
def cifar100_server(served, monkeypatch):
    folder, address = served
    images, fine, names, members = small_cifar100()
    write_tar(folder / CIFAR100.file_name, members)
    archive = published_as(CIFAR100, folder / CIFAR100.file_name, f"{address}/{CIFAR100.file_name}")
    point_at(monkeypatch, Cifar100, archive)
    monkeypatch.setattr(Cifar100, "IMAGES", {"train": SMALL_TRAIN, "test": SMALL_TEST})
    return archive, images, fine, names


@pytest.mark.parity
def test_cifar100_is_downloaded_and_has_the_fine_labels_of_the_archive(
    cifar100_server, tmp_path, capsys
):
    _, images, fine, names = cifar100_server
    for split in ("train", "test"):
        dataset = load_dataset("cifar100", split, data_dir=tmp_path)
        np.testing.assert_array_equal(all_images(dataset), images[split])
        np.testing.assert_array_equal(dataset.labels, fine[split])
        assert dataset.class_names == tuple(names)
        assert dataset.source == f"tfds cifar100:3.0.2 {split}"
    assert capsys.readouterr().out == "", "progress must not go to standard output"


def test_a_download_with_another_checksum_is_refused(cifar100_server, tmp_path, monkeypatch):
    archive, *_ = cifar100_server
    point_at(monkeypatch, Cifar100, replace(archive, sha256="0" * 64))
    with pytest.raises(ValueError, match="the archive is not the official archive"):
        load_dataset("cifar100", data_dir=tmp_path)
    assert not (tmp_path / "cifar100").exists() or not list((tmp_path / "cifar100").iterdir())


def test_a_failed_download_explains_how_to_provide_the_archive(
    cifar100_server, tmp_path, monkeypatch
):
    archive, *_ = cifar100_server
    point_at(monkeypatch, Cifar100, replace(archive, url=archive.url + ".gone"))
    with pytest.raises(ConnectionError, match=r"404[\s\S]*cifar-100-binary.*SHA-256.*manual_dir"):
        load_dataset("cifar100", data_dir=tmp_path)


def test_an_unreachable_server_explains_how_to_provide_the_archive(tmp_path, monkeypatch):
    from tensorflow_datasets.core.download import downloader

    monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
    point_at(
        monkeypatch, Cifar100, replace(CIFAR100, url="http://127.0.0.1:1/cifar-100-binary.tar.gz")
    )
    with pytest.raises(ConnectionError, match="manual_dir"):
        load_dataset("cifar100", data_dir=tmp_path)


def test_a_local_archive_with_another_checksum_is_refused(tmp_path):
    *_, members = small_cifar100()
    write_tar(tmp_path / "manual" / CIFAR100.file_name, members)
    with pytest.raises(ValueError, match="the archive is not the official archive"):
        load_dataset("cifar100", data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")


def test_an_unpacked_archive_of_the_wrong_size_or_without_a_file_is_refused(tmp_path):
    *_, members = small_cifar100()
    for name, content in members.items():
        (tmp_path / "manual" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "manual" / name).write_bytes(content)
    with pytest.raises(ValueError, match="expected 50000 images of 3074 bytes each"):
        load_dataset("cifar100", data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")
    (tmp_path / "manual" / CIFAR100.folder / "test.bin").unlink()
    with pytest.raises(ValueError, match=r"cifar-100-binary does not contain test\.bin"):
        load_dataset("cifar100", data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")


def test_a_manual_directory_without_the_archive_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither 'cifar-10-binary\.tar\.gz' nor a folder"):
        load_dataset("cifar10", data_dir=tmp_path / "data", manual_dir=tmp_path)


# CIFAR-10 and CIFAR-100 together.


def test_cifar_plus_appends_the_fine_classes_and_their_test_images(
    small_cifar10, cifar100_server, tmp_path
):
    _, images100, fine, names = cifar100_server
    (tmp_path / "cifar10").symlink_to(small_cifar10.data_dir / "cifar10")
    load_dataset("cifar10", "test", **small_cifar10.folders)
    test = load_dataset("cifar10+cifar100", "test", data_dir=tmp_path)
    assert len(test) == 2 * SMALL_TEST
    assert test.class_names[10:] == tuple(names)
    np.testing.assert_array_equal(test.labels[:SMALL_TEST], small_cifar10.labels["test"])
    np.testing.assert_array_equal(test.labels[SMALL_TEST:], fine["test"] + 10)
    for i in (0, SMALL_TEST - 1):
        np.testing.assert_array_equal(test.images[i], small_cifar10.images["test"][i])
        np.testing.assert_array_equal(test.images[SMALL_TEST + i], images100["test"][i])
    assert test.source == "tfds cifar10:3.0.2 test + tfds cifar100:3.0.2 test"

    train = load_dataset("cifar10+cifar100", "train", data_dir=tmp_path)
    assert len(train) == SMALL_TRAIN
    assert train.class_names == test.class_names


# TinyImageNet: the archive and the folder it unpacks to.


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parity
@pytest.mark.shared_data
def test_tiny_imagenet_train_has_the_jpegs_of_each_class(tiny_imagenet, tiny_imagenet_files):
    per_class = tiny_imagenet.expected["TRAIN_IMAGES_PER_CLASS"]
    dataset = load_dataset("tiny-imagenet", "train", **tiny_imagenet.folders)
    np.testing.assert_array_equal(dataset.labels, np.repeat(np.arange(200), per_class))
    wnids = sorted({name.split("/")[2] for name in tiny_imagenet_files if "/train/" in name})
    expected = [
        decoded(tiny_imagenet_files[f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{i}.JPEG"])
        for wnid in wnids
        for i in range(per_class)
    ]
    np.testing.assert_array_equal(all_images(dataset), np.stack(expected))
    assert dataset.source == "tfds tiny_imagenet:1.0.0 train"


@pytest.mark.parity
@pytest.mark.shared_data
def test_tiny_imagenet_test_is_the_annotated_validation_set(
    tiny_imagenet, tiny_imagenet_files, shared
):
    number = tiny_imagenet.expected["TEST_IMAGES"]
    dataset = load_dataset("tiny-imagenet", "test", **tiny_imagenet.folders)
    annotations = tiny_imagenet_files["tiny-imagenet-200/val/val_annotations.txt"].decode()
    wnid_of = dict(line.split("\t")[:2] for line in annotations.splitlines())
    with (shared / "data" / "tinyimagenet_classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert dataset.class_names == tuple(row["label"].replace("_", " ") for row in rows)
    assert rows == sorted(rows, key=lambda row: row["wnid"])
    wnids = [row["wnid"] for row in rows]
    assert [wnids[label] for label in dataset.labels] == [
        wnid_of[f"val_{i}.JPEG"] for i in range(number)
    ]
    if number == 10_000:
        assert np.bincount(dataset.labels, minlength=200).tolist() == [50] * 200
    expected = [
        decoded(tiny_imagenet_files[f"tiny-imagenet-200/val/images/val_{i}.JPEG"])
        for i in range(number)
    ]
    np.testing.assert_array_equal(all_images(dataset), np.stack(expected))


@pytest.mark.shared_data
def test_reference_quirks_drop_the_african_elephant_from_the_test_split(tiny_imagenet):
    folders = tiny_imagenet.folders
    full = load_dataset("tiny-imagenet", "test", **folders)
    quirk = load_dataset("tiny-imagenet", "test", reference_quirks=True, **folders)
    assert list(class_table()).index("n02504458") == 57
    kept = np.flatnonzero(full.labels != 57)
    assert len(quirk) == len(kept) < len(full)
    if len(full) == 10_000:
        assert len(quirk) == 9_950
    np.testing.assert_array_equal(quirk.labels, full.labels[kept])
    assert quirk.class_names == full.class_names
    np.testing.assert_array_equal(quirk.images[len(kept) - 1], full.images[int(kept[-1])])
    assert "African elephant" in quirk.source
    train = load_dataset("tiny-imagenet", "train", reference_quirks=True, **folders)
    assert 57 in train.labels


@pytest.mark.shared_data
def test_an_unpacked_archive_of_tiny_imagenet_gives_the_same_images_and_is_validated(
    small_tiny_imagenet, tiny_imagenet_files, tmp_path, monkeypatch
):
    names = [n for n in tiny_imagenet_files if n.split("_")[-1] == "0.JPEG" or n.endswith(".txt")]
    folder = tmp_path / "manual"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(tiny_imagenet_files[name])
    annotations = folder / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().splitlines()[0] + "\n")
    monkeypatch.setattr(TinyImagenet, "TRAIN_IMAGES_PER_CLASS", 1)
    monkeypatch.setattr(TinyImagenet, "TEST_IMAGES", 1)
    monkeypatch.setattr(records, "_SHARDS", 1)
    small = load_dataset("tiny-imagenet", data_dir=tmp_path / "data", manual_dir=folder)
    archive = load_dataset("tiny-imagenet", **small_tiny_imagenet.folders)
    np.testing.assert_array_equal(
        all_images(small), all_images(archive.subset(range(0, 200 * SMALL_TRAIN_PER_CLASS, 2)))
    )

    (folder / "tiny-imagenet-200/train/n01443537/images/n01443537_0.JPEG").unlink()
    with pytest.raises(ValueError, match="does not contain train/n01443537/images/n01443537_0"):
        load_dataset("tiny-imagenet", data_dir=tmp_path / "again", manual_dir=folder)
    annotations.write_text("val_1.JPEG\tn01443537\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match="does not list each of val_0"):
        load_dataset("tiny-imagenet", data_dir=tmp_path / "again", manual_dir=folder)
    annotations.write_text("val_0.JPEG\tn99999999\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match="unknown classes: n99999999"):
        load_dataset("tiny-imagenet", data_dir=tmp_path / "again", manual_dir=folder)
    (folder / "tiny-imagenet-200" / "wnids.txt").write_text("n01443537\n")
    with pytest.raises(ValueError, match=r"wnids\.txt does not list the 200 classes"):
        load_dataset("tiny-imagenet", data_dir=tmp_path / "again", manual_dir=folder)


@pytest.mark.shared_data
def test_reading_a_damaged_jpeg_of_a_prepared_data_set_names_the_image(
    tiny_imagenet_files, tmp_path, monkeypatch
):
    folder = tmp_path / "manual"
    for name in (n for n in tiny_imagenet_files if n.endswith(("_0.JPEG", ".txt"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(
            tiny_imagenet_files[name][:300] if "val_0" in name else tiny_imagenet_files[name]
        )
    annotations = folder / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn01443537\t0\t0\t1\t1\n")
    monkeypatch.setattr(TinyImagenet, "TRAIN_IMAGES_PER_CLASS", 1)
    monkeypatch.setattr(TinyImagenet, "TEST_IMAGES", 1)
    monkeypatch.setattr(records, "_SHARDS", 1)
    dataset = load_dataset("tiny-imagenet", "test", data_dir=tmp_path / "d", manual_dir=folder)
    with pytest.raises(UnreadableImageError, match="'tiny-imagenet test 0'"):
        dataset.images[0]


# Names of data sets.


def test_an_unknown_name_or_split_is_refused_with_similar_names():
    with pytest.raises(
        ValueError, match=r"'cifar-10' is neither .*did you mean cifar10 or cifar100"
    ):
        load_dataset("cifar-10")
    with pytest.raises(
        ValueError, match="'' is neither a folder, nor tfds:NAME, nor one of the data sets"
    ):
        load_dataset("")
    with pytest.raises(ValueError, match="'val', but cifar10 has only 'train' and 'test'"):
        load_dataset("cifar10", "val")


def test_importing_the_package_does_not_import_heavy_dependencies():
    program = """
import sys
import bliss_jax.datasets
heavy = {"tensorflow_datasets", "tensorflow", "torch", "transformers", "PIL", "requests"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run_cut_off(program).split() == ["[]"]
