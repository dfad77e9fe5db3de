"""Every loss as a function. The modules of :mod:`concordet.losses` hold hyperparameters and call these."""

from concordet.losses.association import association_loss
from concordet.losses.checks import value_checks
from concordet.losses.correlations import RELATIVE_STRENGTH, correlation, correlation_loss, soft_rank
from concordet.losses.distributional import distributional_ranking_loss
from concordet.losses.focal import focal_loss, matchability_aware_loss, quality_focal_loss, varifocal_loss
from concordet.losses.harmonic import harmonic_factors, harmonic_iou_loss, harmonic_loss, task_contrastive_loss
from concordet.losses.rankings import ALRP, RankSort, alrp_loss, ap_loss, ndcg_loss, rank_sort_loss

__all__ = [
    "ALRP",
    "RELATIVE_STRENGTH",
    "RankSort",
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
