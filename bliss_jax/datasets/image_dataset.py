"""The common interface to labelled images: random access, labels and class names.

    dataset.images[i]    uint8 [h, w, 3], RGB; the images of a data set may differ in size
    dataset.labels       int32 [images], positions in class_names

Images are either in memory (an array uint8 [images, h, w, 3] or a list) or read when they are accessed
(`LazyImages`). Only the number of lazy images must be known in advance. They may be read from several
threads at once.
"""

import hashlib
import operator
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8

from bliss_jax.datasets.decode import Decoding, UnreadableImageError

SAMPLED = 32
"""Number of images that are hashed if reading all of them would take too long."""


@runtime_checkable
class Images(Protocol):
    """Interface of the images of an `ImageDataset`; arrays, lists and `LazyImages` have it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


class LazyImages(Sequence[np.ndarray]):
    """Images that are read one at a time when they are accessed, from any thread."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, position: int) -> UInt8[np.ndarray, "h w 3"]:
        """Reads the image at a position in [0, len)."""

    def identity(self) -> Iterator[bytes | memoryview]:
        """Yields the bytes that `content_sha256` hashes: the pixels of `SAMPLED` evenly spaced images.

        A subclass overrides this if it can identify its content without decoding images.
        """
        for position in np.linspace(0, len(self) - 1, min(SAMPLED, len(self))).astype(int):
            try:
                yield from image_bytes(self.read(int(position)))
            except UnreadableImageError as error:
                yield str(error).encode()

    def __getitem__(self, index: SupportsIndex) -> UInt8[np.ndarray, "h w 3"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Reads the image at `index`, which may be negative; use `ImageDataset.subset` for slices."""
        return self.read(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        return map(self.read, range(len(self)))


class SelectedImages(LazyImages):
    """Images at selected positions of other images."""

    def __init__(self, images: Images, positions: Integer[np.ndarray, " selected"]):
        self._images = images
        self._positions = positions

    @property
    def source(self) -> Images:
        """The images from which some are selected."""
        return self._images

    @property
    def positions(self) -> Integer[np.ndarray, " selected"]:
        """Positions of the selected images."""
        return self._positions

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, position: int) -> UInt8[np.ndarray, "h w 3"]:
        """Reads the selected image from the underlying images."""
        return self._images[int(self._positions[position])]

    def identity(self) -> Iterator[bytes | memoryview]:
        """Yields the identity of the underlying images and the selected positions."""
        yield from content_parts(self._images)
        yield np.ascontiguousarray(self._positions, np.int64).tobytes()


class ChainedImages(LazyImages):
    """Concatenation of two sources of images."""

    def __init__(self, first: Images, second: Images):
        self._first = first
        self._second = second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def read(self, position: int) -> UInt8[np.ndarray, "h w 3"]:
        """Reads the image from the source that contains the position."""
        rest = position - len(self._first)
        return self._first[position] if rest < 0 else self._second[rest]

    def identity(self) -> Iterator[bytes | memoryview]:
        """Yields the identities of both sources."""
        yield from content_parts(self._first)
        yield from content_parts(self._second)


def image_names(images: Images) -> list[str] | None:
    """Returns the file name of each image relative to the data set's folder; None if they are not files."""
    if isinstance(images, SelectedImages):
        names = image_names(images.source)
        return None if names is None else [names[i] for i in images.positions.tolist()]
    names = getattr(images, "names", None)
    return None if names is None else [name.replace(os.sep, "/") for name in names]


def decoding_of(images: Images) -> Decoding | None:
    """Returns the background and bit depth with which image files are read; None if they are not files."""
    if isinstance(images, SelectedImages):
        return decoding_of(images.source)
    return getattr(images, "decoding", None)


def content_sha256(images: Images) -> str:
    """Returns a SHA-256 that identifies the images, without decoding all of them.

    The hash covers the number of images and
      - for images in memory: every pixel;
      - for a folder: the names and contents of the files, and the background and bit depth;
      - for a prepared data set: the order of the records and the pixels of `SAMPLED` evenly spaced images
        (the checksum of the archive was verified when it was prepared);
      - for other lazy images: the pixels of `SAMPLED` evenly spaced images.
    """
    digest = hashlib.sha256()
    for part in content_parts(images):
        digest.update(part)
    return digest.hexdigest()


def content_parts(images: Images) -> Iterator[bytes | memoryview]:
    """Yields the number of images and then the bytes that identify them."""
    yield f"{len(images)} images".encode()
    if isinstance(images, LazyImages):
        yield from images.identity()
    else:
        for image in images if isinstance(images, list | tuple) else [np.asarray(images)]:
            yield from image_bytes(image)


def image_bytes(image: np.ndarray) -> Iterator[bytes | memoryview]:
    """Yields the shape and the pixels of an image or of an array of images."""
    yield str(image.shape).encode()
    yield np.ascontiguousarray(image).data


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Labelled images.

    Attributes:
        name: Name of the data set, e.g. `"cifar10"`; it determines the available protocols.
        images: RGB images with random access: `len(images)`, `images[i]` uint8 [h, w, 3]. An array uint8
            [images, h, w, 3] also has this interface.
        labels: Position of each image's class in `class_names`, int32 [images], read-only. Other integer
            types are converted, without loss because the values are in range.
        class_names: Names of the classes, as spelled in prompts.
        source: Origin of the images, for the provenance of results.
        problems: Entries of a folder that are not in the data set, each with a reason.

    Raises:
        ValueError: A field is invalid; the message names the field and gives the expected values.
    """

    name: str
    images: Images
    labels: Integer[np.ndarray, " images"]
    class_names: tuple[str, ...]
    source: str
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        problems = f", {len(self.problems)} problems" if self.problems else ""
        return (
            f"ImageDataset({self.name!r}, {len(self.labels):,} images, {len(self.class_names)} classes, "
            f"source {self.source!r}{problems})"
        )

    def __post_init__(self):
        if not self.name.strip():
            raise ValueError(f"name is {self.name!r}, expected text that is not blank")
        _check_class_names(self.class_names)
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels are {labels.dtype} {list(labels.shape)}, expected integers [images]"
            )
        if len(labels) != len(self.images):
            raise ValueError(
                f"{len(labels)} labels for {len(self.images)} images, expected one per image"
            )
        if not len(labels):
            raise ValueError(f"{self.name} has no images")
        classes = len(self.class_names)
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"labels range from {labels.min()} to {labels.max()}, "
                f"expected positions in the {classes} class names (0 to {classes - 1})"
            )
        _check_images(self.images)
        labels = labels.astype(np.int32)
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "class_names", tuple(self.class_names))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Iterable[int] | Integer[np.ndarray, " selected"]) -> "ImageDataset":
        """Selects the images at `indices`, in that order; class names stay the same.

        An array of images is indexed, which copies it. Other images are read through this data set when
        they are accessed.

        Args:
            indices: Positions in [0, images); repeats are allowed.

        Raises:
            ValueError: There are no indices, or some are negative, too large or not integers.
        """
        indices = indices if isinstance(indices, np.ndarray) else np.asarray(list(indices))
        if indices.ndim != 1 or not len(indices):
            raise ValueError(
                f"indices have shape {list(indices.shape)}, expected [selected] with at least one index"
            )
        if not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(
                f"indices are {indices.dtype}, expected integers (np.flatnonzero converts a mask)"
            )
        if indices.min() < 0 or indices.max() >= len(self):
            raise ValueError(
                f"indices range from {indices.min()} to {indices.max()}, "
                f"expected positions in the {len(self)} images"
            )
        images = self.images
        chosen = (
            images[indices] if isinstance(images, np.ndarray) else SelectedImages(images, indices)
        )
        return replace(self, images=chosen, labels=self.labels[indices])


def _check_class_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not len(names):
        raise ValueError(f"class_names is {names!r}, expected a sequence of names")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"a class name is {name!r}, expected non-empty text")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"class names are repeated: {', '.join(map(repr, repeated))}")


def _check_images(images: Images) -> None:
    """Checks images in memory; lazy images are checked when they are decoded."""
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}, expected uint8 [images, h, w, 3]"
            )
    elif isinstance(images, list | tuple):
        for position, image in enumerate(images):
            found = getattr(image, "dtype", type(image).__name__), list(np.shape(image))
            if found[0] != np.uint8 or len(found[1]) != 3 or found[1][-1] != 3:
                raise ValueError(
                    f"image {position} is {found[0]} {found[1]}, expected uint8 [h, w, 3]"
                )
