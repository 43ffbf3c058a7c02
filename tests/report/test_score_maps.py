"""Heat maps, and the page of scored files with maps."""

import io
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import bliss_jax as bj
from bliss_jax.datasets.odd_glyphs import draw_odd_scenes, normal_names
from bliss_jax.report import write_score_report
from bliss_jax.report.gallery import thumbnail, thumbnail_size
from bliss_jax.report.heat_maps import as_png, heat_map, overlay

CHROMIUM = os.environ.get("BLISS_JAX_CHROMIUM") or shutil.which("chromium")
WORDS = ("black star", "<b>bold</b>", "letter", "digit")


def test_only_positive_values_are_drawn_and_unseen_pixels_have_grey_stripes():
    values = np.array([[-2.0, 0.0, 1.0], [2.0, np.nan, 4.0]], np.float32)
    colours = heat_map(values)
    np.testing.assert_array_equal(colours[..., 3], [[0, 0, 128], [180, 130, 255]])
    np.testing.assert_array_equal(colours[1, 1, :3], 128)
    # The ends of cividis are a dark blue and a yellow.
    assert colours[0, 0, 2] > colours[0, 0, 0]
    assert colours[1, 2, 0] > colours[1, 2, 2]
    assert (heat_map(np.full((2, 2), -1, np.float32))[..., 3] == 0).all()


def test_an_overlay_is_grey_under_no_map_and_the_map_where_it_is_strongest():
    image = np.full((1, 2, 3), (200, 100, 0), np.uint8)
    values = np.array([[0.0, 3.0]], np.float32)
    mixed = overlay(image, values)
    np.testing.assert_array_equal(mixed[0, 0], round(0.299 * 200 + 0.587 * 100))
    np.testing.assert_array_equal(mixed[0, 1], heat_map(values)[0, 1, :3])
    opened = np.asarray(Image.open(io.BytesIO(as_png(heat_map(values)))))
    np.testing.assert_array_equal(opened, heat_map(values))


@pytest.mark.parametrize("shape", [(10, 20, 3), (300, 100, 3), (2000, 3, 3)])
def test_the_size_of_a_thumbnail_is_known_before_it_is_made(shape):
    import base64

    content = thumbnail(np.zeros(shape, np.uint8)).split(",")[1]
    made = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (
        np.abs(np.subtract(thumbnail_size(np.zeros(shape, np.uint8)), made.size[::-1])).max() <= 1
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder of a page with two images, one of them wide."""
    folder = tmp_path_factory.mktemp("maps")
    scenes = draw_odd_scenes("validation", 10, odd=True)
    model = bj.load_model("bliss-jax/tiny")
    detector = bj.Detector.fit(
        model, scenes.images, None, normal_names()[:1], dictionary=WORDS, k=2, calibration=0.2
    )
    wide = np.concatenate([scenes.images[0], scenes.images[1]], axis=1)
    for name, image in (("plain", scenes.images[2]), ("wide", wide)):
        Image.fromarray(image).save(folder / f"{name}.png")
    paths = [folder / "plain.png", folder / "wide.png"]
    rows = list(bj.score_files(detector, paths, words=3))
    write_score_report(folder / "report", detector, rows, scores=[r.score for r in rows], maps=True)
    return folder / "report"


@pytest.mark.slow
def test_the_page_has_a_map_of_the_score_each_part_and_each_word(report):
    page = (report / "index.html").read_text()
    assert len(re.findall('class="heat" src="data:image/png;base64,', page)) == 2
    assert len(re.findall('data-map="data:image/png;base64,', page)) == 2 * (2 + 3)
    assert "<b>bold" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


@pytest.mark.slow
def test_the_maps_are_written_as_png_and_as_arrays_of_the_originals_size(report):
    array = np.load(report / "maps" / "002.npy")
    assert array.shape == (96, 192)
    assert np.isnan(array[:, :48]).all()
    assert np.isfinite(array[:, 48:144]).all()
    assert Image.open(report / "maps" / "002.png").size == (192, 96)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium (set BLISS_JAX_CHROMIUM)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_slider_and_the_words_change_the_map_without_a_network(report, scheme):
    from playwright.sync_api import sync_playwright
    from test_browser import CONTRASTS

    messages, requested = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        size = {"width": 390, "height": 800}
        page = browser.new_context(color_scheme=scheme, viewport=size).new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto((report / "index.html").as_uri())
        heat, word = page.locator(".heat").first, page.locator("dl.words dd").first
        own = heat.get_attribute("src")
        word.hover()
        assert heat.get_attribute("src") == word.get_attribute("data-map") != own
        page.mouse.move(0, 0)
        assert heat.get_attribute("src") == own
        word.focus()
        assert heat.get_attribute("src") == word.get_attribute("data-map")
        page.get_by_label("Opacity of the maps").fill("30")
        assert heat.evaluate("e => getComputedStyle(e).opacity") == "0.3"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(CONTRASTS) == [], "text with a contrast below 4.5 : 1"
        browser.close()
    assert messages == []
    assert [url for url in requested if not url.startswith("data:")] == [
        (report / "index.html").as_uri()
    ]
