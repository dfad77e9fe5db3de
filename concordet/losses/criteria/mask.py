"""Mask terms: how far predicted masks are from their objects', one value a positive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from concordet.assigned import Assigned
from concordet.distributed import world
from concordet.losses.criteria.box import BoxTerm, weigh
from concordet.losses.criteria.cores import balance
from concordet.losses.functional.reduction import at_least_float32

MaskKind = Literal["bce", "dice"]


@dataclass(frozen=True)
class MaskTerm:
    """Which mask loss, and how positives are weighed against one another.

    Attributes:
        kind: ``bce``: cross entropy, mean over pixels (Mask R-CNN); ``dice``: Dice loss.
        weight: factor of the whole term.
        weighting: ``none``: mean over the positives (their number averaged over processes); ``score``: by the largest
            class probability, detached, as RS Loss does.
        balanced: scaled to the value of the classification terms, without gradient through the factor.

    Example:
        >>> MaskTerm("dice", weighting="score", balanced=True)
        MaskTerm(kind='dice', weighting='score', balanced=True, weight=1.0)
    """

    kind: MaskKind = "bce"
    weighting: Literal["none", "score"] = "none"
    balanced: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(MaskKind):
            raise ValueError(f"mask term must be one of {', '.join(get_args(MaskKind))}, got {self.kind!r}")
        if self.weighting not in ("none", "score"):
            raise ValueError(f"weighting of masks must be one of none, score, got {self.weighting!r}")


def mask_losses(kind: MaskKind, assigned: Assigned) -> Tensor:
    r"""``[p]`` mask loss of each positive, fp32, at least 0.

    ``dice`` is :math:`1 - 2 \sum_k p_k t_k / (\sum_k p_k^2 + \sum_k t_k^2 + 10^{-5})` over the pixels k of the frame,
    as RS Loss's published code has it.  With weights of pixels, ``bce`` is the weighted sum, and ``dice`` leaves out
    those of weight 0.

    Raises:
        ValueError: for a record without masks.
    """
    if assigned.mask_logits is None or assigned.mask_targets is None:
        raise ValueError("a mask term needs a detector that predicts masks, and targets that have them")
    logits, targets = (
        at_least_float32(assigned.mask_logits).flatten(1),
        at_least_float32(assigned.mask_targets).flatten(1),
    )
    weights = None if assigned.mask_weights is None else at_least_float32(assigned.mask_weights).flatten(1)
    if kind == "bce":
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.mean(1) if weights is None else (losses * weights).sum(1)
    masks = logits.sigmoid()
    if weights is not None:
        masks, targets = masks * (weights > 0), targets * (weights > 0)
    overlap = 2 * (masks * targets).sum(1)
    return 1 - overlap / (masks.square().sum(1) + targets.square().sum(1) + 1e-5)


def mask_term(term: MaskTerm, assigned: Assigned, classification: Tensor) -> Tensor:
    """0-dim mask loss as ``term`` says; ``classification`` is what a balanced one is scaled to."""
    losses = mask_losses(term.kind, assigned)
    if term.weighting == "score":
        value = weigh(BoxTerm(weighting="score"), assigned, losses, losses)
    else:
        count = world().all_mean(losses.new_tensor(float(len(losses))))
        value = losses.sum() / count.clamp(min=torch.finfo(losses.dtype).tiny)
    value = term.weight * value
    return value * balance(classification, value, assigned.group) if term.balanced else value


def segmentation_term(assigned: Assigned) -> Tensor:
    """0-dim cross entropy of the classes at pixels, summed over classes, mean over pixels and images.

    Pixels of which nobody knows cost nothing.  YOLACT's semantic segmentation (Bolya et al. 2019, Sec. 3.5).
    """
    if assigned.segment_logits is None or assigned.segment_targets is None:
        raise ValueError("a segmentation term needs a detector that predicts classes of pixels, and targets with masks")
    logits, targets = at_least_float32(assigned.segment_logits), at_least_float32(assigned.segment_targets)
    losses = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
    images, _, height, width = logits.shape
    return (losses * (targets >= 0)).sum() / (images * height * width)
