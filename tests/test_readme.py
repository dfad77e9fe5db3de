"""What the documents show runs as it stands, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [path.relative_to(ROOT) for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])]


TESTED_MORE = {"docs/losses", "docs/measures.md"}  # by tests/losses/test_docs.py and tests/measures/test_docs.py


def blocks(page):
    if {str(page), str(page.parent)} & TESTED_MORE:
        return []
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=str)
def test_python_runs(page):
    """The blocks of a page one after the other, as a reader tries them."""
    names = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)


def test_names_stand_in_the_tables():
    from concordet.detectors import list_detectors
    from concordet.losses import list_losses

    text = (ROOT / "README.md").read_text()
    for name in (*list_detectors(), *list_losses()):
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
