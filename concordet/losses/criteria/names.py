"""Parsing of loss names: ``focal+concordance(0.3)`` is a base loss with couplings and heads added to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]*")
_PART = re.compile(rf"(?P<name>{NAME_PATTERN.pattern})(?:\((?P<inside>[^()]*)\))?")


@dataclass(frozen=True)
class NamePart:
    """One part of a loss name: the base loss, a coupling or an auxiliary head.

    Attributes:
        name: name of the loss, coupling or head.
        weight: number in parentheses that has no name; None without one.
        settings: (name, value) of the other numbers in parentheses.
        text: the part as written.
    """

    name: str
    weight: float | None = None
    settings: tuple[tuple[str, float], ...] = ()
    text: str = ""


@dataclass(frozen=True)
class LossName:
    """A parsed loss name.

    Attributes:
        base: the base loss.
        extras: couplings and auxiliary heads added to it.

    Example:
        >>> name = LossName.parse("focal + pse(2, slope=0.8)")
        >>> name.base.name, name.extras[0].weight, name.extras[0].settings
        ('focal', 2.0, (('slope', 0.8),))
        >>> str(name)
        'focal+pse(2,slope=0.8)'
    """

    base: NamePart
    extras: tuple[NamePart, ...] = ()

    @classmethod
    def parse(cls, loss: str) -> LossName:
        """Parses a loss name; whether its parts are registered is not checked here.

        Raises:
            ValueError: if the text is not a loss name, or a number in it is negative or not finite.
        """
        base, *extras = (_parse_part(part, loss) for part in loss.replace(" ", "").split("+"))
        return cls(base, tuple(extras))

    @property
    def is_default(self) -> bool:
        """Whether the base is the detector's own loss."""
        return self.base.name == "default"

    def without_extras(self) -> LossName:
        """The base loss only, with its settings."""
        return replace(self, extras=())

    def __str__(self) -> str:
        return "+".join(part.text or part.name for part in (self.base, *self.extras))


def _parse_part(part: str, loss: str) -> NamePart:
    match = _PART.fullmatch(part)
    if match is None:
        spelled = part.replace("-", "_")
        fix = "write it as 'focal' or 'focal+concordance(0.3)'"
        if _PART.fullmatch(spelled):
            fix = f"did you mean {spelled}?"
        raise ValueError(f"loss must be a name or names joined with '+', got {part!r} in {loss!r}; {fix}")
    numbers: dict[str, float] = {}  # the weight has no name
    for item in match["inside"].split(",") if match["inside"] is not None else ():
        key, _, text = item.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            what = key or "weight"
            raise ValueError(
                f"{what} of {part!r} in loss {loss!r} must be a number of at least 0, got {text!r}; write it as in "
                "'focal+concordance(0.3)'"
            )
        if key in numbers:
            what = key or "the weight"
            raise ValueError(f"{what} of {part!r} in loss {loss!r} must be given once, got it twice; leave one out")
        numbers[key] = value
    weight = numbers.pop("", None)
    return NamePart(match["name"], weight, tuple(numbers.items()), part)
