"""One spelling, and the field's words, in code and prose."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".jinja", ".js", ".css"}

BRITISH = re.compile(
    r"""
    \b\w*(?:localis|normalis|initialis|optimis|synchronis|generalis|recognis|summaris|parametris|parameteris|vectoris
           |discretis|penalis|regularis|specialis|visualis|minimis|maximis|utilis|standardis|organis|serialis|binaris
           |characteris|categoris|factoris|finalis|memoris|quantis|randomis|stabilis|tokenis|customis|realis(?=e|a|i))\w*
    | \b(?:dis)?colour\w* | \bcentre[ds]?\b | \bcentring\b | \bneighbour\w* | \bbehaviour\w* | \bfavour\w* | \bgrey\w*
    | \b(?:re)?(?:modell|labell|cancell|travell)(?:ed|ing|er)\w* | \banalys(?:ed?|ing)\b | \bcatalogue\w*
    | \bartefact\w* | \blearnt\b | \bwhilst\b | \bamongst\b | \blicence\w* | \bper\ cent\b | \bjudgement\w*
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Words that American English spells otherwise."""

DIALECT = re.compile(
    r"""
    \b(?:learn(?:s|ed|ing)?)\ by\ heart\b        # overfit
    | \busual\ (?:loss|one|terms)\b              # default
    | \bpeers\b                                  # baselines
    | \bleav(?:e|es|ing)\ away\b                 # leave out
    | \b(?:a|an|this|that|the|one)\ mend\b | \bmend(?:s|ed|ing)?\b   # fix
    | \bto\ their\ kin\b | \band\ its\ kin\b     # family
    | \bthe\ seam\b
    | \bbins?\ of\ scores?\b                      # score bins
    | \bbarebones\b                              # minimal example
    | \bcontact\ sheets?\b                       # sample images
    | \bpayers?\b                                # support
    | \b(?:say|says)\ nothing\ but\b             # prints only
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Words that the project used and the field does not."""

QUOTED = (
    "Classification and Localisation",  # in a paper's title
    "aria-labelledby",  # an HTML attribute
)
"""What is spelled by others."""


def files() -> list[Path]:
    """Text files of the project that git knows, but this one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.suffix in SUFFIXES and path != Path(__file__) and path.exists()]


def matches(pattern: re.Pattern[str], text: str) -> list[str]:
    for quoted in QUOTED:
        text = re.sub(r"\s+".join(map(re.escape, quoted.split())), "", text)
    return [match.group() for match in pattern.finditer(text)]


@pytest.mark.parametrize("pattern", [BRITISH, DIALECT], ids=["american spelling", "words of the field"])
def test_words(pattern):
    found = {str(path.relative_to(ROOT)): matches(pattern, path.read_text(encoding="utf-8")) for path in files()}
    assert {path: words for path, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Localisation and colours of the neighbours", ["Localisation", "colours", "neighbours"]),
        ("localization, centered, analyses, realistic, promise, otherwise", []),
        ("it learns by heart", ["learns by heart"]),
    ],
)
def test_the_lists_find_what_they_should(text, expected):
    assert [*matches(BRITISH, text), *matches(DIALECT, text)] == expected


def prose(text: str) -> list[str]:
    """Lines of a Markdown page outside code and tables."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [line for line in text.splitlines() if not line.startswith(("|", "    ", "<img"))]


@pytest.mark.parametrize("page", [p for p in files() if p.suffix == ".md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_prose_wraps(page):
    assert [line for line in prose(page.read_text(encoding="utf-8")) if len(line) > 120] == []
