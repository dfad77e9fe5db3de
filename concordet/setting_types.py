"""Types of settings: checking and converting values from a file, and the names of types in messages."""

from __future__ import annotations

from contextlib import suppress
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

MAX_IMAGE_SIDE: Final = 16_384
"""Largest side of images in pixels that a setting may have; larger numbers are probably typing errors."""


def checked_types(values: dict[str, Any], section: type[Any], prefix: str = "") -> dict[str, Any]:
    """Settings by name, converted to the types that their section declares.

    A number becomes a string (``devices: 2``), or a string a number, where only the other type fits.

    Args:
        values: Settings as read from YAML or JSON; the section has a field of each name.
        section: Dataclass with the settings.
        prefix: Prefix of the names in errors.

    Raises:
        ValueError: a value has another type, or is infinite or NaN.

    Example:
        >>> class Section:
        ...     devices: str
        ...     image_size: tuple[int, int] | None
        >>> checked_types({"devices": 2, "image_size": [240, 320]}, Section)
        {'devices': '2', 'image_size': (240, 320)}
    """
    types = get_type_hints(section)
    checked = {}
    for name, value in values.items():
        try:
            checked[name] = _converted(value, types[name])
        except ValueError as error:
            words = _type_words(types[name])
            raise ValueError(
                f"{prefix}{name} must be {words}, got {value!r:.60}; see concordet train --help"
            ) from error
    return checked


def _converted(value: Any, expected: Any) -> Any:
    origin, inner = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        for one in sorted(inner, key=lambda one: not _fits(value, one)):  # types that need no conversion come first
            with suppress(ValueError):
                return _converted(value, one)
    elif origin is list and isinstance(value, list):
        return [_converted(item, inner[0]) for item in value]
    elif origin is tuple and isinstance(value, list | tuple) and len(value) == len(inner):
        return tuple(map(_converted, value, inner))
    elif _fits(value, expected):
        return value
    for other in _conversions(value):
        if _fits(other, expected):
            return other
    raise ValueError(value)


def _conversions(value: Any) -> list[Any]:
    """An integer as a string; a string as the numbers or the boolean that it spells."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return [str(value)]
    conversions: list[Any] = []
    if isinstance(value, str):
        for number in (int, float):
            with suppress(ValueError):
                conversions.append(number(value))
        conversions += [value == "true"] if value in ("true", "false") else []
    return conversions


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value has a type without conversion."""
    origin, inner = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if expected in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
        return number and (expected is float or isinstance(value, int))
    return expected is Any or isinstance(value, expected)


def _type_words(expected: Any) -> str:
    """A setting's type in words.

    Example:
        >>> _type_words(int | tuple[int, int] | None), _type_words(Literal["full", "nano"])
        ('a whole number, two whole numbers or null', 'full or nano')
    """
    origin, inner = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType, Literal):
        words = [str(one) if origin is Literal else _type_words(one) for one in inner]
        return " or ".join([", ".join(words[:-1]), words[-1]])
    if origin is tuple:
        return f"two {_PLURALS[inner[0]]}"
    if origin is list:
        return f"a list of {_PLURALS.get(inner[0], 'values')}"
    return _WORDS.get(origin or expected, "a value")


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a mapping",
    type(None): "null",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}
