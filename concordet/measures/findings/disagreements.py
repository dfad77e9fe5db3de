"""Objects whose first-ranked box is not their best one."""

from __future__ import annotations

from typing import Any

import numpy as np

from concordet.measures.matching import Pairs
from concordet.measures.overlaps import best_objects
from concordet.measures.reading.arrays import Ints
from concordet.measures.reading.dataset import Dataset


def worst_disagreements(
    dataset: Dataset, rows: Ints, pairs: Pairs | None = None, *, limit: int, floor: float = 0.3
) -> list[dict[str, Any]]:
    """Objects by the IoU that the ranking loses: the box of highest score compared with the box of highest IoU.

    A detection is assigned to the object of its class that it overlaps most, from IoU ``floor`` on. Boxes are xywh.
    ``pairs`` are the overlapping pairs of these detections, where they are known.
    """
    objects, ious = best_objects(dataset, rows, None if pairs is None else [(pairs.which, pairs.objects, pairs.ious)])
    scores = dataset.dt_scores[rows]
    near = np.flatnonzero((objects >= 0) & (ious >= floor))
    if not len(near):
        return []
    owner = objects[near]
    by_score = near[np.lexsort((near, -scores[near], owner))]
    by_iou = near[np.lexsort((near, -scores[near], -ious[near], owner))]
    sorted_owner = np.sort(owner)
    lead = np.append(True, sorted_owner[1:] != sorted_owner[:-1])
    first, better = by_score[lead], by_iou[lead]
    gap = ious[better] - ious[first]
    chosen = np.argsort(-gap, kind="stable")[:limit]
    return [
        _disagreement(dataset, int(objects[f]), (int(rows[f]), float(ious[f])), (int(rows[b]), float(ious[b])))
        for f, b in zip(first[chosen].tolist(), better[chosen].tolist(), strict=True)
        if ious[b] > ious[f]
    ]


def _disagreement(dataset: Dataset, index: int, first: tuple[int, float], better: tuple[int, float]) -> dict[str, Any]:
    def box(row: int, iou: float) -> dict[str, Any]:
        return {"bbox": dataset.dt_boxes[row].tolist(), "score": float(dataset.dt_scores[row]), "iou": iou}

    image = dataset.images[dataset.gt_images[index]]
    label = int(dataset.gt_classes[index])
    return {
        "image_id": image["id"],
        "file_name": name if isinstance(name := image.get("file_name"), str) else None,
        "category_id": int(dataset.class_ids[label]),
        "class_name": dataset.class_names[label],
        "object": dataset.gt_boxes[index].tolist(),
        "first": box(*first),
        "better": box(*better),
        "gap": better[1] - first[1],
    }
