"""Every loss as a module, which holds hyperparameters only and calls the function of the same name."""

from concordet.losses.modules.classification import FocalLoss, MatchabilityAwareLoss, QualityFocalLoss, VarifocalLoss
from concordet.losses.modules.coupling import (
    AssociationLoss,
    CorrelationLoss,
    HarmonicIoULoss,
    HarmonicLoss,
    TaskContrastiveLoss,
)
from concordet.losses.modules.ranking import (
    ALRPLoss,
    APLoss,
    BucketedAPLoss,
    BucketedRankSortLoss,
    DistributionalRankingLoss,
    NDCGLoss,
    RankSortLoss,
)

__all__ = [
    "ALRPLoss",
    "APLoss",
    "AssociationLoss",
    "BucketedAPLoss",
    "BucketedRankSortLoss",
    "CorrelationLoss",
    "DistributionalRankingLoss",
    "FocalLoss",
    "HarmonicIoULoss",
    "HarmonicLoss",
    "MatchabilityAwareLoss",
    "NDCGLoss",
    "QualityFocalLoss",
    "RankSortLoss",
    "TaskContrastiveLoss",
    "VarifocalLoss",
]
