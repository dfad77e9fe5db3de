"""One-to-one assignment of predictions to objects with the smallest total cost (DETR, Sparse R-CNN)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from concordet.assigned import BACKGROUND

BoxFormat = Literal["xyxy", "cxcywh"]


@dataclass(frozen=True)
class Costs:
    """Cost of pairing a prediction with an object; the defaults are those of Deformable DETR and Sparse R-CNN.

    Attributes:
        classification: Factor of the class cost; DETR has 1, BRS-DETR 4.
        l1: Factor of the L1 distance of the boxes in units of the image.
        giou: Factor of minus their GIoU.
        box_format: Format of the boxes that L1 compares: corners (Sparse R-CNN), or center and size (DETR).
        alpha: Alpha of the focal cost, for classifiers with one sigmoid per class.
        gamma: Gamma of the focal cost.
    """

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    box_format: BoxFormat = "xyxy"
    alpha: float = 0.25
    gamma: float = 2.0


def in_units(boxes: Tensor, extents: Tensor, box_format: BoxFormat) -> Tensor:
    """Boxes ``[..., 4]`` from xyxy pixels to units of the image, given its (w, h, w, h) as ``extents`` ``[..., 4]``."""
    return box_convert(boxes / extents, "xyxy", box_format)


@torch.no_grad()
def hungarian_match(
    logits: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    classes: Tensor,
    image_size: tuple[int, int],
    *,
    costs: Costs | None = None,
    softmax: bool = False,
) -> Tensor:
    """Assignment of predictions to objects with the smallest total cost.

    The cost of a pair is ``classification`` times the focal loss of the prediction as a positive minus that as a
    negative (with a softmax: minus the class's probability), plus ``l1`` times the L1 distance of the boxes in units of
    the image, minus ``giou`` times their GIoU.

    Args:
        logits: ``[n, c]``, one sigmoid per class; with ``softmax`` ``[n, c + 1]``, background last.
        boxes: ``[n, 4]`` xyxy pixels.
        gt_boxes: ``[m, 4]`` xyxy pixels; if m exceeds n, some objects get no prediction.
        classes: ``[m]`` 0..c-1.
        image_size: Height and width, pixels.
        costs: Factors; None for the defaults of :class:`Costs`.
        softmax: Whether the classifier is one softmax over classes and background.

    Returns:
        ``[n]`` int64: index of each prediction's object, or :data:`~concordet.assigned.BACKGROUND`.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 16.0, 16.0], [0.0, 0.0, 9.0, 9.0]])
        >>> hungarian_match(torch.zeros(3, 2), boxes, boxes[[1, 0]], torch.tensor([0, 1]), (16, 16)).tolist()
        [1, 0, -1]

    Carion et al. 2020, Eq. 1; the focal cost is Deformable DETR's.
    """
    costs = costs or Costs()
    match = torch.full((len(logits),), BACKGROUND, dtype=torch.int64, device=logits.device)
    if len(gt_boxes) == 0 or len(boxes) == 0:
        return match
    height, width = image_size
    extents = boxes.new_tensor([width, height, width, height])
    ours, theirs = (in_units(b, extents, costs.box_format) for b in (boxes, gt_boxes))
    cost = costs.classification * class_costs(logits, classes, costs, softmax=softmax)  # [n, m]
    cost = cost + costs.l1 * torch.cdist(ours, theirs, p=1)
    cost = cost - costs.giou * generalized_box_iou(boxes, gt_boxes)
    # training reports a diverged model by its loss; here NaN must only not raise an error
    finite = cost.double().nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)
    rows, columns = linear_sum_assignment(finite.cpu().numpy())
    match[torch.as_tensor(rows, device=match.device)] = torch.as_tensor(columns, device=match.device)
    return match


def class_costs(logits: Tensor, classes: Tensor, costs: Costs, *, softmax: bool) -> Tensor:
    """``[n, m]`` class costs of the predictions ``[n, c]`` for objects of ``classes`` ``[m]``."""
    if softmax:
        return -logits.softmax(-1)[:, classes]
    scores = logits.sigmoid()[:, classes]
    positive = costs.alpha * (1 - scores) ** costs.gamma * -(scores + 1e-8).log()
    negative = (1 - costs.alpha) * scores**costs.gamma * -(1 - scores + 1e-8).log()
    return positive - negative
