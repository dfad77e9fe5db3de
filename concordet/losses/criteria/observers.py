"""What the papers watch while training: balance of gradients, self-balancing, harmonic factors, inconsistency."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from concordet.assigned import Assigned
from concordet.boxes import paired_iou
from concordet.distributed import process_group
from concordet.losses import functional
from concordet.losses.criteria import Criterion
from concordet.losses.criteria import cores as terms
from concordet.losses.criteria.box import box_losses, weigh
from concordet.losses.criteria.set_core import SetCore


def gradient_ratio(gradient: Tensor, assigned: Assigned) -> Tensor:
    """Sum of gradient magnitudes of negative logits over that of positive ones.

    Exactly 1 for ranking losses (aLRP Loss, Theorem 2), far from it and fluctuating for focal loss and cross entropy
    (aLRP Loss, Figure 4).

    Args:
        gradient: ``[n, c]`` gradient of the loss by ``assigned.logits``.
        assigned: the record it was computed on; of all processes of its group together, where it has one.

    Returns:
        0-dim, at least 0; infinite without a positive's gradient, NaN without any.

    Example:
        >>> from dataclasses import replace
        >>> nothing = torch.zeros(0, 4)
        >>> record = Assigned(logits=torch.zeros(2, 1), labels=torch.tensor([0, -1]), positive=torch.tensor([0]),
        ...     boxes=nothing, gt_boxes=nothing, gt_ids=nothing, image_ids=nothing, normalizer=torch.tensor(1.0))
        >>> gradient_ratio(torch.tensor([[-2.0], [1.0]]), record)
        tensor(0.5000)
    """
    magnitudes = gradient.detach().abs().double()
    own = magnitudes[assigned.positive, assigned.labels[assigned.positive]].sum()
    total, positive = process_group(assigned.group).all_sum(torch.stack([magnitudes.sum(), own]))
    return ((total - positive) / positive).float()


@torch.no_grad()
def observe(criterion: Criterion, assigned: Assigned) -> dict[str, Tensor]:
    """Figures of one batch besides its loss terms, by name.

    Returns:
        0-dim each, where they apply: ``inconsistency``, mean of |score - IoU| over the positives (Harmonic Loss,
        Eq. 14; NaN without); ``self_balance``, the factor of the box term (RS Loss; aLRP Loss, Figure 3);
        ``classification_factor`` and ``localization_factor``, means of 1 + beta_r and 1 + beta_c (Harmonic, Figure 4).
    """
    assigned = replace(assigned, group=criterion.group)  # as the criterion itself does
    ious = paired_iou(assigned.boxes, assigned.gt_boxes)
    seen = {"inconsistency": (assigned.scores() - ious).abs().mean()}
    core = criterion.core.core if isinstance(criterion.core, SetCore) else criterion.core
    if isinstance(core, terms.AverageLRP):
        seen["self_balance"] = core.weight.clone()
    elif isinstance(core, partial) and core.func is terms.harmonic:
        settings = {name: core.keywords[name] for name in ("alpha", "gamma") if name in core.keywords}
        factors = functional.harmonic_factors(*terms.harmonic_parts(assigned, **settings))
        seen["classification_factor"], seen["localization_factor"] = factors[0].mean(), factors[1].mean()
    elif isinstance(core, partial) and core.func is terms.self_balanced:
        losses = core.keywords["classification"](assigned, ious)
        box = core.keywords["box"]
        value = weigh(box, assigned, box_losses(box.kind, assigned, box.beta), ious)
        seen["self_balance"] = terms.balance(terms.sum_terms(losses), value, assigned.group)
    return seen
