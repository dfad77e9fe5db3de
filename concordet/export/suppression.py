"""Non-maximum suppression with shapes that do not depend on the values of tensors, as exported graphs need it.

Inputs have a fixed number of rows per image; padding rows have a negative score.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from concordet.boxes import paired_iou
from concordet.detectors.parts.postprocess import PostProcess, voted_boxes
from concordet.export.numpy_postprocess import FAST_CANDIDATES

IN_GRAPH = ("hard", "fast")
"""Methods of suppression that can be part of a graph; the others loop over detections."""


@torch.library.custom_op("concordet::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, limit: int, count: int) -> Tensor:
    """``[b, n]`` bool: the boxes that greedy suppression keeps in each group of each image.

    A custom operator, so that the ONNX exporter can replace it by ONNX's NonMaxSuppression.

    Args:
        boxes: ``[b, n, 4]`` xyxy.
        scores: ``[b, n]``; negative in padding rows.
        groups: ``[b, n]`` int64 from 0 on.
        iou_threshold: IoU above which the box with the lower score is dropped.
        limit: Maximum number of boxes needed per group; whether further ones are kept is not defined.
        count: Number of groups.
    """
    return keep_best(boxes, scores, groups, iou_threshold, count)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, limit: int, count: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def keep_best(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, count: int) -> Tensor:
    """:func:`suppress` by one call of torchvision's operator: offsets separate the boxes of each group and image.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 9.5]]])
        >>> keep_best(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 0, 1]]), 0.5, 2).tolist()
        [[True, False, True]]
    """
    images = torch.arange(scores.shape[0], device=scores.device)[:, None]
    valid = scores >= 0
    # padding rows form one more group per image, of boxes without area
    group = torch.where(valid, images * (count + 1) + groups, images * (count + 1) + count)
    wide = torch.where(valid[..., None], boxes, torch.zeros_like(boxes)).double()  # float32 would lose digits
    step = wide.max() - wide.min() + 1.0
    separated = wide + (group * step)[..., None]
    kept = nms(separated.flatten(0, 1), scores.flatten().double(), iou_threshold)
    mask = torch.zeros_like(scores).flatten().index_fill(0, kept, 1.0)
    return (mask.view_as(scores) > 0) & valid


def best_of(values: Tensor, count: int, *, lowest: float = -1.0) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row ``[b, n]`` and their indices; ``lowest`` and index 0 where a row has fewer.

    Example:
        >>> best_of(torch.tensor([[0.1, 0.3]]), 3)
        (tensor([[ 0.3000,  0.1000, -1.0000]]), tensor([[1, 0, 0]]))
    """
    padded = torch.nn.functional.pad(values, (0, count), value=lowest)  # topk needs at least count values
    best, index = padded.topk(count, dim=1)
    return best, torch.where(index < values.shape[1], index, torch.zeros_like(index))


def rows(values: Tensor, index: Tensor) -> Tensor:
    """``[b, k]`` or ``[b, k, d]``: rows ``index`` ``[b, k]`` of each image's ``values`` ``[b, n]`` or ``[b, n, d]``."""
    if values.dim() == 2:
        return values.gather(1, index)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, postprocess: PostProcess, num_classes: int, *, operator: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections among candidates, equal to those of :func:`concordet.detectors.parts.postprocess.suppress`.

    Args:
        boxes: ``[b, n, 4]`` xyxy, within the images.
        scores: ``[b, n]``, negative in padding rows.
        labels: ``[b, n]`` 0..c-1.
        postprocess: Thresholds, and a method of suppression in :data:`IN_GRAPH`.
        num_classes: c.
        operator: Whether to use :func:`suppress` instead of torchvision's operator.

    Returns:
        ``[b, k, 4]`` boxes, ``[b, k]`` scores in descending order (negative in padding rows) and ``[b, k]`` labels
        0..c-1, with k the maximum number of detections per image.
    """
    groups = labels if postprocess.class_wise else torch.zeros_like(labels)
    count = num_classes if postprocess.class_wise else 1
    limit, threshold = postprocess.detections_per_image, postprocess.nms_threshold
    if postprocess.nms == "fast":
        kept = _keep_fast(boxes, scores, groups, threshold, count)
    elif threshold >= 1:
        kept = scores >= 0
    elif operator:
        kept = suppress(boxes, scores, groups, threshold, limit, count)
    else:
        kept = keep_best(boxes, scores, groups, threshold, count)
    best, index = best_of(scores.masked_fill(~kept, -1.0), limit)
    chosen = rows(boxes, index)
    if postprocess.score_voting:
        candidates = torch.where((scores >= 0)[..., None], boxes, torch.zeros_like(boxes))
        chosen = voted_boxes(chosen, rows(groups, index), candidates, scores.clamp(min=0), groups)
    return chosen, best, rows(labels, index)


def _keep_fast(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, count: int) -> Tensor:
    """``[b, n]`` bool: boxes that no better box of their group overlaps above the threshold (Fast NMS)."""
    classes = torch.arange(count, device=groups.device)[:, None]
    per_class = torch.where(groups[:, None] == classes, scores[:, None], -1.0)  # [b, c, n]
    best, index = best_of(per_class.flatten(0, 1), FAST_CANDIDATES)
    best, index = best.unflatten(0, (-1, count)), index.unflatten(0, (-1, count))  # [b, c, 200]
    own = rows(boxes, index.flatten(1)).unflatten(1, (count, FAST_CANDIDATES))
    overlaps = paired_iou(own[:, :, :, None], own[:, :, None]).triu(diagonal=1)  # [b, c, better, worse]
    kept = (overlaps.amax(2) <= iou_threshold) & (best >= 0)
    hits = torch.zeros_like(scores).scatter_add(1, index.flatten(1), kept.flatten(1).to(scores.dtype))
    return hits > 0
