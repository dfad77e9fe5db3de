"""The code on the pages about losses runs and prints what the pages say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted([*(DOCS / "losses").glob("*.md"), DOCS / "extend" / "ranking_loss.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_the_page(page, capsys):
    text = page.read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(compile(block, page.name, "exec"), names)
        expected = re.findall(r"^# (.*)$", block, flags=re.M)
        assert capsys.readouterr().out.splitlines() == expected
