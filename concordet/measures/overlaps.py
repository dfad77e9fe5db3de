"""IoUs of detections with the annotations of their image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from concordet.measures.reading.arrays import Floats, Ints
from concordet.measures.reading.dataset import Dataset
from concordet.measures.reading.masks import encode

_PAIRS_AT_ONCE: Final = 2_000_000


def overlapping(
    dataset: Dataset, rows: Ints, objects: Ints, *, any_class: bool = False
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Index in ``rows``, annotation and IoU of all pairs of an image and a class, or of an image, that overlap.

    A limited number of pairs at once; for masks also pairs that do not overlap.
    """
    d, g = _corners(dataset.dt_boxes[rows]), _corners(dataset.gt_boxes)
    for which, held in _candidates(dataset, rows, objects, any_class):
        for low in (0, 1) if dataset.iou_type == "bbox" else ():
            high = low + 2
            common = np.minimum(d[high][which], g[high][held]) > np.maximum(d[low][which], g[low][held])
            near = np.flatnonzero(common)
            which, held = which[near], held[near]
        if len(which):
            yield which, held, paired_iou(dataset, rows[which], held)


def _corners(boxes: Floats) -> Floats:
    # [4, n] x1, y1, x2, y2, each in one piece, from which pairs are gathered many times as fast as from boxes
    return np.concatenate([boxes.T[:2], boxes.T[:2] + boxes.T[2:]])


def _candidates(dataset: Dataset, rows: Ints, objects: Ints, any_class: bool) -> Iterator[tuple[Ints, Ints]]:
    keys, wanted = dataset.gt_images[objects], dataset.dt_images[rows]
    if not any_class:
        keys = image_class(dataset, keys, dataset.gt_classes[objects])
        wanted = image_class(dataset, wanted, dataset.dt_classes[rows])
    order = np.argsort(keys, kind="stable")
    objects, keys = objects[order], keys[order]
    by_key = np.argsort(wanted, kind="stable")  # searching in order reads memory in order
    first, count = np.empty((2, len(rows)), np.int64)
    first[by_key] = np.searchsorted(keys, wanted[by_key])
    count[by_key] = np.searchsorted(keys, wanted[by_key], side="right") - first[by_key]
    total = np.cumsum(count)
    start = 0
    while start < len(rows):
        done = total[start - 1] if start else 0
        end = max(int(np.searchsorted(total, done + _PAIRS_AT_ONCE, side="right")), start + 1)
        n = count[start:end]
        which = np.repeat(np.arange(start, end), n)
        within = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n)
        if len(which):
            yield which, objects[np.repeat(first[start:end], n) + within]
        start = end


def image_class(dataset: Dataset, images: Ints, classes: Ints) -> Ints:
    """One number for each pair of an image and a class."""
    return images * max(len(dataset.class_ids), 1) + classes


def best_objects(
    dataset: Dataset, rows: Ints, pairs: Iterable[tuple[Ints, Ints, Floats]] | None = None
) -> tuple[Ints, Floats]:
    """``[n]`` object (no crowd) of the same image and class with the largest IoU, -1 without one; and that IoU.

    ``pairs`` are those of :func:`overlapping` with all annotations, where they are known.
    """
    objects, ious, crowd = np.full(len(rows), -1, np.int64), np.zeros(len(rows)), dataset.gt_crowd
    for which, candidates, exact in overlapping(dataset, rows, np.flatnonzero(~crowd)) if pairs is None else pairs:
        pair_iou = np.round(exact, 12)  # ties equal boxes
        near = np.flatnonzero((pair_iou > 0) & ~crowd[candidates])
        which, candidates, pair_iou = which[near], candidates[near], pair_iou[near]
        order = np.lexsort((pair_iou, which))
        last = order[np.append(which[order][1:] != which[order][:-1], True)] if len(order) else order
        objects[which[last]], ious[which[last]] = candidates[last], pair_iou[last]
    return objects, ious


def box_iou(first: Floats, second: Floats) -> Floats:
    """IoU of xywh boxes ``[..., 4]``, which are broadcast; 0 for two boxes without area."""
    common = _intersection(first, second)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - common
    return np.divide(common, union, out=np.zeros(common.shape), where=union > 0)


def _intersection(first: Floats, second: Floats) -> Floats:
    sides = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    return np.maximum(sides - np.maximum(first[..., :2], second[..., :2]), 0).prod(-1)


def paired_iou(dataset: Dataset, detections: Ints, objects: Ints) -> Floats:
    """``[n]`` IoU of detections and annotations pair by pair; for crowds, intersection over the detection's area."""
    if dataset.iou_type == "segm":
        return _paired_mask_iou(dataset, detections, objects)
    d, g = dataset.dt_boxes[detections], dataset.gt_boxes[objects]
    common = _intersection(d, g)
    area_d, area_g = d[:, 2:].prod(1), g[:, 2:].prod(1)
    union = np.where(dataset.gt_crowd[objects], area_d, area_d + area_g - common)
    ious = np.divide(common, union, out=np.zeros(len(common)), where=union > 0)
    return np.minimum(ious, 1.0)  # far from the origin, x + w - x can exceed w


def _paired_mask_iou(dataset: Dataset, detections: Ints, objects: Ints) -> Floats:
    from hotcoco import mask as masks

    dt_masks, gt_masks, ious = dataset.dt_masks or [], dataset.gt_masks or [], np.zeros(len(detections))
    images = dataset.gt_images[objects]
    order = np.argsort(images, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(images[order])) + 1) if len(order) else []:
        image = dataset.images[images[pairs[0]]]
        size = image["height"], image["width"]
        (d, row), (g, column) = (np.unique(x[pairs], return_inverse=True) for x in (detections, objects))
        found, held = ([encode(m[i], size) for i in of.tolist()] for m, of in ((dt_masks, d), (gt_masks, g)))
        ious[pairs] = masks.iou(found, held, dataset.gt_crowd[g].tolist())[row, column]
    return ious
