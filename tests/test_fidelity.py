"""The page of comparisons is complete and says what it counts; the comparisons need an environment of their own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from oracles.clones import ADDRESSES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in PAGE.split("## Repositories")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| what |")
]


def sections() -> list[str]:
    """Titles in ``oracles/__main__.py``, which cannot be imported without mmdetection."""
    for node in ast.parse((ROOT / "oracles" / "__main__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SECTIONS":
            return [key.value for key in node.value.keys]
    raise AssertionError("oracles/__main__.py has no SECTIONS")


def test_every_section_and_repository_is_on_the_page():
    assert re.findall(r"^## (.+)$", PAGE, re.MULTILINE) == [*sections(), "Repositories"]
    compared = re.findall(r"^\| \[(.+?)\]\((.+?)\) \| [0-9a-f]{7,} of \d{4}-\d\d-\d\d \|$", PAGE, re.MULTILINE)
    assert dict(compared) == ADDRESSES


def test_a_comparison_is_equal_or_has_its_reason():
    assert len(ROWS) > 200
    for what, _, count, _, verdict, reason in ROWS:
        assert int(count) > 0, what
        assert verdict in ("equal", "departure"), what
        assert bool(reason) == (verdict == "departure"), what


def test_the_heading_counts_the_rows():
    verdicts = [row[4] for row in ROWS]
    expected = len(ROWS), verdicts.count("equal"), verdicts.count("departure")
    heading = re.search(r"Of (\d+) comparisons (\d+) are equal and\s+(\d+) are departures", PAGE)
    assert tuple(map(int, heading.groups())) == expected


def test_the_readme_of_the_oracles_names_every_file():
    named = re.findall(
        r"^\| `(\w+\.py)` \|", (ROOT / "oracles" / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    files = {path.name for path in (ROOT / "oracles").glob("*.py")} - {"__init__.py", "__main__.py", "comparison.py"}
    assert sorted(named) == sorted(files)
