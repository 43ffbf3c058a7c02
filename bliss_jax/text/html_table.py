"""HTML table for notebooks, in which results are shown by their method `_repr_html_`."""

from collections.abc import Iterable, Sequence
from html import escape

_CAPTION = "caption-side: top; text-align: left; font-weight: bold; white-space: nowrap"


def html_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    notes: Iterable[str] = (),
    texts: int = 1,
) -> str:
    """Returns a self-contained HTML fragment: a table with a title above it and notes below it.

    All texts are escaped. The fragment has no colours and no fonts of its own, so it looks like the other
    tables of the notebook in a light and in a dark theme.

    Args:
        headings: Headings of the columns.
        rows: Cells of each row, as many as headings.
        title: Title of the table; none if it is empty.
        notes: Sentences below the table, one paragraph each.
        texts: Number of columns that contain text. They are left-aligned, the others right-aligned.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        sides = ["left"] * texts + ["right"] * (len(headings) - texts)
        shown = (
            f'<{tag} style="text-align: {side}; padding: 0.2em 0.6em">{escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(shown)}</tr>\n"

    caption = f'<caption style="{_CAPTION}">{escape(title)}</caption>\n' if title else ""
    body = "".join(row(cells, "td") for cells in rows)
    paragraphs = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    return (
        f"<div>\n<table>\n{caption}<thead>\n{row(headings, 'th')}</thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n{paragraphs}</div>\n"
    )
