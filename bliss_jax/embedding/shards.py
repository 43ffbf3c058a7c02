"""Shards: parts of an embedding that are stored as they are finished, so an interrupted run can continue.

A shard contains the embeddings of a contiguous range of images (or texts). It is one safetensors file:

    FOLDER/NAME-KEY/START-STOP.safetensors      embeddings float32 [read, dim], rows int32 [read]

Each file is sealed (`bliss_jax.storage.seal`). Its description contains the complete key, the range and the
names of the images that could not be read; its SHA-256 covers the description and both arrays. The key is a
mapping of everything that determines the embeddings, and KEY is the first 16 digits of its SHA-256. Other
weights or other images therefore have other folders.

Files are written atomically, also if two processes write the same shard. A damaged shard is an error that
names the file; it is never repaired or skipped.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bliss_jax.storage import check_writable, replacing, seal, unseal

FORMAT = "bliss_jax shard 2"
_ABANDONED_SECONDS = 3600
"""Age at which an unfinished file is taken for one whose process was killed."""


class Span(NamedTuple):
    """Range of positions start, ..., stop - 1 in the data set."""

    start: int
    stop: int


class Shard(NamedTuple):
    """Embeddings of the images (or texts) of a span."""

    embeddings: Float[np.ndarray, "read dim"]
    """Unit-norm float32 embeddings of the images that could be read."""
    rows: Int[np.ndarray, " read"]
    """Position of each embedded image in the data set."""
    unreadable: tuple[str, ...] = ()
    """Name and reason of each image that could not be read."""


def spans(total: int, size: int) -> tuple[Span, ...]:
    """Divides 0, ..., total - 1 into contiguous spans of length `size`; the last one may be shorter."""
    return tuple(Span(start, min(start + size, total)) for start in range(0, total, size))


def encode_shard(shard: Shard, span: Span, key: Mapping[str, Any]) -> bytes:
    """Returns the content of a shard's file."""
    arrays = {"embeddings": shard.embeddings, "rows": shard.rows}
    return seal("shard", _description(shard.unreadable, span, key), arrays)


def decode_shard(content: bytes, span: Span, key: Mapping[str, Any]) -> Shard:
    """Decodes the content of a shard's file.

    Raises:
        ValueError: The content is damaged or belongs to another span or key.
    """
    description, arrays = unseal("shard", content)
    unreadable = description.get("unreadable")
    if arrays.keys() != {"embeddings", "rows"} or not isinstance(unreadable, list):
        raise ValueError("it is damaged: its arrays or its description are not those of a shard")
    if description != _description(tuple(unreadable), span, key):
        raise ValueError("its content belongs to another input than its name")
    return Shard(arrays["embeddings"], arrays["rows"], tuple(unreadable))


def _description(unreadable: tuple[str, ...], span: Span, key: Mapping[str, Any]) -> dict[str, Any]:
    # Lists instead of tuples, because JSON has only lists.
    return {"format": FORMAT, "key": key, "span": list(span), "unreadable": list(unreadable)}


def key_digest(key: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


class JoinedShards(dict[Span, Shard]):
    """Shards by their spans, whose embeddings are parts of one array.

    A shard is copied when it is added. To concatenate all shards at the end would take twice the memory, and time in
    which no device works.

    Args:
        length: Number of images (or texts) of all spans.
    """

    def __init__(self, length: int):
        super().__init__()
        self._length = length
        self._whole: np.ndarray | None = None

    def __setitem__(self, span: Span, shard: Shard) -> None:
        if self._whole is None:
            shape = self._length, shard.embeddings.shape[1]
            self._whole = np.empty(shape, shard.embeddings.dtype)
        part = self._whole[span.start : span.start + len(shard.rows)]
        if part.shape != shard.embeddings.shape:
            raise ValueError(
                f"embeddings of {span}: expected shape {list(part.shape)}, got {list(shard.embeddings.shape)}"
            )
        part[...] = shard.embeddings
        super().__setitem__(span, shard._replace(embeddings=part))

    def joined(self) -> Shard:
        """Returns all images that could be read as one shard, in the order of the data set."""
        shards = [self[span] for span in sorted(self)]
        rows = np.concatenate([shard.rows for shard in shards])
        embeddings = self._whole
        if embeddings is None or len(rows) < self._length:
            embeddings = np.concatenate([shard.embeddings for shard in shards])
        unreadable = tuple(name for shard in shards for name in shard.unreadable)
        return Shard(embeddings, rows, unreadable)


@dataclass(frozen=True)
class ShardFolder:
    """Folder with the shards of one key.

    Attributes:
        root: Folder for the shards of all keys; it is created when the first shard is written.
        name: Readable part of the folder's name.
        key: Everything that determines the embeddings, as JSON values.
    """

    root: Path
    name: str
    key: Mapping[str, Any] = field(repr=False)

    @property
    def folder(self) -> Path:
        """Folder of the shards of this key."""
        name = re.sub(r"[^\w.+-]+", "_", self.name).strip("_.")
        return self.root / f"{name}-{key_digest(self.key)[:16]}"

    def file(self, span: Span) -> Path:
        """Returns the file of a span."""
        return self.folder / f"{span.start:010d}-{span.stop:010d}.safetensors"

    def prepare(self) -> None:
        """Creates the folder and deletes unfinished files of killed processes.

        Raises:
            ValueError: No file can be created in the folder.
            OSError: The folder cannot be created.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        check_writable(self.file(Span(0, 0)))
        abandoned = time.time() - _ABANDONED_SECONDS
        for unfinished in self.folder.glob(".*.safetensors.*"):
            try:
                if unfinished.stat().st_mtime < abandoned:
                    unfinished.unlink()
            except FileNotFoundError:  # its process finished it, or another process deleted it
                continue

    def read(self, span: Span) -> Shard | None:
        """Reads the shard of a span, or returns None if it does not exist.

        Raises:
            ValueError: The file is damaged; the message names it and explains how to continue.
            OSError: The file cannot be read.
        """
        file = self.file(span)
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return decode_shard(content, span, self.key)
        except ValueError as error:
            raise ValueError(
                f"{file} cannot be used: {error}. Delete this file and repeat the run; only its "
                f"{span.stop - span.start} rows will be embedded again"
            ) from error

    def write(self, span: Span, shard: Shard) -> None:
        """Writes a shard.

        Raises:
            OSError: The shard cannot be written (e.g. no space); shards that were written before are kept.
        """
        file = self.file(span)
        try:
            with replacing(file) as opened:
                opened.write(encode_shard(shard, span, self.key))
        except (OSError, ValueError) as error:
            raise _cannot_write(file, error) from error


def _cannot_write(path: Path, error: Exception) -> OSError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OSError(
        f"cannot write {path}: {reason}. The shards written before are kept; repeat the run to continue "
        "from them"
    )
