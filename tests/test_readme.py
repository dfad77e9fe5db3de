"""Examples in the documents run, links have a target, and every name is documented."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from concordet.cli import main
from concordet.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [
    path.relative_to(ROOT)
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("studies/*.md")])
]


def blocks(page):
    """Python blocks of a page, each with the text block that follows, which is what it prints ("" without one)."""
    pattern = r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?"
    return re.findall(pattern, (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def printed(block, output):
    """What a block prints by the text after it, or by its comments: on their own lines, or at the end of a print."""
    if output:
        return output.splitlines()
    return re.findall(r"^(?:print\(.*\)  )?# (?:prints )?(.*)$", block, flags=re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=str)
def test_code_runs_and_prints_what_the_page_says(page, capsys):
    """Runs the code blocks of a page one after the other, as a reader would; three dots stand for more digits."""
    names = {}
    for block, output in blocks(page):
        exec(compile(block, str(page), "exec"), names)
        lines, expected = capsys.readouterr().out.splitlines(), printed(block, output)
        assert len(lines) == len(expected)
        for line, text in zip(lines, expected, strict=True):
            assert line.startswith(text[:-3]) if text.endswith("...") else line == text


def test_every_name_is_documented():
    from concordet.detectors import list_detectors
    from concordet.losses import list_losses

    for page, names in (("detectors", list_detectors()), ("losses", list_losses())):
        text = (ROOT / "docs" / page / "README.md").read_text(encoding="utf-8")
        assert [name for name in names if f"`{name}`" not in text] == []


def test_the_readme_is_short_and_needs_few_relative_links():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert links(text) == ["docs/images/analysis.png", "docs/README.md"]  # others would break on a registry's page


def test_the_index_links_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    extend = (ROOT / "docs" / "extend" / "README.md").read_text(encoding="utf-8")
    linked = {*links(index), *(f"extend/{link}" for link in links(extend))}
    pages = {str(page.relative_to("docs")) for page in PAGES if page.parts[0] == "docs"}
    pages -= {"README.md", "index.md"}  # this index, and the site's
    assert pages <= linked


def links(text):
    """Relative targets of links and pictures."""
    pairs = re.findall(r"""\]\((?!https?:|#)([^)#]+)|<img src="([^"]+)\"""", text)
    return [markdown or html for markdown, html in pairs]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_have_a_target(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [link for link in links(text) if not (ROOT / page).parent.joinpath(link).exists()] == []


def anchors(path):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_anchors_have_a_heading(page):
    pairs = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    targets = [((ROOT / page).parent / path if path else ROOT / page, anchor) for path, anchor in pairs]
    assert [f"{path}#{anchor}" for path, anchor in targets if anchor not in anchors(path)] == []


def commands(text):
    """Words after ``concordet`` in the indented lines of a page, without comments."""
    lines = re.findall(r"^    (.*)$", re.sub(r" \\\n\s*", " ", text), flags=re.MULTILINE)
    matches = [re.match(r"(?:.* -m |srun .* )?concordet ([a-z]+ [^#]*)", line) for line in lines]
    return [match.group(1).split() for match in matches if match]


HELP = {}


def options(*command):
    """Options of a command by its help."""
    if command not in HELP:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main([*command, "--help"]) == 0
        HELP[command] = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w.]*", printed.getvalue()))
    return HELP[command]


@pytest.mark.parametrize("page", [page for page in PAGES if commands((ROOT / page).read_text("utf-8"))], ids=str)
def test_commands_have_the_options_that_a_page_gives_them(page):
    unknown = []
    for command, *words in commands((ROOT / page).read_text(encoding="utf-8")):
        assert command in COMMANDS
        known = options(command, words[0]) if command == "benchmark" else options(command)
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        unknown += [f"{command} {option}" for option in sorted(given - known)]
    assert unknown == []
