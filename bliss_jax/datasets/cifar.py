"""CIFAR-10 and CIFAR-100: builders of tensorflow-datasets (tfds) that work without TensorFlow.

Name, version, features and archive equal those of tfds. A data set that tfds prepared as ArrayRecord can
therefore be read here, and vice versa. `records.py` explains what is replaced and why.

In the binary archives each image has one label byte (CIFAR-100: a coarse and a fine label byte) and 3,072
bytes of pixels in the order channel, row, column. Images are stored as PNG, as in tfds.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html. The sizes and SHA-256 checksums are those that tfds pins.
"""

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from bliss_jax.datasets.archives import OfficialArchive

CIFAR10 = OfficialArchive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
)
CIFAR100 = OfficialArchive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    size=168_513_733,
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
)

_PIXELS = 32 * 32 * 3


class _WithoutTensorFlow:
    """Methods that replace those of the CIFAR builders of tfds that need TensorFlow."""

    ARCHIVE: ClassVar[OfficialArchive]
    IMAGES: ClassVar[dict[str, int]] = {"train": 50_000, "test": 10_000}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Provide the archive or the folder it unpacks to."

    def _split_generators(self: Any, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        layout = self._cifar_info
        names = [*layout.label_files, *layout.train_files, *layout.test_files]
        files = self.ARCHIVE.read_tar(self.ARCHIVE.locate(dl_manager), names)
        for key, name in zip(layout.label_keys, layout.label_files, strict=True):
            self.info.features[key].names = files[name].decode("ascii").split()
        return {
            split: self._examples(split, b"".join(files[name] for name in split_files))
            for split, split_files in (("train", layout.train_files), ("test", layout.test_files))
        }

    def _examples(self: Any, split: str, content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        keys = self._cifar_info.label_keys
        length = len(keys) + _PIXELS
        if len(content) != self.IMAGES[split] * length:
            raise ValueError(
                f"the {split} files of {self.name} contain {len(content)} bytes, "
                f"expected {self.IMAGES[split]} images of {length} bytes each"
            )
        for index, row in enumerate(np.frombuffer(content, np.uint8).reshape(-1, length)):
            pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
            labels = {key: int(label) for key, label in zip(keys, row, strict=False)}
            yield index, {"id": f"{split}_{index:05d}", "image": _as_png(pixels), **labels}


class Cifar10(_WithoutTensorFlow, tfds.image_classification.Cifar10, skip_registration=True):
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes."""

    ARCHIVE = CIFAR10
    url_infos = CIFAR10.url_infos()


class Cifar100(_WithoutTensorFlow, tfds.image_classification.Cifar100, skip_registration=True):
    """CIFAR-100: 50,000 training and 10,000 test images of 100 (fine) classes in alphabetical order."""

    ARCHIVE = CIFAR100
    url_infos = CIFAR100.url_infos()


def _as_png(pixels: UInt8[np.ndarray, "h w 3"]) -> io.BytesIO:
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    png.seek(0)
    return png
