"""Checks of targets, with one-sentence errors for malformed ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Target = dict[str, Any]


def targets_with_ignored(targets: list[Target]) -> list[Target]:
    """Targets whose ignored regions are boxes of label 0, so that they are resized with the other boxes."""
    merged = []
    for target in targets:
        boxes, labels = target["boxes"].as_subclass(Tensor), target["labels"].long()
        ignored = target.get("ignored_boxes")
        if ignored is not None and len(ignored):
            boxes = torch.cat([boxes, ignored.as_subclass(Tensor).to(boxes)])
            labels = torch.cat([labels, labels.new_zeros(len(ignored))])
        merged.append({"boxes": boxes, "labels": labels})
    return merged


def checked_targets(images: list[Tensor], targets: list[Target], num_classes: int) -> list[Target]:
    """Checked targets as a detector is trained on them, with ignored regions among the boxes.

    Args:
        images: ``[3, h, w]`` each.
        targets: One per image: ``boxes``, ``labels`` and optionally ``ignored_boxes``.
        num_classes: Foreground classes.

    Raises:
        ValueError: If a target is malformed; see :func:`check_targets`.
    """
    check_targets(images, targets, num_classes)
    return [
        {"boxes": t["boxes"].to(torch.promote_types(image.dtype, torch.float32)), "labels": t["labels"]}
        for image, t in zip(images, targets_with_ignored(targets), strict=True)
    ]


def check_targets(images: list[Tensor], targets: list[Target], num_classes: int) -> None:
    """Checks the shapes, labels and boxes of targets.

    Raises:
        ValueError: If the numbers of images and targets differ, shapes or types do not fit, labels are outside
            1..num_classes, or a box is not finite or has no positive width and height.
    """
    if len(images) != len(targets):
        raise ValueError(f"targets must be one per image, got {len(targets)} targets for {len(images)} images")
    for i, target in enumerate(targets):
        missing = [name for name in ("boxes", "labels") if not isinstance(target.get(name), Tensor)]
        if missing:
            got = type(target.get(missing[0])).__name__ if missing[0] in target else "none"
            raise ValueError(f"target {i}: {missing[0]} must be a tensor, got {got}; convert it with torch.tensor")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.ndim != 1 or len(boxes) != len(labels):
            raise ValueError(
                f"target {i}: boxes must be [m, 4] and labels [m], got {list(boxes.shape)} and {list(labels.shape)}"
            )
        if len(labels) == 0:
            continue
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"target {i}: labels must be integers, got {labels.dtype}; convert them with .long()")
        low, high = int(labels.min()), int(labels.max())
        if low < 1 or high > num_classes:
            raise ValueError(f"target {i}: labels must be 1..{num_classes}, got {low}..{high}; check num_classes")
        faulty = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))
        if bool(faulty.any()):
            bad = boxes[faulty][0].tolist()
            raise ValueError(
                f"target {i}: boxes must be xyxy with positive width and height, got {bad}; drop such boxes"
            )


def add_masks(checked: list[Target], images: list[Tensor], targets: list[Target]) -> list[Target]:
    """Targets with the masks of the objects, where ``targets`` have masks; raises ValueError for a wrong shape."""
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        masks = target.get("masks")
        if masks is None:
            continue
        expected = [len(target["labels"]), *image.shape[-2:]]
        if list(masks.shape) != expected:
            raise ValueError(f"target {i}: masks must be {expected}, one per object, got {list(masks.shape)}")
        checked[i]["masks"] = masks.as_subclass(Tensor)
    return checked


def require_masks(masks: Sequence[Tensor | None], name: str) -> None:
    """Raises ValueError if an image of a training batch of detector ``name`` has no masks."""
    for i, own in enumerate(masks):
        if own is None:
            raise ValueError(
                f"target {i}: masks must be given for {name}, got none; load the data with masks=True "
                "(train_options of the configuration's data)"
            )
