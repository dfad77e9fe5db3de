"""Targets that a detector can learn from, and ValueErrors for all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Target = dict[str, Any]


def targets_with_ignored(targets: list[Target]) -> list[Target]:
    """Ignored regions travel as boxes of label 0, so that they are resized with the rest."""
    merged = []
    for target in targets:
        boxes, labels = target["boxes"].as_subclass(Tensor), target["labels"]
        ignored = target.get("ignored_boxes")
        if ignored is not None and len(ignored):
            boxes = torch.cat([boxes, ignored.as_subclass(Tensor).to(boxes)])
            labels = torch.cat([labels, labels.new_zeros(len(ignored))])
        merged.append({"boxes": boxes, "labels": labels})
    return merged


def checked_targets(images: list[Tensor], targets: list[Target], num_classes: int) -> list[Target]:
    """Targets that a detector can learn from, ignored regions among the boxes; ValueError for any other."""
    check_targets(images, targets, num_classes)
    return [
        {"boxes": t["boxes"].to(torch.promote_types(image.dtype, torch.float32)), "labels": t["labels"]}
        for image, t in zip(images, targets_with_ignored(targets), strict=True)
    ]


def check_targets(images: list[Tensor], targets: list[Target], num_classes: int) -> None:
    """Raises ValueError with one sentence for targets that a detector cannot learn from."""
    if len(images) != len(targets):
        raise ValueError(f"expected one target an image, got {len(targets)} targets for {len(images)} images")
    for i, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels):
            raise ValueError(
                f"target {i}: expected boxes [m, 4] and labels [m], got {list(boxes.shape)} and {list(labels.shape)}"
            )
        if len(labels) == 0:
            continue
        low, high = int(labels.min()), int(labels.max())
        if low < 1 or high > num_classes:
            raise ValueError(f"target {i}: labels must be 1..{num_classes}, got {low}..{high}; check num_classes")
        if bool((boxes[:, 2:] <= boxes[:, :2]).any()):
            bad = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)][0].tolist()
            raise ValueError(
                f"target {i}: boxes must be xyxy with positive width and height, got {bad}; drop such boxes"
            )


def add_masks(checked: list[Target], images: list[Tensor], targets: list[Target]) -> list[Target]:
    """Targets with the objects' masks beside their boxes, where there are some; ValueError for another shape."""
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        masks = target.get("masks")
        if masks is None:
            continue
        expected = [len(target["labels"]), *image.shape[-2:]]
        if list(masks.shape) != expected:
            raise ValueError(f"target {i}: expected masks {expected}, one an object, got {list(masks.shape)}")
        checked[i]["masks"] = masks.as_subclass(Tensor)
    return checked


def require_masks(masks: Sequence[Tensor | None], name: str) -> None:
    """ValueError where an image of a training batch has no masks; ``name`` is the detector's."""
    for i, own in enumerate(masks):
        if own is None:
            raise ValueError(
                f"target {i}: {name} learns from masks, and this target has none; load the data with masks=True "
                "(train_options of the configuration's data)"
            )
