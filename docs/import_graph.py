"""Prints the import graph of `bliss_jax`: rooms, floors, arrows and cycles.

    python docs/import_graph.py             a summary line and the rooms of each floor
    python docs/import_graph.py --arrows    also the rooms that each room imports
    python docs/import_graph.py --mermaid   a Mermaid flowchart
    python docs/import_graph.py --svg FILE  a picture

A room is a package or a loose module of `bliss_jax`. An arrow leads from a room to a room that it imports;
imports inside functions count. The floor of a room is one more than the highest floor below it. The exit code
is 1 if there is a cycle. The pictures leave out each arrow that a longer path already implies.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "bliss_jax"
Graph = Mapping[str, frozenset[str]]
"""Maps each room to the rooms that it imports."""


def imported_names(source: str) -> Iterator[tuple[str, ...]]:
    """Yields every absolute import in a module, split at its dots, wherever it stands in the code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((*node.module.split("."), alias.name) for alias in node.names)


def room_graph(package: Path = PACKAGE) -> Graph:
    """Reads the arrows between the rooms of a package from its source files."""
    entries = [path for path in package.iterdir() if path.name != "__pycache__"]
    rooms = {path.name for path in entries if path.is_dir()}
    rooms |= {path.stem for path in entries if path.suffix == ".py" and path.stem != "__init__"}
    # `from bliss_jax import NAME` leads to the room from which the package's stub takes the name.
    stub = package / "__init__.pyi"
    listed = imported_names(stub.read_text(encoding="utf-8")) if stub.exists() else ()
    room_of = {room: room for room in rooms} | {name[-1]: name[1] for name in listed}
    graph: dict[str, set[str]] = {room: set() for room in sorted(rooms)}
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        if room in rooms:
            for first, *rest in imported_names(file.read_text(encoding="utf-8")):
                lower = room_of.get(rest[0]) if first == package.name and rest else None
                if lower in rooms and lower != room:
                    graph[room].add(lower)
    return {room: frozenset(arrows) for room, arrows in graph.items()}


def reachable(graph: Graph, start: str) -> frozenset[str]:
    """Returns all rooms that a room imports, directly or through others."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        room = waiting.pop()
        if room not in found:
            found.add(room)
            waiting += graph[room]
    return frozenset(found)


def cycles(graph: Graph) -> list[frozenset[str]]:
    """Returns the groups of rooms that import each other, directly or through others."""
    below = {room: reachable(graph, room) for room in graph}
    groups = {frozenset({other for other in below[room] if room in below[other]}) for room in graph}
    return sorted((group for group in groups if group), key=sorted)


def floors(graph: Graph) -> list[list[str]]:
    """Returns the rooms of each floor, from the ground up.

    Raises:
        ValueError: The graph has a cycle.
    """
    if found := cycles(graph):
        raise ValueError(f"rooms that import each other: {', '.join(sorted(found[0]))}")
    height: dict[str, int] = {}
    while len(height) < len(graph):
        for room in sorted(graph):
            if room not in height and graph[room] <= height.keys():
                height[room] = 1 + max((height[lower] for lower in graph[room]), default=0)
    levels = range(1, max(height.values()) + 1)
    return [sorted(room for room in graph if height[room] == level) for level in levels]


def direct_arrows(graph: Graph) -> list[tuple[str, str]]:
    """Returns the arrows that no longer path implies (the transitive reduction), for pictures."""
    return [
        (room, lower)
        for room in sorted(graph)
        for lower in sorted(graph[room])
        if not any(lower in reachable(graph, other) for other in graph[room] - {lower})
    ]


def summary(graph: Graph) -> str:
    """Returns the line of counts."""
    found = cycles(graph)
    height = "no" if found else len(floors(graph))
    arrows = sum(map(len, graph.values()))
    return f"{len(graph)} rooms, {height} floors, {arrows} arrows, {len(found)} cycles"


def as_mermaid(graph: Graph) -> str:
    """Returns a Mermaid flowchart with the highest floor on top."""
    arrows = [f"    {room} --> {lower}" for room, lower in direct_arrows(graph)]
    return "\n".join(["flowchart TD", *arrows]) + "\n"


def as_svg(graph: Graph) -> str:
    """Returns an SVG picture, the highest floor on top, drawn in the colour of the surrounding text."""
    levels = floors(graph)[::-1]
    width, step, box, height = 680, 84, 104, 34
    centre = {
        room: (width * (place + 0.5) / len(level), 24 + step * row)
        for row, level in enumerate(levels)
        for place, room in enumerate(level)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {step * len(levels) - 36}" role="img" '
        'class="import-graph" font-family="sans-serif" font-size="13" text-anchor="middle">',
        f"<title>Import graph: {summary(graph)}</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L10 5L0 10z" fill="currentColor"/></marker></defs>',
    ]
    for room, lower in direct_arrows(graph):
        (x0, y0), (x1, y1) = centre[room], centre[lower]
        top, bottom = y0 + height / 2, y1 - height / 2
        middle = (top + bottom) / 2
        parts.append(
            f'<path d="M{x0:.0f} {top:.0f}C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} '
            f'{x1:.0f} {bottom:.0f}" '
            'fill="none" stroke="currentColor" opacity="0.5" marker-end="url(#tip)"/>'
        )
    for room, (x, y) in centre.items():
        parts.append(
            f'<rect x="{x - box / 2:.0f}" y="{y - height / 2:.0f}" width="{box}" height="{height}" rx="6" '
            'fill="var(--color-background-primary, white)" stroke="currentColor"/>'
            f'<text x="{x:.0f}" y="{y + 4.5:.1f}" fill="currentColor">{room}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    """Prints what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description="Prints the import graph of bliss_jax.")
    parser.add_argument("--arrows", action="store_true", help="also list the imports of each room")
    parser.add_argument("--mermaid", action="store_true", help="print a Mermaid flowchart instead")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also write a picture")
    options = parser.parse_args()
    graph = room_graph()
    found = cycles(graph)
    if options.svg and not found:
        options.svg.write_text(as_svg(graph), encoding="utf-8")
    if options.mermaid:
        sys.stdout.write(as_mermaid(graph))
        return int(bool(found))
    sys.stdout.write(summary(graph) + "\n")
    for group in found:
        sys.stdout.write(f"cycle: {', '.join(sorted(group))}\n")
    if not found:
        levels = floors(graph)
        for number in range(len(levels), 0, -1):
            sys.stdout.write(f"floor {number}: {', '.join(levels[number - 1])}\n")
    if options.arrows:
        for room, lower in graph.items():
            sys.stdout.write(f"{room} imports {', '.join(sorted(lower)) or 'no other room'}\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
