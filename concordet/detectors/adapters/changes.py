"""Changes that an installed loss makes to a model, and undoing them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from concordet.losses.criteria import Criterion, StagedCriterion

KEY = "_concordet"
"""Name of a model's own attribute that holds its :class:`Installation`; it is not in the state dict."""


@dataclass(frozen=True, eq=False)
class Change:
    """An attribute of an object and its new value."""

    owner: Any
    name: str
    value: Any


@dataclass(frozen=True, eq=False)
class Installation:
    """A model's criterion, and the changes that undo the installation."""

    criterion: Criterion | StagedCriterion
    undo: list[Change]


class _Absent:
    """Marks an attribute that only the class had; deleting the object's own restores it."""


def apply(changes: list[Change]) -> list[Change]:
    """Applies the changes; returns those that undo them."""
    undo = []
    for change in changes:
        descriptor = inspect.isdatadescriptor(getattr(type(change.owner), change.name, None))
        previous = getattr(change.owner, change.name) if descriptor else vars(change.owner).get(change.name, _Absent)
        undo.append(Change(change.owner, change.name, previous))
        _set(change)
    return undo[::-1]


def revert(installation: Installation) -> None:
    """Undoes an installation."""
    for change in installation.undo:
        _set(change)


def _set(change: Change) -> None:
    if change.value is _Absent:
        delattr(change.owner, change.name)
    else:
        setattr(change.owner, change.name, change.value)
