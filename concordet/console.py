"""Verbosity of a command: messages on standard error, fewer with -q and more with -v."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

QUIET: Final = -1
NORMAL: Final = 0
VERBOSE: Final = 1

_level = NORMAL


def verbosity() -> int:
    """QUIET (errors only), NORMAL or VERBOSE (also messages of libraries, and progress more often)."""
    return _level


@contextmanager
def use_verbosity(level: int) -> Iterator[None]:
    """Sets the verbosity while the block runs.

    Example:
        >>> with use_verbosity(QUIET):
        ...     verbosity()
        -1
    """
    global _level
    before, _level = _level, level
    try:
        yield
    finally:
        _level = before


def note(text: str, *, min_verbosity: int = NORMAL) -> None:
    """Prints a message on standard error.

    Args:
        text: One line.
        min_verbosity: Verbosity from which it is printed.
    """
    if _level >= min_verbosity:
        print(text, file=sys.stderr, flush=True)


def shows_bars() -> bool:
    """Whether progress is a bar: on a terminal, unless -q is given."""
    return _level > QUIET and sys.stderr.isatty()


def seconds_between_lines() -> float:
    """Seconds between two lines of progress where no bar is shown."""
    return {QUIET: float("inf"), NORMAL: 30.0, VERBOSE: 5.0}[_level]
