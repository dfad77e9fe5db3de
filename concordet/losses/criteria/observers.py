"""Values that the papers plot while training: gradient balance, self-balancing, harmonic factors, inconsistency."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from concordet.assigned import Assigned
from concordet.boxes import paired_iou
from concordet.distributed import process_group
from concordet.losses.criteria.criterion import Criterion


def gradient_ratio(gradient: Tensor, assigned: Assigned) -> Tensor:
    """Sum of gradient magnitudes of negative logits over that of positive ones.

    1 for AP, aLRP and NDCG Loss (aLRP Loss, Theorem 2); not for RS Loss, whose sorting term moves gradient from
    positives to other positives; far from 1 and fluctuating for focal loss and cross entropy (aLRP Loss, Figure 4).

    Args:
        gradient: ``[n, c]`` gradient of the loss with respect to ``assigned.logits``.
        assigned: Record it was computed on; with a group, the ratio is that of all its processes together.

    Returns:
        0-dim, at least 0; infinite if no positive has a gradient, NaN if no logit has.

    Example:
        >>> none = torch.zeros(0, 4)
        >>> record = Assigned(logits=torch.zeros(2, 1), labels=torch.tensor([0, -1]), positive=torch.tensor([0]),
        ...     boxes=none, gt_boxes=none, gt_ids=none, image_ids=none, normalizer=torch.tensor(1.0))
        >>> gradient_ratio(torch.tensor([[-2.0], [1.0]]), record)
        tensor(0.5000)
    """
    magnitudes = gradient.detach().abs().double()
    own = magnitudes[assigned.positive, assigned.labels[assigned.positive]].sum()
    total, positive = process_group(assigned.group).all_sum(torch.stack([magnitudes.sum(), own]))
    return ((total - positive) / positive).float()


@torch.no_grad()
def observe(criterion: Criterion, assigned: Assigned) -> dict[str, Tensor]:
    """Values of one batch besides its loss terms, by name.

    Returns:
        0-dim each: ``inconsistency``, mean of |score - IoU| over the positives (Harmonic Loss, Eq. 14; NaN without
        positives), and what the criterion's core observes: ``self_balance``, the factor of the box term (RS Loss; aLRP
        Loss, Figure 3), or ``classification_factor`` and ``localization_factor`` (Harmonic Loss, Figure 4).
    """
    assigned = replace(assigned, group=criterion.group)  # as the criterion itself does
    ious = paired_iou(assigned.boxes, assigned.gt_boxes)
    inconsistency = (assigned.scores() - ious).abs().mean()
    return {"inconsistency": inconsistency, **criterion.core.observe(assigned, ious)}
