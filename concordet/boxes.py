"""IoU of pairs of boxes; torchvision's ``box_iou`` compares every box with every other."""

from __future__ import annotations

import torch
from torch import Tensor


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each box with the box in the same row.

    Args:
        boxes: ``[..., 4]`` xyxy, any unit.
        others: ``[..., 4]`` xyxy, same unit.

    Returns:
        ``[...]`` in [0, 1]; 0 where the union is empty. In float32 or better, differentiable in both.

    Example:
        >>> paired_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
        tensor([0.3333])
    """
    overlap, union = paired_overlap(boxes, others)
    return overlap / union.clamp(min=torch.finfo(union.dtype).tiny)


def paired_overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """``[...]`` areas of intersection and of union of each pair of boxes, in float32 or better."""
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, others.dtype), torch.float32)
    boxes, others = boxes.to(dtype), others.to(dtype)
    extent = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    overlap = extent.clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    other_area = (others[..., 2:] - others[..., :2]).clamp(min=0).prod(-1)
    return overlap, area + other_area - overlap
