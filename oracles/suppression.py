"""Non-maximum suppression, score voting and centerness."""

from __future__ import annotations

import types
from collections.abc import Iterator

import torch
from mmdet.models.dense_heads import ATSSHead, FCOSHead
from mmdet.models.dense_heads.paa_head import PAAHead
from mmdet.models.layers.bbox_nms import fast_nms, multiclass_nms
from torch import Tensor

from concordet.detectors.dense import centerness
from concordet.detectors.parts.postprocess import PostProcess, suppress, voted_boxes
from oracles.comparison import Comparison, largest
from oracles.losses import random_boxes

SETS, BOXES, CLASSES = 20, 150, 3
LOOP = "a plain loop, written for this"


def candidates(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes around ten centers, ``[n, c]`` scores, and ``[n]`` labels for functions with one per box."""
    generator = torch.Generator().manual_seed(seed)
    objects = random_boxes(10, seed)[torch.randint(0, 10, (BOXES,), generator=generator)]
    boxes = objects + 4 * torch.randn(BOXES, 4, generator=generator, dtype=torch.float64)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = torch.rand(BOXES, CLASSES, generator=generator, dtype=torch.float64)
    return boxes, scores, torch.randint(0, CLASSES, (BOXES,), generator=generator)


def pairs_of(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every pair of box and class as a candidate."""
    labels = torch.arange(CLASSES).expand(len(boxes), -1)
    return boxes[:, None].expand(-1, CLASSES, -1).reshape(-1, 4), scores.flatten(), labels.flatten()


def iou(a: Tensor, b: Tensor) -> float:
    """IoU of two boxes, in plain Python."""
    (ax, ay, ar, ab), (bx, by, br, bb) = a.tolist(), b.tolist()
    shared = max(min(ar, br) - max(ax, bx), 0.0) * max(min(ab, bb) - max(ay, by), 0.0)
    return shared / ((ar - ax) * (ab - ay) + (br - bx) * (bb - by) - shared)


def suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, settings: PostProcess) -> list[tuple[float, int]]:
    """Hard or soft NMS, class by class (Bodla et al. 2017, Fig. 2); scores and indices, best first."""
    found = []
    for label in labels.unique().tolist():
        left = {int(i): float(scores[i]) for i in torch.nonzero(labels == label)}
        while left:
            best = max(left, key=left.__getitem__)
            found.append((left.pop(best), best))
            for i in left:
                overlap = iou(boxes[best], boxes[i])
                if settings.nms == "soft":
                    left[i] *= 2.718281828459045 ** (-(overlap**2) / settings.sigma)
                elif overlap > settings.nms_threshold:
                    left[i] *= 1 - overlap if settings.nms == "soft_linear" else 0
    kept = sorted((pair for pair in found if pair[0] > settings.score_threshold), reverse=True)
    return kept[: settings.detections_per_image]


def compare() -> Iterator[Comparison]:
    """Kept boxes and scores of every kind of suppression; voted boxes; centerness."""
    hard, fast, voted = [], [], []
    for seed in range(SETS):
        boxes, scores, labels = candidates(seed)
        padded = torch.cat([scores, torch.zeros(BOXES, 1, dtype=torch.float64)], 1)
        mine = suppress(*pairs_of(boxes, scores), PostProcess(nms_threshold=0.5))[0]
        theirs, classes = multiclass_nms(boxes, padded, 0.0, {"type": "nms", "iou_threshold": 0.5}, 100)
        hard.append((_rows(mine), torch.cat([theirs, classes[:, None]], 1)))
        mine = suppress(*pairs_of(boxes, scores), PostProcess(nms_threshold=0.5, nms="fast"))[0]
        theirs, classes, _ = fast_nms(boxes, padded, torch.zeros(BOXES, 1), 0.0, 0.5, 200, 100)
        fast.append((_rows(mine), torch.cat([theirs, classes[:, None]], 1)))
        voted.append(_voting(boxes, scores))
    for name, found in (("hard NMS of multiclass_nms", hard), ("fast NMS", fast)):
        yield Comparison(f"{name}: boxes, scores and classes", "mmdet 3.3.0", SETS, largest(found), "relative", 1e-9)
    yield Comparison("score voting: boxes", "mmdet 3.3.0", SETS, largest(voted), "relative", 1e-6)
    for kind in ("hard", "soft", "soft_linear"):
        settings = PostProcess(score_threshold=0.01, nms_threshold=0.3, nms=kind)
        deviation = 0.0
        for seed in range(SETS):
            boxes, scores, labels = candidates(seed)
            scores = 0.02 + 0.98 * scores  # hard NMS has no score threshold
            found, kept = suppress(boxes, scores[:, 0], labels, settings)
            expected = suppressed(boxes, scores[:, 0], labels, settings)
            if kept.tolist() != [i for _, i in expected]:
                deviation = float("inf")
            pairs = zip(found["scores"].tolist(), [score for score, _ in expected], strict=False)
            deviation = max(deviation, *(abs(a - b) for a, b in pairs))
        yield Comparison(f"{kind.replace('_', ' ')} NMS: kept boxes and scores", LOOP, SETS, deviation, "score", 1e-9)
    yield from _centerness()


def _rows(detections: dict[str, Tensor]) -> Tensor:
    return torch.cat([detections["boxes"], detections["scores"][:, None], detections["labels"][:, None] - 1.0], 1)


def _voting(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Voted boxes of the first ten, each as of class 0."""
    kept = torch.cat([boxes[:10], scores[:10, :1]], 1)
    classes = torch.zeros(10, dtype=torch.long)
    head = types.SimpleNamespace(cls_out_channels=1)
    theirs, _ = PAAHead.score_voting(head, kept, classes, boxes, scores[:, :1], 0.0)
    ours = voted_boxes(boxes[:10], classes, boxes, scores[:, 0], torch.zeros(BOXES, dtype=torch.long))
    return ours, theirs[:, :4]


def _centerness() -> Iterator[Comparison]:
    boxes = random_boxes(2000, 5)
    shares = torch.rand(2000, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    points = boxes[:, :2] + shares * (boxes[:, 2:] - boxes[:, :2])
    ours = centerness(points, boxes)
    theirs = FCOSHead.centerness_target(None, torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], 1))
    yield Comparison("centerness: FCOS", "mmdet 3.3.0", 1, largest([(ours, theirs)]), "relative", 1e-9)
    theirs = ATSSHead.centerness_target(None, torch.cat([points - 3, points + 3], 1), boxes)
    yield Comparison("centerness: ATSS", "mmdet 3.3.0", 1, largest([(ours, theirs)]), "relative", 1e-9)
