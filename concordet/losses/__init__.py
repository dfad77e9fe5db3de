"""Every loss: as a function (:mod:`concordet.losses.functional`), as a module, and by name (criteria)."""

from concordet.losses.criteria import Criterion, LossDefaults, build_criterion, list_losses, rank_over
from concordet.losses.criteria.box import BoxTerm
from concordet.losses.functional.checks import value_checks
from concordet.losses.modules import (
    ALRPLoss,
    APLoss,
    AssociationLoss,
    BucketedAPLoss,
    BucketedRankSortLoss,
    CorrelationLoss,
    DistributionalRankingLoss,
    FocalLoss,
    HarmonicIoULoss,
    HarmonicLoss,
    MatchabilityAwareLoss,
    NDCGLoss,
    QualityFocalLoss,
    RankSortLoss,
    TaskContrastiveLoss,
    VarifocalLoss,
)

__all__ = [
    "ALRPLoss",
    "APLoss",
    "AssociationLoss",
    "BoxTerm",
    "BucketedAPLoss",
    "BucketedRankSortLoss",
    "CorrelationLoss",
    "Criterion",
    "DistributionalRankingLoss",
    "FocalLoss",
    "HarmonicIoULoss",
    "HarmonicLoss",
    "LossDefaults",
    "MatchabilityAwareLoss",
    "NDCGLoss",
    "QualityFocalLoss",
    "RankSortLoss",
    "TaskContrastiveLoss",
    "VarifocalLoss",
    "build_criterion",
    "list_losses",
    "rank_over",
    "value_checks",
]
