"""How much a command tells people: messages on standard error, which -q silences and -v adds to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

QUIET: Final = -1
NORMAL: Final = 0
VERBOSE: Final = 1

_level = NORMAL


def level() -> int:
    """How much is told: QUIET (errors only), NORMAL or VERBOSE (also what libraries say, and progress more often)."""
    return _level


@contextmanager
def telling(much: int) -> Iterator[None]:
    """Tells so much while the block runs.

    Example:
        >>> with telling(QUIET):
        ...     level()
        -1
    """
    global _level
    before, _level = _level, much
    try:
        yield
    finally:
        _level = before


def note(text: str, *, least: int = NORMAL) -> None:
    """Prints a message on standard error.

    Args:
        text: One line.
        least: Level from which it is printed.
    """
    if _level >= least:
        print(text, file=sys.stderr, flush=True)


def shows_bars() -> bool:
    """Whether progress is a bar: on a terminal, unless -q is given."""
    return _level > QUIET and sys.stderr.isatty()


def seconds_between_lines() -> float:
    """Seconds between two lines of progress where there is no bar."""
    return {QUIET: float("inf"), NORMAL: 30.0, VERBOSE: 5.0}[_level]
