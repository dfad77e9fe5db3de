"""What the commands' option parsers share."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from concordet.errors import UsageError


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Examples stay as they are written, a line each."""


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
            formatter_class=_Formatter,
            **options,
        )

    def parse_args(self, args: Sequence[str], **options: Any) -> Any:  # type: ignore[override]
        """Also takes ``--two-words`` for ``--two_words``, and a yes-or-no option without a value for yes."""
        return super().parse_args(self._spelled(args), **options)

    def _spelled(self, words: Sequence[str]) -> list[str]:
        switches = {name for a in self._actions if a.metavar == "{true,false}" for name in a.option_strings}
        spelled = []
        for word, following in zip(words, [*words[1:], "--"], strict=False):
            if word.startswith("--"):
                name, *value = word.split("=", 1)
                word = "=".join(["--" + name[2:].replace("-", "_"), *value])
            spelled.append(word)
            if word in switches and following.startswith("--"):
                spelled.append("true")
        return spelled

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises, where argparse would print the usage and leave."""
        text = " ".join(str(message).split())
        raise UsageError(f"{text}; see {self.prog} --help") from ex
