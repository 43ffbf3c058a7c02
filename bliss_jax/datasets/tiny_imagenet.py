"""TinyImageNet: a builder of tensorflow-datasets that works without TensorFlow.

TinyImageNet has 200 classes of ImageNet as JPEGs of 64 x 64 pixels. The training images are the files
train/<wnid>/images/<wnid>_<0 to 499>.JPEG. The test split is the validation set (val/images, labelled by
val/val_annotations.txt), as in the literature, because the test images of the archive have no labels.
Classes are in the order of their sorted wnids, and `tiny_imagenet_classes.csv` has their names as the
protocol spells them. JPEGs are stored unchanged.

The size and SHA-256 of the archive are pinned. They and its MD5 90528d7ca1a48142e341f4ef8d21d0de have been
published independently by many users of the archive; the authors do not publish a checksum.

Source: Stanford CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip. ImageNet's terms apply
(non-commercial research).
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from bliss_jax.datasets.archives import OfficialArchive
from bliss_jax.datasets.class_names import class_table

TINY_IMAGENET = OfficialArchive(
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    size=248_100_043,
    sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    folder="tiny-imagenet-200",
)


class TinyImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TinyImageNet: 100,000 training and 10,000 validation images of 200 classes."""

    VERSION = tfds.core.Version("1.0.0")
    ARCHIVE = TINY_IMAGENET
    TRAIN_IMAGES_PER_CLASS = 500
    TEST_IMAGES = 10_000
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Provide the archive or the folder it unpacks to."
    url_infos = TINY_IMAGENET.url_infos()

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="200 classes of ImageNet at 64 x 64; the test split is the validation set.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "file_name": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=list(class_table().values())),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        location = self.ARCHIVE.locate(dl_manager)
        root = location if location.is_dir() else zipfile.Path(location, f"{self.ARCHIVE.folder}/")
        wnids = list(class_table())
        if sorted(_read(root, "wnids.txt").decode("ascii").split()) != wnids:
            raise ValueError("wnids.txt does not list the 200 classes of TinyImageNet")
        return {
            "train": self._generate_examples("train", root, self._training_files(wnids)),
            "test": self._generate_examples("test", root, self._validation_files(root, wnids)),
        }

    def _training_files(self, wnids: list[str]) -> list[tuple[str, int]]:
        """Returns the file and the label of each training image."""
        return [
            (f"train/{wnid}/images/{wnid}_{number}.JPEG", label)
            for label, wnid in enumerate(wnids)
            for number in range(self.TRAIN_IMAGES_PER_CLASS)
        ]

    def _validation_files(
        self, root: Path | zipfile.Path, wnids: list[str]
    ) -> list[tuple[str, int]]:
        """Reads each validation image's file and label from val_annotations.txt.

        Each line of that file contains a file name, a wnid and a bounding box.
        """
        position = {wnid: label for label, wnid in enumerate(wnids)}
        rows = [
            line.split("\t")
            for line in _read(root, "val/val_annotations.txt").decode("ascii").splitlines()
        ]
        expected = {f"val_{number}.JPEG" for number in range(self.TEST_IMAGES)}
        if len(rows) != len(expected) or {row[0] for row in rows} != expected:
            raise ValueError(
                f"val_annotations.txt does not list each of val_0.JPEG to val_{self.TEST_IMAGES - 1}.JPEG"
                " once"
            )
        if unknown := sorted({row[1] for row in rows} - set(wnids)):
            raise ValueError(f"val_annotations.txt contains unknown classes: {', '.join(unknown)}")
        rows.sort(key=lambda row: int(row[0].removeprefix("val_").removesuffix(".JPEG")))
        return [(f"val/images/{name}", position[wnid]) for name, wnid, *_ in rows]

    def _generate_examples(
        self, split: str, root: Path | zipfile.Path, files: list[tuple[str, int]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (name, label) in enumerate(files):
            yield (
                index,
                {
                    "id": f"{split}_{index:06d}",
                    "file_name": name.rsplit("/", 1)[-1],
                    "image": io.BytesIO(_read(root, name)),
                    "label": label,
                },
            )


def _read(root: Path | zipfile.Path, name: str) -> bytes:
    try:
        return root.joinpath(*name.split("/")).read_bytes()
    except (FileNotFoundError, KeyError):
        raise ValueError(f"{TINY_IMAGENET.folder} does not contain {name}") from None
