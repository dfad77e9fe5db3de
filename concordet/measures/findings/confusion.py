"""Confusion of classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from concordet.measures import coco
from concordet.measures.reading.arrays import Ints
from concordet.measures.reading.dataset import Dataset

MAX_PAIRS = 500
"""Number of most frequent pairs of classes that are kept; 1,200 classes squared would be too many for a page."""


def confusion(dataset: Dataset, truth: Any, rows: Ints, *, max_dets: int) -> dict[str, Any]:
    """Confusion of classes at IoU 0.5: a detection matches the object that it overlaps most, of any class.

    Args:
        dataset: Aligned ground truth and detections.
        truth: The ground truth, from :func:`concordet.measures.coco.load`.
        rows: Detections to count: those above the threshold of their class, and not in crowd regions.
        max_dets: Number of detections kept per image.

    Returns:
        Plain JSON. ``pairs``: class of the ``object``, class of the ``detection``, ``count`` and its ``share`` of the
        objects of that class, the most frequent first. ``per_class``: ``name``, ``n_objects``, and how many of them are
        ``right``, ``confused`` and ``missed``, and ``background``, the unmatched detections of the class.
    """
    chosen = dataset.only(rows)
    table = coco.confusion_matrix(chosen, truth, max_dets=max(max_dets, _max_per_image(chosen))).astype(np.int64)
    k = len(dataset.class_ids)
    objects, right, missed = table[:k].sum(1), table.diagonal()[:k], table[:k, k]
    wrong = table[:k, :k] - np.diag(right)
    first, second = np.nonzero(wrong)
    order = np.argsort(-wrong[first, second], kind="stable")[:MAX_PAIRS]
    names = dataset.class_names
    return {
        "pairs": [
            {
                "object": names[i],
                "detection": names[j],
                "count": int(wrong[i, j]),
                "share": float(wrong[i, j] / objects[i]),
            }
            for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True)
        ],
        "per_class": [
            {
                "name": names[i],
                "n_objects": int(objects[i]),
                "right": int(right[i]),
                "confused": int(wrong[i].sum()),
                "missed": int(missed[i]),
                "background": int(table[k, i]),
            }
            for i in range(k)
            if table[i].any() or table[:, i].any()
        ],
    }


def _max_per_image(dataset: Dataset) -> int:
    # max_dets is per image and class, but the matrix limits all classes of an image together
    return int(np.bincount(dataset.dt_images).max()) if dataset.n_detections else 1
