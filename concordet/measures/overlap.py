"""Each detection with the object it overlaps most, matched or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from concordet.measures.matching import paired_iou
from concordet.measures.reading.arrays import Floats, Ints
from concordet.measures.reading.dataset import Dataset

_PAIRS_AT_ONCE: Final = 2_000_000


def best_objects(dataset: Dataset, rows: Ints) -> tuple[Ints, Floats]:
    """``[n]`` the object of the same image and class (no crowd) with the largest IoU, -1 without one, and that IoU."""
    objects = np.full(len(rows), -1, np.int64)
    ious = np.zeros(len(rows))
    for which, held in _pairs(dataset, rows):
        pair_iou = np.round(paired_iou(dataset, rows[which], held), 12)
        order = np.lexsort((pair_iou, which))
        last = order[np.append(which[order][1:] != which[order][:-1], True)]
        found = last[pair_iou[last] > 0]
        objects[which[found]], ious[which[found]] = held[found], pair_iou[found]
    return objects, ious


def _pairs(dataset: Dataset, rows: Ints) -> Iterator[tuple[Ints, Ints]]:
    # (place in rows, object) for every object of the detection's image and class, some detections at a time
    n_classes = max(len(dataset.class_ids), 1)
    real = np.flatnonzero(~dataset.gt_crowd)
    keys = dataset.gt_images[real] * n_classes + dataset.gt_classes[real]
    order = np.argsort(keys, kind="stable")
    real, keys = real[order], keys[order]
    wanted = dataset.dt_images[rows] * n_classes + dataset.dt_classes[rows]
    first = np.searchsorted(keys, wanted)
    count = np.searchsorted(keys, wanted, side="right") - first
    total = np.cumsum(count)
    start = 0
    while start < len(rows):
        done = total[start - 1] if start else 0
        stop = max(int(np.searchsorted(total, done + _PAIRS_AT_ONCE, side="right")), start + 1)
        n = count[start:stop]
        which = np.repeat(np.arange(start, stop), n)
        within = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n)
        if len(which):
            yield which, real[np.repeat(first[start:stop], n) + within]
        start = stop
