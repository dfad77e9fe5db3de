"""The pages in a real browser: Chromium without a window, driven by Playwright."""

from __future__ import annotations

import shutil

import pytest

from concordet.measures import analyze
from concordet.report import write_analysis, write_comparison
from tests.measures.scenes import make_scene

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed, so the pages are not tried in a browser (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser test")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """Opens a page; afterwards nothing may have been said on the console, nor asked of the network."""
    complaints, contexts = [], []

    def opened(path, *, width=1200, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def names(page):
    return page.locator("table.classes tbody th").all_inner_texts()


def test_a_click_sorts_the_classes_and_another_turns_them(visit, run_folders, tmp_path):
    page = visit(write_comparison(run_folders, tmp_path / "page.html"))
    headings = page.locator("table.classes th[data-column]")
    assert names(page) == ["disc", "box", "<ring> & co"]
    headings.nth(2).get_by_role("button").click()  # AP of the first run, the highest first
    assert names(page) == ["<ring> & co", "box", "disc"]
    assert headings.nth(2).get_attribute("aria-sort") == "descending"
    headings.nth(2).get_by_role("button").click()
    assert names(page) == ["disc", "box", "<ring> & co"]
    headings.nth(0).get_by_role("button").press("Enter")
    assert names(page) == ["<ring> & co", "box", "disc"]
    assert page.locator("table.classes [aria-sort]").count() == 1
    headings.nth(6).get_by_role("button").click()  # a correlation that one class lacks: it stays last
    assert names(page)[-1] == "<ring> & co"
    headings.nth(6).get_by_role("button").click()
    assert names(page)[-1] == "<ring> & co"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_both_pages_fit_the_screen(visit, run_folders, tmp_path, width, scheme):
    truth, found = run_folders[0] / "ground_truth.json", run_folders[0] / "detections.json"
    samples = run_folders[0] / "samples"
    for path in (
        write_comparison(run_folders, tmp_path / "comparison.html"),
        write_analysis(analyze(truth, found), tmp_path / "analysis.html", images=samples),
    ):
        page = visit(path, width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        ink, ground = (
            page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
        )
        assert abs(_brightness(ink) - _brightness(ground)) > 150
        label = page.evaluate("getComputedStyle(document.querySelector('svg.plot text')).fill")
        card = page.evaluate("getComputedStyle(document.querySelector('.plots figure')).backgroundColor")
        assert abs(_brightness(label) - _brightness(card)) > 80


def test_a_long_table_of_classes_unfolds(visit, tmp_path):
    scene = make_scene(0, n_classes=40, n_images=30, n_objects=400, n_detections=900)
    page = visit(write_analysis(analyze(*scene), tmp_path / "page.html"))
    rows = page.locator("table.classes tbody tr")
    assert rows.count() == 40
    assert not rows.last.is_visible()
    page.get_by_role("button", name="Show all 40 classes").click()
    assert rows.last.is_visible()
    assert page.locator("button.more").count() == 0


def test_print_shows_all_rows(visit, run_folders, tmp_path):
    page = visit(write_comparison(run_folders, tmp_path / "page.html"))
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("table.classes tbody tr").last.is_visible()


def _brightness(color):
    red, green, blue = (float(part) for part in color.strip("rgba()").split(",")[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue
