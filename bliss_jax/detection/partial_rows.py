"""Rows of an unfinished run, kept beside its output file until the run is complete.

    OUTPUT.partial      JSON lines: the settings of the run; "kept" rows of earlier runs; the run's own rows

Each row has the size and the time of modification of its file. The rows of a run that was interrupted or
killed stay in this file. A later run with the same settings takes them over, unless a file has changed in
the meantime. When the run is complete, its rows are written to the output and the partial file is removed.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bliss_jax.detection.scored_files import ScoredFile
from bliss_jax.storage import replacing


class PartialRows:
    """The rows of a run.

    Args:
        output: Output file of the run.
        settings: Everything that decides the rows; JSON values.
        resume: Whether to take over the rows of an earlier run.

    Raises:
        ValueError: There are rows of an earlier run and `resume` is false, or its settings were different.
        OSError: The file cannot be written.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], *, resume: bool):
        self.path = output.with_name(f"{output.name}.partial")
        self._settings = json.loads(json.dumps(settings))
        self.known: dict[str, ScoredFile] = {}
        """Rows of the earlier run whose files have not changed, by path."""
        self.written = 0
        """Number of rows in the file."""
        if self.path.exists() and not resume:
            raise ValueError(
                f"{self.path} has rows of an interrupted run: pass --resume to continue it, or delete the "
                "file"
            )
        kept = {path: line for path, line in self._earlier() if line["file"] == _facts(path)}
        with replacing(self.path) as file:
            file.write(_encoded({"settings": self._settings}))
            for path, line in kept.items():
                file.write(_encoded({"kept": line["row"], "file": line["file"]}))
                self.known[path] = _row(line["row"])
        self._file: BinaryIO = self.path.open("ab")

    def write(self, row: ScoredFile) -> None:
        """Appends a row and flushes it."""
        self._file.write(_encoded({"row": row._asdict(), "file": _facts(row.path)}))
        self._file.flush()
        self.written += 1

    def rows(self) -> Iterator[ScoredFile]:
        """Yields all rows of this run."""
        for line in _lines(self.path):
            if "row" in line:
                yield _row(line["row"])

    def close(self, *, remove: bool) -> None:
        """Closes the file; removes it if asked to, or if it has no rows."""
        self._file.close()
        if remove or not (self.written or self.known):
            self.path.unlink(missing_ok=True)

    def _earlier(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields path, row and facts of the rows of earlier runs."""
        if not self.path.exists():
            return
        lines = _lines(self.path)
        settings = next(lines, {}).get("settings", {})
        differing = [
            f"{name}: {settings.get(name)!r} then, {value!r} now"
            for name, value in self._settings.items()
            if settings.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{self.path} is of a run with other settings ({'; '.join(differing)}): repeat that command "
                "with --resume, or delete the file"
            )
        for line in lines:
            row = line.get("row") or line.get("kept")
            if isinstance(row, dict):
                yield row["path"], {"row": row, "file": line.get("file")}


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _facts(path: str) -> list[int] | None:
    """Returns size and time of modification of a file, or None if there is no such file."""
    try:
        facts = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return [facts.st_size, facts.st_mtime_ns]


def _row(fields: dict[str, Any]) -> ScoredFile:
    words = fields.get("words")
    return ScoredFile(
        **{**fields, "words": None if words is None else tuple((word, z) for word, z in words)}
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the complete lines of a file; a killed run may leave an incomplete one at the end."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
            except ValueError:
                return
            if isinstance(content, dict):
                yield content
