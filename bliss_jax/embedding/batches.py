"""Reads images in background threads and yields batches of one shape that are already on the devices.

Images of one size are transferred as they are, uint8 at their own size, and resized on the device. A batch of
several sizes and images with a long side are resized on the host, to the same pixels.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding

from bliss_jax.datasets import ImageDataset, UnreadableImageError
from bliss_jax.embedding.shards import Span
from bliss_jax.models import Preprocessing, resize_on_host

_LARGEST_SIDE = 2048
"""Larger images are resized as they are read: a batch of them would take gigabytes, and one of them is padded
to a whole batch."""

_IMAGES_AT_ONCE = 8
"""Read by a thread in one go: handing over single small images would cost as much as reading them."""

Item = TypeVar("Item")


class Batch(NamedTuple):
    """A batch of images on the devices."""

    images: jax.Array
    """uint8, already on the devices; padded."""
    rows: Sequence[int]
    """Position of each in the data set; as many as are not padding."""


class SpanEnd(NamedTuple):
    """Marks the end of a span of rows."""

    span: Span
    unreadable: tuple[str, ...]


def read_batches(
    dataset: ImageDataset,
    todo: Sequence[Span],
    batch_size: int,
    preprocessing: Preprocessing,
    sharding: NamedSharding,
) -> Iterator[Batch | SpanEnd]:
    """Full batches, the last of each span apart, and after each span what could not be read of it."""
    images = dataset.images
    if isinstance(images, np.ndarray):
        for span in todo:
            for start in range(*span, batch_size):
                rows = range(start, min(start + batch_size, span.stop))
                stacked = _pad(images[rows.start : rows.stop], batch_size)
                yield Batch(jax.device_put(stacked, sharding), rows)
            yield SpanEnd(span, ())
        return

    def read(rows: range) -> list[np.ndarray | str]:
        found: list[np.ndarray | str] = []
        for row in rows:
            try:
                image = images[row]
                large = max(image.shape) > _LARGEST_SIDE
                found.append(resize_on_host(image, preprocessing) if large else image)
            except UnreadableImageError as error:
                found.append(str(error))
        return found

    pool = ThreadPoolExecutor(readers())
    few = _IMAGES_AT_ONCE
    reading = (
        (span, rows, pool.submit(read, rows))
        for span in todo
        for start in range(*span, few)
        for rows in [range(start, min(start + few, span.stop))]
    )

    def batch(readable: list[tuple[int, np.ndarray]]) -> Batch:
        stacked = _pad(_stack(pool, [image for _, image in readable], preprocessing), batch_size)
        return Batch(jax.device_put(stacked, sharding), [row for row, _ in readable])

    try:
        ahead = deque(islice(reading, -(-batch_size // few) + readers()))
        readable: list[tuple[int, np.ndarray]] = []
        unreadable: list[str] = []
        while ahead:
            span, rows, future = ahead.popleft()
            ahead.extend(islice(reading, 1))
            for row, image in zip(rows, future.result(), strict=True):
                if isinstance(image, str):
                    unreadable.append(image)
                    continue
                readable.append((row, image))
                if len(readable) == batch_size:
                    yield batch(readable)
                    readable = []
            if rows.stop == span.stop:
                if readable:
                    yield batch(readable)
                yield SpanEnd(span, tuple(unreadable))
                readable, unreadable = [], []
    finally:
        pool.shutdown(cancel_futures=True)


def _stack(
    pool: ThreadPoolExecutor, images: list[np.ndarray], preprocessing: Preprocessing
) -> np.ndarray:
    """uint8 [images, h, w, 3]: images of one size as they are, others resized."""
    if len({image.shape for image in images}) > 1:
        images = list(pool.map(lambda image: resize_on_host(image, preprocessing), images))
    return np.stack(images)


def _pad(images: np.ndarray, batch_size: int) -> np.ndarray:
    """uint8 [batch_size, h, w, 3], with zeros after the images."""
    missing = batch_size - len(images)
    return np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images


def ahead(items: Iterator[Item], number: int) -> Iterator[Item]:
    """The items, made in a thread so that `number` of them are ready before they are asked for."""
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, None) for _ in range(number))
        try:
            while (item := coming.popleft().result()) is not None:
                coming.append(pool.submit(next, items, None))
                yield item
        finally:
            for future in coming:
                future.cancel()


def readers() -> int:
    """Threads that read: one per CPU, at least four for the sake of slow disks."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(32, max(4, cpus or 1))
