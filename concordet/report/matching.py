"""Which detection lies on which object, and where score and placement disagree most: for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Disagreement:
    """Two boxes of one class in one image: the first ranks higher, the second lies better.

    Attributes:
        image_id: the image.
        first, second: COCO detections, the one ranked higher and the one placed better.
        first_iou, second_iou: their IoU with the object that each lies on.
        objects: the COCO annotations they lie on, one when they claim the same.
        size: (difference of scores) x (difference of IoUs), what a ranking by IoU would mend.
    """

    image_id: int | str
    first: Mapping[str, Any]
    second: Mapping[str, Any]
    first_iou: float
    second_iou: float
    objects: tuple[Mapping[str, Any], ...]
    size: float

    @property
    def same_object(self) -> bool:
        """Whether both boxes lie on the same object."""
        return len(self.objects) == 1


def corners(bbox: Any) -> np.ndarray:
    """``[n, 4]`` xyxy of COCO's xywh."""
    boxes = np.asarray(bbox, dtype=float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def iou_matrix(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``[n, m]`` IoU of xyxy boxes, 0 where the union is empty.

    Example:
        >>> iou_matrix(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6]])).round(3).tolist()
        [[0.333, 0.0]]
    """
    extent = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - np.maximum(boxes[:, None, :2], others[None, :, :2])
    overlap = extent.clip(min=0).prod(-1)
    area, other_area = (np.prod((b[:, 2:] - b[:, :2]).clip(min=0), axis=1) for b in (boxes, others))
    union = area[:, None] + other_area[None] - overlap
    return np.divide(overlap, union, out=np.zeros(overlap.shape), where=union > 0)


def by_image(records: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    """Annotations or detections grouped by their image."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["image_id"], []).append(record)
    return groups


def count_matches(
    objects: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]], *, threshold: float = 0.5
) -> tuple[int, int]:
    """(objects found, detections that found none): each detection, best score first, takes its best free object.

    An object is found at IoU ``threshold`` or above; crowd regions are no objects, and what lies on one is no mistake.
    """
    found, false = 0, 0
    taken: set[int] = set()
    for detection in sorted(detections, key=lambda d: -d["score"]):
        same = [i for i, o in enumerate(objects) if o["category_id"] == detection["category_id"]]
        ious = _ious(detection, [objects[i] for i in same])
        free = [(iou, i) for iou, i in zip(ious, same, strict=True) if iou >= threshold and i not in taken]
        free.sort(key=lambda pair: (bool(objects[pair[1]].get("iscrowd")), -pair[0]))
        if not free:
            false += 1
        elif not objects[free[0][1]].get("iscrowd"):
            taken.add(free[0][1])
            found += 1
    return found, false


def worst_disagreements(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    image_ids: Sequence[Any] | None = None,
    limit: int = 6,
    min_iou: float = 0.3,
    min_score: float = 0.05,
) -> list[Disagreement]:
    """Pairs of boxes of one class and image in which the higher ranked lies worse; the worst first, one an image.

    Args:
        ground_truth: COCO form; crowd regions are left out.
        detections: COCO results.
        image_ids: images to look at; None for all.
        limit: how many pairs come back at most.
        min_iou: what lies on no object by this much is a false positive, not a badly placed box.
        min_score: boxes that no one would keep are left out.
    """
    objects = by_image([a for a in ground_truth.get("annotations", []) if not a.get("iscrowd")])
    found = by_image([d for d in detections if d["score"] >= min_score])
    wanted = found.keys() if image_ids is None else [i for i in image_ids if i in found]
    worst = [pair for i in wanted if (pair := _worst_of_image(i, objects.get(i, []), found[i], min_iou)) is not None]
    return sorted(worst, key=lambda pair: -pair.size)[:limit]


def _worst_of_image(
    image_id: Any, objects: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]], min_iou: float
) -> Disagreement | None:
    worst: Disagreement | None = None
    for category in {d["category_id"] for d in detections} & {o["category_id"] for o in objects}:
        own = [o for o in objects if o["category_id"] == category]
        placed = []
        for detection in (d for d in detections if d["category_id"] == category):
            ious = _ious(detection, own)
            if ious.max() >= min_iou:
                placed.append((detection, float(ious.max()), own[int(ious.argmax())]))
        for first, first_iou, first_object in placed:
            for second, second_iou, second_object in placed:
                if first["score"] <= second["score"] or second_iou <= first_iou:
                    continue
                size = (first["score"] - second["score"]) * (second_iou - first_iou)
                if worst is None or size > worst.size:
                    same = first_object is second_object
                    on = (first_object,) if same else (first_object, second_object)
                    worst = Disagreement(image_id, first, second, first_iou, second_iou, on, size)
    return worst


def _ious(detection: Mapping[str, Any], objects: Sequence[Mapping[str, Any]]) -> np.ndarray:
    if not objects:
        return np.zeros(0)
    return iou_matrix(corners(detection["bbox"]), corners([o["bbox"] for o in objects]))[0]
