"""Batches in, embeddings out: images read ahead in threads, encoded over all devices.

Every batch has the same shape (the last one is padded and the padding cut off), so that one compilation
serves the whole run. With several devices, batches are sharded over them and parameters replicated.
Images of one size travel as they are, uint8 at their own size, and are resized on the device; a batch
of several sizes is resized on the host, to the same pixels.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from bliss_jax.datasets import ImageDataset, UnreadableImageError
from bliss_jax.embedding_set import EmbeddingSet
from bliss_jax.models import Model
from bliss_jax.models.model import TEXT_BATCH
from bliss_jax.models.preprocess import resize_on_host
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
_READERS = 4
_BATCHES_AHEAD = 2
_TEXTS_AT_ONCE = 4096


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
    progress: Progress | None = None,
) -> EmbeddedImages:
    """Embeds all images of a data set.

    Args:
        model: The encoder.
        dataset: Images of any sizes.
        preprocess: As `Model.encode_images`.
        batch_size: Images per call of the encoder; rounded up to a multiple of the devices.
        mesh: Devices to compute on, along its first axis; all local devices by default.
        progress: Called after each batch with the number of images it held.

    Returns:
        Embeddings of the images that could be read, and the names of those that could not.

    Raises:
        ValueError: a batch size below 1, an unknown preprocessing, or no readable image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    mesh = mesh or Mesh(np.array(jax.local_devices()), ("data",))
    batch_size = -(-batch_size // mesh.size) * mesh.size
    replicated = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    model = dataclasses.replace(model, params=replicated)
    by_image = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))

    rows: list[int] = []
    unreadable: list[str] = []
    done: list[np.ndarray] = []
    pending: deque[tuple[jax.Array, int]] = deque()

    def collect() -> None:
        embeddings, size = pending.popleft()
        done.append(np.asarray(embeddings)[:size])
        if progress is not None:
            progress(size)

    for batch in _read_batches(dataset, batch_size, unreadable):
        rows.extend(row for row, _ in batch)
        images = _stack(model, [image for _, image in batch], batch_size)
        pending.append(
            (model.encode_images(jax.device_put(images, by_image), preprocess), len(batch))
        )
        # Dispatch returns at once: a batch is waited for only while the next one is being computed.
        if len(pending) > 1:
            collect()
    while pending:
        collect()
    if not rows:
        raise ValueError(f"{dataset.name}: no image could be read, the first: {unreadable[0]}")
    return EmbeddedImages(np.concatenate(done), np.array(rows, np.int32), tuple(unreadable))


def embed_texts(
    model: Model,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    progress: Progress | None = None,
) -> Float[np.ndarray, "texts dim"]:
    """Embeds texts (prompts, already filled in); see `Model.encode_texts`.

    Raises:
        ValueError: no texts, or a text longer than the model's context (unless `truncate`).
    """
    if not texts:
        raise ValueError("texts: expected at least one text, got none")
    starts = list(range(0, len(texts), _TEXTS_AT_ONCE))
    if len(starts) > 1 and len(texts) - starts[-1] < TEXT_BATCH:
        # A rest of less than a batch would be a shape of its own to compile; it joins its neighbour.
        starts.pop()
    done = []
    for start, end in zip(starts, [*starts[1:], len(texts)], strict=True):
        some = list(texts[start:end])
        done.append(np.asarray(model.encode_texts(some, truncate=truncate)))
        if progress is not None:
            progress(len(some))
    return np.concatenate(done)


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
        track: Opens a progress display for each stage.

    Returns:
        The embeddings, with what they were made with as provenance.

    Raises:
        ValueError: class names that differ, an unknown preprocessing, a prompt too long for the model,
            images that cannot be read, each with its name and reason.
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
        arrays = {name: embed_texts(model, t, progress=progress) for name, t in texts.items()}
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
                model, dataset, preprocess=preprocess, batch_size=batch_size, progress=progress
            )
        arrays[f"{side}_embeddings"] = embedded.embeddings
        arrays[f"{side}_labels"] = dataset.labels[embedded.rows]
        unreadable += embedded.unreadable
        if unreadable and not skip_unreadable:
            raise ValueError(
                f"{len(unreadable)} {side} images cannot be used:\n" + "\n".join(unreadable)
            )
    statistics = (
        model.preprocessing if preprocess is None else model.preprocessing.with_stats(preprocess)
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
            "preprocessing": statistics.describe(),
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


def _read_batches(
    dataset: ImageDataset, batch_size: int, unreadable: list[str]
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Full batches of (row, image), read ahead in threads; what cannot be read goes to `unreadable`."""

    def read(row: int) -> np.ndarray | str:
        try:
            return dataset.images[row]
        except UnreadableImageError as error:
            return str(error)

    ahead = _BATCHES_AHEAD * batch_size
    batch: list[tuple[int, np.ndarray]] = []
    with ThreadPoolExecutor(_READERS) as pool:
        reading = deque(pool.submit(read, row) for row in range(min(ahead, len(dataset))))
        for row in range(len(dataset)):
            image = reading.popleft().result()
            if row + ahead < len(dataset):
                reading.append(pool.submit(read, row + ahead))
            if isinstance(image, str):
                unreadable.append(image)
                continue
            batch.append((row, image))
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch


def _stack(model: Model, images: list[np.ndarray], batch_size: int) -> np.ndarray:
    """uint8 [batch_size, h, w, 3]: images of one size as they are, others resized; zeros as padding."""
    if len({image.shape for image in images}) > 1:
        images = [resize_on_host(image, model.preprocessing) for image in images]
    stacked = np.stack(images)
    return np.pad(stacked, ((0, batch_size - len(images)), (0, 0), (0, 0), (0, 0)))
