"""Scoring of image files and folders: one row per file, in order, while files arrive.

A file that cannot be read gets a row with the reason, and the run continues. A folder is searched recursively
in the order of file names. Hidden files and files that file browsers create (`datasets/folder.py` lists them)
are ignored. Links that lead out of the folder, links to folders, and files that are not regular get rows with
the reason. Memory does not grow with the number of files, except for the names of one folder at a time.

Images are read in threads and resized on the host, so that one compiled program serves all image sizes. A
batch is scored as soon as it is full or no further file arrives for a while.
"""

import dataclasses
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt8

from bliss_jax.datasets import IGNORED_NAMES, UnreadableImageError, decode_image
from bliss_jax.detection.detector import Detector
from bliss_jax.embedding import BATCH_SIZE, readers
from bliss_jax.models import resize_on_host

_FEW = 8
"""Intermediate batch size. Smaller batches are padded to 1 or to this size instead of the full batch size,
because the batches of a slow stream are small."""


class ScoredFile(NamedTuple):
    """The result for one file. If there is an error, all fields except `path` and `error` are None."""

    path: str
    """Path as given, or below a folder that was given."""
    score: float | None = None
    """BLISS score; higher is more anomalous."""
    p_value: float | None = None
    """Split-conformal p-value; None without calibration images."""
    anomaly: bool | None = None
    """Whether the image is flagged; None without an alpha."""
    nearest_class: str | None = None
    """Normal class with the smallest score."""
    internal: float | None = None
    """Internal class score at the nearest class."""
    external: float | None = None
    """External text score at the nearest class."""
    words: tuple[tuple[str, float], ...] | None = None
    """Nearest phrases with their z-scores; None unless they are requested."""
    error: str | None = None
    """Reason why the file could not be scored."""


class Found(NamedTuple):
    """A file to score, or a path with the reason why it cannot be scored."""

    path: str
    problem: str | None = None


def find_files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Found]:
    """Yields every given file and every file below a given folder, in order."""
    for given in paths:
        path = os.fspath(given)
        if Path(path).is_dir():
            yield from _below(path, Path(path).resolve())
        else:
            yield Found(path)


def _below(folder: str, root: Path) -> Iterator[Found]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith("."))
    except OSError as error:
        yield Found(folder, f"cannot list the folder: {error.strerror}")
        return
    for name in names:
        if name in IGNORED_NAMES:
            continue
        path = os.path.join(folder, name)  # noqa: PTH118 (100,000 of them)
        if os.path.islink(path):  # noqa: PTH114
            yield Found(path, _problem_of_link(path, root))
        elif os.path.isdir(path):  # noqa: PTH112
            yield from _below(path, root)
        else:
            yield Found(path, None if os.path.isfile(path) else "not a regular file")  # noqa: PTH113


def _problem_of_link(path: str, root: Path) -> str | None:
    try:
        target = Path(path).resolve(strict=True)
    except (OSError, RuntimeError):  # Python versions differ in the error for a loop
        return "a broken link"
    if not target.is_relative_to(root):
        return "a link that leads out of the folder"
    if target.is_dir():
        return "a link to a folder, which is not followed"
    return None if target.is_file() else "not a regular file"


def score_files(
    detector: Detector,
    paths: Iterable[str | os.PathLike[str]],
    *,
    alpha: float | None = None,
    words: int = 0,
    batch_size: int = BATCH_SIZE,
    patience: float = 0.2,
) -> Iterator[ScoredFile]:
    """Scores files and folders, and yields one row per file in order, as soon as its batch is computed.

    Args:
        detector: Detector with an encoder.
        paths: Files and folders; may be an iterator that blocks (e.g. lines of standard input).
        alpha: False-alarm rate at which each image is flagged; None flags none.
        words: Number of nearest phrases per row; 0 omits them.
        batch_size: Images per call of the encoder.
        patience: Seconds without a further file after which an incomplete batch is scored.

    Raises:
        ValueError: The detector has no encoder, or too few calibration images for alpha.
    """
    # Checked here and not in the generator, so that errors are raised at the call, not at the first row.
    encode = _Encoder(detector, batch_size)
    threshold = None if alpha is None else detector.threshold(alpha)
    return _score_files(detector, paths, encode, threshold, words, batch_size, patience)


def _score_files(
    detector: Detector,
    paths: Iterable[str | os.PathLike[str]],
    encode: "_Encoder",
    threshold: float | None,
    words: int,
    batch_size: int,
    patience: float,
) -> Iterator[ScoredFile]:
    for batch in _batches(find_files(paths), encode.read, batch_size, patience):
        images = [image for _, image in batch if not isinstance(image, str)]
        rows = iter(_rows(detector, encode(images), threshold, words) if images else ())
        for path, image in batch:
            if isinstance(image, str):
                yield ScoredFile(path, error=image)
            else:
                yield next(rows)._replace(path=path)


def _rows(
    detector: Detector, embeddings: np.ndarray, threshold: float | None, words: int
) -> Iterator[ScoredFile]:
    for why in detector.explain(embeddings, words=max(words, 1)):
        yield ScoredFile(
            path="",
            score=why.score,
            p_value=why.p_value,
            anomaly=None if threshold is None else why.score > threshold,
            nearest_class=why.nearest_class,
            internal=why.internal,
            external=why.external,
            words=why.words[:words] if words else None,
        )


class _Encoder:
    """Reads files as images of the model's input size, and embeds them on all local devices."""

    def __init__(self, detector: Detector, batch_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if detector.model is None:
            raise ValueError(
                "this detector has no encoder for files: add one with with_model(load_model(...))"
            )
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        params = jax.device_put(detector.model.params, NamedSharding(mesh, PartitionSpec()))
        self._model = dataclasses.replace(detector.model, params=params)
        self._preprocess = detector.preprocess
        self._preprocessing = self._model.preprocessing_with(detector.preprocess)
        self._sharding = NamedSharding(mesh, PartitionSpec("data"))
        self._sizes = sorted({-(-n // mesh.size) * mesh.size for n in (1, _FEW, batch_size)})

    def read(self, path: str) -> UInt8[np.ndarray, "size size 3"]:
        """Returns an image at the model's input size, with the same pixels as resizing on the device."""
        return resize_on_host(decode_image(Path(path), path), self._preprocessing)

    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        """Returns embeddings [images, dim]."""
        size = next(n for n in self._sizes if n >= len(images))
        missing = size - len(images)
        stacked = np.pad(np.stack(images), ((0, missing), (0, 0), (0, 0), (0, 0)))
        on_devices = jax.device_put(stacked, self._sharding)
        return np.asarray(self._model.encode_images(on_devices, self._preprocess))[: len(images)]


def _batches(
    found: Iterator[Found], read: Any, size: int, patience: float
) -> Iterator[list[tuple[str, np.ndarray | str]]]:
    """Yields batches of up to `size` paths in order, each with its image or the reason of its error.

    One thread iterates over `found`, which may block; others read the files.
    """
    ready: queue.Queue[tuple[str, Future] | BaseException | None] = queue.Queue(2 * size)
    stop = threading.Event()
    pool = ThreadPoolExecutor(readers())

    def put(item: tuple[str, Future] | BaseException | None) -> None:
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
                put((file.path, pool.submit(_image_or_reason, read, file)))
            put(None)
        except BaseException as error:
            put(error)

    # A daemon thread, because it cannot be stopped while it waits for standard input.
    threading.Thread(target=walk, daemon=True).start()
    try:
        ended = False
        while not ended:
            batch: list[tuple[str, Future]] = []
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
                yield [(path, image.result()) for path, image in batch]
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _image_or_reason(read: Any, file: Found) -> np.ndarray | str:
    if file.problem is not None:
        return file.problem
    try:
        return read(file.path)
    except UnreadableImageError as error:
        return error.reason
    except (OSError, ValueError, MemoryError) as error:
        return str(error) or type(error).__name__
