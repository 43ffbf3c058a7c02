"""The report in a browser: Debian's chromium, or the program named by BLISS_JAX_CHROMIUM."""

import os
import shutil
from contextlib import contextmanager

import pytest
from reports import SCRIPT

CHROMIUM = os.environ.get("BLISS_JAX_CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (set BLISS_JAX_CHROMIUM)"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-quic", "--disable-background-networking"],
        )


@contextmanager
def opened(browser, report, **context):
    """Opens the page. Afterwards, checks that it wrote nothing to the console and sent no request."""
    messages, requested = [], []
    page = browser.new_context(**context).new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(report.page.as_uri())
    yield page
    assert messages == []
    assert {url for url in requested if not url.startswith("data:")} == {report.page.as_uri()}
    page.context.close()


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_images_load_and_nothing_exceeds_the_width_of_the_screen(
    browser, report, width, scheme
):
    size = {"width": width, "height": 800}
    with opened(browser, report, viewport=size, color_scheme=scheme) as page:
        assert page.title() == "BLISS on clusters"
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) == 11 + 24
        assert all(widths)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRASTS) == [], "text with a contrast below 4.5 : 1"


BUTTONS = {
    "score": "BLISS score",
    "internal": "internal class score",
    "external": "external text score",
}
"""Texts of the buttons by the data that they sort by."""

CONTRASTS = """() => {
  const light = rgb => { const [r, g, b] = rgb.match(/[\\d.]+/g).map(v => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = node => { for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if (!color.startsWith('rgba(0, 0, 0, 0')) return color; } return 'rgb(255, 255, 255)'; };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    if (['SCRIPT', 'STYLE'].includes(node.tagName)) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(node.outerHTML.slice(0, 80));
  }
  return found;
}"""


@pytest.mark.parametrize("key", BUTTONS)
def test_buttons_sort_the_gallery_by_a_number_with_the_keyboard(browser, report, key):
    with opened(browser, report) as page:
        button = page.get_by_role("button", name=BUTTONS[key], exact=True)
        button.focus()
        page.keyboard.press("Enter")
        shown = [float(v) for v in _cards(page, key)]
        assert len(shown) == 24
        assert shown == sorted(shown, reverse=True)
        assert page.get_by_role("status").text_content() == f"sorted by {BUTTONS[key]}"
        assert button.get_attribute("aria-pressed") == "true"
        page.get_by_role("button", name="normal or anomaly", exact=True).click()
        assert _cards(page, "place") == [str(i) for i in range(1, 25)]


def test_a_button_sorts_the_gallery_by_class_name(browser, report):
    with opened(browser, report) as page:
        page.get_by_role("button", name="class name", exact=True).click()
        shown = _cards(page, "name")
        assert shown == page.evaluate("names => names.sort((a, b) => a.localeCompare(b))", shown)
        assert len(set(shown)) > 1


def test_the_tab_key_reaches_every_button_and_table(browser, report):
    with opened(browser, report) as page:
        reached = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    "(e => e.getAttribute('aria-label') || e.textContent.slice(0, 30))"
                    "(document.activeElement)"
                )
            )
        expected = {"normal or anomaly", "class name", *BUTTONS.values()}
        expected |= {"AUROC by score and protocol", "Mean cosines", "Settings, versions and hashes"}
        assert expected <= reached


def test_the_printed_page_shows_the_provenance(browser, report):
    with opened(browser, report) as page:
        page.emulate_media(media="print")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details pre").is_visible()
        assert len(page.pdf(format="A4")) > 100_000


def test_class_names_run_no_script(browser, report):
    with opened(browser, report) as page:
        assert page.title() != "taken"
        assert SCRIPT in page.locator("#gallery").text_content()


def _cards(page, key):
    return page.locator("#gallery > li").evaluate_all(
        "(cards, key) => cards.map(card => card.dataset[key])", key
    )
