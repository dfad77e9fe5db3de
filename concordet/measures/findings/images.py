"""The images with most errors, and results by size of object, at the LRP-optimal thresholds."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from concordet.measures.coco import Precision
from concordet.measures.matching import Matches
from concordet.measures.reading.arrays import Bools, Ints
from concordet.measures.reading.dataset import Dataset

MAX_BOXES: Final = 100
"""Number of missed objects, false positives and true positives that are listed with an image."""

SIZES: Final = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's ranges of area in pixels, ends included."""


def worst_images(dataset: Dataset, matches: Matches, kept: Bools, *, limit: int) -> list[dict[str, Any]]:
    """Images by their number of missed objects and false positives, those with confident false positives first.

    Args:
        dataset: Aligned ground truth and detections.
        matches: Matches at IoU 0.5.
        kept: ``[n]`` whether each detection is above the threshold of its class.
        limit: Number of images to list.

    Returns:
        Plain JSON: ``image_id``, ``file_name``, ``n_objects``, ``n_missed``, ``n_false``, and with class and xywh box
        ``missed``, ``false_positives`` and ``true_positives``, at most 100 of each, the highest scores first.
    """
    n = len(dataset.images)
    false = kept & ~matches.true_positive & ~matches.ignored
    missed = missed_objects(dataset, matches, kept)
    n_false = np.bincount(matches.images[false], minlength=n)
    n_missed = np.bincount(dataset.gt_images[missed], minlength=n)
    confidence = np.zeros(n)
    np.maximum.at(confidence, matches.images[false], matches.scores[false])
    errors = n_false + n_missed
    order = np.lexsort((np.arange(n), -confidence, -errors))[:limit]
    n_objects = np.bincount(dataset.gt_images[~dataset.gt_crowd], minlength=n)

    def detected(index: int, chosen: Bools) -> list[dict[str, Any]]:
        rows = np.flatnonzero(chosen & (matches.images == index))
        rows = rows[np.argsort(-matches.scores[rows], kind="stable")][:MAX_BOXES]
        return [
            {
                "class_name": dataset.class_names[matches.classes[row]],
                "bbox": dataset.dt_boxes[matches.rows[row]].tolist(),
                "score": float(matches.scores[row]),
            }
            for row in rows.tolist()
        ]

    return [
        {
            "image_id": dataset.images[index]["id"],
            "file_name": name if isinstance(name := dataset.images[index].get("file_name"), str) else None,
            "n_objects": int(n_objects[index]),
            "n_missed": int(n_missed[index]),
            "n_false": int(n_false[index]),
            "missed": [
                {"class_name": dataset.class_names[dataset.gt_classes[row]], "bbox": dataset.gt_boxes[row].tolist()}
                for row in missed[dataset.gt_images[missed] == index][:MAX_BOXES].tolist()
            ],
            "false_positives": detected(index, false),
            "true_positives": detected(index, kept & matches.true_positive),
        }
        for index in order.tolist()
        if errors[index]
    ]


def by_size(dataset: Dataset, matches: Matches, precision: Precision, kept: Bools) -> list[dict[str, Any]]:
    """Number of objects, AP and share detected at the LRP-optimal thresholds for each of COCO's sizes."""
    areas = dataset.gt_areas
    hit = np.zeros(len(areas), bool)
    hit[matches.objects[kept & matches.true_positive]] = True
    rows = []
    for column, (name, (low, high)) in enumerate(SIZES.items(), start=1):
        within = ~dataset.gt_crowd & (areas >= low) & (areas <= high)
        count = int(np.count_nonzero(within))
        rows.append(
            {
                "size": name,
                "n_objects": count,
                "AP": precision.mean(slice(None), column),
                "AP50": precision.mean(0, column),
                "detected": float(np.count_nonzero(within & hit) / count) if count else None,
            }
        )
    return rows


def missed_objects(dataset: Dataset, matches: Matches, kept: Bools) -> Ints:
    """Indices of the objects that no kept detection is matched to."""
    free = ~dataset.gt_crowd
    free[matches.objects[kept & matches.true_positive]] = False
    return np.flatnonzero(free)
