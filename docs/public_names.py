"""The table of all public names, with the first line of each docstring, generated from the package's stub."""

import inspect
from importlib import import_module

ROOMS = {
    "detection": "Detectors",
    "scores": "Scores, fitted state and thresholds",
    "metrics": "Metrics",
    "models": "Encoders and preprocessing",
    "text": "Prompts and dictionaries",
    "datasets": "Data sets and protocols",
    "embedding": "Embeddings",
    "evaluation": "Evaluation",
}
"""Heading of each room's part of the table, in the order of the table."""


def public_names(package: str = "bliss_jax") -> dict[str, list[tuple[str, str, str]]]:
    """Returns the kind, the name and the first line of the docstring of all public names, by heading.

    Raises:
        KeyError: If a room has no heading above.
        ValueError: If a name has no docstring.
    """
    module = import_module(package)
    found: dict[str, list[tuple[str, str, str]]] = {heading: [] for heading in ROOMS.values()}
    for name in module.__all__:
        value = getattr(module, name)
        room = value.__module__.split(".")[1]
        first = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
        if not first:
            raise ValueError(f"{package}.{name}: no docstring")
        kind = "class" if inspect.isclass(value) else "func"
        found[ROOMS[room]].append((kind, f"{package}.{name}", first))
    return found


def as_rst(names: dict[str, list[tuple[str, str, str]]]) -> list[str]:
    """Returns the table as lines of reStructuredText, with a link for each name."""
    lines = [".. list-table::", "   :class: public-names", "   :header-rows: 1", ""]
    lines += ["   * - name", "     - description"]
    for heading, rows in names.items():
        lines += [f"   * - **{heading}**", "     -"]
        for kind, name, first in rows:
            lines += [f"   * - :py:{kind}:`~{name}`", f"     - {as_text(first)}"]
    return lines


def as_text(line: str) -> str:
    """Returns a docstring's line with plain-text equations protected from being read as markup."""
    parts = line.split("`")
    for place in range(0, len(parts), 2):
        for character in "\\*|_":
            parts[place] = parts[place].replace(character, "\\" + character)
    text = "".join(f"``{part}``" if place % 2 else part for place, part in enumerate(parts))
    return f"\\{text}" if text.startswith("-") else text  # no list
