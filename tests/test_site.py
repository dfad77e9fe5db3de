"""The documentation builds as a site without a warning, and its navigation reaches every page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGES = {path.stem: path for path in sorted((DOCS / "reference").glob("*.rst")) if path.stem != "index"}


def toctree(page: Path) -> list[Path]:
    """Pages that a page lists in its toctrees."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        trees = re.findall(r"```\{toctree\}\n(.*?)```", text, flags=re.DOTALL)
    else:
        trees = re.findall(r"^\.\. toctree::\n(.*?)(?=^\S|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    names = [line.strip() for tree in trees for line in tree.splitlines() if line.strip() and ":" not in line]
    return [target(page.parent / name) for name in names]


def target(stem: Path) -> Path:
    files = [stem.with_name(stem.name + suffix) for suffix in (".md", ".rst", ".ipynb")]
    return next((file.resolve() for file in files if file.exists()), stem)


def test_the_navigation_has_every_page_once():
    listed = [*toctree(DOCS / "index.md"), *toctree(DOCS / "reference" / "index.rst")]
    assert [page for page in listed if not page.is_file()] == []
    assert sorted({page for page in listed if listed.count(page) > 1}) == []
    pages = {path.resolve() for suffix in ("md", "rst", "ipynb") for path in DOCS.rglob(f"*.{suffix}")}
    assert pages - set(listed) == {DOCS / "index.md"}


def test_the_front_page_includes_parts_that_the_readme_has():
    options = r'^:(?:start-after|end-before): "(.*)"$'
    marks = re.findall(options, (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(marks) == 4
    assert [mark for mark in marks if mark not in readme] == []


@pytest.mark.parametrize("page", PACKAGES)
def test_the_reference_names_packages_that_export(page):
    (package,) = re.findall(r"^\.\. automodule:: (\S+)$", PACKAGES[page].read_text(encoding="utf-8"), re.MULTILINE)
    module = import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built without a warning."""
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(DOCS)]
    finished = subprocess.run(
        [*command, "-d", folder / "doctrees", ROOT, folder / "site"], capture_output=True, text=True, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stderr
    return folder / "site"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_site_has_every_exported_name_and_search(site):
    for page in PACKAGES:
        html = (site / "docs" / "reference" / f"{page}.html").read_text(encoding="utf-8")
        (package,) = re.findall(r"automodule:: (\S+)", PACKAGES[page].read_text(encoding="utf-8"))
        assert [name for name in import_module(package).__all__ if f'id="{package}.{name}"' not in html] == []
    assert "rank_sort_loss" in (site / "searchindex.js").read_text(encoding="utf-8")
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_front_page_links_the_pages_that_the_readme_names(site):
    html = (site / "docs" / "index.html").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`docs/([\w/]+)\.md`", readme))
    assert "which_loss" in names
    assert [name for name in names if f'href="{name}.html"><span class="doc">docs/{name}.md</span>' not in html] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pages_fit_a_telephone_and_load_nothing_from_elsewhere(site):
    driver = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    faults, requests = [], []
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 900})
        page.on("request", lambda request: requests.append(request.url))
        for path in sorted((site / "docs").rglob("*.html")):
            page.goto(path.as_uri())
            width = page.evaluate("document.documentElement.scrollWidth")
            broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
            faults += [(path.name, width, broken)] if width > 400 or broken else []
        browser.close()
    assert faults == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
