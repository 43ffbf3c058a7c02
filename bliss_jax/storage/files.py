"""Atomic file writes: a file is written completely or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def check_writable(path: Path) -> None:
    """Checks that a file can be created at `path`, so that a long computation fails before it starts.

    Raises:
        ValueError: `path` is a folder, or its parent folder does not exist or is read-only.
    """
    folder = path.parent
    if not folder.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {folder}; create it first")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; give the path of a file")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write {path}: the folder {folder} is read-only")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` if the block succeeds and is deleted if it fails.

    The temporary file is in the same folder as `path`, so the replacement is one rename within one file
    system. An existing file at `path` stays unchanged until then, and also if the block fails.

    Raises:
        ValueError: No file can be created at `path` (see `check_writable`).
    """
    check_writable(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp creates a file that only its owner can read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Returns the umask of the process. The only way to read it is to set it and restore it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
