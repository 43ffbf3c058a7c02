"""HTML tables for notebooks are well-formed, and all texts are escaped."""

from html.parser import HTMLParser

import pytest

from bliss_jax.text import html_table

SCRIPT = "<script>alert('taken')</script> & \"more\""


class Fragment(HTMLParser):
    """Elements of an HTML fragment with their attributes and text, in order of their ends."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self._open.append((tag, dict(attrs), []))

    def handle_data(self, data):
        for _, _, texts in self._open:
            texts.append(data)

    def handle_endtag(self, tag):
        name, attributes, texts = self._open.pop()
        assert name == tag
        self.found.append((tag, attributes, "".join(texts)))

    def texts(self, tag: str) -> list[str]:
        return [text for name, _, text in self.found if name == tag]


def test_a_table_has_a_title_headings_rows_and_notes():
    html = html_table(("score", "AUROC"), [("bliss", "95.6")], title="zoc-6", notes=("A note.",))
    fragment = Fragment(html)
    assert fragment.texts("caption") == ["zoc-6"]
    assert fragment.texts("th") == ["score", "AUROC"]
    assert fragment.texts("td") == ["bliss", "95.6"]
    assert fragment.texts("p") == ["A note."]
    sides = [attributes["style"] for tag, attributes, _ in fragment.found if tag == "td"]
    assert [style.split(";")[0] for style in sides] == ["text-align: left", "text-align: right"]
    assert Fragment(html_table(("a",), [])).texts("caption") == []


def test_all_texts_are_escaped():
    html = html_table((SCRIPT,), [(SCRIPT,)], title=SCRIPT, notes=(SCRIPT,))
    assert "<script" not in html
    fragment = Fragment(html)
    for tag in ("caption", "th", "td", "p"):
        assert fragment.texts(tag) == [SCRIPT]


def test_rows_with_too_few_or_too_many_cells_are_rejected():
    for cells in (("a",), ("a", "b", "c")):
        with pytest.raises(ValueError, match="zip"):
            html_table(("one", "two"), [cells])
