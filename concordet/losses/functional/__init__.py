"""Every loss as a function. The modules of :mod:`concordet.losses` hold hyperparameters and call these."""

from concordet.losses.functional.association import AssociationForm, association_loss
from concordet.losses.functional.checks import value_checks
from concordet.losses.functional.correlations import (
    RELATIVE_STRENGTH,
    Coefficient,
    correlation,
    correlation_loss,
    soft_rank,
)
from concordet.losses.functional.distributional import distributional_ranking_loss
from concordet.losses.functional.focal import focal_loss, matchability_aware_loss, quality_focal_loss, varifocal_loss
from concordet.losses.functional.harmonic import (
    harmonic_factors,
    harmonic_iou_loss,
    harmonic_loss,
    task_contrastive_loss,
)
from concordet.losses.functional.ranking import ALRP, Method, RankSort, alrp_loss, ap_loss, ndcg_loss, rank_sort_loss
from concordet.losses.functional.reduction import Reduction

__all__ = [
    "ALRP",
    "RELATIVE_STRENGTH",
    "AssociationForm",
    "Coefficient",
    "Method",
    "RankSort",
    "Reduction",
    "alrp_loss",
    "ap_loss",
    "association_loss",
    "correlation",
    "correlation_loss",
    "distributional_ranking_loss",
    "focal_loss",
    "harmonic_factors",
    "harmonic_iou_loss",
    "harmonic_loss",
    "matchability_aware_loss",
    "ndcg_loss",
    "quality_focal_loss",
    "rank_sort_loss",
    "soft_rank",
    "task_contrastive_loss",
    "value_checks",
    "varifocal_loss",
]
