"""Embeds the images of a data set.

All batches have the same shape, because the last one is padded; the model is therefore compiled once. With
several devices, batches are sharded over the devices and parameters are replicated.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from bliss_jax.datasets import ImageDataset, content_sha256
from bliss_jax.embedding.batches import Batch, SpanEnd, ahead, read_batches
from bliss_jax.embedding.encoder import AnyEncoder, batch_calls, encoder_key, preprocessing_facts
from bliss_jax.embedding.gather import gather_shards
from bliss_jax.embedding.progress import Progress
from bliss_jax.embedding.shards import Shard, Span, spans

BATCH_SIZE = 64
SHARD_SIZE = 4096
"""Images per shard of a large data set: some megabytes, written much faster than they are embedded."""

_SHARDS = 64
"""Approximate number of shards of a smaller data set, so that several processes have equal shares."""

_BATCHES_AHEAD = 2


class EmbeddedImages(NamedTuple):
    """Embeddings of the images that could be read."""

    embeddings: Float[np.ndarray, "read dim"]
    """Unit-norm float32, in the order of the data set."""
    rows: Int[np.ndarray, " read"]
    """Position of each image in the data set."""
    unreadable: tuple[str, ...]
    """Name and reason of each image that could not be read."""


def embed_images(
    model: AnyEncoder,
    dataset: ImageDataset,
    *,
    preprocess: str | None = None,
    batch_size: int = BATCH_SIZE,
    mesh: Mesh | None = None,
    cache: Path | None = None,
    shard_size: int | None = None,
    progress: Progress | None = None,
) -> EmbeddedImages:
    """Embeds all images of a data set.

    Under `jax.distributed` every process must call this with the same arguments. Each process embeds a
    part, and all return the same result.

    Args:
        model: A `Model` or another `Encoder`.
        dataset: Images of any sizes.
        preprocess: Preprocessing, as for `Model.encode_images`.
        batch_size: Images per call of the encoder in each process, rounded up to a multiple of the number
            of devices.
        mesh: Mesh whose first axis has the devices to use; all local devices by default.
        cache: Folder in which finished shards are stored. A stored shard is used again if it was made with
            the same weights, dtype, preprocessing, images (compared by `content_sha256`), labels, batches,
            shards, versions and kind of device. Several processes may use the folder at once.
        shard_size: Images per shard, rounded up to whole batches. The default is a 64th of the data set,
            but at most 4,096.
        progress: Called after each batch, and for shards from the cache or from another process, with the
            number of images.

    Returns:
        Embeddings of the images that could be read, and the names of the others.

    Raises:
        ValueError: A batch or shard size is below 1, the preprocessing is unknown, no image can be read,
            a shard is damaged (the message names it and explains how to continue), or the processes
            embed different inputs.
        OSError: A shard cannot be written; shards that were written before are kept.
    """
    for name, size in (("batch_size", batch_size), ("shard_size", shard_size)):
        if size is not None and size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    mesh = mesh or Mesh(np.array(jax.local_devices()), ("data",))
    batch_size = -(-batch_size // mesh.size) * mesh.size
    if shard_size is None:
        shard_size = min(SHARD_SIZE, -(-len(dataset) // _SHARDS))
    shard_size = -(-shard_size // batch_size) * batch_size
    cut = spans(len(dataset), shard_size)
    key = {
        "what": "images",
        "model": encoder_key(model),
        "preprocessing": preprocessing_facts(model, preprocess),
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "class_names": dataset.class_names,
            "labels_sha256": hashlib.sha256(dataset.labels.tobytes()).hexdigest(),
        },
        "images_per_device": batch_size // mesh.size,
        "images_per_shard": shard_size,
    }
    embed = partial(_embed_spans, model, dataset, preprocess, batch_size, mesh)
    content = partial(content_sha256, dataset.images)
    found = gather_shards(cut, f"{dataset.name}-{model.name}", key, content, cache, embed, progress)
    if not len(found.rows):
        first = found.unreadable[0]
        raise ValueError(f"{dataset.name}: none of the images can be read; the first: {first}")
    return EmbeddedImages(*found)


class _Computing(NamedTuple):
    embeddings: jax.Array | np.ndarray
    rows: Sequence[int]


def _embed_spans(
    model: AnyEncoder,
    dataset: ImageDataset,
    preprocess: str | None,
    batch_size: int,
    mesh: Mesh,
    todo: Sequence[Span],
    report: Progress,
) -> Iterator[tuple[Span, Shard]]:
    """Embeds the images of some spans and yields them as shards, without waiting between spans."""
    calls = batch_calls(model, preprocess, batch_size, mesh)
    batches = read_batches(dataset, todo, batch_size, calls)
    pending: deque[_Computing | SpanEnd] = deque()
    computing = 0
    rows: list[int] = []
    done: list[np.ndarray] = []
    for item in chain(ahead(batches, _BATCHES_AHEAD), [None]):
        if isinstance(item, Batch):
            # Calls are asynchronous. The result of a batch is fetched while the next one is computed.
            pending.append(_Computing(calls(item.images), item.rows))
            computing += 1
        elif item is not None:
            pending.append(item)
        while pending and (item is None or computing > 1 or isinstance(pending[0], SpanEnd)):
            first = pending.popleft()
            if isinstance(first, _Computing):
                done.append(np.asarray(first.embeddings)[: len(first.rows)])
                rows.extend(first.rows)
                computing -= 1
                report(len(first.rows))
                continue
            joined = np.concatenate([np.empty((0, model.embedding_dim), np.float32), *done])
            yield first.span, Shard(joined, np.array(rows, np.int32), first.unreadable)
            rows, done = [], []
