"""Embedding of a detector's images in batches of one shape.

A compiled encoder rounds an image's embedding in the same way at every position in a batch and for all other
images, but programs for different batch sizes differ by about 1e-7. All images of a detector, fitted, held out or
scored, alone, in a folder or in a stream, therefore go through the same programs:

    resize       on the host, to uint8 images of the model's input size
    normalise    one program for [images_per_device x devices, size, size, 3]
    encode       one program of the same shape; the last batch is padded

`benchmarks/padded_batches.py` measures the cost. With B/16 in bfloat16 on an H200, batches of 1, 8, 16 and
64 images take 2.7, 3.9, 5.6 and 14.3 ms (347, 1,981, 2,636 and 3,745 images/s). With B/32 in float32 on two
CPU cores the throughput is the same for all sizes, and on 16 cores batches of 1, 4, 16 and 64 take 37, 78,
217 and 688 ms (25, 49, 72 and 93 images/s). The defaults are therefore 16 images on accelerators, and one per
two cores (at most 16) on CPUs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from bliss_jax.datasets import (
    Decoding,
    ImageDataset,
    LazyImages,
    UnreadableImageError,
    content_parts,
    decode_image,
    pixels_of,
)
from bliss_jax.detection.processes import check_process
from bliss_jax.embedding import (
    AnyEncoder,
    EmbeddedImages,
    Progress,
    batch_calls,
    embed_images,
    resizer,
)

_ON_ACCELERATORS = 16


def default_images_per_device() -> int:
    """Returns the number of images per device and call of the encoder, see the module's docstring."""
    if jax.default_backend() != "cpu":
        return _ON_ACCELERATORS
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_ON_ACCELERATORS, (cpus or 1) // 2))


class MixedImages(LazyImages):
    """Images of any kind: arrays, paths of image files, contents of image files, and images of Pillow.

    Raises:
        ValueError: An item is none of these. The message gives its position.
    """

    def __init__(self, items: Sequence[Any], decoding: Decoding):
        self._items = items
        self.decoding = decoding
        for position, item in enumerate(items):
            if isinstance(item, np.ndarray | jax.Array):
                if item.dtype != np.uint8 or item.ndim != 3 or item.shape[-1] != 3:
                    raise ValueError(
                        f"image {position} is {item.dtype} {list(item.shape)}, expected uint8 [h, w, 3]"
                    )
            elif not isinstance(item, str | os.PathLike | bytes) and not is_pillow_image(item):
                raise ValueError(
                    f"image {position} is of type {type(item).__name__}, expected an array uint8 "
                    "[h, w, 3], a path, or an image of Pillow"
                )

    def __len__(self) -> int:
        return len(self._items)

    def read(self, position: int) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the pixels of an item."""
        item = self._items[position]
        if isinstance(item, np.ndarray | jax.Array):
            return np.asarray(item)
        if isinstance(item, bytes):
            return decode_image(item, f"image {position}", self.decoding)
        if isinstance(item, str | os.PathLike):
            return decode_image(Path(item), os.fspath(item), self.decoding)
        return pixels_of(item, self.decoding)

    def identity(self) -> Iterator[bytes | memoryview]:
        """Yields the pixels of all items."""
        for position in range(len(self)):
            try:
                yield from content_parts([self.read(position)])
            except UnreadableImageError as error:
                yield str(error).encode()


def is_pillow_image(item: Any) -> bool:
    """Returns whether an object is an image of Pillow, without importing Pillow."""
    return any(
        kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(item).__mro__
    )


class _ResizedImages(LazyImages):
    """Images at the encoder's input size, resized on the host."""

    def __init__(self, images: Any, resize: Callable[[np.ndarray], np.ndarray]):
        self._images, self._resize = images, resize

    def __len__(self) -> int:
        return len(self._images)

    def read(self, position: int) -> UInt8[np.ndarray, "_ _ 3"]:
        """Returns a resized image."""
        return self._resize(np.asarray(self._images[position]))

    def identity(self) -> Iterator[bytes | memoryview]:
        """Yields the identity of the original images."""
        yield from content_parts(self._images)


def embed_dataset_images(
    model: AnyEncoder,
    dataset: ImageDataset,
    *,
    preprocess: str | None,
    images_per_device: int,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> EmbeddedImages:
    """Embeds the images of a data set in batches of the detector's shape; arguments as in `embed_images`."""
    check_process()
    resized = replace(dataset, images=_ResizedImages(dataset.images, resizer(model)))
    return embed_images(
        model,
        resized,
        preprocess=preprocess,
        batch_size=images_per_device * jax.local_device_count(),
        cache=cache,
        progress=progress,
    )


class BatchEncoder:
    """Reads files as the encoder's images, and embeds them in batches of the detector's shape."""

    def __init__(self, encoder: AnyEncoder, preprocess: str | None, images_per_device: int):
        check_process()
        self._size = images_per_device * jax.local_device_count()
        self._calls = batch_calls(encoder, preprocess, self._size)
        self._dim = encoder.embedding_dim
        self.resize = resizer(encoder)

    def __call__(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Float[np.ndarray, "images dim"]:
        """Returns embeddings of resized images."""
        pending = []
        for start in range(0, len(images), self._size):
            batch = images[start : start + self._size]
            pending.append((self._calls(self._calls.batch(batch)), len(batch)))
        # All batches are dispatched before the first is awaited.
        found = [np.asarray(embedded)[:count] for embedded, count in pending]
        return np.concatenate([np.empty((0, self._dim), np.float32), *found])
