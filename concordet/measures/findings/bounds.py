"""AP of the same boxes in a better and in a worse ranking (Correlation Loss, Tables 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from concordet.measures.coco import IOU_THRESHOLDS, Precision, average_precision
from concordet.measures.correlation import image_correlation
from concordet.measures.matching import Matches, match_pairs
from concordet.measures.overlaps import best_objects, box_iou
from concordet.measures.reading.arrays import Bools, Floats, Ints
from concordet.measures.reading.dataset import Dataset, highest_by_group
from concordet.measures.summary import ap_metrics

_PAIRS_AT_ONCE: Final = 2_000_000


def reranking_bounds(dataset: Dataset, truth: Any, matches: Matches, *, max_dets: int) -> tuple[Precision, Precision]:
    """AP with the true positives of each class ranked by IoU and against IoU: (upper, lower).

    The detections that ``max_dets`` keeps are evaluated again with every score replaced by its rank in the class
    (so that ties stay broken in the same way) and the ranks of true positives at IoU 0.5 permuted among them.
    False positives and boxes stay as they are (Correlation Loss, Kahraman et al. 2023, Analysis Setup).
    """
    original = ranks(matches)
    upper, lower = (
        _precision(dataset, truth, matches, permuted_ranks(matches, original, best=best), max_dets)
        for best in (True, False)
    )
    return upper, lower


def _precision(dataset: Dataset, truth: Any, matches: Matches, scores: Floats, max_dets: int) -> Precision:
    # AP over all areas, with other scores of the detections that were matched
    if matches.pairs is None:
        kept = dataset if len(matches.rows) == dataset.n_detections else dataset.only(matches.rows)
        return average_precision(kept, truth, scores=scores, max_dets=max_dets, all_areas=False)
    ranked = np.argsort(-scores)  # without ties
    levels = match_pairs(dataset, matches.pairs, scores, IOU_THRESHOLDS)
    ap = np.array([level.average_precision(ranked) for level in levels])
    return Precision(np.where(matches.n_objects > 0, ap, np.nan)[..., None], np.zeros((0, 0, 0)), [])


def ranks(matches: Matches) -> Floats:
    """``[n]`` distinct scores that order the detections as pycocotools does."""
    result = np.empty(len(matches.ranked))
    result[matches.ranked] = np.arange(len(result), 0, -1)
    return result


def permuted_ranks(matches: Matches, original: Floats, *, best: bool) -> Floats:
    """``[n]`` ranks with those of each class's true positives permuted to rise (``best``) or fall with IoU."""
    result = original.copy()
    hit = np.flatnonzero(matches.true_positive)
    classes, values, ious = matches.classes[hit], result[hit], matches.ious[hit]
    by_rank = np.lexsort((-values, classes))
    by_iou = np.lexsort((-values, -ious if best else ious, classes))
    result[hit[by_iou]] = values[by_rank]
    return result


def image_level(dataset: Dataset, truth: Any, *, max_dets: int, nms_threshold: float) -> ImageLevel:
    """beta_img of raw detections, and their AP after NMS with their scores and with scores permuted in each image.

    A positive is a detection that overlaps an object of its class by an IoU of 0.5 or more (a results file does not
    have the assignment of training). The bounds permute the positives' scores within each image, over its classes, so
    that they are in the order of IoU (or the reverse); negatives and boxes stay as they are. The ``max_dets`` highest
    of each image after class-wise NMS of boxes are evaluated. ``AP_raw`` is the same without permutation.

    Raises:
        ValueError: ``nms_threshold`` is not in (0, 1].
    """
    if not 0 < nms_threshold <= 1:
        raise ValueError(f"nms_threshold must be an IoU in (0, 1], got {nms_threshold}; 0.6 is common")
    rows = np.arange(dataset.n_detections)
    _, ious = best_objects(dataset, rows)
    positive = np.flatnonzero(ious >= 0.5)
    images, scores = dataset.dt_images[positive], dataset.dt_scores[positive]
    beta = image_correlation(scores, ious[positive], images)
    variants = {"raw": dataset.dt_scores}
    slots = np.lexsort((-scores, images))
    for name, sign in (("image_upper", -1), ("image_lower", 1)):
        permuted = dataset.dt_scores.copy()
        permuted[positive[np.lexsort((-scores, sign * ious[positive], images))]] = scores[slots]
        variants[name] = permuted
    values: dict[str, Any] = {"beta_img": beta.value, "n_images_correlated": beta.n_defined}
    reasons = {} if beta.reason is None else {"beta_img": beta.reason}
    kept = suppress(dataset, list(variants.values()), nms_threshold)
    for (name, column), survives in zip(variants.items(), kept, strict=True):
        rows = np.flatnonzero(survives)
        chosen = np.sort(rows[highest_by_group(dataset.dt_images[rows], column[rows], max_dets)])
        part = dataset.only(chosen)
        precision = average_precision(part, truth, scores=column[chosen], max_dets=max_dets, all_areas=False)
        for measure, value in ap_metrics(precision, slice(None)).items():
            values[f"{measure}_{name}"] = value
            if value is None:
                reasons[f"{measure}_{name}"] = "the ground truth has no object"
    return ImageLevel(values, reasons)


def suppress(dataset: Dataset, variants: Sequence[Floats], threshold: float) -> list[Bools]:
    """Greedy NMS by image and class for each of several columns of scores: ``[n]`` whether a box is kept."""
    n_classes = max(len(dataset.class_ids), 1)
    group = dataset.dt_images * n_classes + dataset.dt_classes
    order = np.argsort(group, kind="stable")
    survives = [np.ones(len(order), bool) for _ in variants]
    for members, first, second in _overlapping(dataset.dt_boxes[order], group[order], threshold):
        for scores, result in zip(variants, survives, strict=True):
            s = scores[order]
            swap = s[second] > s[first]  # ties go to the earlier record
            high, low = np.where(swap, second, first), np.where(swap, first, second)
            result[order[members]] = _greedy(members, high, low)
    return survives


def _greedy(members: slice, high: Ints, low: Ints) -> Bools:
    # in rounds over the whole chunk: a box without undecided higher neighbors is kept, and removes its lower neighbors
    high, low = high - members.start, low - members.start
    size = members.stop - members.start
    kept, decided = np.ones(size, bool), np.zeros(size, bool)
    while len(high):
        waiting = np.zeros(size, bool)
        waiting[low] = True
        decided |= ~waiting
        gone = low[decided[high] & kept[high]]
        kept[gone] = False
        decided[gone] = True
        live = ~decided[high] & ~decided[low]
        high, low = high[live], low[live]
    return kept


def _overlapping(boxes: Floats, group: Ints, threshold: float) -> Iterator[tuple[slice, Ints, Ints]]:
    # for some groups at a time: the slice of their boxes, and indices first < second of pairs above the threshold
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1])) if len(group) else np.zeros(0, np.int64)
    ends = np.append(starts[1:], len(group))
    sizes = ends - starts
    total = np.cumsum(sizes * (sizes - 1) // 2)
    at = 0
    while at < len(starts):
        done = total[at - 1] if at else 0
        stop = max(int(np.searchsorted(total, done + _PAIRS_AT_ONCE, side="right")), at + 1)
        low, high = int(starts[at]), int(ends[stop - 1])
        index = np.arange(low, high)
        after = np.repeat(ends[at:stop], sizes[at:stop]) - index - 1
        first = np.repeat(index, after)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(after) - after, after)
        near = box_iou(boxes[first], boxes[second]) > threshold
        yield slice(low, high), first[near], second[near]
        at = stop


@dataclass(frozen=True)
class ImageLevel:
    """Image-level metrics, and the reasons why some are undefined."""

    values: dict[str, Any]
    reasons: dict[str, str]
