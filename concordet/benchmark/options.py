"""Options of the benchmarks."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import NoReturn

from concordet.errors import UsageError, unknown
from concordet.files import check_new, writable


class Parser(argparse.ArgumentParser):
    """argparse's parser with help as in the other commands; a mistake in the options is a
    :class:`~concordet.errors.UsageError`.

    Args:
        program: Name of the command.
        description: What it measures; the docstring of its module.
        example: Arguments of an example.
    """

    def __init__(self, program: str, description: str, example: str) -> None:
        super().__init__(
            prog=program,
            description=description.replace("``", ""),
            epilog=f"example: {program} {example}",
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help="Show this help and exit.")

    def add_outputs(self, out_help: str) -> None:
        """Adds the files to write, and whether they may replace others."""
        self.add_argument("--out", type=Path, metavar="FILE", help=out_help)
        self.add_argument("--json", type=Path, metavar="FILE", help="JSON file for the environment and the rows.")
        self.add_argument("--force", action="store_true", help="Overwrite files that exist.")

    def error(self, message: str) -> NoReturn:
        """Raises, where argparse would print the usage and exit."""
        option = re.match(r"unrecognized arguments: (\S+)", message)
        choice = re.match(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message)
        value = re.match(r"argument (\S+): (must be .*)", message)
        if option:
            message = f"option must be one that {self.prog} has, got {option[1]}"
        elif choice:
            raise UsageError(unknown(choice[1], choice[2], choice[3].replace("'", "").split(", ")))
        elif value:
            message = f"{value[1]} {value[2]}"
        raise UsageError(f"{message}; see {self.prog} --help")


def as_count(text: str) -> int:
    """A whole number from 1, as the type of an option.

    Example:
        >>> as_count("0")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: must be a whole number from 1, got 0
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text}")
    return int(text)


def as_share(text: str) -> float:
    """A number above 0 and at most 1, as the type of an option."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text}")
    return value


def as_seconds(text: str) -> float:
    """A number from 0, as the type of an option."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0, got {text}")
    return value


def as_device(text: str) -> str:
    """cpu, or a CUDA device, as the type of an option."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text}")
    return text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_files(*paths: Path | None, force: bool) -> None:
    """Raises before anything is measured where a file exists or its folder cannot be written."""
    for path in paths:
        if path is not None:
            if not force:
                check_new(path, "name another file, or add --force")
            if path.parent.exists():
                writable(path.parent)
