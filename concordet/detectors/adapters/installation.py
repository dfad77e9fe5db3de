"""What an installed loss changes in a model, how it is undone, and which criterion it has."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from concordet.assigned import Assigned
from concordet.losses.criteria import (
    Criterion,
    LossDefaults,
    LossName,
    NoTerms,
    StagedCriterion,
    Terms,
    build_criterion,
)

Loss = str | Criterion | StagedCriterion
KEY = "_concordet"
"""Name of a model's own attribute that holds its :class:`Installation`; no part of its state dict."""


@dataclass(frozen=True, eq=False)
class Change:
    """An attribute of an object and what it becomes."""

    owner: Any
    name: str
    value: Any


@dataclass(frozen=True, eq=False)
class Installation:
    """A model's criterion, and the changes that undo the installation."""

    criterion: Criterion | StagedCriterion
    undo: list[Change]


class _Absent:
    """Stands for an attribute that the object itself did not have: its class's shows again once it is deleted."""


def make(changes: list[Change]) -> list[Change]:
    """Makes the changes; returns those that undo them."""
    undo = []
    for change in changes:
        descriptor = inspect.isdatadescriptor(getattr(type(change.owner), change.name, None))
        own = getattr(change.owner, change.name) if descriptor else vars(change.owner).get(change.name, _Absent)
        undo.append(Change(change.owner, change.name, own))
        _set(change)
    return undo[::-1]


def _set(change: Change) -> None:
    if change.value is _Absent:
        delattr(change.owner, change.name)
    else:
        setattr(change.owner, change.name, change.value)


def take_back(installation: Installation) -> None:
    """Undoes an installation."""
    for change in installation.undo:
        _set(change)


# --- criteria -------------------------------------------------------------------------------------------------------


def keeps_own(loss: Loss) -> bool:
    """Whether the model's own loss stays, with nothing or with couplings added to it: ``default``."""
    return isinstance(loss, str) and LossName.parse(loss).is_default


def beside_own(criterion: Criterion) -> Criterion:
    """The criterion's couplings only, to be added to a model's own loss."""
    needs = replace(criterion.needs, quality_head=None)
    return Criterion(NoTerms(), needs=needs, couplings=criterion.couplings)


def criterion_for(model: nn.Module, loss: Loss, defaults: LossDefaults, *, quality_head: bool = False) -> Criterion:
    """The criterion of a model with one kind of record.

    With ``default`` it has couplings alone: the model's own loss stays as it is.

    Args:
        model: for messages.
        loss: a name or a criterion.
        defaults: the model's published terms.
        quality_head: the model has a branch for an auxiliary head.

    Raises:
        ValueError: for a criterion of several stages, or of an auxiliary head that the model has not.
    """
    name = type(model).__name__
    if isinstance(loss, StagedCriterion):
        raise ValueError(f"{name} has one stage, the criterion has {list(loss.stages)}; pass a Criterion or a name")
    criterion = build_criterion(loss, defaults) if isinstance(loss, str) else loss
    if keeps_own(loss):
        criterion = beside_own(criterion)
    head = criterion.needs.quality_head
    if head is not None and not quality_head:
        raise ValueError(f"{name} has no auxiliary head for {head!r} in loss {loss!r}; leave that out")
    return criterion


def named_terms(criterion: Criterion | StagedCriterion, record: Assigned) -> Terms:
    """Our terms of a record, under names that begin with ``loss_``.

    The criterion is no part of the model, so that the state dict stays as it was: here it follows the model to its
    device, and gathers state only where the model learns.
    """
    device = record.logits.device
    if any(buffer.device != device for buffer in criterion.buffers()):
        criterion.to(device)
    criterion.train(record.logits.requires_grad)
    terms = criterion([record]) if isinstance(criterion, StagedCriterion) else criterion(record)
    return {f"loss_{name}": value for name, value in terms.items()}


def log_odds(logits: Tensor) -> Tensor:
    """``[n, c]`` from the ``[n, c + 1]`` logits of a softmax: log p / (1 - p) of each of the first c classes.

    Their sigmoid is the softmax's own probability, so that a loss with a sigmoid a class trains and ranks the very
    scores that the model reports, and what reads those needs no change.  log(1 - p) is exact for every p: of the best
    class it is the log-sum-exp of all others, and p is at most 1/2 for all others.

    Example:
        >>> logits = torch.tensor([[2.0, -1.0, 0.5]])
        >>> bool(torch.allclose(log_odds(logits).sigmoid(), logits.softmax(-1)[:, :2]))
        True
    """
    logits = logits.float()
    best = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.argmax(-1, keepdim=True), True)
    others = logits.masked_fill(best, -torch.inf).logsumexp(-1, keepdim=True)
    logs = logits.log_softmax(-1)
    beside = -torch.log1p(-logs.masked_fill(best, -1.0).exp())
    return torch.where(best, logits - others, logs + beside)[:, :-1]
