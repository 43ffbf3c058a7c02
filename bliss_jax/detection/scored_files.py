"""Scoring of image files and folders: one row per file, in order, while files arrive.

A file that cannot be read gets a row with the reason, and the run continues. Folders are searched as
`datasets/image_files.py` describes. Memory does not grow with the number of files, except for the names of
one folder at a time.

Images are read in threads and resized on the host, so that one compiled program serves all image sizes.
Files are scored together as soon as there are `batch_size` of them or no further file arrives for a while.
All scores come from batches of one shape (`encoding.py`), so neither the batch size nor the arrival times
change a score.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from bliss_jax.datasets import FileReader, Found, UnreadableImageError, decode_image
from bliss_jax.detection.detector import Detector
from bliss_jax.detection.embedding_cache import EmbeddingCache
from bliss_jax.detection.encoding import BatchEncoder
from bliss_jax.embedding import BATCH_SIZE, encoder_key, preprocessing_facts, readers
from bliss_jax.storage import package_versions


class ScoredFile(NamedTuple):
    """The result for one file. If there is an error, all fields except `path` and `error` are None."""

    path: str
    """Path as given, or below a folder that was given."""
    score: float | None = None
    """Score of the detector, BLISS by default; higher is more anomalous."""
    p_value: float | None = None
    """Split-conformal p-value; None without calibration images."""
    anomaly: bool | None = None
    """Whether the image is flagged; None without an alpha."""
    nearest_class: str | None = None
    """Normal class with the smallest BLISS score, see `Explanation`."""
    internal: float | None = None
    """Internal class score at the nearest class."""
    external: float | None = None
    """External text score at the nearest class."""
    words: tuple[tuple[str, float], ...] | None = None
    """Nearest phrases with their z-scores; None unless they are requested."""
    error: str | None = None
    """Reason why the file could not be scored."""


class _Cached(NamedTuple):
    """An embedding from the cache."""

    embedding: Float[np.ndarray, " dim"]


class _Resized(NamedTuple):
    """An image that is to be embedded, and the SHA-256 of its file if there is a cache."""

    image: UInt8[np.ndarray, "_ _ 3"]
    sha256: str | None


_Read = ScoredFile | _Cached | _Resized
"""A file after reading: a row without a score (or a known one), an embedding, or an image."""


def score_files(
    detector: Detector,
    paths: Iterable[str | os.PathLike[str]],
    *,
    alpha: float | None = None,
    words: int = 0,
    batch_size: int = BATCH_SIZE,
    patience: float = 0.2,
    reader: FileReader | None = None,
    cache: Path | None = None,
    known: Mapping[str, ScoredFile] | None = None,
) -> Iterator[ScoredFile]:
    """Scores files and folders, and yields one row per file in order, as soon as its batch is computed.

    Args:
        detector: Detector with an encoder.
        paths: Files and folders; may be an iterator that blocks (e.g. lines of standard input).
        alpha: False-alarm rate at which each image is flagged; None flags none.
        words: Number of nearest phrases per row; 0 omits them.
        batch_size: Largest number of files that are scored together. It does not change scores.
        patience: Seconds without a further file after which an incomplete batch is scored.
        reader: How files are found and read; by default with the background and bit depth of the fit.
        cache: Folder for embeddings, by the content of the files. Files with known content are not decoded
            again, so `reader` has no notes on them.
        known: Rows of files that are not scored again, by path.

    Raises:
        ValueError: The detector has no encoder, or too few calibration images for alpha.
        OSError: The cache cannot be written.
    """
    # Checked here and not in the generator, so that errors are raised at the call, not at the first row.
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if detector.model is None:
        raise ValueError(
            "this detector has no encoder for files: add one with with_model(load_model(...))"
        )
    decoding = detector.decoding
    reader = reader or FileReader(background=decoding.background, bit_depth=decoding.bit_depth)
    encode = BatchEncoder(detector.model, detector.preprocess, detector.images_per_device)
    kept = None if cache is None else _open_cache(cache, detector, reader)
    threshold = None if alpha is None else detector.threshold(alpha)
    rows = _Rows(detector, encode, kept, threshold, words)

    def read(found: Found) -> _Read:
        if known is not None and found.path in known:
            return known[found.path]
        return _read(found, reader, encode.resize, kept)

    return _score_files(rows, reader.find(paths), read, batch_size, patience)


def _score_files(
    rows: "_Rows",
    found: Iterator[Found],
    read: Callable[[Found], _Read],
    batch_size: int,
    patience: float,
) -> Iterator[ScoredFile]:
    for batch in _batches(found, read, batch_size, patience):
        yield from rows(batch)


class _Rows:
    """Computes the rows of a batch of files."""

    def __init__(
        self,
        detector: Detector,
        encode: BatchEncoder,
        cache: EmbeddingCache | None,
        threshold: float | None,
        words: int,
    ):
        self._detector, self._encode, self._cache = detector, encode, cache
        self._threshold, self._words = threshold, words

    def __call__(self, batch: list[tuple[str, _Read]]) -> Iterator[ScoredFile]:
        new = [item for _, item in batch if isinstance(item, _Resized)]
        embedded = iter(self._encode([item.image for item in new])) if new else iter(())
        embeddings = []
        for _, item in batch:
            if isinstance(item, _Cached):
                embeddings.append(item.embedding)
            elif isinstance(item, _Resized):
                embeddings.append(embedding := next(embedded))
                if self._cache is not None and item.sha256 is not None:
                    self._cache.put(item.sha256, embedding)
        scored = self._scored(np.stack(embeddings)) if embeddings else iter(())
        for path, item in batch:
            yield item if isinstance(item, ScoredFile) else next(scored)._replace(path=path)

    def _scored(self, embeddings: Float[np.ndarray, "images dim"]) -> Iterator[ScoredFile]:
        for why in self._detector.explain(embeddings, words=max(self._words, 1)):
            yield ScoredFile(
                path="",
                score=why.score,
                p_value=why.p_value,
                anomaly=None if self._threshold is None else why.score > self._threshold,
                nearest_class=why.nearest_class,
                internal=why.internal,
                external=why.external,
                words=why.words[: self._words] if self._words else None,
            )


def _open_cache(folder: Path, detector: Detector, reader: FileReader) -> EmbeddingCache:
    model = detector.model
    assert model is not None  # noqa: S101 (checked by the caller)
    key = {
        **encoder_key(model),
        "preprocessing": preprocessing_facts(model, detector.preprocess),
        "images_per_device": detector.images_per_device,
        "decoding": reader.decoding.describe(),
        "versions": package_versions(),
    }
    return EmbeddingCache(folder, key, model.embedding_dim)


def _read(
    found: Found,
    reader: FileReader,
    resize: Callable[[np.ndarray], np.ndarray],
    cache: EmbeddingCache | None,
) -> _Read:
    """Reads a file; its row has the reason if it cannot be read."""
    if found.problem is not None:
        return ScoredFile(found.path, error=found.problem)
    try:
        if cache is None:
            return _Resized(resize(reader.read(Path(found.path), found.path)), None)
        content = _content(found.path)
        sha256 = hashlib.sha256(content).hexdigest()
        if (embedding := cache.get(sha256)) is not None:
            return _Cached(embedding)
        note = reader.notes.about(found.path, found.path)
        pixels = decode_image(content, found.path, reader.decoding, note)
        return _Resized(resize(pixels), sha256)
    except UnreadableImageError as error:
        return ScoredFile(found.path, error=error.reason)
    except (OSError, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return ScoredFile(found.path, error=reason or type(error).__name__)


def _content(path: str) -> bytes:
    file = Path(path)
    if not file.is_file() and file.exists():  # opening a pipe would block
        raise ValueError("Is a directory" if file.is_dir() else "not a regular file")
    return file.read_bytes()


def _batches(
    found: Iterator[Found], read: Callable[[Found], _Read], size: int, patience: float
) -> Iterator[list[tuple[str, _Read]]]:
    """Yields batches of up to `size` paths in order, each with its file after reading.

    One thread iterates over `found`, which may block; others read the files.
    """
    ready: queue.Queue[tuple[str, Future[_Read]] | BaseException | None] = queue.Queue(2 * size)
    stop = threading.Event()
    pool = ThreadPoolExecutor(readers())

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def walk() -> None:
        try:
            for file in found:
                if stop.is_set():
                    return
                put((file.path, pool.submit(read, file)))
            put(None)
        except BaseException as error:
            put(error)

    # A daemon thread, because it cannot be stopped while it waits for standard input.
    threading.Thread(target=walk, daemon=True).start()
    try:
        ended = False
        while not ended:
            batch: list[tuple[str, Future[_Read]]] = []
            while len(batch) < size and not ended:
                try:
                    item = ready.get(timeout=patience if batch else None)
                except queue.Empty:
                    break
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    ended = True
                else:
                    batch.append(item)
            if batch:
                yield [(path, future.result()) for path, future in batch]
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
