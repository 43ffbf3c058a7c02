"""The official archives' layouts, built from real pixels, and the builders pointed at them."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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


@dataclass
class Prepared:
    """An archive in `manual_dir`, where its data set is to be prepared, and what it holds, raw."""

    manual_dir: Path
    data_dir: Path
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def point_at(patch: pytest.MonkeyPatch, builder, archive: OfficialArchive) -> None:
    """Makes a builder expect another archive; how it gets and checks it stays."""
    patch.setattr(builder, "ARCHIVE", archive)
    patch.setattr(builder, "url_infos", archive.url_infos())


def published_as(official: OfficialArchive, file: Path, url: str | None = None) -> OfficialArchive:
    """The official archive, with the size and checksum of `file`."""
    content = file.read_bytes()
    return replace(
        official,
        url=url or official.url,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def as_binary(images: np.ndarray, *labels: np.ndarray) -> bytes:
    """CIFAR's binary layout: label bytes, then the pixels channel by channel."""
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    columns = [np.asarray(column, np.uint8)[:, None] for column in labels]
    return np.concatenate([*columns, pixels], axis=1).tobytes()


def _jpegs_of_class(tar_file: Path) -> dict[int, np.ndarray]:
    """The decoded images of each class, in official order within the class."""
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
def cifar10(shared, tmp_path_factory) -> Iterator[Prepared]:
    """CIFAR-10 in full size: 60,000 real images, the lossless ones in their official places."""
    from bliss_jax.datasets.cifar import CIFAR10, Cifar10

    lossless = np.load(shared / "data" / "cifar10_lossless_subset.npz")
    test_labels = lossless["test_labels_all_10000"]
    test = _in_order_of(test_labels, _jpegs_of_class(shared / "data" / "cifar10_test_jpeg.tar.gz"))
    test[: len(lossless["test_images"])] = lossless["test_images"]
    # The official order of the training labels is known for the first 932 of each batch alone.
    train_labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    jpegs = _jpegs_of_class(shared / "data" / "cifar10_train_jpeg.tar.gz")
    train = _in_order_of(train_labels, jpegs)
    train[lossless["train_index"]] = lossless["train_images"]
    train_labels[lossless["train_index"]] = lossless["train_labels"]

    root = tmp_path_factory.mktemp("cifar10")
    members = {
        f"{CIFAR10.folder}/data_batch_{batch + 1}.bin": as_binary(
            train[batch * 10_000 : (batch + 1) * 10_000],
            train_labels[batch * 10_000 : (batch + 1) * 10_000],
        )
        for batch in range(5)
    }
    members[f"{CIFAR10.folder}/test_batch.bin"] = as_binary(test, test_labels)
    members[f"{CIFAR10.folder}/readme.html"] = b"<html></html>"
    members[f"{CIFAR10.folder}/batches.meta.txt"] = "\n".join([*CIFAR10_NAMES, "", ""]).encode()
    file = root / "manual" / CIFAR10.file_name
    write_tar(file, members)
    with pytest.MonkeyPatch.context() as patch:
        point_at(patch, Cifar10, published_as(CIFAR10, file))
        yield Prepared(
            file.parent,
            root / "data",
            {"train": train, "test": test},
            {"train": train_labels, "test": test_labels},
        )


@pytest.fixture(scope="session")
def tiny_imagenet_files(shared) -> dict[str, bytes]:
    """Every file of the two archives at hand: 50 training images a class, the validation set."""
    files = {}
    for part in ("train-first50perclass", "val"):
        with tarfile.open(shared / "data" / f"tiny-imagenet-200-{part}.tar.gz") as tar:
            for member in tar:
                if content := tar.extractfile(member):
                    files[member.name] = content.read()
    return files


@pytest.fixture(scope="session")
def tiny_imagenet(tiny_imagenet_files, tmp_path_factory) -> Iterator[Prepared]:
    """TinyImageNet as a zip in the official layout, with 50 training images a class."""
    from bliss_jax.datasets.tiny_imagenet import TINY_IMAGENET, TinyImagenet

    root = tmp_path_factory.mktemp("tiny_imagenet")
    file = root / "manual" / TINY_IMAGENET.file_name
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in tiny_imagenet_files.items():
            archive.writestr(name, content)
    with pytest.MonkeyPatch.context() as patch:
        point_at(patch, TinyImagenet, published_as(TINY_IMAGENET, file))
        patch.setattr(TinyImagenet, "TRAIN_IMAGES_PER_CLASS", 50)
        yield Prepared(file.parent, root / "data", {}, {})


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a web server on this machine serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
