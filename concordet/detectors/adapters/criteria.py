"""The criterion of a torchvision or Transformers model: its construction, its terms, and logits of a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

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
    rank_records,
)
from concordet.losses.functional.reduction import at_least_float32

Loss = str | Criterion | StagedCriterion


def keeps_default(loss: Loss) -> bool:
    """Whether the model's own loss stays, with or without couplings added to it: ``default``.

    Example:
        >>> keeps_default("default+concordance(0.3)"), keeps_default("focal")
        (True, False)
    """
    return isinstance(loss, str) and LossName.parse(loss).is_default


def couplings_only(criterion: Criterion) -> Criterion:
    """A criterion with the couplings of another and no other terms, to be added to a model's own loss."""
    needs = replace(criterion.needs, quality_head=None)
    return Criterion(NoTerms(), needs=needs, couplings=criterion.couplings)


def criterion_for(model: nn.Module, loss: Loss, defaults: LossDefaults, *, quality_head: bool = False) -> Criterion:
    """The criterion of a model with one stage.

    With ``default`` it has couplings only: the model computes its own loss.

    Args:
        model: Model that the loss is for; errors name its class.
        loss: Name or criterion.
        defaults: Default terms of the model.
        quality_head: Whether the model has a branch for an auxiliary head.

    Raises:
        ValueError: for a criterion with several stages, or with an auxiliary head that the model lacks.
    """
    name = type(model).__name__
    if isinstance(loss, StagedCriterion):
        raise ValueError(f"loss must be a name or a Criterion, because {name} has one stage, got {list(loss.stages)}")
    criterion = build_criterion(loss, defaults) if isinstance(loss, str) else loss
    if keeps_default(loss):
        criterion = couplings_only(criterion)
    head = criterion.needs.quality_head
    if head is not None and not quality_head:
        raise ValueError(f"{name} has no auxiliary head for {head!r} in loss {loss!r}; leave that out")
    return criterion


def named_terms(criterion: Criterion | StagedCriterion, records: Sequence[Assigned]) -> list[Terms]:
    """Terms of each record (decoder layers), with ``loss_`` before their names.

    The criterion is not a child of the model, so that the state dict stays as it was: this function moves it to the
    record's device, and puts it into training mode only if the logits require a gradient.
    """
    if not records:
        return []
    device = records[0].logits.device
    if any(tensor.device != device for tensor in chain(criterion.parameters(), criterion.buffers())):
        criterion.to(device)
    criterion.train(records[0].logits.requires_grad)
    if isinstance(criterion, StagedCriterion):
        terms = [criterion([record]) for record in records]
    else:
        terms = [criterion(record) for record in rank_records([criterion] * len(records), records)]
    return [{f"loss_{name}": value for name, value in one.items()} for one in terms]


def log_odds(logits: Tensor) -> Tensor:
    """``[n, c]`` from the ``[n, c + 1]`` logits of a softmax: log p / (1 - p) of each of the first c classes.

    Their sigmoid is the softmax's probability, so that a loss with one sigmoid per class trains and ranks the scores
    that the model reports, and post-processing stays as it is. log(1 - p) is exact for every p: for the best class it
    is the log-sum-exp of all others, and for all others p is at most 1/2.

    Example:
        >>> logits = torch.tensor([[2.0, -1.0, 0.5]])
        >>> bool(torch.allclose(log_odds(logits).sigmoid(), logits.softmax(-1)[:, :2]))
        True
    """
    logits = at_least_float32(logits)
    best = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.argmax(-1, keepdim=True), True)
    others = logits.masked_fill(best, -torch.inf).logsumexp(-1, keepdim=True)
    logs = logits.log_softmax(-1)
    complement = -torch.log1p(-logs.masked_fill(best, -1.0).exp())
    return torch.where(best, logits - others, logs + complement)[:, :-1]
