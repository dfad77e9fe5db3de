"""Assigners: which anchor is responsible for which object, one function per algorithm.

Each takes one image's anchors ``[a, 4]`` and object boxes ``[m, 4]`` (xyxy pixels) and returns ``[a]`` int64: the
object's index, :data:`~concordet.assigned.BACKGROUND` or :data:`~concordet.assigned.IGNORED`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import box_iou

from concordet.assigned import BACKGROUND, IGNORED

Assigner = Callable[[Tensor, Tensor, Sequence[int]], Tensor]  # (anchors, boxes, anchors per level) -> [a]


def centers(boxes: Tensor) -> Tensor:
    """``[..., 2]`` centers of xyxy boxes."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def side_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """``[..., 4]`` distances of points to a box's left, top, right and bottom; negative outside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def all_background(anchors: Tensor) -> Tensor:
    """``[a]`` int64 matches of an image without objects."""
    return torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)


def iou_matches(
    anchors: Tensor,
    boxes: Tensor,
    level_sizes: Sequence[int],
    *,
    foreground: float = 0.5,
    background: float = 0.4,
    own_best: bool = False,
) -> Tensor:
    """RetinaNet's: IoU of at least ``foreground`` with the best object; ignored between the two thresholds.

    An object's best anchors are positive even below the thresholds (torchvision's Matcher, which has the same codes -1
    and -2), but are assigned to the object that they overlap most, which may be another one. With ``own_best`` they
    are assigned to the object itself, the later of two (as in mmdetection). Lin et al. 2017, Sec. 4.1.

    Args:
        anchors: ``[a, 4]``.
        boxes: ``[m, 4]`` of the objects.
        level_sizes: Anchors per level.
        foreground: Smallest IoU of a positive, in [0, 1].
        background: IoU below which an anchor is background.
        own_best: Whether an object's best anchors are always assigned to it.
    """
    if len(boxes) == 0:
        return all_background(anchors)
    overlaps = box_iou(boxes, anchors)  # [m, a]
    matches = Matcher(foreground, background, allow_low_quality_matches=True)(overlaps)
    if not own_best:
        return matches
    best = overlaps.amax(1, keepdim=True)
    rows = torch.arange(len(boxes), device=boxes.device)[:, None]
    owners = torch.where((overlaps == best) & (best > 0), rows, -1).amax(0)  # [a]
    return torch.where(owners >= 0, owners, matches)


def yolact_matches(
    anchors: Tensor,
    boxes: Tensor,
    level_sizes: Sequence[int],
    *,
    foreground: float = 0.5,
    background: float = 0.4,
) -> Tensor:
    """YOLACT's: IoU of at least ``foreground`` with the best object; ignored between the two thresholds.

    In addition each object has one anchor of its own (:func:`own_anchors`), as in the authors' code; in mmdetection
    the later of two objects gets the best anchor of both, and the other may have none. Bolya et al. 2019, Sec. 3.

    Args:
        anchors: ``[a, 4]``.
        boxes: ``[m, 4]`` of the objects.
        level_sizes: Anchors per level.
        foreground: Smallest IoU of a positive, in [0, 1].
        background: IoU below which an anchor is background.
    """
    if len(boxes) == 0:
        return all_background(anchors)
    overlaps = box_iou(boxes, anchors)  # [m, a]
    matches = Matcher(foreground, background)(overlaps)
    own = own_anchors(overlaps)
    objects = torch.arange(len(boxes), device=boxes.device)
    matches[own[own >= 0]] = objects[own >= 0]
    return matches


def own_anchors(overlaps: Tensor) -> Tensor:
    """``[m]`` a different anchor for each object: pairs are matched greedily, in descending order of IoU.

    Of equal IoUs the first object comes first, and gets the first anchor.

    Computed by deferred acceptance: every object proposes to its best anchor, an anchor keeps the best of its
    proposals, and rejected objects propose to their next best.

    Args:
        overlaps: ``[m, a]`` IoU of objects and anchors.

    Returns:
        Indices of anchors; -1 for objects without one, if there are more objects than anchors.

    Example:
        >>> own_anchors(torch.tensor([[0.2, 0.6, 0.1], [0.3, 0.7, 0.5]])).tolist()
        [0, 1]
    """
    count, size = overlaps.shape
    free = overlaps.clone()
    value, anchor = free.max(1)
    while True:
        order = value.argsort(descending=True, stable=True).argsort()
        first = order.new_full((size,), count).scatter_reduce(0, anchor, order, "amin")
        rejected = torch.nonzero((order > first[anchor]) & (value >= 0)).squeeze(1)
        if len(rejected) == 0:
            return torch.where(value >= 0, anchor, -1)
        free[rejected, anchor[rejected]] = -1.0
        value[rejected], anchor[rejected] = free[rejected].max(1)


def ssd_matches(anchors: Tensor, boxes: Tensor, level_sizes: Sequence[int], *, threshold: float = 0.5) -> Tensor:
    """SSD's: IoU of at least ``threshold`` with the best object; each object's best anchor is always assigned to it.

    Args:
        anchors: ``[a, 4]``.
        boxes: ``[m, 4]`` of the objects.
        level_sizes: Anchors per level.
        threshold: Smallest IoU of a positive, in [0, 1].

    Liu et al. 2016, Sec. 2.2, by torchvision's SSDMatcher. Of two objects with the same best anchor the later gets it.
    """
    if len(boxes) == 0:
        return all_background(anchors)
    return SSDMatcher(threshold)(box_iou(boxes, anchors))


def fcos_matches(
    anchors: Tensor, boxes: Tensor, level_sizes: Sequence[int], *, center_radius: float = 1.5, scale: float = 4.0
) -> Tensor:
    """FCOS's: points inside the object, near its center, on the level of its scale; the smallest object wins.

    Args:
        anchors: ``[a, 4]`` squares as wide as their level's stride, centered at the points.
        boxes: ``[m, 4]`` of the objects.
        level_sizes: Anchors per level.
        center_radius: Half the width of the center region, in strides (center sampling).
        scale: A level has the points whose farthest side is between ``scale`` and ``2 * scale`` strides away; the
            first level has no lower bound, the last no upper bound.

    Tian et al. 2019, Sec. 3.1, with the center sampling of the journal version, as in torchvision.
    """
    points, strides = centers(anchors), anchors[:, 2] - anchors[:, 0]
    distances = side_distances(points[:, None], boxes[None])  # [a, m, 4]
    near = (points[:, None] - centers(boxes)[None]).abs().amax(-1) < center_radius * strides[:, None]
    lower, upper = scale * strides, 2 * scale * strides
    lower[: level_sizes[0]] = 0
    upper[len(anchors) - level_sizes[-1] :] = torch.inf
    reach = distances.amax(-1)
    candidate = near & (distances.amin(-1) > 0) & (reach > lower[:, None]) & (reach < upper[:, None])
    return _smallest(candidate, boxes)


def fovea_matches(
    anchors: Tensor, boxes: Tensor, level_sizes: Sequence[int], *, shrink: float = 0.4, scale: float = 4.0
) -> Tensor:
    """FoveaBox's: points in the shrunk center of an object, on every level for its scale; the smallest object wins.

    Args:
        anchors: ``[a, 4]`` squares twice as wide as their level's stride, centered at the points.
        boxes: ``[m, 4]`` of the objects.
        level_sizes: Anchors per level.
        shrink: Size of the center region as a share of the object's width and height.
        scale: A level of stride s has objects of sqrt(area) from ``scale / 2 * s`` to ``2 * scale * s``, so that an
            object may be on two; the first level has no lower bound, the last no upper bound.

    Kong et al. 2020, Sec. III-B and III-C, with the published code's ranges.
    """
    points, strides = centers(anchors), (anchors[:, 2] - anchors[:, 0]) / 2
    middle, half = centers(boxes), shrink / 2 * (boxes[:, 2:] - boxes[:, :2])
    fovea = ((points[:, None] - middle[None]).abs() <= half[None]).all(-1)  # [a, m]
    lower, upper = scale / 2 * strides, 2 * scale * strides
    lower[: level_sizes[0]] = 0
    upper[len(anchors) - level_sizes[-1] :] = torch.inf
    side = (boxes[:, 2:] - boxes[:, :2]).prod(-1).sqrt()
    return _smallest(fovea & (side >= lower[:, None]) & (side <= upper[:, None]), boxes)


def _smallest(candidate: Tensor, boxes: Tensor) -> Tensor:
    """``[a]`` index of the smallest of each anchor's candidate objects ``[a, m]``, or background."""
    if len(boxes) == 0:
        return all_background(candidate)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    smallest, index = torch.where(candidate, areas[None], torch.inf).min(dim=1)
    return torch.where(smallest.isfinite(), index, BACKGROUND)


def atss_matches(anchors: Tensor, boxes: Tensor, level_sizes: Sequence[int], *, candidates: int = 9) -> Tensor:
    """ATSS's: of the nearest anchors on each level, those whose IoU exceeds the candidates' mean plus deviation.

    Args:
        anchors: ``[a, 4]``.
        boxes: ``[m, 4]`` of the objects.
        level_sizes: Anchors per level.
        candidates: Anchors taken from each level, by distance of centers.

    A positive's center must lie inside the object; an anchor that is positive for several objects is assigned to the
    one of highest IoU. The deviation is the sample's (n - 1), as in the published code. Zhang et al. 2020, Algorithm 1.
    """
    if len(boxes) == 0:
        return all_background(anchors)
    ious = box_iou(anchors, boxes)  # [a, m]
    distances = torch.cdist(centers(anchors), centers(boxes))
    start, indices = 0, []
    for size in level_sizes:
        level = distances[start : start + size]
        indices.append(level.topk(min(candidates, size), dim=0, largest=False).indices + start)
        start += size
    index = torch.cat(indices)  # [k, m]
    candidate_ious = ious.gather(0, index)
    threshold = candidate_ious.mean(0) + candidate_ious.std(0)
    inside = side_distances(centers(anchors)[index], boxes[None]).amin(-1) > 0.01
    positive = inside & (candidate_ious >= threshold)
    positive_ious = torch.full_like(ious, -1.0).scatter(0, index, torch.where(positive, candidate_ious, -1.0))
    best, match = positive_ious.max(dim=1)
    return torch.where(best >= 0, match, BACKGROUND)


def ignore_inside(matches: Tensor, anchors: Tensor, ignored_boxes: Tensor, *, overlap: float = 0.5) -> Tensor:
    """Matches in which background anchors with more than ``overlap`` of their area in an ignored region are ignored."""
    if len(ignored_boxes) == 0:
        return matches
    corner = torch.maximum(anchors[:, None, :2], ignored_boxes[None, :, :2])
    extent = (torch.minimum(anchors[:, None, 2:], ignored_boxes[None, :, 2:]) - corner).clamp(min=0)
    areas = (anchors[:, 2:] - anchors[:, :2]).prod(-1).clamp(min=torch.finfo(anchors.dtype).tiny)
    covered = (extent.prod(-1) / areas[:, None]).amax(-1) > overlap
    return torch.where(covered & (matches == BACKGROUND), IGNORED, matches)
