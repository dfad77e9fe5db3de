"""Options of the benchmarks."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from concordet.errors import UsageError, unknown


class Parser(argparse.ArgumentParser):
    """argparse's parser; a mistake in the options is a :class:`~concordet.errors.UsageError`."""

    def error(self, message: str) -> NoReturn:
        """Raises, where argparse would print the usage and exit."""
        option = re.match(r"unrecognized arguments: (\S+)", message)
        choice = re.match(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message)
        value = re.match(r"argument (\S+): invalid (\S+) value: '(.*)'", message)
        if option:
            message = f"option must be one that {self.prog} has, got {option[1]}"
        elif choice:
            raise UsageError(unknown(choice[1], choice[2], choice[3].replace("'", "").split(", ")))
        elif value:
            message = f"{value[1]} must be of type {value[2]}, got {value[3]}"
        raise UsageError(f"{message}; see {self.prog} --help")
