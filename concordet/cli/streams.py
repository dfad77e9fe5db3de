"""Output streams that cannot stop a command: what a stream cannot encode is written in plain characters."""

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
"""Characters of our own messages in ASCII."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Replaces characters that an encoding does not have; a question mark stands for those of file and class names."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in text), error.end


codecs.register_error("concordet.plain", _plainly)


def make_streams_safe() -> None:
    """Lets standard output and standard error take every character, as pipes on Windows and old locales do not."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # streams of notebooks and of tests may have none
        if reconfigure is not None:
            reconfigure(errors="concordet.plain")
