"""Data sets by name, or from a folder.

cifar10, cifar100     official training and test set
tiny-imagenet         training set; the test split is the official validation set
glyphs                symbols with their Unicode names, rendered from a seed: no download
digits                handwritten digits that scikit-learn ships: no download
cifar10+cifar100      for CIFAR+10 and CIFAR+50: the training split is CIFAR-10's, the test split both
                      test sets, CIFAR-100's fine classes at ids 10 to 109
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bliss_jax.datasets.folder import SPLITS, load_folder
from bliss_jax.datasets.image_dataset import ChainedImages, ImageDataset


class NamedDataset(NamedTuple):
    """What is known of a data set before it is loaded.

    Attributes:
        train: Training images.
        test: Test images.
        download: Whether its archive is downloaded.
        what: What the images show, in one line.
    """

    train: int
    test: int
    download: bool
    what: str


_NAMED = {
    "cifar10": NamedDataset(50_000, 10_000, True, "photographs of 32 x 32 pixels"),
    "cifar100": NamedDataset(50_000, 10_000, True, "photographs of 32 x 32 pixels"),
    "cifar10+cifar100": NamedDataset(50_000, 20_000, True, "CIFAR-10, tested with CIFAR-100's images too"),
    "tiny-imagenet": NamedDataset(100_000, 10_000, True, "photographs of 64 x 64 pixels"),
    "glyphs": NamedDataset(10_360, 5_180, False, "symbols with their Unicode names, rendered from a seed"),
    "digits": NamedDataset(1_198, 599, False, "digits of 8 x 8 pixels, shipped with scikit-learn"),
}  # fmt: skip
_NAMES = tuple(_NAMED)
_LOST_CLASS = "African elephant"


def dataset_names() -> tuple[str, ...]:
    """The names that `load_dataset` knows."""
    return _NAMES


def describe_dataset(name: str) -> NamedDataset:
    """What is known of a data set of `dataset_names()`."""
    return _NAMED[name]


def load_dataset(
    name_or_folder: str | Path,
    split: str = "train",
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    reference_quirks: bool = False,
) -> ImageDataset:
    """Opens one split of a data set; its images are decoded when they are asked for.

    A named data set is downloaded and prepared by tensorflow-datasets the first time (no TensorFlow
    needed), and later read from `data_dir` without a network. A folder is listed anew every time;
    `folder.py` describes its layouts and `decode.py` what is read.

    Args:
        name_or_folder: One of `dataset_names()`, or a folder of images per class. A string that is a name
            means the name; a `Path`, or `./cifar10`, means the folder.
        split: `"train"` or `"test"`.
        data_dir: Where prepared data sets are kept; by default where tensorflow-datasets keeps them
            (`TFDS_DATA_DIR`, or `~/tensorflow_datasets`). Not for folders.
        manual_dir: For machines without a network: a folder with the official archive, whose checksum is
            verified, or with the folder it unpacks to, whose checksum cannot be. Not for folders.
        reference_quirks: Leave out of TinyImageNet's test split the class that the reference's scripts
            lose to a parsing slip (African elephant, n02504458, id 57: 9,950 images remain). Ids and
            class names stay, and so does every other data set.

    Raises:
        ValueError: for an unknown name or split, a folder in neither layout, an archive that is not the
            official one.
        ConnectionError: if an archive cannot be downloaded; says how to provide it.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(map(repr, SPLITS))}")
    data_dir = None if data_dir is None else Path(data_dir)
    manual_dir = None if manual_dir is None else Path(manual_dir)
    if isinstance(name_or_folder, str) and name_or_folder in _NAMES:
        return _load_named(name_or_folder, split, data_dir, manual_dir, reference_quirks)

    folder = Path(name_or_folder)
    if not name_or_folder or not folder.is_dir():
        near = difflib.get_close_matches(str(name_or_folder).lower(), _NAMES, n=2, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"{str(name_or_folder)!r} is neither a folder nor a data set: {', '.join(_NAMES)}{hint}"
        )
    if data_dir is not None or manual_dir is not None:
        raise ValueError("data_dir and manual_dir are for named data sets, not for folders")
    return load_folder(folder, split)


def _load_named(
    name: str, split: str, data_dir: Path | None, manual_dir: Path | None, reference_quirks: bool
) -> ImageDataset:
    if name == "glyphs":
        from bliss_jax.datasets.glyphs import load_glyphs

        return load_glyphs(split)
    if name == "digits":
        from bliss_jax.datasets.digits import load_digits

        return load_digits(split)

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
    """CIFAR-10 with CIFAR-100's classes after its own; only the test split has images of them."""
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
    return replace(kept, source=f"{dataset.source}, without {_LOST_CLASS} (the reference's quirk)")
