"""What the commands' option parsers share."""

from __future__ import annotations

from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from concordet.engine.errors import UsageError


class Parser(ArgumentParser):
    """Options of one command; a mistake in them is a :class:`UsageError`.

    Args:
        command: its name.
        description: one sentence.
        examples: lines shown at the end of the help.
    """

    def __init__(self, command: str, description: str, *examples: str, **options: Any) -> None:
        lines = "\n".join(f"  {example}" for example in examples)
        super().__init__(
            prog=f"concordet {command}",
            description=description,
            epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
            exit_on_error=True,
            **options,
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises, where argparse would print the usage and leave."""
        text = " ".join(str(message).split())
        raise UsageError(f"{text}; see {self.prog} --help") from ex
