"""Reads user-defined protocols from JSON files.

    {"name": "vehicles against animals", "splits": [[0, 1, 8, 9], [2, 3, 4, 5, 6, 7]]}

Each split lists the ids of its normal classes; all other classes are anomalous. The content is validated
completely, and other fields are refused.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

_MAX_BYTES = 10_000_000
_MAX_NAME = 100


def read_protocol(
    path: Path, *, num_classes: int, reserved: Collection[str]
) -> tuple[str, list[list[int]]]:
    """Reads and checks a protocol file.

    Args:
        path: The JSON file.
        num_classes: Number of classes; ids must be smaller.
        reserved: Names of published protocols, which a file may not use.

    Returns:
        The name, and the ids of the normal classes of each split.

    Raises:
        ValueError: The file is not a valid protocol; the message gives the file, the field and the fault.
    """
    where = f"protocol file {path.name!r}"
    content = _parse(path, where)
    if not isinstance(content, dict):
        raise ValueError(f"{where} contains {_kind(content)}, expected an object")
    if missing := {"name", "splits"} - set(content):
        raise ValueError(f"{where} has no field {', '.join(sorted(missing))}")
    if unknown := set(content) - {"name", "splits"}:
        shown = ", ".join(repr(key[:_MAX_NAME]) for key in sorted(unknown)[:5])
        raise ValueError(f"{where} has unknown fields {shown}; expected name and splits")
    name = content["name"]
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ValueError(f"{where}: expected a name of printable text")
    if len(name) > _MAX_NAME:
        raise ValueError(f"{where}: name has {len(name)} characters, expected at most {_MAX_NAME}")
    if name in reserved:
        raise ValueError(
            f"{where}: {name!r} is the name of a published protocol; choose another name"
        )
    splits = content["splits"]
    if not isinstance(splits, list) or not splits:
        raise ValueError(
            f"{where}: splits is {_kind(splits)}, expected a list of at least one split"
        )
    for position, ids in enumerate(splits):
        _check_split(ids, f"{where}: splits[{position}]", num_classes)
    return name, splits


def _check_split(ids: Any, where: str, num_classes: int) -> None:
    if not isinstance(ids, list) or not ids:
        raise ValueError(f"{where} is {_kind(ids)}, expected a list of at least one class id")
    for i in ids:
        if type(i) is not int:
            raise ValueError(f"{where} contains {_kind(i)}, expected class ids (integers)")
        if not 0 <= i < num_classes:
            raise ValueError(f"{where} contains an id outside 0 to {num_classes - 1}")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{where} contains the same id twice")
    if len(ids) == num_classes:
        raise ValueError(f"{where} contains every class, expected at least one anomalous class")


def _parse(path: Path, where: str) -> Any:
    try:
        if not path.is_file():
            raise ValueError(f"{where} is not a file")
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(
                f"{where} has {path.stat().st_size} bytes, expected at most {_MAX_BYTES}"
            )
        return json.loads(path.read_bytes(), object_pairs_hook=_object, parse_constant=_constant)
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    # UnicodeDecodeError and JSONDecodeError are ValueErrors, like the errors raised above.
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(where) else f"{where}: {message}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object contains the same field twice")
    return content


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _kind(value: Any) -> str:
    kinds = {
        "NoneType": "null",
        "bool": "a boolean",
        "dict": "an object",
        "float": "a number with a fraction",
        "int": "an integer",
        "list": "an empty list" if value == [] else "a list",
        "str": "text",
    }
    return kinds[type(value).__name__]
