"""Image lists of OpenOOD: text files with one `PATH LABEL` per line.

    cifar10/test/airplane/0001.png 0
    svhn/test/00001.png -1

Paths are below a folder of images. The label is a class id, or -1 for an out-of-distribution image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bliss_jax.datasets.folder import FileImages
from bliss_jax.datasets.image_dataset import ImageDataset
from bliss_jax.datasets.image_files import FileReader

OOD_CLASS = "out of distribution"
"""Class of the images of an out-of-distribution set, which needs no class names."""
_LISTED = 5


def load_imglist(
    file: Path,
    folder: Path,
    *,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    reader: FileReader | None = None,
) -> ImageDataset:
    """Opens the images of a list. Only the files that are decoded later are read.

    Args:
        file: The list.
        folder: Folder to which the paths are relative.
        class_names: Names of the classes, by id. None for an out-of-distribution set: all images are of one class, and
            labels are ignored.
        name: Name of the data set; that of the list by default.
        reader: How the files are read.

    Raises:
        ValueError: The list cannot be read or has no images, a line is not a path and an integer, a label is not a
            position in the class names, or files are missing.
    """
    if not file.is_file():
        raise ValueError(f"expected an image list (lines of PATH LABEL), found no file {file}")
    names, labels = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.lstrip("-").isdecimal():
            raise ValueError(
                f"{file}, line {number}: expected PATH LABEL with an integer label, got {line!r}"
            )
        names.append(path)
        labels.append(int(label))
    if not names:
        raise ValueError(f"{file}: expected lines of PATH LABEL, found none")
    own = np.array(labels)
    if class_names is None:
        own, class_names = np.zeros(len(names), np.int32), (OOD_CLASS,)
    elif own.min() < 0 or own.max() >= len(class_names):
        wrong = int(np.argmax((own < 0) | (own >= len(class_names))))
        raise ValueError(
            f"{file}: expected labels from 0 to {len(class_names) - 1}, because there are {len(class_names)} class "
            f"names, got {own[wrong]} for {names[wrong]!r}"
        )
    missing = [path for path in names if not (folder / path).is_file()]
    if missing:
        listed = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
        raise ValueError(
            f"{file}: {len(missing)} of {len(names)} files are not in {folder}: {listed}"
        )
    return ImageDataset(
        name or file.stem,
        FileImages(folder, names, reader),
        own.astype(np.int32),
        tuple(class_names),
        f"image list {file.name} ({len(names)} files)",
    )
