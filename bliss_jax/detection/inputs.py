"""Conversion of a detector's arguments: images or embeddings, with or without labels, and dictionaries."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from bliss_jax import _checks
from bliss_jax.datasets import (
    UNNAMED_CLASS,
    Decoding,
    FileReader,
    ImageDataset,
    find_images,
    has_image_suffix,
    is_flat_folder,
    load_dataset,
)
from bliss_jax.detection.encoding import MixedImages, is_pillow_image
from bliss_jax.text import PROMPT, fill_prompt, load_dictionary


@runtime_checkable
class PillowImage(Protocol):
    """An image of Pillow, without an import of Pillow."""

    def getexif(self) -> Any:
        """Returns the EXIF tags."""
        ...

    def convert(self, mode: str) -> Any:
        """Returns the image in another mode."""
        ...


Images = (
    ImageDataset | Sequence[Any] | np.ndarray | jax.Array | PillowImage | str | os.PathLike[str]
)
"""Images as uint8 [n, h, w, 3], as a data set, or as a list of arrays uint8 [h, w, 3], paths of image files,
contents of image files (bytes) and images of Pillow; a single path or image of Pillow is a list of one. Or
embeddings [n, dim]."""

Source = Images
"""Labelled images; a string or path is the name of a data set, a folder with one subfolder per class, or a folder
without subfolders, whose images are of one class."""

Phrases = str | os.PathLike[str] | Sequence[str]
"""A dictionary: its name, a text file, or the phrases themselves."""

DECODING = Decoding()
"""Default background and bit depth."""


class Labelled(NamedTuple):
    """Images (an `ImageDataset`) or embeddings with one label each."""

    images: Any
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    problems: tuple[str, ...] = ()
    """Entries of a folder that are not images in class folders."""


def labelled(
    images: Source,
    labels: np.ndarray | Sequence[int] | None,
    class_names: Sequence[str] | None,
    *,
    decoding: Decoding = DECODING,
    skip_unreadable: bool = False,
) -> Labelled:
    """Returns any kind of `Source` with one label per image."""
    if isinstance(images, str | os.PathLike):
        reader = FileReader(background=decoding.background, bit_depth=decoding.bit_depth)
        name = images if isinstance(images, str) else Path(images)
        flat = _flat_folder(images, class_names, reader)
        if flat is not None:
            class_names = None
        images = flat or with_present_classes(
            load_dataset(name, "train", reader=reader, strict=not skip_unreadable)
        )
    if isinstance(images, ImageDataset):
        if labels is not None or class_names is not None:
            raise ValueError(
                "labels and class_names: expected None, because a data set has its own labels"
            )
        source = f"{images.name}, {images.source}"
        return Labelled(images, images.labels, images.class_names, source, images.problems)
    if class_names is None:
        raise ValueError(
            "class_names: expected the names of the classes, because the images are in memory"
        )
    names = tuple(class_names) if not isinstance(class_names, str) else class_names
    fill_prompt(PROMPT, names)  # raises for names that are empty or repeated
    given: Any = [images] if is_pillow_image(images) else images
    if labels is None:
        if len(names) != 1:
            raise ValueError(
                f"labels: expected one per image, because there are {len(names)} classes"
            )
        labels = np.zeros(len(given), np.int32)
    checked = _checks.class_labels("labels", np.asarray(labels), len(given), len(names))
    what = "embeddings" if are_embeddings(given) else "images"
    known = np.asarray(checked, np.int32)
    if are_embeddings(given):
        return Labelled(given, known, tuple(names), f"{len(given)} {what} in memory")
    items = _items(given, decoding)
    dataset = ImageDataset("images", items, known, tuple(names), f"{what} in memory")
    return Labelled(dataset, known, tuple(names), f"{len(given)} {what} in memory")


def _flat_folder(
    path: str | os.PathLike[str], class_names: Sequence[str] | None, reader: FileReader
) -> ImageDataset | None:
    """Returns the images of a folder without subfolders as one class; None for other folders and data sets."""
    folder = Path(path)
    if not folder.is_dir() or not is_flat_folder(folder):
        return None
    if class_names is None:
        warnings.warn(
            f"{folder} has no subfolders, so all of its images are of one class, {UNNAMED_CLASS!r}; a name that says "
            "what they show, e.g. class_names=['screw'], gives better scores",
            stacklevel=4,
        )
        class_names = (UNNAMED_CLASS,)
    if isinstance(class_names, str) or len(class_names) != 1:
        raise ValueError(
            f"class_names: expected one name, because {folder} has no subfolders, got {class_names!r}"
        )
    return find_images(folder, tuple(class_names), reader)


def without_images(class_names: Sequence[str] | None) -> Labelled:
    """Returns no images of the given classes.

    Raises:
        ValueError: There are no class names.
    """
    if class_names is None:
        raise ValueError(
            "class_names: expected the names of the classes, because there are no images"
        )
    names = tuple(class_names) if not isinstance(class_names, str) else class_names
    fill_prompt(PROMPT, names)
    return Labelled(np.empty((0, 0), np.float32), np.empty(0, np.int32), tuple(names), "no images")


def with_present_classes(dataset: ImageDataset) -> ImageDataset:
    """Returns a data set without the classes that have no images, e.g. those of a test folder only."""
    present = np.unique(dataset.labels)
    if len(present) == len(dataset.class_names):
        return dataset
    names = tuple(dataset.class_names[c] for c in present)
    return replace(dataset, labels=np.searchsorted(present, dataset.labels), class_names=names)


def unlabelled(images: Any, decoding: Decoding = DECODING) -> ImageDataset:
    """Returns images of any kind as a data set with a single class."""
    if isinstance(images, ImageDataset):
        return images
    labels = np.zeros(len(images), np.int32)
    return ImageDataset("images", _items(images, decoding), labels, ("image",), "images in memory")


def single_image(images: Any) -> Any:
    """Returns a list of one for a single path of an image file or a single image of Pillow.

    Raises:
        ValueError: The argument is the path of a folder or of another file.
    """
    if is_pillow_image(images):
        return [images]
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        if not has_image_suffix(path) and not Path(path).is_file():
            raise ValueError(
                f"images: expected images or embeddings, got the path {path!r}; "
                "bliss_jax.score_files scores folders"
            )
        return [images]
    return images


def _items(images: Any, decoding: Decoding) -> Any:
    """Returns images in a form that `ImageDataset` accepts and checks."""
    if isinstance(images, jax.Array):
        return np.asarray(images)
    if isinstance(images, list | tuple) and not all(isinstance(i, np.ndarray) for i in images):
        return MixedImages(images, decoding)
    return images


def are_embeddings(images: Any) -> bool:
    """Returns whether the argument is a floating array, and therefore not uint8 images."""
    dtype = getattr(images, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def float32(name: str, embeddings: Any) -> np.ndarray:
    """Returns checked embeddings as float32. Rounding float64 is harmless for rows of unit norm."""
    array = np.asarray(embeddings)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return np.asarray(_checks.embeddings_as_float(name, array), np.float32)


def unreadable_error(names: Sequence[str]) -> ValueError:
    """Returns the error for images that cannot be read."""
    return ValueError(f"{len(names)} images cannot be read:\n" + "\n".join(names))


def phrases_of(dictionary: Phrases) -> tuple[tuple[str, ...], str]:
    """Returns the phrases of a dictionary and its name for the provenance."""
    if isinstance(dictionary, str | os.PathLike):
        return load_dictionary(dictionary), os.fspath(dictionary)
    return tuple(dictionary), "custom"
