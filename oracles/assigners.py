"""Assigners: which anchor belongs to which object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from mmdet.models.task_modules.assigners import ATSSAssigner, HungarianAssigner, MaxIoUAssigner
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmengine.structures import InstanceData
from torch import Tensor

from concordet.detectors.parts.assigners import atss_matches, iou_matches, ssd_matches, yolact_matches
from concordet.detectors.parts.hungarian import Costs, hungarian_match
from oracles.comparison import Comparison, unequal
from oracles.scenes import CLASSES, HEIGHT, WIDTH, Scene, scenes

STRIDES = (8, 16, 32, 64, 128)
PER_KIND = 20


def anchors(ratios: Sequence[float], scales: Sequence[float]) -> tuple[Tensor, list[int]]:
    """mmdetection's anchors of all levels, and how many each has."""
    generator = AnchorGenerator(strides=STRIDES, ratios=ratios, scales=scales)
    levels = generator.grid_priors([(-(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES], device="cpu")
    return torch.cat(levels), [len(level) for level in levels]


def assigned(assigner: Any, priors: Tensor, sizes: list[int], scene: Scene) -> Tensor:
    """mmdetection's assignment with concordet's codes: -1 background, -2 ignored."""
    objects = InstanceData(bboxes=scene.boxes, labels=scene.labels)
    own = InstanceData(priors=priors)
    extra = (sizes,) if isinstance(assigner, ATSSAssigner) else ()
    found = assigner.assign(own, *extra, objects).gt_inds
    return torch.where(found > 0, found - 1, torch.where(found == 0, -1, -2))


def cases() -> Iterator[tuple[str, Any, Callable[..., Tensor], tuple[Sequence[float], Sequence[float]], str]]:
    """Name, mmdetection's assigner, ours, ratios and scales of the anchors, and the reason for differences."""
    square, retina = ((1.0,), (8.0,)), ((0.5, 1.0, 2.0), (4.0, 5.04, 6.35))
    yield "ATSS", ATSSAssigner(topk=9), atss_matches, square, ""
    best_of_later = MaxIoUAssigner(0.5, 0.4, min_pos_iou=0)
    own_best = partial(iou_matches, own_best=True)
    yield "PAA's candidates; RetinaNet with own_best=True", best_of_later, own_best, retina, ""
    yield (
        "RetinaNet",
        best_of_later,
        iou_matches,
        retina,
        "as torchvision: an object's best anchors belong to the object that they overlap most",
    )
    rpn = partial(iou_matches, foreground=0.7, background=0.3, own_best=True)
    yield "RPN with min_pos_iou=0", MaxIoUAssigner(0.7, 0.3, min_pos_iou=0), rpn, square, ""
    yield (
        "RPN",
        MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.3),
        rpn,
        square,
        "as torchvision: an object keeps its best anchor whatever the IoU; mmdetection: from 0.3 on (min_pos_iou)",
    )
    yield "SSD", MaxIoUAssigner(0.5, 0.5, min_pos_iou=0.0, gt_max_assign_all=False), ssd_matches, square, ""
    yield (
        "YOLACT",
        MaxIoUAssigner(0.5, 0.4, min_pos_iou=0.0, gt_max_assign_all=False),
        yolact_matches,
        ((0.5, 1.0, 2.0), (3.0,)),
        "as the authors' code: every object has an anchor of its own; mmdetection: the later of two takes it",
    )


def compare() -> Iterator[Comparison]:
    """All assigners."""
    chosen = scenes(PER_KIND)
    for what, theirs, ours, shapes, reason in cases():
        priors, sizes = anchors(*shapes)
        differing = unequal((ours(priors, s.boxes, sizes), assigned(theirs, priors, sizes, s)) for s in chosen)
        unit = f"of {len(chosen) * len(priors):,} anchors"
        yield Comparison(f"anchors and objects: {what}", "mmdet 3.3.0", len(chosen), differing, unit, reason=reason)
    yield from _hungarian(chosen)


def _hungarian(chosen: list[Scene]) -> Iterator[Comparison]:
    settings = {
        "Sparse R-CNN": (Costs(2.0, 5.0, 2.0, "xyxy"), "FocalLossCost", "xyxy", False),
        "Deformable DETR": (Costs(2.0, 5.0, 2.0, "cxcywh"), "FocalLossCost", "xywh", False),
        "DETR": (Costs(1.0, 5.0, 2.0, "cxcywh"), "ClassificationCost", "xywh", True),
    }
    for name, (costs, cost, box_format, softmax) in settings.items():
        assigner = HungarianAssigner(
            match_costs=[
                {"type": cost, "weight": costs.classification},
                {"type": "BBoxL1Cost", "weight": costs.l1, "box_format": box_format},
                {"type": "IoUCost", "iou_mode": "giou", "weight": costs.giou},
            ]
        )
        pairs = []
        for number, scene in enumerate(chosen):
            generator = torch.Generator().manual_seed(number)
            logits = torch.randn(100, CLASSES + softmax, generator=generator)
            corners = torch.rand(100, 2, generator=generator) * torch.tensor([WIDTH - 60.0, HEIGHT - 60.0])
            boxes = torch.cat([corners, corners + 5 + 55 * torch.rand(100, 2, generator=generator)], 1)
            found = assigner.assign(
                InstanceData(bboxes=boxes, scores=logits),
                InstanceData(bboxes=scene.boxes, labels=scene.labels),
                {"img_shape": (HEIGHT, WIDTH)},
            ).gt_inds
            ours = hungarian_match(
                logits, boxes, scene.boxes, scene.labels, (HEIGHT, WIDTH), costs=costs, softmax=softmax
            )
            pairs.append((ours, found - 1))
        unit = f"of {100 * len(chosen):,} predictions"
        yield Comparison(f"Hungarian matching: {name}", "mmdet 3.3.0", len(chosen), unequal(pairs), unit)
