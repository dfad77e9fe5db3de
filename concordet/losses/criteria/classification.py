"""Classification losses of criteria: modules that map (assigned, IoUs of the positives) to a value.

IoUs ``[p]`` carry no gradient: they are targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from concordet.assigned import BACKGROUND, IGNORED, Assigned
from concordet.distributed import world
from concordet.losses import functional
from concordet.losses.criteria.terms import Term
from concordet.losses.functional.distributional import unchecked_distributional_ranking_loss

Classification = Callable[[Assigned, Tensor], Tensor | Mapping[str, Tensor | Term]]
"""A classification loss: maps (assigned, IoUs of the positives ``[p]``) to one value, or to values by name."""


class FocalTerm(nn.Module):
    """Focal loss, summed and divided by the normalizer (the number of positives)."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha: float
        self.gamma: float
        self.alpha, self.gamma = alpha, gamma

    def forward(self, assigned: Assigned, ious: Tensor) -> Tensor:
        targets = assigned.class_targets()
        losses = functional.focal_loss(assigned.logits, targets, alpha=self.alpha, gamma=self.gamma, reduction="none")
        return assigned.normalized_sum(losses)


class CrossEntropyTerm(nn.Module):
    """Cross entropy over the normalizer: of a softmax, or binary per class.

    Args:
        no_object_weight: Weight of the background in a softmax; the loss is then the weighted mean over all
            predictions that are used, with the sum of weights averaged over processes, as the normalizer is. None for
            the sum over the normalizer.
    """

    def __init__(self, no_object_weight: float | None = None) -> None:
        super().__init__()
        self.no_object_weight = no_object_weight

    def forward(self, assigned: Assigned, ious: Tensor) -> Tensor:
        if not assigned.softmax:
            targets = assigned.class_targets()
            losses = F.binary_cross_entropy_with_logits(assigned.logits, targets, reduction="none")
            return assigned.normalized_sum(losses)
        losses = softmax_entropies(assigned)
        if self.no_object_weight is None:
            return losses.sum() / assigned.normalizer
        weights = torch.where(assigned.labels == BACKGROUND, self.no_object_weight, 1.0) * assigned.used
        total = world().all_mean(weights.sum())
        return (weights * losses).sum() / total.clamp(min=torch.finfo(losses.dtype).tiny)


def softmax_entropies(assigned: Assigned) -> Tensor:
    """``[n]`` cross entropies of a softmax classifier, 0 where ignored; the background is the last class."""
    background = assigned.logits.shape[1] - 1
    targets = torch.where(assigned.labels == BACKGROUND, background, assigned.labels)
    return F.cross_entropy(assigned.logits, targets, ignore_index=IGNORED, reduction="none")


class QualityFocalTerm(nn.Module):
    """Quality Focal Loss: the target of a positive is its IoU."""

    def forward(self, assigned: Assigned, ious: Tensor) -> Tensor:
        targets = assigned.class_targets(ious)
        return assigned.normalized_sum(functional.quality_focal_loss(assigned.logits, targets, reduction="none"))


class VarifocalTerm(nn.Module):
    """Varifocal Loss: the target of a positive is its IoU, and so is its weight."""

    def forward(self, assigned: Assigned, ious: Tensor) -> Tensor:
        targets = assigned.class_targets(ious)
        return assigned.normalized_sum(functional.varifocal_loss(assigned.logits, targets, reduction="none"))


class MatchabilityAwareTerm(nn.Module):
    """Matchability-Aware Loss: the target of a positive is a power of its IoU; every positive counts in full."""

    def forward(self, assigned: Assigned, ious: Tensor) -> Tensor:
        losses = functional.matchability_aware_loss(
            assigned.logits,
            assigned.class_targets(ious),
            positive=assigned.class_targets() > 0,
            reduction="none",
        )
        return assigned.normalized_sum(losses)


class DistributionalRankingTerm(nn.Module):
    """DR Loss over the batch; its published code computes it per image."""

    def forward(self, assigned: Assigned, ious: Tensor) -> Tensor:
        logits, labels = assigned.logits.flatten(), assigned.ranking_labels()
        return unchecked_distributional_ranking_loss(logits, labels, group=assigned.group)
