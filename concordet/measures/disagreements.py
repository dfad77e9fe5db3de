"""Objects whose first-ranked box is not their best one, and how well scores are calibrated as IoU."""

from __future__ import annotations

from typing import Any

import numpy as np

from concordet.measures.matching import Matches
from concordet.measures.overlap import best_objects
from concordet.measures.reading.arrays import Ints
from concordet.measures.reading.dataset import Dataset


def worst_disagreements(dataset: Dataset, rows: Ints, *, limit: int, floor: float = 0.3) -> list[dict[str, Any]]:
    """Objects by how much IoU the ranking loses: the overlapping box of highest score against the one of highest IoU.

    A detection belongs to the object of its class that it overlaps most, from IoU ``floor``. Boxes are xywh.
    """
    objects, ious = best_objects(dataset, rows)
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


def _disagreement(dataset: Dataset, held: int, first: tuple[int, float], better: tuple[int, float]) -> dict[str, Any]:
    def box(row: int, iou: float) -> dict[str, Any]:
        return {"bbox": dataset.dt_boxes[row].tolist(), "score": float(dataset.dt_scores[row]), "iou": iou}

    image = dataset.images[dataset.gt_images[held]]
    label = int(dataset.gt_classes[held])
    return {
        "image_id": image["id"],
        "file_name": name if isinstance(name := image.get("file_name"), str) else None,
        "category_id": int(dataset.class_ids[label]),
        "class_name": dataset.class_names[label],
        "object": dataset.gt_boxes[held].tolist(),
        "first": box(*first),
        "better": box(*better),
        "gap": better[1] - first[1],
    }


def calibration(matches: Matches, *, n_bins: int = 10) -> tuple[float | None, list[dict[str, Any]]]:
    """How far scores are from the IoU they should announce: the error, and the bins of score it is taken over.

    A detection's IoU is that with the object it is matched to, 0 for a false positive; the error is the mean over
    detections of ``|mean score - mean IoU|`` of their bin (the localisation-aware calibration error of Oksuz et al.
    2023, over all classes). It is None where there is no detection or a score lies outside [0, 1].
    """
    judged = ~matches.ignored
    scores = matches.scores[judged]
    ious = np.where(matches.true_positive, matches.ious, 0.0)[judged]
    hit = matches.true_positive[judged]
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return None, []
    place = np.minimum((scores * n_bins).astype(np.int64), n_bins - 1)
    count = np.bincount(place, minlength=n_bins)
    hits = np.bincount(place, hit, n_bins)
    score_sum, iou_sum = np.bincount(place, scores, n_bins), np.bincount(place, ious, n_bins)
    bins = [
        {
            "low": i / n_bins,
            "high": (i + 1) / n_bins,
            "count": int(count[i]),
            "mean_score": float(score_sum[i] / count[i]) if count[i] else None,
            "mean_iou": float(iou_sum[i] / count[i]) if count[i] else None,
            "precision": float(hits[i] / count[i]) if count[i] else None,
            "mean_iou_of_true_positives": float(iou_sum[i] / hits[i]) if hits[i] else None,
        }
        for i in range(n_bins)
    ]
    return float(np.abs(score_sum - iou_sum).sum() / len(scores)), bins
