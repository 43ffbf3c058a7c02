"""Loads data sets by name or from a folder.

cifar10, cifar100     official training and test sets
tiny-imagenet         official training set; the test split is the official validation set
glyphs                symbols with their Unicode names, rendered from a seed; no download
digits                handwritten digits from scikit-learn; no download
tfds:NAME[/CONFIG]    any image-classification data set that tensorflow-datasets has prepared
cifar10+cifar100      for CIFAR+10 and CIFAR+50: the training split is that of CIFAR-10; the test split
                      contains both test sets, and the fine classes of CIFAR-100 have ids 10 to 109
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bliss_jax import _require
from bliss_jax.datasets.folder import SPLITS, load_folder
from bliss_jax.datasets.image_dataset import ChainedImages, ImageDataset
from bliss_jax.datasets.image_files import FileReader


class NamedDataset(NamedTuple):
    """Description of a data set that is available before it is loaded.

    Attributes:
        train: Number of training images.
        test: Number of test images.
        download: Whether the data set must be downloaded.
        what: Content of the images, in one line.
    """

    train: int
    test: int
    download: bool
    what: str


_NAMED = {
    "cifar10": NamedDataset(50_000, 10_000, True, "photographs of 32 x 32 pixels"),
    "cifar100": NamedDataset(50_000, 10_000, True, "photographs of 32 x 32 pixels"),
    "cifar10+cifar100": NamedDataset(50_000, 20_000, True, "CIFAR-10; CIFAR-100 is added to the test split"),
    "tiny-imagenet": NamedDataset(100_000, 10_000, True, "photographs of 64 x 64 pixels"),
    "glyphs": NamedDataset(10_360, 5_180, False, "symbols with their Unicode names, rendered from a seed"),
    "digits": NamedDataset(1_198, 599, False, "digits of 8 x 8 pixels from scikit-learn"),
}  # fmt: skip
_NAMES = tuple(_NAMED)
TFDS_PREFIX = "tfds:"
"""Beginning of the names of data sets that tensorflow-datasets has prepared."""
_LOST_CLASS = "African elephant"


def dataset_names() -> tuple[str, ...]:
    """Returns the names of the data sets that `load_dataset` can load by name."""
    return _NAMES


def describe_dataset(name: str) -> NamedDataset:
    """Returns the description of a data set of `dataset_names()`."""
    return _NAMED[name]


def load_dataset(
    name_or_folder: str | Path,
    split: str = "train",
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    reference_quirks: bool = False,
    reader: FileReader | None = None,
    strict: bool = True,
) -> ImageDataset:
    """Opens one split of a data set. Its images are decoded when they are accessed.

    The first call for a named data set downloads and prepares it with tensorflow-datasets (TensorFlow is
    not needed). Later calls read it from `data_dir` without a network. A folder is listed at every call;
    `folder.py` describes its layouts and `decode.py` the supported images.

    Args:
        name_or_folder: One of `dataset_names()`, `tfds:NAME[/CONFIG]`, or a folder with one subfolder per class. A
            string that equals a name selects the named data set; use a `Path`, or `./cifar10`, for a folder of the
            same name.
        split: `"train"` or `"test"`; for folders also `"val"`.
        data_dir: Folder of prepared data sets; by default that of tensorflow-datasets (`TFDS_DATA_DIR`,
            or `~/tensorflow_datasets`). Only for named data sets.
        manual_dir: For machines without a network: a folder that contains the official archive, whose
            checksum is verified, or the folder it unpacks to, whose checksum cannot be verified. Only for
            named data sets.
        reference_quirks: Whether to drop, from the test split of TinyImageNet, the class that the
            reference's scripts lose through a parsing error (African elephant, n02504458, id 57; 9,950
            images remain). Ids and class names do not change. Other data sets are not affected.
        reader: How the image files of a folder are found and read. Only for folders.
        strict: Whether a folder with entries that are not images in class folders is an error. If not, they
            are listed in the data set's `problems`.

    Raises:
        ValueError: The name or the split is unknown, the folder has neither layout, or the archive is not
            the official one.
        ConnectionError: The archive cannot be downloaded; the message explains how to provide it.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(map(repr, SPLITS))}")
    data_dir = None if data_dir is None else Path(data_dir)
    manual_dir = None if manual_dir is None else Path(manual_dir)
    if isinstance(name_or_folder, str) and name_or_folder in _NAMES:
        if split not in SPLITS[:2]:
            raise ValueError(
                f"split is {split!r}, but {name_or_folder} has only 'train' and 'test'"
            )
        return _load_named(name_or_folder, split, data_dir, manual_dir, reference_quirks)

    if isinstance(name_or_folder, str) and name_or_folder.startswith(TFDS_PREFIX):
        if manual_dir is not None:
            raise ValueError(
                f"manual_dir: expected None, because {name_or_folder} is not prepared here"
            )
        _require("tensorflow_datasets", "datasets")
        from bliss_jax.datasets.tfds_records import load_tfds

        return load_tfds(name_or_folder.removeprefix(TFDS_PREFIX), split, data_dir)

    folder = Path(name_or_folder)
    if not name_or_folder or not folder.is_dir():
        near = difflib.get_close_matches(str(name_or_folder).lower(), _NAMES, n=2, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"{str(name_or_folder)!r} is neither a folder, nor tfds:NAME, nor one of the data sets "
            f"{', '.join(_NAMES)}{hint}"
        )
    if data_dir is not None or manual_dir is not None:
        raise ValueError(
            "data_dir and manual_dir are only for named data sets; omit them for a folder"
        )
    return load_folder(folder, split, reader, strict=strict)


def _load_named(
    name: str, split: str, data_dir: Path | None, manual_dir: Path | None, reference_quirks: bool
) -> ImageDataset:
    if name == "glyphs":
        from bliss_jax.datasets.glyphs import load_glyphs

        return load_glyphs(split)
    if name == "digits":
        from bliss_jax.datasets.digits import load_digits

        return load_digits(split)

    _require("tensorflow_datasets", "datasets")
    from bliss_jax.datasets.cifar import Cifar10, Cifar100
    from bliss_jax.datasets.records import load_prepared
    from bliss_jax.datasets.tiny_imagenet import TinyImagenet

    if name == "cifar10+cifar100":
        cifar10 = _load_named("cifar10", split, data_dir, manual_dir, reference_quirks)
        cifar100 = _load_named("cifar100", split, data_dir, manual_dir, reference_quirks)
        return _cifar_plus(cifar10, cifar100, split)
    builder = {"cifar10": Cifar10, "cifar100": Cifar100, "tiny-imagenet": TinyImagenet}[name]
    dataset = load_prepared(name, builder, split, data_dir=data_dir, manual_dir=manual_dir)
    if reference_quirks and name == "tiny-imagenet" and split == "test":
        return _without_lost_class(dataset)
    return dataset


def _cifar_plus(cifar10: ImageDataset, cifar100: ImageDataset, split: str) -> ImageDataset:
    """Appends the classes of CIFAR-100 to those of CIFAR-10, and its images to the test split."""
    class_names = cifar10.class_names + cifar100.class_names
    if split == "train":
        return ImageDataset(
            "cifar10+cifar100", cifar10.images, cifar10.labels, class_names, cifar10.source
        )
    return ImageDataset(
        name="cifar10+cifar100",
        images=ChainedImages(cifar10.images, cifar100.images),
        labels=np.concatenate([cifar10.labels, cifar100.labels + len(cifar10.class_names)]),
        class_names=class_names,
        source=f"{cifar10.source} + {cifar100.source}",
    )


def _without_lost_class(dataset: ImageDataset) -> ImageDataset:
    lost = dataset.class_names.index(_LOST_CLASS)
    kept = dataset.subset(np.flatnonzero(dataset.labels != lost))
    return replace(kept, source=f"{dataset.source}, without {_LOST_CLASS} (quirk of the reference)")
