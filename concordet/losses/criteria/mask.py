"""Mask terms: how far the predicted masks are from those of the objects, one value per positive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from concordet.assigned import Assigned, Masks, Segmentation
from concordet.distributed import world
from concordet.losses.criteria.box import BoxTerm, weigh
from concordet.losses.criteria.cores import balance
from concordet.losses.functional.reduction import at_least_float32

MaskKind = Literal["bce", "dice"]
MaskWeighting = Literal["none", "score"]


@dataclass(frozen=True)
class MaskTerm:
    """A mask loss, its weight, and the weights of the positives in it.

    Attributes:
        kind: ``bce``: cross entropy, mean over pixels (Mask R-CNN); ``dice``: Dice loss.
        weighting: Weights of the positives. ``none``: mean over the positives (their number averaged over processes);
            ``score``: the largest class probability, without gradient, as in RS Loss.
        balanced: The term is scaled to the value of the classification terms, without gradient through the factor.
        weight: Factor of the whole term.

    Example:
        >>> MaskTerm("dice", weighting="score", balanced=True)
        MaskTerm(kind='dice', weighting='score', balanced=True, weight=1.0)
    """

    kind: MaskKind = "bce"
    weighting: MaskWeighting = "none"
    balanced: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(MaskKind):
            raise ValueError(f"kind of a mask term must be one of {', '.join(get_args(MaskKind))}, got {self.kind!r}")
        if self.weighting not in get_args(MaskWeighting):
            raise ValueError(
                f"weighting of masks must be one of {', '.join(get_args(MaskWeighting))}, got {self.weighting!r}"
            )


def mask_losses(kind: MaskKind, masks: Masks) -> Tensor:
    r"""``[p]`` mask loss of each positive, at least 0, in float32 or better.

    ``dice`` is :math:`1 - 2 \sum_k p_k t_k / (\sum_k p_k^2 + \sum_k t_k^2 + 10^{-5})` over the pixels k of the frame,
    as in RS Loss's published code. With weights of pixels, ``bce`` is the weighted sum, and ``dice`` leaves out pixels
    of weight 0.
    """
    logits, targets = at_least_float32(masks.logits).flatten(1), at_least_float32(masks.targets).flatten(1)
    weights = None if masks.weights is None else at_least_float32(masks.weights).flatten(1)
    if kind == "bce":
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.mean(1) if weights is None else (losses * weights).sum(1)
    probabilities = logits.sigmoid()
    if weights is not None:
        probabilities, targets = probabilities * (weights > 0), targets * (weights > 0)
    overlap = 2 * (probabilities * targets).sum(1)
    return 1 - overlap / (probabilities.square().sum(1) + targets.square().sum(1) + 1e-5)


def mask_value(term: MaskTerm, masks: Masks, assigned: Assigned, classification: Tensor) -> Tensor:
    """0-dim mask term; a balanced one is scaled to ``classification``."""
    losses = mask_losses(term.kind, masks)
    if term.weighting == "score":
        value = weigh(BoxTerm(weighting="score"), assigned, losses, losses)
    else:
        count = world().all_mean(losses.new_tensor(float(len(losses))))
        value = losses.sum() / count.clamp(min=torch.finfo(losses.dtype).tiny)
    value = term.weight * value
    return value * balance(classification, value, assigned.group) if term.balanced else value


def segmentation_value(segmentation: Segmentation) -> Tensor:
    """0-dim cross entropy of the classes per pixel: summed over classes, mean over pixels and images.

    Pixels with unknown targets contribute 0. YOLACT's semantic segmentation (Bolya et al. 2019, Sec. 3.5).
    """
    logits, targets = at_least_float32(segmentation.logits), at_least_float32(segmentation.targets)
    losses = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
    images, _, height, width = logits.shape
    return (losses * (targets >= 0)).sum() / (images * height * width)
