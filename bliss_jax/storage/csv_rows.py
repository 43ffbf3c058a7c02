"""Rows of CSV files by RFC 4180."""

from collections.abc import Iterable
from typing import Any

_QUOTED = ('"', ",", "\r", "\n")


def csv_row(cells: Iterable[Any]) -> str:
    """Returns a row with its line feed; None is an empty cell.

    Cells with a comma, a quote or a line break are quoted. The module `csv` of Python before 3.11.9 and
    3.12.3 leaves a carriage return unquoted if rows end with a line feed.
    """
    return ",".join(map(_cell, cells)) + "\n"


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in _QUOTED) else text
