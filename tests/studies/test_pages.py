"""Tables of the pages: their shape, and that they are what the results files give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from concordet.benchmark.results import read_rows
from studies import pages

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (path.relative_to(ROOT) for path in sorted(ROOT.glob("**/*.md")))
    if not any(part.startswith(".") for part in page.parts)  # environments of other programs
]


def cells(line: str) -> list[str]:
    """Cells of a row of a Markdown table; bars in code spans and escaped bars are text."""
    return re.sub(r"`[^`]*`|\\\|", "code", line).strip().strip("|").split("|")


def misshapen(text: str) -> list[str]:
    """Rows of a page's tables that have more or fewer cells than the head."""
    wrong = []
    head: list[str] | None = None
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
        if not line.startswith("|"):
            head = None
            continue
        head = head or cells(line)
        if len(cells(line)) != len(head):
            wrong.append(line)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_rows_have_as_many_cells_as_the_head(page):
    assert misshapen((ROOT / page).read_text(encoding="utf-8")) == []


def test_a_missing_cell_is_noticed():
    head = "| detector | scenes | batch |\n|---|---|---|\n"
    assert misshapen(head + "| fcos | 3200 | 16 |\n| `a|b` | 1 | 2 |\n") == []
    assert misshapen(head + "| fcos | 16 |\n") == ["| fcos | 16 |"]


@pytest.mark.parametrize("page", list(pages.pages()), ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert text == pages.updated(text), "run: python -m studies.pages"


def test_every_table_is_in_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in pages.pages())
    assert set(re.findall(r"<!-- table: (.*?) -->", text)) == set(pages.TABLES)


def test_unknown_tables_are_refused():
    with pytest.raises(ValueError, match=r"table must be one of digits, .*got nothing;"):
        pages.updated("<!-- table: nothing -->\n\n<!-- end of table -->")


@pytest.mark.parametrize("old", ["", "old\n", "old\n\nolder\n"])
def test_a_table_is_replaced_and_the_rest_stays(monkeypatch, old):
    monkeypatch.setitem(pages.TABLES, "one", lambda: "new")
    monkeypatch.setitem(pages.TABLES, "two", lambda: "newer")
    page = "a\n<!-- table: one -->\n{}<!-- end of table -->\nb\n<!-- table: two -->\n{}<!-- end of table -->\nc"
    assert pages.updated(page.format(old, old)) == page.format("new\n", "newer\n")


@pytest.mark.parametrize("path", sorted(pages.RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_rows_say_where_they_were_measured(path):
    rows = read_rows(path)
    if path.stem == "rematching":  # counts that depend on no version
        return
    assert all(row["python"] for row in rows)


def test_the_table_of_learning_has_values_under_their_heads():
    head, _, first, *_ = [line for line in pages.TABLES["learning"]().splitlines() if line.startswith("|")]
    row = dict(zip((c.strip() for c in cells(head)), (c.strip() for c in cells(first)), strict=True))
    expected = read_rows(pages.RESULTS / "learning.csv")[0]
    assert (row["detector"], row["batch"], row["epochs"], row["lr"]) == tuple(
        expected[key] for key in ("detector", "batch", "epochs", "lr")
    )
    assert float(row["AP, default"]) == pytest.approx(100 * float(expected["AP"]), abs=0.05)
