"""Checks of weight files against their published SHA-256, and a memory of finished checks.

In the hub's cache a file of a snapshot is a link to `blobs/SHA256`, a name that is the hash of its content.
The blob may itself be a link to a store that several repositories share and that names files after another
hash. The check compares the content with the name of the first link's target.

Checking and fingerprinting a file of 1.7 GB takes seconds. The result is therefore remembered in a small file
for each set of weight files, keyed by their paths, sizes, inodes and times of modification and change. A
changed file has another key. Damage on the disk that changes none of these is not found by a remembered
check; `BLISS_JAX_WEIGHT_HASHES=off` checks each time. The variable can also name the folder; the default is
`$XDG_CACHE_HOME/bliss-jax/weights` (`~/.cache` if that variable is not set).
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bliss_jax.storage import replacing

_KEPT = 256
"""Number of remembered results; older ones are deleted."""


def published_sha256(file: Path) -> str | None:
    """Returns the SHA-256 that the hub's cache states for a file, or None for files elsewhere."""
    blob = file
    for _ in range(8):  # a longer chain of links is not the hub's
        if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
            return blob.name
        if not blob.is_symlink():
            return None
        blob = Path(os.path.normpath(blob.parent / blob.readlink()))
    return None


def check_content(file: Path) -> None:
    """Compares a file of the hub's cache with its published SHA-256.

    Raises:
        ValueError: The content differs. The message names the file to delete.
    """
    expected = published_sha256(file)
    if expected is None:
        return
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{file} is damaged: its SHA-256 is {found}, but it was published with {expected}. Delete "
            f"{file.resolve()} and load the model again, which downloads that file again"
        )


def remembered_fingerprint(files: Sequence[Path]) -> str | None:
    """Returns the fingerprint of weight files that were checked before and have not changed since."""
    entry = _entry(files)
    if entry is None:
        return None
    try:
        found = json.loads(entry.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and re.fullmatch(r"[0-9a-f]{64}", found) else None


def remember_fingerprint(files: Sequence[Path], fingerprint: str) -> None:
    """Remembers the fingerprint of checked weight files; a folder that cannot be written is ignored."""
    entry = _entry(files)
    if entry is None:
        return
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        content = {"fingerprint": fingerprint, "files": [str(file) for file in files]}
        with replacing(entry) as opened:
            opened.write((json.dumps(content) + "\n").encode())
        entries = sorted(entry.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in entries[:-_KEPT]:
            old.unlink(missing_ok=True)


def _entry(files: Sequence[Path]) -> Path | None:
    choice = os.environ.get("BLISS_JAX_WEIGHT_HASHES", "")
    if choice == "off" or not files:
        return None
    if choice:
        folder = Path(choice)
    else:
        caches = os.environ.get("XDG_CACHE_HOME", "")
        try:
            folder = Path(caches) if caches else Path.home() / ".cache"
        except RuntimeError:  # no home directory
            return None
        folder = folder / "bliss-jax" / "weights"
    state = []
    for file in files:
        resolved = file.resolve()
        found = resolved.stat()
        published = published_sha256(file)
        times = (found.st_mtime_ns, found.st_ctime_ns)
        state.append([str(resolved), published, found.st_size, found.st_ino, *times])
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    return folder / f"{key}.json"
