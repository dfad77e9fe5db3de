"""Criteria: what turns a detector's :class:`~concordet.assigned.Assigned` into named, weighted loss terms."""

from concordet.losses.criteria.criterion import (
    BASES,
    COUPLINGS,
    HEADS,
    MASKS,
    RANKING,
    SETTINGS,
    SOFTMAX,
    Criterion,
    LossDefaults,
    StagedCriterion,
    build_criterion,
    list_losses,
    rank_over,
)

__all__ = [
    "BASES",
    "COUPLINGS",
    "HEADS",
    "MASKS",
    "RANKING",
    "SETTINGS",
    "SOFTMAX",
    "Criterion",
    "LossDefaults",
    "StagedCriterion",
    "build_criterion",
    "list_losses",
    "rank_over",
]
