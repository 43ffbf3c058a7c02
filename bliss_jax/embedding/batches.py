"""Reads images in background threads and yields batches of one length.

Batches for a `Model` have one shape and are already on the devices. If all images of a batch have the same size,
they are transferred as uint8 in this size and resized on the device. A batch with several sizes is resized on the
host, and so are images with a long side. Both ways give the same pixels. Batches for other encoders are lists of
images in their original sizes.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np

from bliss_jax.datasets import ImageDataset, UnreadableImageError
from bliss_jax.embedding.encoder import ModelCalls, OwnCalls
from bliss_jax.embedding.shards import Span

_LARGEST_SIDE = 2048
"""Images with a longer side are resized on the host when they are read, because a batch of them would take
gigabytes and even a single one is padded to a whole batch."""

_IMAGES_AT_ONCE = 8
"""Number of images per task of a reading thread. Passing single small images between threads would take as
long as reading them."""

Item = TypeVar("Item")


class Batch(NamedTuple):
    """A batch of images for an encoder."""

    images: Any
    """Argument of `ModelCalls` or `OwnCalls`, padded."""
    rows: Sequence[int]
    """Positions of the images in the data set, without the padding."""


class SpanEnd(NamedTuple):
    """Marker for the end of a span of rows."""

    span: Span
    """The span that ends."""
    unreadable: tuple[str, ...]
    """Name and reason of each image of the span that could not be read."""


def read_batches(
    dataset: ImageDataset,
    todo: Sequence[Span],
    batch_size: int,
    calls: ModelCalls | OwnCalls,
) -> Iterator[Batch | SpanEnd]:
    """Yields the images of each span in batches, followed by a `SpanEnd`.

    All batches have `batch_size` images; the last batch of a span is padded.

    Args:
        dataset: Data set to read.
        todo: Spans of rows to read.
        batch_size: Images per batch, including the padding.
        calls: Calls of the encoder, which resize images on the host and make batches.
    """
    images = dataset.images
    if isinstance(images, np.ndarray):
        for span in todo:
            for start in range(*span, batch_size):
                rows = range(start, min(start + batch_size, span.stop))
                yield Batch(calls.batch(images[rows.start : rows.stop]), rows)
            yield SpanEnd(span, ())
        return

    def read(rows: range) -> list[np.ndarray | str]:
        found: list[np.ndarray | str] = []
        for row in rows:
            try:
                image = images[row]
                large = max(image.shape) > _LARGEST_SIDE
                found.append(calls.resize(image) if large else image)
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
        made = calls.batch([image for _, image in readable], pool.map)
        return Batch(made, [row for row, _ in readable])

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


def ahead(items: Iterator[Item], number: int) -> Iterator[Item]:
    """Yields the items of an iterator, of which a thread computes up to `number` in advance."""
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
    """Returns the number of reading threads: one per CPU, from 4 (because of slow disks) to 32."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(32, max(4, cpus or 1))
