"""Embeddings in pieces that are kept on disk as they are done, so that a run that was stopped goes on.

A shard is what became of a contiguous range of images (or texts), one file of safetensors:

    FOLDER/NAME-KEY/START-STOP.safetensors      embeddings float32 [read, dim], rows int32 [read]

Each is sealed (`sealed.py`): it describes itself by the key in full, the range and the names of what could
not be read, and carries the SHA-256 of all of that and of both arrays. KEY are the first 16 digits of the
key's SHA-256; the key is a mapping of all that decides the embeddings, so that other weights or other images
never meet these files.

A file is written beside its place and renamed into it: it is there whole or not at all, also when two
processes write the same. A shard that was damaged later is refused by name, never repaired or skipped.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bliss_jax.storage import check_writable, replacing, seal, unseal

FORMAT = "bliss_jax shard 2"
_ABANDONED_SECONDS = 3600
"""Age at which a file that was being written is taken for one whose process was killed."""


class Span(NamedTuple):
    """Positions start, ..., stop - 1 of the data set."""

    start: int
    stop: int


class Shard(NamedTuple):
    """What became of the images of a span."""

    embeddings: Float[np.ndarray, "read dim"]
    """Unit-norm float32, of the images that could be read."""
    rows: Int[np.ndarray, " read"]
    """Position of each in the data set."""
    unreadable: tuple[str, ...] = ()
    """Name and reason of each of the others."""


def spans(total: int, size: int) -> tuple[Span, ...]:
    """0, ..., total - 1 in contiguous spans of `size`, the last one shorter."""
    return tuple(Span(start, min(start + size, total)) for start in range(0, total, size))


def encode_shard(shard: Shard, span: Span, key: Mapping[str, Any]) -> bytes:
    """A shard as the content of its file."""
    arrays = {"embeddings": shard.embeddings, "rows": shard.rows}
    return seal("shard", _description(shard.unreadable, span, key), arrays)


def decode_shard(content: bytes, span: Span, key: Mapping[str, Any]) -> Shard:
    """The shard that `encode_shard` made into this content.

    Raises:
        ValueError: the content is damaged, or of another span or key.
    """
    description, arrays = unseal("shard", content)
    unreadable = description.get("unreadable")
    if arrays.keys() != {"embeddings", "rows"} or not isinstance(unreadable, list):
        raise ValueError("it is damaged: it holds something else than a shard does")
    if description != _description(tuple(unreadable), span, key):
        raise ValueError("it was made from something else than its name says")
    return Shard(arrays["embeddings"], arrays["rows"], tuple(unreadable))


def _description(unreadable: tuple[str, ...], span: Span, key: Mapping[str, Any]) -> dict[str, Any]:
    # Lists, not tuples: as it comes back from JSON.
    return {"format": FORMAT, "key": key, "span": list(span), "unreadable": list(unreadable)}


def key_digest(key: Mapping[str, Any]) -> str:
    """SHA-256 of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def join_shards(shards: Sequence[Shard]) -> Shard:
    """One shard of them all, in the order given."""
    return Shard(
        np.concatenate([shard.embeddings for shard in shards]),
        np.concatenate([shard.rows for shard in shards]),
        tuple(name for shard in shards for name in shard.unreadable),
    )


@dataclass(frozen=True)
class ShardFolder:
    """The shards of one key below a folder.

    Attributes:
        root: Where the shards of all keys are; made when the first shard is written.
        name: What people call it, for the folder's name.
        key: All that decides the embeddings; JSON values.
    """

    root: Path
    name: str
    key: Mapping[str, Any] = field(repr=False)

    @property
    def folder(self) -> Path:
        """Of the shards of this key."""
        name = re.sub(r"[^\w.+-]+", "_", self.name).strip("_.")
        return self.root / f"{name}-{key_digest(self.key)[:16]}"

    def file(self, span: Span) -> Path:
        """Of a span."""
        return self.folder / f"{span.start:010d}-{span.stop:010d}.safetensors"

    def prepare(self) -> None:
        """Makes the folder, and removes what killed processes have left unfinished in it.

        Raises:
            ValueError: no file can be made there.
            OSError: the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_keep(self.folder, error) from error
        check_writable(self.file(Span(0, 0)))
        abandoned = time.time() - _ABANDONED_SECONDS
        for unfinished in self.folder.glob(".*.safetensors.*"):
            try:
                if unfinished.stat().st_mtime < abandoned:
                    unfinished.unlink()
            except FileNotFoundError:  # its process has finished it, or another has removed it
                continue

    def read(self, span: Span) -> Shard | None:
        """The shard of a span, or None where there is none yet.

        Raises:
            ValueError: its file is damaged; names it, and says how to go on.
            OSError: it cannot be read.
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
                f"{file} cannot be used: {error}. Delete that file and run the same again: only its "
                f"{span.stop - span.start} rows are embedded anew"
            ) from error

    def write(self, span: Span, shard: Shard) -> None:
        """Keeps a shard.

        Raises:
            OSError: it cannot be written (no space, say); those written before stay.
        """
        file = self.file(span)
        try:
            with replacing(file) as opened:
                opened.write(encode_shard(shard, span, self.key))
        except (OSError, ValueError) as error:
            raise _cannot_keep(file, error) from error


def _cannot_keep(path: Path, error: Exception) -> OSError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OSError(
        f"cannot write {path}: {reason}. The shards written before are kept; the same command goes on "
        "from them"
    )
