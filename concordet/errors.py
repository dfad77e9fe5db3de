"""Errors that a user can fix, and how their messages are built.

Every message has one form: ``<name> must be <what>, got <value>; <what to do>``, without a full stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import metadata


class UsageError(ValueError):
    """What is asked for cannot be; the command line exits with status 2.

    An option is unknown or missing, its value is out of range or not among the choices, or options contradict each
    other. Where a file, the data, a package or a device is at fault, other errors are raised and the status is 1.

    Example:
        >>> from concordet.engine import TrainConfig
        >>> try:
        ...     TrainConfig(timeout=0)
        ... except UsageError as error:
        ...     print(error)
        timeout must be at least 1, got 0; choose another number
    """


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed; the message names the extra.

    Attributes:
        package: Name of the package on a registry.
        extra: Extra of concordet that installs it.
    """

    def __init__(self, message: str, *, name: str | None = None, package: str = "", extra: str = "") -> None:
        super().__init__(message, name=name)
        self.package, self.extra = package, extra


class DivergedError(ValueError):
    """A loss or a weight is no longer a finite number."""


class InterruptedRun(Exception):
    """Training was stopped by Ctrl-C or SIGTERM; the message says how to continue."""


class LostProcess(InterruptedRun):
    """Another process of the same run has ended or does not answer."""


def closest(value: str, choices: Iterable[str]) -> str | None:
    """The choice whose spelling is closest to ``value``, or None where none is close.

    Example:
        >>> closest("ranksort", ["ap", "rank_sort", "focal"])
        'rank_sort'
        >>> closest("coffee", ["ap", "focal"]) is None
        True
    """
    plain = {_plain(choice): choice for choice in choices}
    matches = get_close_matches(_plain(value), list(plain), n=1, cutoff=0.7)
    return plain[matches[0]] if matches else None


def unknown(name: str, value: str, choices: Iterable[str]) -> str:
    """The message for a value that is not one of the choices, with the closest of them where there is one.

    Args:
        name: What the value stands for, such as ``detector``.
        value: The value that is not a choice.
        choices: Allowed values, in the order in which the message lists them.

    Example:
        >>> unknown("command", "evalute", ["train", "evaluate"])
        'command must be one of train, evaluate, got evalute; did you mean evaluate?'
        >>> unknown("split", "x", ["train", "val"])
        'split must be one of train, val, got x; choose one of them'
    """
    choices = list(choices)
    match = closest(value, choices)
    fix = "choose one of them" if match is None else f"did you mean {match}?"
    return f"{name} must be one of {', '.join(choices)}, got {value}; {fix}"


def _plain(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, in the singular or the plural.

    Example:
        >>> counted(1, "image"), counted(2000, "image"), counted(0, "category", "categories")
        ('1 image', '2,000 images', '0 categories')
    """
    return f"{n} {noun}" if n == 1 else f"{n:,} {plural or noun + 's'}"


def missing_package(user: str, package: str | None, extra: str) -> str:
    """The message for a package that is not installed.

    Args:
        user: What needs the package.
        package: Name of the package.
        extra: Extra of concordet that installs it.

    Example:
        >>> missing_package("concordet.detectors", "torchvision", "detectors")
        "concordet.detectors needs the package torchvision; install it with: pip install 'concordet[detectors]'"
    """
    return f"{user} needs the package {package}; install it with: pip install 'concordet[{extra}]'"


_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Names of packages whose import name differs, by import name."""


@contextmanager
def requires(user: str, extra: str) -> Iterator[None]:
    """Turns a failed import of an optional package into an error that names the extra that installs it.

    Args:
        user: What needs the packages that are imported inside, such as ``concordet.measures``.
        extra: Extra of concordet that installs them.

    Raises:
        MissingPackageError: A package of one of the extras is not installed. Other missing modules, such as one that a
            plugin imports, raise their own ModuleNotFoundError.

    Example:
        >>> with requires("concordet.measures", "measures"):
        ...     raise ModuleNotFoundError("No module named 'hotcoco'", name="hotcoco")
        Traceback (most recent call last):
        concordet.errors.MissingPackageError: concordet.measures needs the package hotcoco; install it with: ...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if isinstance(error, MissingPackageError):
            package = error.package
            if not _includes(extra, error.extra):  # an extra that this one does not install
                raise
        else:
            name = (error.name or "").split(".")[0]
            package = _DISTRIBUTIONS.get(name, name)
            if not _is_of_an_extra(package):
                raise
        text = missing_package(user, package, extra)
        raise MissingPackageError(text, name=error.name, package=package, extra=extra) from error


def _requirements() -> list[str] | None:
    """What the installed package requires; None where it runs from a checkout that is not installed."""
    try:
        return metadata.requires("concordet") or []
    except metadata.PackageNotFoundError:
        return None


def _is_of_an_extra(package: str) -> bool:
    requirements = _requirements()
    if requirements is None:
        return package != "concordet"
    return package.lower() in {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}


def _includes(extra: str, other: str) -> bool:
    """Whether installing one extra installs another one too, and is not that one itself."""
    for requirement in _requirements() or []:
        match = re.match(r"""concordet\[([\w,-]+)\].*extra\s*==\s*['"]([\w-]+)['"]""", requirement)
        if match and match[2] == extra:
            parts = match[1].split(",")
            if other in parts or any(_includes(part, other) for part in parts):
                return True
    return False
