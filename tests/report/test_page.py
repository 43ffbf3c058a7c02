"""The page is self-contained, shows the numbers of the evaluation, and escapes names."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import reference
from clusters import PROTOCOL
from PIL import Image
from reports import SCRIPT, WEIGHT, K

from bliss_jax.report import write_report
from bliss_jax.report.gallery import WORDS, thumbnail


class Page(HTMLParser):
    """Elements of an HTML page with their attributes and text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for i in self.open:
            self.elements[i][2].append(data)

    def all(self, tag):
        return [(attrs, "".join(text)) for name, attrs, text in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report.page.read_text(encoding="utf-8"))


def test_the_page_needs_no_network(page):
    for tag, attributes, _ in page.elements:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), f"<{tag} {name}={value!r}>"
    style = "".join(text for _, text in page.all("style"))
    assert "url(" not in style
    assert "@import" not in style


def test_figures_are_on_the_page_and_in_files(report, page):
    folder = report.page.parent / "figures"
    names = {file.stem for file in folder.iterdir()}
    assert names == {
        *("tsne", "label-similarity", "error-quantiles", "parts"),
        *("roc", "histogram", "splits", "lambda", "k", "dictionary", "shots"),
    }
    on_page = {attributes["src"] for attributes, _ in page.all("img")}
    for name in names:
        svg = (folder / f"{name}.svg").read_bytes()
        assert f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" in on_page
        with Image.open(folder / f"{name}.png") as image:
            assert image.size[0] == 768
    assert all(attributes["alt"] for attributes, _ in page.all("img"))


def test_names_with_markup_are_shown_as_text(report, page):
    assert len(page.all("script")) == 1, "the script of the page"
    assert not any("taken" in text for _, text in page.all("script"))
    text = "".join(text for _, text in page.all("body"))
    for name in (*report.embeddings.class_names, f"bliss-jax evaluate --model '{SCRIPT}'"):
        assert name in text


@pytest.mark.parity
def test_the_table_shows_the_mean_auroc_of_every_score(report, page):
    rows = [text for _, text in page.all("tr")]
    for row in report.evaluation.rows:
        name = "mcm (label prompt)" if row.score == "mcm" else row.score
        mean = 100 * np.mean([split.auroc for split in row.splits])
        assert f"{name}{mean:.1f}{mean:.1f}" in rows


def test_the_page_contains_the_whole_provenance(report, page):
    provenance = json.loads(page.all("pre")[-1][1])
    assert provenance == [json.loads(json.dumps(dict(report.evaluation.provenance), default=str))]


@pytest.fixture(scope="module")
def cards(page):
    return [attributes for attributes, _ in page.all("li")]


@pytest.mark.parity
def test_the_gallery_explains_the_most_misjudged_images_of_the_median_split(report, page, cards):
    e = report.embeddings
    bliss = next(row for row in report.evaluation.rows if row.score == "bliss")
    split = PROTOCOL.splits[int(np.argsort([s.auroc for s in bliss.splits])[1])]
    rows = np.flatnonzero(np.isin(e.test_labels, [*split.normal, *split.anomalous]))
    internal, external, score = reference.bliss(
        e.test_embeddings[rows],
        e.label_embeddings,
        e.dictionary_embeddings,
        e.train_embeddings,
        e.train_labels,
        split.normal,
        k=K,
        weight=WEIGHT,
    )
    is_normal = np.isin(e.test_labels[rows], split.normal)
    normals, anomalies = np.flatnonzero(is_normal), np.flatnonzero(~is_normal)
    expected = [
        *normals[np.argsort(-score[normals])[:12]],
        *anomalies[np.argsort(score[anomalies])[:12]],
    ]
    assert len(cards) == 24
    texts = [text for _, text in page.all("li")]
    pictures = [
        attributes for attributes, _ in page.all("img") if "Test image" in attributes["alt"]
    ]
    for card, text, picture, i in zip(cards, texts, pictures, expected, strict=True):
        nearest = int(np.argmin(internal[i] + WEIGHT * external[i]))
        assert card["class"] == ("normal" if is_normal[i] else "anomaly")
        assert card["data-name"] == e.class_names[e.test_labels[rows[i]]]
        assert f"nearest class{e.class_names[split.normal[nearest]]}" in text.replace("\n", "")
        np.testing.assert_allclose(float(card["data-score"]), score[i], atol=1e-3)
        np.testing.assert_allclose(float(card["data-internal"]), internal[i, nearest], atol=1e-3)
        np.testing.assert_allclose(float(card["data-external"]), external[i, nearest], atol=1e-3)
        similarity = e.dictionary_embeddings @ e.test_embeddings[rows[i]]
        words = [e.dictionary[j] for j in np.argsort(-similarity)[:WORDS]]
        assert re.findall(r"z [+-]\d+\.\d\s*(.*?)\s*(?=z [+-]|$)", text.strip(), re.DOTALL) == words
        content = base64.b64decode(picture["src"].partition(",")[2])
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(np.asarray(image), report.images[rows[i]])


def test_large_images_are_reduced_for_the_page():
    image = np.random.default_rng(0).integers(0, 256, (300, 900, 3), np.uint8)
    kind, _, content = thumbnail(image).partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as reduced:
        assert reduced.size == (256, 85)


@pytest.mark.slow
def test_without_images_the_page_has_no_gallery(report, tmp_path):
    page = write_report(tmp_path, report.embeddings, PROTOCOL, [report.evaluation])
    assert 'id="gallery"' not in page.read_text(encoding="utf-8")


def test_invalid_arguments_are_rejected_before_anything_is_written(report, tmp_path):
    e = report.embeddings
    with pytest.raises(ValueError, match="expected 90 test images, got 89"):
        write_report(tmp_path, e, PROTOCOL, [report.evaluation], images=report.images[:89])
    others = tuple(row for row in report.evaluation.rows if row.score != "bliss")
    without = replace(report.evaluation, rows=others)
    with pytest.raises(ValueError, match="protocol 'three' with the score bliss"):
        write_report(tmp_path, e, PROTOCOL, [without])
    assert not list(tmp_path.iterdir())
