"""One-to-one assignment of predictions to objects, of least total cost (DETR, Sparse R-CNN)."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from concordet.types import BACKGROUND


@torch.no_grad()
def set_matches(
    logits: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    classes: Tensor,
    image_size: tuple[int, int],
    *,
    class_cost: float = 2.0,
    l1_cost: float = 5.0,
    giou_cost: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """``[n]`` each prediction's object, or BACKGROUND: the assignment of least total cost.

    The cost of a pair is ``class_cost`` times what focal loss would gain by calling the prediction positive, plus
    ``l1_cost`` times the L1 distance of the boxes in units of the image, minus ``giou_cost`` times their GIoU.

    Args:
        logits: ``[n, c]``, a sigmoid a class.
        boxes: ``[n, 4]`` xyxy pixels.
        gt_boxes: ``[m, 4]`` xyxy pixels; where m exceeds n some objects stay without prediction.
        classes: ``[m]`` 0..c-1.
        image_size: height and width, pixels.

    Carion et al. 2020, Eq. 1, with the focal cost of Deformable DETR, as Sparse R-CNN has it.
    """
    match = torch.full((len(logits),), BACKGROUND, dtype=torch.int64, device=logits.device)
    if len(gt_boxes) == 0 or len(boxes) == 0:
        return match
    scores = logits.sigmoid()[:, classes]  # [n, m]
    positive = alpha * (1 - scores) ** gamma * -(scores + 1e-8).log()
    negative = (1 - alpha) * scores**gamma * -(1 - scores + 1e-8).log()
    height, width = image_size
    unit = boxes.new_tensor([width, height, width, height])
    cost = class_cost * (positive - negative)
    cost = cost + l1_cost * torch.cdist(boxes / unit, gt_boxes / unit, p=1)
    cost = cost - giou_cost * generalized_box_iou(boxes, gt_boxes)
    rows, columns = linear_sum_assignment(cost.double().cpu().numpy())
    match[torch.as_tensor(rows, device=match.device)] = torch.as_tensor(columns, device=match.device)
    return match
