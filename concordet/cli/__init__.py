"""The command line: ``concordet COMMAND ...``; exit status 0, 1 (failed) or 2 (bad usage)."""

from concordet.cli.main import main

__all__ = ["main"]
