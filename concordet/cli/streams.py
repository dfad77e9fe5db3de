"""Output streams without encoding errors: characters that a stream cannot encode are replaced by ASCII."""

from __future__ import annotations

import codecs
import sys
from typing import Final

PLAIN: Final = {
    "−": "-",
    "–": "-",
    "—": "-",
    "±": "+-",
    "×": "x",
    "→": "->",
    "↑": "^",
    "↓": "v",
    "≥": ">=",
    "≤": "<=",
    "₀": "0",
    "…": "...",
    "’": "'",
    "“": '"',
    "”": '"',
}
"""ASCII replacements of characters in concordet's messages."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Error handler that replaces characters by :data:`PLAIN`, and others, such as those in file names, by ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in text), error.end


codecs.register_error("concordet.plain", _plainly)


def make_streams_safe() -> None:
    """Makes standard output and error accept all characters, for pipes on Windows and locales other than UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # streams of notebooks and of tests may have none
        if reconfigure is not None:
            reconfigure(errors="concordet.plain")
