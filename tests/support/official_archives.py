"""Archives in the layouts of the official ones, in full size from real pixels and in small sizes."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bliss_jax.datasets.archives import OfficialArchive

CIFAR10_NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
SMALL_TRAIN, SMALL_TEST = 500, 200
"""Numbers of training and test images in the small archives of CIFAR-10 and CIFAR-100."""

SMALL_TRAIN_PER_CLASS, SMALL_VALIDATION = 2, 400
"""Numbers of training images per class and of validation images in the small archive of TinyImageNet."""


@dataclass
class Archive:
    """An archive, its raw content, and the changes with which a builder accepts it."""

    builder: Any
    """Builder that reads the archive."""
    manual_dir: Path
    """Folder that contains the archive."""
    data_dir: Path
    """Folder for the prepared data set."""
    expected: dict[str, Any]
    """Attributes of the builder: the archive with its checksum, and the numbers of images."""
    images: dict[str, np.ndarray] = field(default_factory=dict)
    """Pixels by split."""
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    """Labels by split."""

    def patched(self, patch: pytest.MonkeyPatch) -> "Archive":
        """Makes the builder expect this archive, and returns the archive."""
        for name, value in self.expected.items():
            patch.setattr(self.builder, name, value)
        return self

    @property
    def folders(self) -> dict[str, Path]:
        """Keyword arguments of `load_dataset`."""
        return {"data_dir": self.data_dir, "manual_dir": self.manual_dir}


def expecting(archive: OfficialArchive, **others: Any) -> dict[str, Any]:
    """Returns the attributes of a builder that expects the given archive."""
    return {"ARCHIVE": archive, "url_infos": archive.url_infos(), **others}


def point_at(patch: pytest.MonkeyPatch, builder, archive: OfficialArchive) -> None:
    """Makes a builder expect another archive; the download and the verification do not change."""
    for name, value in expecting(archive).items():
        patch.setattr(builder, name, value)


def published_as(official: OfficialArchive, file: Path, url: str | None = None) -> OfficialArchive:
    """Returns the official archive with the size and checksum of `file`."""
    content = file.read_bytes()
    return replace(
        official,
        url=url or official.url,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    """Writes a tar.gz archive with the given files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def as_binary(images: np.ndarray, *labels: np.ndarray) -> bytes:
    """Encodes images in CIFAR's binary layout: label bytes, then the pixels channel by channel."""
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    columns = [np.asarray(column, np.uint8)[:, None] for column in labels]
    return np.concatenate([*columns, pixels], axis=1).tobytes()


def random_cifar(
    seed: int, num_classes: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns random pixels and labels of a small CIFAR data set, by split."""
    rng = np.random.default_rng(seed)
    images = {
        split: rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
        for split, n in (("train", SMALL_TRAIN), ("test", SMALL_TEST))
    }
    labels = {s: rng.permutation(np.arange(len(x)) % num_classes) for s, x in images.items()}
    return images, labels


def cifar10_members(
    images: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> dict[str, bytes]:
    """Returns the files of CIFAR-10's archive by name; the training images are in five batches."""
    from bliss_jax.datasets.cifar import CIFAR10

    size = len(images["train"]) // 5
    batches = [slice(start, start + size) for start in range(0, 5 * size, size)]
    members = {
        f"data_batch_{number}.bin": as_binary(images["train"][rows], labels["train"][rows])
        for number, rows in enumerate(batches, 1)
    }
    members["test_batch.bin"] = as_binary(images["test"], labels["test"])
    members["readme.html"] = b"<html></html>"
    members["batches.meta.txt"] = "\n".join([*CIFAR10_NAMES, "", ""]).encode()
    return {f"{CIFAR10.folder}/{name}": content for name, content in members.items()}


def _cifar10_archive(
    root: Path, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> Archive:
    from bliss_jax.datasets.cifar import CIFAR10, Cifar10

    file = root / "manual" / CIFAR10.file_name
    write_tar(file, cifar10_members(images, labels))
    sizes = {split: len(rows) for split, rows in images.items()}
    expected = expecting(published_as(CIFAR10, file), IMAGES=sizes)
    return Archive(Cifar10, file.parent, root / "data", expected, images, labels)


def _jpegs_of_class(tar_file: Path) -> dict[int, np.ndarray]:
    """Decodes the images of each class, in official order within the class."""
    images: dict[int, list[np.ndarray]] = {label: [] for label in range(10)}
    with tarfile.open(tar_file) as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
        for member in members:
            content = tar.extractfile(member)
            assert content is not None
            label = CIFAR10_NAMES.index(member.name.split("/")[1])
            images[label].append(np.asarray(Image.open(io.BytesIO(content.read()))))
    return {label: np.stack(rows) for label, rows in images.items()}


def _in_order_of(labels: np.ndarray, of_class: dict[int, np.ndarray]) -> np.ndarray:
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for label, rows in of_class.items():
        images[labels == label] = rows
    return images


@pytest.fixture(scope="session")
def _full_cifar10(shared, tmp_path_factory) -> Archive:
    """CIFAR-10 in full size: 60,000 real images, the lossless ones at their official positions."""
    lossless = np.load(shared / "data" / "cifar10_lossless_subset.npz")
    test_labels = lossless["test_labels_all_10000"]
    test = _in_order_of(test_labels, _jpegs_of_class(shared / "data" / "cifar10_test_jpeg.tar.gz"))
    test[: len(lossless["test_images"])] = lossless["test_images"]
    # The official order of the training labels is known only for the first 932 of each batch.
    train_labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    jpegs = _jpegs_of_class(shared / "data" / "cifar10_train_jpeg.tar.gz")
    train = _in_order_of(train_labels, jpegs)
    train[lossless["train_index"]] = lossless["train_images"]
    train_labels[lossless["train_index"]] = lossless["train_labels"]
    root = tmp_path_factory.mktemp("cifar10")
    labels = {"train": train_labels, "test": test_labels}
    return _cifar10_archive(root, {"train": train, "test": test}, labels)


@pytest.fixture(scope="session")
def _small_cifar10(tmp_path_factory) -> Archive:
    return _cifar10_archive(tmp_path_factory.mktemp("cifar10"), *random_cifar(1, 10))


SIZES = ["small", pytest.param("full", marks=[pytest.mark.slow, pytest.mark.shared_data])]


@pytest.fixture(params=SIZES)
def cifar10(request, monkeypatch) -> Archive:
    """CIFAR-10's archive, small with random pixels and in full size with real ones."""
    return request.getfixturevalue(f"_{request.param}_cifar10").patched(monkeypatch)


@pytest.fixture
def small_cifar10(_small_cifar10, monkeypatch) -> Archive:
    """CIFAR-10's archive with 500 training and 200 test images of random pixels."""
    return _small_cifar10.patched(monkeypatch)


@pytest.fixture(scope="session")
def tiny_imagenet_files(shared) -> dict[str, bytes]:
    """All files of TinyImageNet in the shared data: 50 training images per class, and the validation set."""
    files = {}
    for part in ("train-first50perclass", "val"):
        with tarfile.open(shared / "data" / f"tiny-imagenet-200-{part}.tar.gz") as tar:
            for member in tar:
                if content := tar.extractfile(member):
                    files[member.name] = content.read()
    return files


def _tiny_imagenet_archive(root: Path, files: dict[str, bytes], train: int, test: int) -> Archive:
    """Makes an archive with `train` training images per class and the first `test` validation images."""
    from bliss_jax.datasets.tiny_imagenet import TINY_IMAGENET, TinyImagenet

    annotations = "tiny-imagenet-200/val/val_annotations.txt"
    lines = files[annotations].decode().splitlines(keepends=True)
    files = files | {annotations: "".join(lines[:test]).encode()}
    assert {line.split("\t")[0] for line in lines[:test]} == {f"val_{i}.JPEG" for i in range(test)}
    file = root / "manual" / TINY_IMAGENET.file_name
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            number = name.removesuffix(".JPEG").rsplit("_", 1)[-1]
            most = train if "/train/" in name else test
            if not name.endswith(".JPEG") or int(number) < most:
                archive.writestr(name, content)
    expected = expecting(
        published_as(TINY_IMAGENET, file), TRAIN_IMAGES_PER_CLASS=train, TEST_IMAGES=test
    )
    return Archive(TinyImagenet, file.parent, root / "data", expected)


@pytest.fixture(scope="session")
def _full_tiny_imagenet(tiny_imagenet_files, tmp_path_factory) -> Archive:
    root = tmp_path_factory.mktemp("tiny_imagenet")
    return _tiny_imagenet_archive(root, tiny_imagenet_files, 50, 10_000)


@pytest.fixture(scope="session")
def _small_tiny_imagenet(tiny_imagenet_files, tmp_path_factory) -> Archive:
    root = tmp_path_factory.mktemp("tiny_imagenet")
    return _tiny_imagenet_archive(
        root, tiny_imagenet_files, SMALL_TRAIN_PER_CLASS, SMALL_VALIDATION
    )


@pytest.fixture(params=SIZES)
def tiny_imagenet(request, monkeypatch) -> Archive:
    """TinyImageNet as a zip file in the official layout, with 2 and 50 training images per class."""
    return request.getfixturevalue(f"_{request.param}_tiny_imagenet").patched(monkeypatch)


@pytest.fixture
def small_tiny_imagenet(_small_tiny_imagenet, monkeypatch) -> Archive:
    """TinyImageNet with 2 training images per class and the first 400 validation images."""
    return _small_tiny_imagenet.patched(monkeypatch)


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address of a local web server that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
