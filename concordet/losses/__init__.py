"""Every loss: as a function (:mod:`concordet.losses.functional`), as a module, and by name (criteria)."""

from concordet.losses.box import BoxTerm
from concordet.losses.checks import value_checks
from concordet.losses.criteria import Criterion, Usual, build_criterion, list_losses, rank_over
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
    "MatchabilityAwareLoss",
    "NDCGLoss",
    "QualityFocalLoss",
    "RankSortLoss",
    "TaskContrastiveLoss",
    "Usual",
    "VarifocalLoss",
    "build_criterion",
    "list_losses",
    "rank_over",
    "value_checks",
]
