"""Batches in, embeddings out: images read ahead in threads, encoded over all devices, kept as they are done.

Every batch has the same shape (the last one is padded and the padding cut off), so that one compilation
serves the whole run. With several devices, batches are sharded over them and parameters replicated.
Images of one size travel as they are, uint8 at their own size, and are resized on the device; a batch
of several sizes, and images that are large, are resized on the host, to the same pixels.

The work is cut into shards (`shards.py`), and batches within them, in the same way whether or not they are
kept and however many processes there are: so a run that was stopped and one that was spread over processes
(`distributed.py`) give the same bits as one that was not. Each process embeds a contiguous part of the
shards that no process has; then all are gathered, a shard per process at a time.
"""

import dataclasses
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from bliss_jax.datasets import ImageDataset, UnreadableImageError
from bliss_jax.datasets.image_dataset import content_sha256
from bliss_jax.distributed import exchange, failing_together
from bliss_jax.embedding_set import EmbeddingSet
from bliss_jax.models import Model
from bliss_jax.models.preprocess import Preprocessing, resize_on_host
from bliss_jax.shards import (
    Shard,
    ShardFolder,
    Span,
    decode_shard,
    encode_shard,
    join_shards,
    key_digest,
    spans,
)
from bliss_jax.text import (
    CLIP_AD_ANOMALY,
    MCM_PROMPT,
    PROMPT,
    dictionary_hash,
    fill_prompt,
    find_overlap,
)
from bliss_jax.text import exclude_labels as without_labels
from bliss_jax.versions import versions

Progress = Callable[[int], None]
"""Called after each batch with the number of images or texts done since the last call."""

Track = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens a progress display: given what is done and how many there are, a context with a `Progress`."""

BATCH_SIZE = 64
SHARD_SIZE = 4096
"""Images in a shard of a large data set: some megabytes, written in no time beside embedding them."""

_SHARDS = 64
"""Smaller sets are cut into about so many shards, so that several processes have even shares."""

_BATCHES_AHEAD = 2
_LARGEST_SIDE = 2048
"""Larger images are resized as they are read: a batch of them would take gigabytes, and one of them is padded
to a whole batch."""

_IMAGES_AT_ONCE = 8
"""Read by a thread in one go: handing over single small images would cost as much as reading them."""

_TEXTS_AT_ONCE = 4096

Item = TypeVar("Item")


class EmbeddedImages(NamedTuple):
    """Embeddings of the images that could be read."""

    embeddings: Float[np.ndarray, "read dim"]
    """Unit-norm float32, in the order of the data set."""
    rows: Int[np.ndarray, " read"]
    """Position of each in the data set."""
    unreadable: tuple[str, ...]
    """Name and reason of each image that could not be read."""


def embed_images(
    model: Model,
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

    Under `jax.distributed` every process must call this with the same arguments; each embeds a part, and
    all return the same.

    Args:
        model: The encoder.
        dataset: Images of any sizes.
        preprocess: As `Model.encode_images`.
        batch_size: Images per call of the encoder, in each process; rounded up to a multiple of the
            devices.
        mesh: Devices to compute on, along its first axis; all local devices by default.
        cache: A folder in which finished shards are kept. What is there is not embedded again, if it was
            made with the same weights, dtype, preprocessing, images (`content_sha256` says what that
            covers), labels, batches, shards, versions and kind of device. Several processes may use it at
            once.
        shard_size: Images per shard, rounded up to whole batches. By default a 64th of the data set, but
            at most 4,096.
        progress: Called after each batch with the number of images it held, and for each shard that was
            found or came from another process.

    Returns:
        Embeddings of the images that could be read, and the names of those that could not.

    Raises:
        ValueError: a batch or shard size below 1, an unknown preprocessing, no readable image, a shard that
            is damaged (named, with how to go on), processes that differ in what they embed.
        OSError: a shard cannot be written; those written before stay.
    """
    for name, size in (("batch_size", batch_size), ("shard_size", shard_size)):
        if size is not None and size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    mesh = mesh or Mesh(np.array(jax.local_devices()), ("data",))
    batch_size = -(-batch_size // mesh.size) * mesh.size
    if shard_size is None:
        shard_size = min(SHARD_SIZE, -(-len(dataset) // _SHARDS))
    shard_size = -(-shard_size // batch_size) * batch_size
    replicated = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    model = dataclasses.replace(model, params=replicated)
    cut = spans(len(dataset), shard_size)
    key = {
        "what": "images",
        "model": _model_key(model),
        "preprocessing": model.preprocessing_with(preprocess).describe(),
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
    found = _in_shards(cut, f"{dataset.name}-{model.name}", key, content, cache, embed, progress)
    if not len(found.rows):
        first = found.unreadable[0]
        raise ValueError(f"{dataset.name}: no image could be read, the first: {first}")
    return EmbeddedImages(*found)


def embed_texts(
    model: Model,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "texts dim"]:
    """Embeds texts (prompts, already filled in); see `Model.encode_texts`.

    Under `jax.distributed` every process must call this with the same arguments. Blocks of 4,096 texts
    are dealt out like shards of images: a dictionary of some thousand is embedded by one process, one of
    80,000 by all.

    Args:
        model: The encoder.
        texts: Any number of texts.
        truncate: Cut texts longer than the context instead of refusing them.
        cache: As `embed_images`; a block is a shard.
        progress: Called after each block with the number of texts it held.

    Raises:
        ValueError: no texts, or a text longer than the model's context (unless `truncate`).
        OSError: a shard cannot be written; those written before stay.
    """
    if not texts:
        raise ValueError("texts: expected at least one text, got none")
    key = {"what": "texts", "model": _model_key(model), "truncate": truncate}

    def content() -> str:
        return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()

    def embed(todo: Sequence[Span], report: Progress) -> Iterator[tuple[Span, Shard]]:
        for span in todo:
            some = list(texts[slice(*span)])
            embedded = np.asarray(model.encode_texts(some, truncate=truncate))
            report(len(some))
            yield span, Shard(embedded, np.arange(*span, dtype=np.int32))

    blocks = tuple(spans(len(texts), _TEXTS_AT_ONCE))
    return _in_shards(
        blocks, f"texts-{model.name}", key, content, cache, embed, progress
    ).embeddings


def embed_dataset(
    model: Model,
    train: ImageDataset,
    test: ImageDataset,
    dictionary: Sequence[str],
    *,
    dictionary_name: str = "custom",
    exclude_labels: bool = False,
    prompt: str = PROMPT,
    preprocess: str | None = None,
    batch_size: int = BATCH_SIZE,
    train_classes: Collection[int] | None = None,
    test_classes: Collection[int] | None = None,
    skip_unreadable: bool = False,
    cache: Path | None = None,
    track: Track = lambda what, total: nullcontext(lambda done: None),
) -> EmbeddingSet:
    """Embeds all that an evaluation needs: images of both sets, labels, dictionary, baselines' texts.

    Args:
        model: The encoder.
        train: Labelled normal images (of every class that is normal in some split).
        test: Labelled images, with the same class names.
        dictionary: Phrases.
        dictionary_name: For provenance.
        exclude_labels: Leave phrases that are labels out of the dictionary.
        prompt: Template with `{label}`, for labels and dictionary alike.
        preprocess: As `Model.encode_images`.
        batch_size: As `embed_images`.
        train_classes: Embed only training images of these classes.
        test_classes: Embed only test images of these classes.
        skip_unreadable: Go on without images that cannot be read, and list them in the provenance;
            otherwise they are an error that names them all.
        cache: A folder in which embeddings of images and dictionary are kept as they are done, as
            `embed_images`.
        track: Opens a progress display for each stage.

    Returns:
        The embeddings, with what they were made with as provenance.

    Raises:
        ValueError: class names that differ, an unknown preprocessing, a prompt too long for the model,
            images that cannot be read, each with its name and reason; or as `embed_images`.
        OSError: a shard cannot be written.
    """
    if train.class_names != test.class_names:
        raise ValueError(f"training and test set differ in class names: {train.name}, {test.name}")
    labels_in_it = sorted(find_overlap(dictionary, train.class_names))
    if exclude_labels:
        dictionary = without_labels(dictionary, train.class_names)
    # Texts first: they are quick, and a prompt that is too long should not cost the images.
    texts = {
        "label_embeddings": fill_prompt(prompt, train.class_names),
        "dictionary_embeddings": fill_prompt(prompt, dictionary, allow_repeats=True),
        "mcm_label_embeddings": fill_prompt(MCM_PROMPT, train.class_names),
        "something_embedding": (CLIP_AD_ANOMALY,),
    }
    with track("texts", sum(map(len, texts.values()))) as progress:
        arrays = {
            name: embed_texts(
                model,
                t,
                cache=cache if name == "dictionary_embeddings" else None,
                progress=progress,
            )
            for name, t in texts.items()
        }
    arrays["something_embedding"] = arrays["something_embedding"][0]

    unreadable: list[str] = []
    for side, dataset, classes in (
        ("train", train, train_classes),
        ("test", test, test_classes),
    ):
        if classes is not None:
            dataset = dataset.subset(np.flatnonzero(np.isin(dataset.labels, list(classes))))
        with track(f"{side} images", len(dataset)) as progress:
            embedded = embed_images(
                model,
                dataset,
                preprocess=preprocess,
                batch_size=batch_size,
                cache=cache,
                progress=progress,
            )
        arrays[f"{side}_embeddings"] = embedded.embeddings
        arrays[f"{side}_labels"] = dataset.labels[embedded.rows]
        unreadable += embedded.unreadable
        if unreadable and not skip_unreadable:
            raise ValueError(
                f"{len(unreadable)} {side} images cannot be used:\n" + "\n".join(unreadable)
            )
    return EmbeddingSet(
        **arrays,
        class_names=train.class_names,
        dictionary=tuple(dictionary),
        provenance={
            "model": {
                "name": model.name,
                "revision": model.revision,
                "weights_sha256": model.weights_hash,
                "dtype": model.dtype,
            },
            "preprocessing": model.preprocessing_with(preprocess).describe(),
            "prompt": prompt,
            "dictionary": {
                "name": dictionary_name,
                "texts": len(dictionary),
                "sha256": dictionary_hash(dictionary),
                "labels_found": labels_in_it,
                "labels_excluded": exclude_labels,
            },
            "dataset": {
                "name": train.name,
                "train": train.source,
                "test": test.source,
                "unreadable": unreadable,
            },
            "versions": versions(),
        },
    )


def _in_shards(
    cut: tuple[Span, ...],
    name: str,
    key: Mapping[str, Any],
    content: Callable[[], str],
    cache: Path | None,
    embed: Callable[[Sequence[Span], Progress], Iterator[tuple[Span, Shard]]],
    progress: Progress | None,
) -> Shard:
    """All spans: read where they are kept, embedded where they are not, a part of them in each process.

    Args:
        cut: The spans.
        name: As `ShardFolder`.
        key: As `ShardFolder`, without what `content` and `_computed_with` add.
        content: SHA-256 of what is embedded; asked for only if something depends on it.
        cache: As `embed_images`.
        embed: Gives the spans it is called with as shards, in their order.
        progress: Called with numbers of rows.
    """
    report = progress or (lambda done: None)
    rank, processes = jax.process_index(), jax.process_count()
    have: dict[Span, Shard] = {}
    folder = None
    with failing_together():
        if cache is not None or processes > 1:
            key = {**key, "content_sha256": content(), "computed_with": _computed_with()}
            # Through JSON, so that it is what comes back from a file: lists, not tuples.
            key = json.loads(json.dumps(key))
        if cache is not None:
            folder = ShardFolder(Path(cache), name, key)
            have = {span: shard for span in cut if (shard := folder.read(span)) is not None}
    view = {"key": key_digest(key), "have": [i for i, span in enumerate(cut) if span in have]}
    views = [json.loads(v) for v in exchange(json.dumps(view).encode())]
    if others := [i for i, v in enumerate(views) if v["key"] != view["key"]]:
        raise ValueError(
            f"process {rank} embeds something else than processes {others}: images, labels, weights, "
            "versions and kind of device must be the same in all (a folder's files with the same times of "
            "modification)"
        )
    owners: dict[int, list[int]] = {i: [] for i in range(len(cut))}
    for process, v in enumerate(views):
        for i in v["have"]:
            owners[i].append(process)
    missing = [i for i in owners if not owners[i]]
    for process, part in enumerate(np.array_split(np.array(missing, np.int64), processes)):
        for i in part.tolist():
            owners[i] = [process]

    with failing_together():
        if have:
            report(sum(len(shard.rows) for shard in have.values()))
        mine = [cut[i] for i in missing if owners[i] == [rank]]
        if folder is not None and mine:
            folder.prepare()
        have |= _kept(embed(mine, report), folder)
    # Whoever has sent least sends next; what all have is not sent.
    queues: list[list[int]] = [[] for _ in range(processes)]
    for i, process in owners.items():
        if len(process) < processes:
            queues[min(process, key=lambda p: len(queues[p]))].append(i)
    for turn in range(max(map(len, queues))):
        own = queues[rank][turn : turn + 1]
        messages = exchange(b"".join(encode_shard(have[cut[i]], cut[i], key) for i in own))
        for queue, message in zip(queues, messages, strict=True):
            for i in queue[turn : turn + 1]:
                if cut[i] not in have:
                    have[cut[i]] = decode_shard(message, cut[i], key)
                    report(len(have[cut[i]].rows))
    return join_shards([have[span] for span in cut])


def _kept(embedded: Iterator[tuple[Span, Shard]], folder: ShardFolder | None) -> dict[Span, Shard]:
    """What is embedded, each shard written while the next one is made."""
    have: dict[Span, Shard] = {}
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for span, shard in embedded:
            have[span] = shard
            if writing is not None:
                writing.result()
            if folder is not None:
                writing = writer.submit(folder.write, span, shard)
        if writing is not None:
            writing.result()
    return have


class _Batch(NamedTuple):
    images: jax.Array
    """uint8, already on the devices; padded."""
    rows: Sequence[int]
    """Position of each in the data set; as many as are not padding."""


class _Computing(NamedTuple):
    embeddings: jax.Array
    rows: Sequence[int]


class _SpanEnd(NamedTuple):
    span: Span
    unreadable: tuple[str, ...]


def _embed_spans(
    model: Model,
    dataset: ImageDataset,
    preprocess: str | None,
    batch_size: int,
    mesh: Mesh,
    todo: Sequence[Span],
    report: Progress,
) -> Iterator[tuple[Span, Shard]]:
    """The images of some spans as shards; batches follow each other without a gap between the spans."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    batches = _read_batches(dataset, todo, batch_size, model.preprocessing, sharding)
    pending: deque[_Computing | _SpanEnd] = deque()
    computing = 0
    rows: list[int] = []
    done: list[np.ndarray] = []
    for item in chain(_ahead(batches, _BATCHES_AHEAD), [None]):
        if isinstance(item, _Batch):
            # Dispatch returns at once: a batch is waited for only while the next one is being computed.
            pending.append(_Computing(model.encode_images(item.images, preprocess), item.rows))
            computing += 1
        elif item is not None:
            pending.append(item)
        while pending and (item is None or computing > 1 or isinstance(pending[0], _SpanEnd)):
            first = pending.popleft()
            if isinstance(first, _Computing):
                done.append(np.asarray(first.embeddings)[: len(first.rows)])
                rows.extend(first.rows)
                computing -= 1
                report(len(first.rows))
                continue
            embeddings = np.concatenate([np.empty((0, model.embedding_dim), np.float32), *done])
            yield first.span, Shard(embeddings, np.array(rows, np.int32), first.unreadable)
            rows, done = [], []


def _ahead(items: Iterator[Item], number: int) -> Iterator[Item]:
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


def _read_batches(
    dataset: ImageDataset,
    todo: Sequence[Span],
    batch_size: int,
    preprocessing: Preprocessing,
    sharding: NamedSharding,
) -> Iterator[_Batch | _SpanEnd]:
    """Full batches, the last of each span apart, and after each span what could not be read of it."""
    images = dataset.images
    if isinstance(images, np.ndarray):
        for span in todo:
            for start in range(*span, batch_size):
                rows = range(start, min(start + batch_size, span.stop))
                stacked = _pad(images[rows.start : rows.stop], batch_size)
                yield _Batch(jax.device_put(stacked, sharding), rows)
            yield _SpanEnd(span, ())
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

    def batch(readable: list[tuple[int, np.ndarray]]) -> _Batch:
        stacked = _pad(_stack(pool, [image for _, image in readable], preprocessing), batch_size)
        return _Batch(jax.device_put(stacked, sharding), [row for row, _ in readable])

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
                yield _SpanEnd(span, tuple(unreadable))
                readable, unreadable = [], []
    finally:
        pool.shutdown(cancel_futures=True)


def readers() -> int:
    """Threads that read: one per CPU, at least four for the sake of slow disks."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(32, max(4, cpus or 1))


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


def _model_key(model: Model) -> dict[str, Any]:
    return {"weights_sha256": model.weights_hash, "config": repr(model.config)}


def _computed_with() -> dict[str, str]:
    """What the last bits of an embedding depend on beside its input."""
    packages = ("bliss-jax", "jax", "jaxlib", "flax", "numpy", "device")
    return {"pillow": version("pillow")} | {name: versions()[name] for name in packages}
