"""The base class of the commands' option parsers."""

from __future__ import annotations

import json
import re
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from concordet.errors import UsageError, closest

# type of an option to its name in messages
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "dict": "a mapping such as '{name: value}'",
    "list": "a list such as '[1, 2]'",
    "list[str]": "a list of strings",
    "list[float]": "a list of numbers",
    "tuple[int, int]": "two whole numbers such as '[240, 320]'",
    "NoneType": "null",
}

# last part of an option's name to the metavar in its help
_VALUES = {
    **dict.fromkeys(("config", "json", "html", "csv", "plugins", "weights", "annotations"), "FILE"),
    **dict.fromkeys(("apply", "raw", "compare", "results"), "FILE"),
    **dict.fromkeys(("train_annotations", "val_annotations"), "FILE"),
    **dict.fromkeys(("images", "train_images", "val_images", "root", "draw"), "FOLDER"),
    **dict.fromkeys(("detector", "loss", "backbone", "preset", "name", "method", "iou_type", "logger"), "NAME"),
    **dict.fromkeys(("train_split", "val_split", "split", "accelerator", "format", "which"), "NAME"),
    **dict.fromkeys(("losses", "detectors"), "NAME"),
    **dict.fromkeys(("options", "train_options", "val_options", "paper"), "'{NAME: VALUE}'"),
    "classes": "NAMES",
    "image_size": "PIXELS",
    "resume": "RUN",
    "checkpoint": "NAME",
    "milestones": "'[N, ...]'",
    "devices": "N",
}

_HIDDEN = ("data", "optim", "calibration")
"""Options by which jsonargparse reads one section from a file; --config reads whole configurations."""


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps line breaks of descriptions and examples, hides defaults without information, and shortens the usage."""

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        name = action.dest.rpartition(".")[2]
        if name in _VALUES:
            return _VALUES[name]
        types = re.findall(r"\w+", str(getattr(action, "_typehint", None) or action.type))
        return "N" if "int" in types else "NUMBER" if "float" in types else name.upper()

    def _format_action(self, action: Action) -> str:
        return "" if action.dest in _HIDDEN else super()._format_action(action)

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if getattr(action, "_jsonargparse_preexpanded_help", False) or not action.option_strings:
            return text
        if action.dest == "help":
            return "Show this help and exit."
        if action.dest == "print_config":
            return "Print all settings as YAML, and exit."
        if action.default in (None, {}, "==SUPPRESS==") or "default" in text:
            return text
        if action.nargs == 0:  # a switch
            return text
        default = str(action.default).lower() if isinstance(action.default, bool) else "%(default)s"
        return f"{text} (default: {default})"

    def _format_action_invocation(self, action: Action) -> str:
        if action.dest == "print_config":
            return "--print_config"
        # without jsonargparse's second option for lists, --NAME+
        return re.sub(r", --\S+\+ ('[^']*'|\S+)", "", super()._format_action_invocation(action))

    def _format_usage(self, usage: Any, actions: Iterable[Action], *args: Any, **kwargs: Any) -> str:
        shapes = {"+": "{} [...]", "?": "[{}]"}
        words = [shapes.get(str(a.nargs), "{}").format(a.dest) for a in actions if not a.option_strings]
        return f"usage: {' '.join([self._prog, *words, '[options]'])}\n\n"


_COMMON = "-q prints errors only, -v prints more, and --debug prints the traceback of an error.\n\n"


class Parser(ArgumentParser):
    """Option parser of one command, which raises :class:`UsageError`.

    Args:
        command: Name of the command.
        description: One sentence.
        examples: Lines shown at the end of the help.
        first: Names of the options under the help's first heading.
    """

    def __init__(
        self, command: str, description: str, *examples: str, first: Sequence[str] = (), **options: Any
    ) -> None:
        self._first = first
        lines = "\n".join(f"  {example}" for example in examples)
        super().__init__(
            prog=f"concordet {command}",
            description=description,
            epilog=f"{_COMMON}example{'s' if len(examples) > 1 else ''}:\n{lines}",
            exit_on_error=True,
            formatter_class=_Formatter,
            allow_abbrev=False,
            **options,
        )

    def add_alias(self, name: str, setting: str) -> None:
        """Adds a second, shorter name to an option."""
        action = self._option_string_actions[setting]
        action.option_strings = [name, *action.option_strings]
        self._option_string_actions[name] = action

    def format_help(self, formatter: Any = None) -> str:
        """The help, with the main options under the first heading."""
        if self._first:
            chosen = [self._option_string_actions[f"--{name}"] for name in self._first]
            for group in self._action_groups:
                group._group_actions = [action for action in group._group_actions if action not in chosen]
            group = self.add_argument_group("main options")
            group._group_actions = chosen
            groups = list(self._action_groups)
            self._action_groups = [groups[0], groups[-1], *groups[1:-1]]
            self._first = ()
        return super().format_help() if formatter is None else super().format_help(formatter)

    def add_force(self) -> None:
        """Adds ``--force``, for commands that write files."""
        self.add_argument("--force", action="store_true", help="Overwrite files that concordet did not write.")

    def add_matching(self, verb: str) -> None:
        """Adds options for matching detections to objects; ``verb`` begins the help of ``--lvis``."""
        self.add_argument(
            "--iou_type", "--iou-type", type=str, default="bbox", help="IoU of boxes (bbox) or of masks (segm)."
        )
        self.add_argument("--lvis", action="store_true", help=f"{verb} with LVIS's federated rules.")
        self.add_argument(
            "--max_dets",
            "--max-dets",
            type=int | None,
            help="Number of detections to keep, highest scores first; by default 100 per image and class, with --lvis "
            "300 per image.",
        )

    def add_reading(self) -> None:
        """Adds options for the format of a data set and the classes to read."""
        self.add_argument("--name", type=str | None, help="Format of the data; by default it is recognized.")
        self.add_argument(
            "--classes",
            type=list[str] | dict[str, str | None] | None,
            help="Classes to keep, separated by commas; pet=dog+wolf merges two. Or a mapping of names to new names, "
            "or "
            "to null, which drops a class.",
        )

    def parse_args(self, args: Sequence[str], **options: Any) -> Any:  # type: ignore[override]  # args is required
        """Also accepts ``--two-words`` for ``--two_words``, and a boolean option without a value for true."""
        return super().parse_args(self._normalized(args), **options)

    def _normalized(self, words: Sequence[str]) -> list[str]:
        switches = {name for a in self._actions if a.metavar == "{true,false}" for name in a.option_strings}
        normalized: list[str] = []
        for word, following in zip(words, [*words[1:], "--"], strict=False):
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                word = f"--{name[2:].replace('-', '_')}{equals}{value}"
            if normalized and normalized[-1] in ("--classes", "--data.classes"):
                word = class_names(word)
            elif word.startswith(("--classes=", "--data.classes=")):
                name, _, value = word.partition("=")
                word = f"{name}={class_names(value)}"
            normalized.append(word)
            if word in switches and following.startswith("--"):
                normalized.append("true")
        return normalized

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises instead of printing the usage and exiting."""
        text = " ".join(str(message).split())
        text = _wrong_type(text) or self._unknown_option(text) or _missing(text) or text
        raise UsageError(text if ";" in text else f"{text}; see {self.prog} --help") from ex

    def _unknown_option(self, text: str) -> str | None:
        match = re.match(r"unrecognized arguments: (--[^\s=]+)", text, flags=re.IGNORECASE)
        if match is None:
            return None
        word = match[1]
        names = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        same = [name for name in names if name.rpartition(".")[2] == word.removeprefix("--")]
        meant = same[0] if len(same) == 1 else closest(word, names) or self._closest_last_part(word, names)
        if meant is None:
            return f"option must be one that {self.prog} has, got {word}; see {self.prog} --help"
        return f"option must be one that {self.prog} has, got {word}; did you mean {meant}?"

    @staticmethod
    def _closest_last_part(word: str, names: Sequence[str]) -> str | None:
        parts = {name.rpartition(".")[2]: name for name in reversed(names)}
        match = closest(word.removeprefix("--"), parts)
        return None if match is None else parts[match]


def class_names(text: str) -> str:
    """Turns names of classes separated by commas into a list; a list or a mapping stays unchanged.

    Example:
        >>> class_names("cat, pet=dog+wolf"), class_names("[cat]")
        ('["cat", "pet=dog+wolf"]', '[cat]')
    """
    text = text.strip()
    if text.startswith(("[", "{")) or text in ("null", ""):
        return text
    return json.dumps([name.strip() for name in text.split(",") if name.strip()])


def _missing(text: str) -> str | None:
    """argparse's message about missing arguments, reworded; None for other messages."""
    match = re.search(r"the following arguments are required: (.*)$", text)
    return None if match is None else f"{match[1].replace(', ', ' and ')} must be named, got none"


def _wrong_type(text: str) -> str | None:
    """jsonargparse's message about a value of the wrong type, reworded; None for other messages."""
    name = re.search(r'Parser key "([\w.]+)"', text)
    config = re.search(r"Unable to load config '(.*?)'", text)
    if name is not None and config is not None:
        return f"{name[1]} must be settings, such as --{name[1]}.NAME VALUE, got {config[1]}"
    value = re.search(r"(?:Given value|Got value): (.*?)(?: - Expected a .*)?$", text)
    if name is None or value is None:
        return None
    subtypes = re.search(r"Subtypes: \[(.*?)\] Errors", text)
    expected = subtypes[1] if subtypes else text.partition("Expected a")[2].lstrip("n").partition(". Got value")[0]
    choices = re.search(r"Literal\[(.*)\]", expected)
    if choices:
        words = re.findall(r"'(.*?)'", choices[1])
        match = closest(value[1], words)
        fix = f"; did you mean {match}?" if match else ""
        return f"{name[1]} must be one of {', '.join(words)}, got {value[1]}{fix}"
    found = re.findall(r"<class '(\w+)'>|([a-z]+\[[^\]]*\])", expected)
    types = [_TYPES.get(plain or generic, plain or generic) for plain, generic in found]
    types = [word for word in types if word != "null"]
    return f"{name[1]} must be {' or '.join(types)}, got {value[1]}" if types else None
