"""Box terms: how far predicted boxes are from their objects, one value a positive."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from concordet.assigned import Assigned
from concordet.boxes import paired_iou, paired_overlap
from concordet.distributed import world
from concordet.losses.functional.reduction import at_least_float32

BoxKind = Literal["l1", "smooth_l1", "iou", "giou", "diou", "ciou"]
Weighting = Literal["none", "score", "quality", "iou"]


@dataclass(frozen=True)
class BoxTerm:
    """Which box loss, how heavy, and how positives are weighed against one another.

    Attributes:
        kind: ``l1`` and ``smooth_l1`` compare encoded regressions (as RetinaNet and Faster R-CNN do), the others boxes.
        weight: factor of the whole term.
        weighting: ``none``: sum over positives / normalizer; ``score``: by the largest class probability (RS Loss,
            GFL); ``quality``: by the auxiliary head's target (ATSS: centerness); ``iou``: by the IoU (VarifocalNet).
            With weights the term is sum(w x loss) / sum(w), the latter averaged over processes as the normalizer is.
            No weight carries gradient.
        beta: where ``smooth_l1`` turns from quadratic to linear.

    Example:
        >>> BoxTerm("giou", weight=2.0).weighting
        'none'
    """

    kind: BoxKind = "giou"
    weight: float = 1.0
    weighting: Weighting = "none"
    beta: float = 1 / 9

    def __post_init__(self) -> None:
        if self.kind not in get_args(BoxKind):
            raise ValueError(f"box term must be one of {', '.join(get_args(BoxKind))}, got {self.kind!r}")
        if self.weighting not in get_args(Weighting):
            raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, got {self.weighting!r}")


def box_losses(kind: BoxKind, assigned: Assigned, beta: float = 1 / 9) -> Tensor:
    """``[p]`` box loss of each positive, fp32, differentiable in the predictions.

    ``iou``, ``giou``, ``diou`` and ``ciou`` are 1 minus that measure (``iou`` in [0, 1], the others in [0, 2] or a
    little above); ``l1`` and ``smooth_l1`` are summed over the four encoded coordinates.

    Raises:
        ValueError: for a loss of encoded regressions where the detector regresses boxes directly.
    """
    if kind in ("l1", "smooth_l1"):
        if assigned.deltas is None or assigned.gt_deltas is None:
            raise ValueError(f"box term {kind!r} needs a detector with encoded regression; use 'giou' with this one")
        deltas, targets = at_least_float32(assigned.deltas), at_least_float32(assigned.gt_deltas)
        if kind == "l1":
            return (deltas - targets).abs().sum(-1)
        return F.smooth_l1_loss(deltas, targets, reduction="none", beta=beta).sum(-1)
    boxes, targets = at_least_float32(assigned.boxes), at_least_float32(assigned.gt_boxes)
    return 1 - _measure(kind, boxes, targets)


def _measure(kind: BoxKind, boxes: Tensor, targets: Tensor, eps: float = 1e-7) -> Tensor:
    """``[p]`` IoU, GIoU, DIoU or CIoU: torchvision's numbers, whose own losses make a GPU's host wait (they use masks).

    GIoU = IoU - (hull - union) / hull                     (Rezatofighi et al. 2019)
    DIoU = IoU - distance of centres^2 / diagonal^2        (Zheng et al. 2020)
    CIoU = DIoU - v^2 / (1 - IoU + v),  v = 4 / pi^2 (difference of the angles of the diagonals)^2
    """
    if kind == "iou":
        return paired_iou(boxes, targets)
    overlap, union = paired_overlap(boxes, targets)
    iou = overlap / (union + eps)
    hull = torch.maximum(boxes[:, 2:], targets[:, 2:]) - torch.minimum(boxes[:, :2], targets[:, :2])  # [p, 2]
    if kind == "giou":
        area = hull.prod(-1)
        return iou - (area - union) / (area + eps)
    centres = (boxes[:, :2] + boxes[:, 2:] - targets[:, :2] - targets[:, 2:]) / 2
    distance = iou - centres.square().sum(-1) / (hull.square().sum(-1) + eps)
    if kind == "diou":
        return distance
    angles = (torch.atan2(*(b[:, 2:] - b[:, :2]).unbind(1)) for b in (targets, boxes))
    shape = 4 / math.pi**2 * torch.sub(*angles).square()
    return distance - (shape / (1 - iou + shape + eps)).detach() * shape


def weigh(term: BoxTerm, assigned: Assigned, losses: Tensor, ious: Tensor) -> Tensor:
    """0-dim weighted sum of ``losses`` ``[p]`` as ``term`` says; zero (connected) without positives."""
    if term.weighting == "none":
        return term.weight * losses.sum() / assigned.normalizer
    if term.weighting == "score":
        weights = at_least_float32(assigned.logits[assigned.positive].amax(dim=-1)).sigmoid()
    elif term.weighting == "iou":
        weights = ious
    elif assigned.quality_targets is None:
        raise ValueError("weighting 'quality' needs a detector with centerness targets; use 'none' with this one")
    else:
        weights = assigned.quality_targets
    weights = weights.detach()
    total = world().all_mean(weights.sum())
    # The floor keeps an empty batch, or one whose weights all vanish, at zero instead of 0 / 0.
    return term.weight * (weights * losses).sum() / total.clamp(min=torch.finfo(losses.dtype).tiny)
