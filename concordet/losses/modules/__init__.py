"""Every loss as a module: it holds hyperparameters, checks nothing and keeps nothing; the function does the work."""

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
