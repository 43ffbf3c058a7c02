"""Named suites: a data set whose classes are normal, and out-of-distribution (OOD) sets in groups.

    openood-cifar10, openood-cifar100, openood-imagenet200, openood-imagenet    OpenOOD v1.5, near and far
    mcm-imagenet                                                                  MCM and NegLabel

Nothing is downloaded. A suite reads one folder in the layout of its project, and says where the files come from:

OpenOOD v1.5 (Zhang et al., arXiv 2306.09301): `scripts/download/download.py` of github.com/Jingkang50/OpenOOD fetches
the image lists and the images. The folder contains `benchmark_imglist/`, `images_classic/` and `images_largescale/`.
ImageNet-1k's own images are in `images_largescale/imagenet_1k/`.

MCM (Ming et al., NeurIPS 2022) and NegLabel (Jiang et al., ICLR 2024): ImageNet-1k against the subsets of iNaturalist,
SUN and Places that Huang and Li (MOS, CVPR 2021) chose without classes of ImageNet
(pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset), and all of Textures (DTD, Cimpoi et al., CVPR 2014,
www.robots.ox.ac.uk/~vgg/data/dtd). The folder contains `ImageNet/train/WNID/`, `ImageNet/val/WNID/`, and
`ImageNet_OOD_dataset/` with `iNaturalist/`, `SUN/`, `Places/` and `dtd/images/`.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bliss_jax.datasets.class_names import class_names_of
from bliss_jax.datasets.folder import find_images, load_folder
from bliss_jax.datasets.image_dataset import ImageDataset
from bliss_jax.datasets.image_files import FileReader
from bliss_jax.datasets.imglist import OOD_CLASS, load_imglist


class Part(NamedTuple):
    """One set of images of a suite."""

    name: str
    images: str
    """Folder of the images, below the folder of the suite."""
    list: str = ""
    """Image list, below the folder of the suite; empty if the set is all images of the folder."""
    group: str = ""
    """Group of an out-of-distribution set."""


@dataclass(frozen=True)
class Suite:
    """A named suite."""

    name: str
    source: str
    """Publication and place of the files."""
    convention: str
    """Convention of its AUPR and FPR95, see `bliss_jax.metrics.CONVENTIONS`."""
    classes: int
    names: str
    """Data set of the library that has the class names; empty if they must be given."""
    train: Part
    test: Part
    ood: tuple[Part, ...]


class LoadedSuite(NamedTuple):
    """The data sets of a suite."""

    suite: Suite
    train: ImageDataset
    test: ImageDataset
    ood: tuple[tuple[Part, ImageDataset], ...]


_CLASSIC, _LARGE = "images_classic", "images_largescale"


def _openood(
    name: str,
    classes: int,
    images: str,
    names: str,
    near: Mapping[str, str],
    far: Mapping[str, str],
) -> Suite:
    def part(set_name: str, folder: str, split: str = "test", group: str = "") -> Part:
        return Part(set_name, folder, f"benchmark_imglist/{name}/{split}_{set_name}.txt", group)

    return Suite(
        f"openood-{name}",
        "OpenOOD v1.5 (arXiv 2306.09301): github.com/Jingkang50/OpenOOD, scripts/download/download.py",
        "openood",
        classes,
        names,
        part(name, images, "train"),
        part(name, images),
        tuple(
            part(set_name, folder, group=group)
            for group, sets in (("near", near), ("far", far))
            for set_name, folder in sets.items()
        ),
    )


_FAR_OF_CIFAR: dict[str, str] = dict.fromkeys(("mnist", "svhn", "texture", "places365"), _CLASSIC)
_OF_IMAGENET = {
    "near": dict.fromkeys(("ssb_hard", "ninco"), _LARGE),
    "far": {"inaturalist": _LARGE, "textures": _CLASSIC, "openimage_o": _LARGE},
}
_MCM_OOD = "ImageNet_OOD_dataset"

_ALL = (
    _openood("cifar10", 10, _CLASSIC, "cifar10", dict.fromkeys(("cifar100", "tin"), _CLASSIC), _FAR_OF_CIFAR),
    _openood("cifar100", 100, _CLASSIC, "cifar100", dict.fromkeys(("cifar10", "tin"), _CLASSIC), _FAR_OF_CIFAR),
    _openood("imagenet200", 200, _LARGE, "", **_OF_IMAGENET),
    _openood("imagenet", 1000, _LARGE, "", **_OF_IMAGENET),
    Suite(
        "mcm-imagenet",
        "MCM (NeurIPS 2022) and NegLabel (ICLR 2024): ImageNet-1k from image-net.org; iNaturalist, SUN and Places from "
        "pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset (MOS, CVPR 2021); Textures from "
        "www.robots.ox.ac.uk/~vgg/data/dtd",
        "mcm",
        1000,
        "",
        Part("train", "ImageNet"),
        Part("test", "ImageNet"),
        tuple(
            Part(name, f"{_MCM_OOD}/{folder}")
            for name, folder in (
                ("iNaturalist", "iNaturalist"), ("SUN", "SUN"), ("Places", "Places"), ("Textures", "dtd/images"),
            )
        ),
    ),
)  # fmt: skip
SUITES: Mapping[str, Suite] = {suite.name: suite for suite in _ALL}
"""The suites by name."""


def load_suite(
    name: str,
    folder: Path,
    *,
    class_names: Sequence[str] | None = None,
    reader: FileReader | None = None,
) -> LoadedSuite:
    """Opens the data sets of a suite. Images are decoded when they are accessed.

    Args:
        name: Name of the suite.
        folder: Folder in the layout of the suite's project; the docstring of this module describes it.
        class_names: Names of the classes by id. Needed for the suites on ImageNet, whose lists contain ids only: for
            ImageNet-1k the names in the order of the sorted wnids.
        reader: How the files are read.

    Raises:
        ValueError: There is no suite of that name, class names are missing or their number is wrong, or a list or an
            image is missing (the message says where the files come from).
    """
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=2)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"suite: expected one of {', '.join(SUITES)}, got {name!r}{hint}")
    suite = SUITES[name]
    names = class_names if class_names is not None else class_names_of(suite.names)
    if names is None:
        raise ValueError(
            f"class_names: expected the {suite.classes} class names of {name} in the order of their ids, because its "
            "files contain ids only"
        )
    if len(names) != suite.classes:
        raise ValueError(
            f"class_names: expected {suite.classes} names for {name}, got {len(names)}"
        )
    try:
        train, test = (
            _of_classes(part, folder, tuple(names), reader, split)
            for part, split in ((suite.train, "train"), (suite.test, "test"))
        )
        ood = tuple((part, _out_of_distribution(part, folder, reader)) for part in suite.ood)
    except ValueError as error:
        raise ValueError(
            f"{name} in {folder}: {error}\nIts files come from {suite.source}"
        ) from error
    return LoadedSuite(suite, train, test, ood)


def _of_classes(
    part: Part, folder: Path, names: tuple[str, ...], reader: FileReader | None, split: str
) -> ImageDataset:
    """Returns the images of the suite's classes."""
    if part.list:
        return load_imglist(
            folder / part.list,
            folder / part.images,
            class_names=names,
            name=part.name,
            reader=reader,
        )
    if not (folder / part.images).is_dir():
        raise ValueError(f"expected a folder {folder / part.images}, found none")
    dataset = load_folder(folder / part.images, split, reader or FileReader(), strict=False)
    if len(dataset.class_names) != len(names):
        raise ValueError(
            f"expected {len(names)} class folders in {folder / part.images}, found {len(dataset.class_names)}"
        )
    return replace(dataset, class_names=names)


def _out_of_distribution(part: Part, folder: Path, reader: FileReader | None) -> ImageDataset:
    if part.list:
        return load_imglist(folder / part.list, folder / part.images, name=part.name, reader=reader)
    if not (folder / part.images).is_dir():
        raise ValueError(f"expected a folder {folder / part.images}, found none")
    return find_images(folder / part.images, (OOD_CLASS,), reader or FileReader())
