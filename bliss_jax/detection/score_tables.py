"""Writers of scored files as CSV, JSON lines or Parquet, one row at a time.

    path, score, p_value, anomaly, nearest_class, internal, external, words, error

The columns are fixed before the first row. A value that does not apply is an empty cell (CSV) or null.
Numbers are written with the fewest digits that identify a float32. File names that are not valid UTF-8 keep
their bytes in CSV, have lone surrogates in JSON (as in `os.fsdecode`), and have backslash escapes in Parquet,
which allows neither.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bliss_jax.detection.scored_files import ScoredFile
from bliss_jax.storage import csv_row

FORMATS = ("csv", "jsonl", "parquet")
_ROW_GROUP = 4096


@runtime_checkable
class ByteSink(Protocol):
    """A binary file open for writing."""

    def write(self, content: bytes, /) -> int:
        """Writes bytes."""
        ...

    def flush(self) -> None:
        """Flushes buffered bytes."""
        ...


@runtime_checkable
class Writer(Protocol):
    """A writer of rows to an open file."""

    def write(self, row: ScoredFile) -> None:
        """Writes one row."""
        ...

    def close(self) -> None:
        """Writes buffered rows and leaves the file open."""
        ...


def table_columns(*, alpha: bool, words: bool) -> tuple[str, ...]:
    """Returns the columns of a table: `anomaly` only with an alpha, `words` only if they are requested."""
    left_out = {name for name, there in (("anomaly", alpha), ("words", words)) if not there}
    return tuple(name for name in ScoredFile._fields if name not in left_out)


def open_table(format: str, file: ByteSink, names: Sequence[str]) -> Writer:
    """Returns a writer of rows in one of `FORMATS`.

    Args:
        format: Name of the format.
        file: Binary file open for writing.
        names: Columns, as returned by `table_columns`.

    Raises:
        ValueError: The format is unknown, or it is Parquet and the package pyarrow is missing.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    writers: dict[str, Callable[..., Writer]] = {
        "csv": _Csv,
        "jsonl": _JsonLines,
        "parquet": _Parquet,
    }
    return writers[format](file, names)


class _Csv:
    def __init__(self, file: ByteSink, names: Sequence[str]):
        self._file, self._names = file, names
        self._line(names)

    def write(self, row: ScoredFile) -> None:
        cells = _plain(row, self._names)
        if cells.get("words") is not None:
            cells["words"] = "; ".join(f"{word} ({z:+.1f})" for word, z in cells["words"])
        if cells.get("anomaly") is not None:
            cells["anomaly"] = int(cells["anomaly"])
        self._line(list(cells.values()))

    def close(self) -> None:
        self._file.flush()

    def _line(self, cells: Sequence[Any]) -> None:
        self._file.write(csv_row(cells).encode("utf-8", "surrogateescape"))


class _JsonLines:
    def __init__(self, file: ByteSink, names: Sequence[str]):
        self._file, self._names = file, names

    def write(self, row: ScoredFile) -> None:
        self._file.write(json.dumps(_plain(row, self._names)).encode() + b"\n")

    def close(self) -> None:
        self._file.flush()


class _Parquet:
    def __init__(self, file: ByteSink, names: Sequence[str]):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ValueError(
                "Parquet files need the package pyarrow: pip install 'bliss-jax[parquet]'"
            ) from error
        word = pyarrow.struct([("word", pyarrow.string()), ("z", pyarrow.float32())])
        types = {
            **dict.fromkeys(("path", "nearest_class", "error"), pyarrow.string()),
            **dict.fromkeys(("score", "p_value", "internal", "external"), pyarrow.float32()),
            "anomaly": pyarrow.bool_(),
            "words": pyarrow.list_(word),
        }
        self._arrow = pyarrow
        self._names = names
        self._schema = pyarrow.schema([(name, types[name]) for name in names])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, row: ScoredFile) -> None:
        cells = _plain(row, self._names)
        for name in ("path", "error"):
            if cells.get(name) is not None:
                cells[name] = (
                    cells[name]
                    .encode("utf-8", "surrogateescape")
                    .decode("utf-8", "backslashreplace")
                )
        if cells.get("words") is not None:
            cells["words"] = [{"word": word, "z": z} for word, z in cells["words"]]
        self._rows.append(cells)
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def _plain(row: ScoredFile, names: Sequence[str]) -> dict[str, Any]:
    cells = {name: getattr(row, name) for name in names}
    for name in ("score", "p_value", "internal", "external"):
        if cells.get(name) is not None:
            cells[name] = _short(cells[name])
    if cells.get("words") is not None:
        cells["words"] = [[word, _short(z)] for word, z in cells["words"]]
    return cells


def _short(number: float) -> float:
    """Returns the decimal number with the fewest digits that rounds to the same float32."""
    return float(str(np.float32(number)))
