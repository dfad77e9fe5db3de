"""Box terms: how far the predicted boxes are from their objects, one value per positive."""

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
    """A box loss, its weight, and the weights of the positives in it.

    Attributes:
        kind: Box loss. ``l1`` and ``smooth_l1`` compare encoded regressions (RetinaNet, Faster R-CNN), the others
            boxes.
        weight: Factor of the whole term.
        weighting: Weights of the positives, without gradient. ``none``: the sum over positives over the normalizer;
            ``score``: the largest class probability (RS Loss, GFL); ``quality``: the target of the auxiliary head
            (ATSS: centerness); ``iou``: the IoU (VarifocalNet). With weights the term is sum(w x loss) / sum(w), with
            the denominator averaged over processes, as the normalizer is.
        beta: Error at which ``smooth_l1`` turns from quadratic to linear.

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
            raise ValueError(f"kind of a box term must be one of {', '.join(get_args(BoxKind))}, got {self.kind!r}")
        if self.weighting not in get_args(Weighting):
            raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, got {self.weighting!r}")


def box_losses(kind: BoxKind, assigned: Assigned, beta: float = 1 / 9) -> Tensor:
    """Box loss of each positive, in float32 or better, differentiable in the predictions.

    Returns:
        ``[p]``: for ``iou``, ``giou``, ``diou`` and ``ciou`` 1 minus that measure (``iou`` in [0, 1], the others in
        [0, 2] or slightly above); for ``l1`` and ``smooth_l1`` the sum over the encoded coordinates.

    Raises:
        ValueError: if ``kind`` compares encoded regressions and the detector has none.
    """
    if kind in ("l1", "smooth_l1"):
        if assigned.regression is None:
            raise ValueError(
                f"box term must be a loss of boxes for a detector without encoded regression, got {kind!r}; use 'giou'"
            )
        deltas = at_least_float32(assigned.regression.deltas)
        targets = at_least_float32(assigned.regression.targets)
        if kind == "l1":
            return (deltas - targets).abs().sum(-1)
        return F.smooth_l1_loss(deltas, targets, reduction="none", beta=beta).sum(-1)
    boxes, targets = at_least_float32(assigned.boxes), at_least_float32(assigned.gt_boxes)
    return 1 - _measure(kind, boxes, targets)


def _measure(kind: BoxKind, boxes: Tensor, targets: Tensor, eps: float = 1e-7) -> Tensor:
    """``[p]`` IoU, GIoU, DIoU or CIoU, equal to torchvision's, whose losses synchronize with the GPU.

    GIoU = IoU - (hull - union) / hull                     (Rezatofighi et al. 2019)
    DIoU = IoU - distance of centers^2 / diagonal^2        (Zheng et al. 2020)
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
    centers = (boxes[:, :2] + boxes[:, 2:] - targets[:, :2] - targets[:, 2:]) / 2
    distance = iou - centers.square().sum(-1) / (hull.square().sum(-1) + eps)
    if kind == "diou":
        return distance
    angles = (torch.atan2(*(b[:, 2:] - b[:, :2]).unbind(1)) for b in (targets, boxes))
    shape = 4 / math.pi**2 * torch.sub(*angles).square()
    return distance - (shape / (1 - iou + shape + eps)).detach() * shape


def weigh(term: BoxTerm, assigned: Assigned, losses: Tensor, ious: Tensor) -> Tensor:
    """0-dim sum of ``losses`` ``[p]`` with the weights of ``term``; 0, connected to the graph, without positives."""
    if term.weighting == "none":
        return term.weight * losses.sum() / assigned.normalizer
    weights = _weights(term.weighting, assigned, ious).detach()
    total = world().all_mean(weights.sum())
    # The floor keeps an empty batch, or one whose weights all vanish, at zero instead of 0 / 0.
    return term.weight * (weights * losses).sum() / total.clamp(min=torch.finfo(losses.dtype).tiny)


def box_value(term: BoxTerm, assigned: Assigned, ious: Tensor) -> Tensor:
    """0-dim value of a box term."""
    return weigh(term, assigned, box_losses(term.kind, assigned, term.beta), ious)


def _weights(weighting: Weighting, assigned: Assigned, ious: Tensor) -> Tensor:
    """``[p]`` weights of the positives."""
    if weighting == "score":
        return at_least_float32(assigned.logits[assigned.positive].amax(dim=-1)).sigmoid()
    if weighting == "iou":
        return ious
    if assigned.quality is None or assigned.quality.targets is None:
        raise ValueError(
            "weighting must be 'none', 'score' or 'iou' for a detector without centerness targets, got 'quality'; "
            "use 'none'"
        )
    return assigned.quality.targets
