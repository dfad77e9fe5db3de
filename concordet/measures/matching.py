"""Matching of detections and objects, at one IoU threshold or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from concordet.files import no_garbage_collection
from concordet.measures import coco
from concordet.measures.overlaps import image_class, overlapping, paired_iou
from concordet.measures.reading.arrays import Bools, Floats, Ints
from concordet.measures.reading.dataset import Dataset, checked_limit, highest_by_group, read_dataset

_NONE: Final = np.zeros(0, np.int64)
_NO_IOU: Final = np.zeros(0)
_MOST_IOU: Final = 1 - 1e-10  # pycocotools' highest threshold

ANY_OVERLAP: Final = float(np.finfo(np.float64).tiny)
"""The IoU threshold that stands for tau = 0: any overlap is a match, and no overlap is none."""


def match_detections(
    ground_truth: Any,
    detections: Any,
    *,
    tau: float = 0.0,
    iou_type: str = "bbox",
    lvis: bool = False,
    max_dets: int | None = None,
) -> MatchedDetections:
    """Matches detections to objects, and returns the IoU that a calibrated score of each should equal.

    Within each image and class, in descending order of score, each detection is matched to the unmatched object that it
    overlaps most, if their IoU is at least ``tau``; at ``tau`` 0 they must overlap. Equal scores keep their order. A
    detection without an object is a false positive with target 0, unless it overlaps a crowd region by ``tau`` of its
    own area: then it does not count.

    Args:
        ground_truth: path, dict, list or array ``[m, 6]`` in COCO form; see :func:`concordet.measures.analyze`.
        detections: results in any form that :func:`concordet.measures.analyze` takes; the array form ``[n, 7]``
            (image_id, x, y, width, height, score, category_id) is the fastest.
        tau: IoU in [0, 1) from which a match counts.
        iou_type: ``"bbox"`` or ``"segm"``.
        lvis: whether to apply LVIS's federated rules; detections of classes that an image is not annotated for do not
            count.
        max_dets: detections kept, highest scores first: 100 per image and class, with ``lvis`` 300 per image.

    Returns:
        Columns of the kept detections, in the order of their source.

    Raises:
        ValueError: as :func:`concordet.measures.analyze`, or ``tau`` is out of range.

    Example:
        >>> truth = [[1, 0, 0, 10, 10, 7], [1, 50, 0, 10, 10, 7]]
        >>> results = [[1, 0, 0, 10, 8, 0.9, 7], [1, 0, 0, 10, 10, 0.6, 7], [1, 50, 0, 10, 2, 0.3, 7]]
        >>> matched = match_detections(np.array(truth), np.array(results))
        >>> matched.targets.tolist(), matched.n_objects
        ([0.8, 0.0, 0.2], {7: 2})
    """
    if not 0 <= tau < 1:
        raise ValueError(f"tau must be an IoU in [0, 1), got {tau}")
    limit = checked_limit(max_dets, lvis)
    dataset = read_dataset(ground_truth, detections, iou_type=iou_type, lvis=lvis, max_dets=limit)
    matches = match_at(dataset, max_dets=limit, thresholds=[tau or ANY_OVERLAP])[0]
    return MatchedDetections(
        rows=dataset.dt_rows[matches.rows],
        image_ids=dataset.image_ids[matches.images],
        class_ids=dataset.class_ids[matches.classes],
        scores=matches.scores,
        targets=matches.targets(),
        counted=~matches.ignored,
        n_objects=dict(zip(dataset.class_ids.tolist(), matches.n_objects.tolist(), strict=True)),
    )


@dataclass(frozen=True)
class MatchedDetections:
    """Detections with the IoU that their scores should equal.

    Attributes:
        rows: ``[n]`` index of the detection in its source, ascending. Detections beyond ``max_dets`` and on images
            that the ground truth lacks are left out.
        image_ids, class_ids: ``[n]`` ids as in the ground truth.
        scores: ``[n]`` scores as in the source.
        targets: ``[n]`` IoU with the matched object, in [0, 1]; 0 for a false positive.
        counted: ``[n]`` False where a detection is neither true nor false: matched to a crowd region, or not judged
            under LVIS's rules.
        n_objects: objects that count (no crowds) by class id, with classes that have none.

    Example:
        >>> from concordet.measures import match_detections
        >>> truth = {
        ...     "images": [{"id": 1}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}],
        ... }
        >>> results = [
        ...     {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 8], "score": 0.9},
        ...     {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.4},
        ... ]
        >>> matched = match_detections(truth, results)
        >>> matched.scores, matched.targets  # the object belongs to the detection with the higher score
        (array([0.9, 0.4]), array([0.8, 0. ]))
    """

    rows: Ints
    image_ids: Ints
    class_ids: Ints
    scores: Floats
    targets: Floats
    counted: Bools
    n_objects: dict[int, int]


def match_both(dataset: Dataset, truth: Any = None, *, max_dets: int) -> tuple[Matches, Matches]:
    """Matches at IoU 0.5 and at tau = 0, where any overlap counts; both hold the same detections in the same order."""
    thresholds = [ANY_OVERLAP, coco.IOU_THRESHOLDS[0]]
    overlaps, matches = match_at(dataset, truth, max_dets=max_dets, thresholds=thresholds)
    return matches, overlaps


def match_at(dataset: Dataset, truth: Any = None, *, max_dets: int, thresholds: Sequence[float]) -> list[Matches]:
    """pycocotools' matches at each IoU threshold; all hold the same detections in the same order.

    ``truth`` is the data set in hotcoco's form; without it, it is made where it is needed.
    """
    if dataset.iou_type == "bbox" and not dataset.lvis:
        rows = kept_rows(dataset, max_dets)
        pairs = overlapping_pairs(dataset, rows)
        return list(match_pairs(dataset, pairs, dataset.dt_scores[rows], thresholds))
    truth = coco.load(dataset) if truth is None else truth
    return match_by_hotcoco(dataset, truth, max_dets=max_dets, thresholds=thresholds)


@no_garbage_collection()
def match_by_hotcoco(dataset: Dataset, truth: Any, *, max_dets: int, thresholds: Sequence[float]) -> list[Matches]:
    """:func:`match_at` for masks, LVIS's rules too, and boxes, for which :func:`match_pairs` is much faster."""
    result = coco.evaluator(dataset, truth, scores=None, max_dets=[max_dets], all_areas=False, thresholds=thresholds)
    groups = [group for group in result.eval_imgs if group is not None]
    judged = np.fromiter(chain.from_iterable(group["dtIds"] for group in groups), np.int64) - 1
    rows = np.sort(judged)
    index = np.searchsorted(rows, judged)
    counts = [sum(group["gtInDenominator"]) for group in groups]
    groups_of = np.array([(g["image_id"] - 1, g["category_id"] - 1) for g in groups], np.int64).reshape(-1, 2)
    object_images, object_classes = np.repeat(groups_of, counts, axis=0).T
    whole = _unmatched(dataset, rows, dataset.dt_scores[rows], object_images, object_classes)
    results = []
    for level in range(len(thresholds)):
        objects, ignored = np.full(len(rows), -1, np.int64), np.zeros(len(rows), bool)
        objects[index] = np.where(
            _flat(groups, "dtMatched", level, bool), _flat(groups, "dtMatches", level, int) - 1, -1
        )
        ignored[index] = _flat(groups, "dtIgnore", level, bool)
        matched = objects >= 0
        ious = np.zeros(len(rows))
        ious[matched] = paired_iou(dataset, rows[matched], objects[matched])
        results.append(_matched(whole, objects, ious, ignored))
    return results


def kept_rows(dataset: Dataset, max_dets: int) -> Ints:
    """Rows of the detections that pycocotools judges: the ``max_dets`` highest of each image and class, ascending."""
    groups = image_class(dataset, dataset.dt_images, dataset.dt_classes)
    return np.sort(highest_by_group(groups, dataset.dt_scores, max_dets))


def overlapping_pairs(dataset: Dataset, rows: Ints) -> Pairs:
    """Every pair of one of these detections and an annotation of its image and class whose boxes overlap."""
    parts = list(overlapping(dataset, rows, np.arange(len(dataset.gt_images))))
    which, held, ious = (np.concatenate(p) for p in zip(*parts, strict=True)) if parts else (_NONE, _NONE, _NO_IOU)
    return Pairs(rows, which, held, ious)


def match_pairs(dataset: Dataset, pairs: Pairs, scores: Floats, thresholds: Sequence[float]) -> Iterator[Matches]:
    """pycocotools' matches at each IoU threshold, with these scores of ``pairs.rows`` in place of the detections'.

    Of each image and class one detection at a time takes an annotation, highest score first: all first ones at once,
    then all second ones. Objects that count come before those that do not, then the larger IoU, then the later one.
    """
    counts = counted_objects(dataset)
    near = np.flatnonzero(pairs.ious >= min(min(thresholds), _MOST_IOU))
    turn = _turns(dataset, pairs.rows, scores, pairs.which[near])
    order = near[
        np.lexsort((pairs.objects[near], pairs.ious[near], counts[pairs.objects[near]], pairs.which[near], turn))
    ]
    which, held, ious, turn = pairs.which[order], pairs.objects[order], pairs.ious[order], np.sort(turn)
    too_large = _beyond_all_areas(dataset.dt_boxes[pairs.rows, 2:].prod(1))
    whole = _unmatched(dataset, pairs.rows, scores, dataset.gt_images[counts], dataset.gt_classes[counts], pairs)
    for threshold in thresholds:
        pair = np.flatnonzero(ious >= min(threshold, _MOST_IOU))
        taken = pair[_taken(which[pair], held[pair], turn[pair], dataset.gt_crowd)]
        objects, matched_ious = np.full(len(pairs.rows), -1, np.int64), np.zeros(len(pairs.rows))
        objects[which[taken]], matched_ious[which[taken]] = held[taken], ious[taken]
        ignored = np.where(objects >= 0, ~np.append(counts, True)[objects], too_large)
        yield _matched(whole, objects, matched_ious, ignored)


def _taken(which: Ints, objects: Ints, turn: Ints, reusable: Bools) -> Ints:
    # indices of the pairs that match, of pairs sorted by turn, detection and what the detection prefers, the best last
    free = np.ones(len(reusable), bool)
    starts = np.flatnonzero(np.append(True, turn[1:] != turn[:-1])) if len(turn) else _NONE
    taken = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(turn)], strict=False):
        candidates = start + np.flatnonzero(free[objects[start:stop]])
        asking = which[candidates]
        chosen = candidates[np.append(asking[1:] != asking[:-1], True)] if len(asking) else candidates
        free[objects[chosen]] = reusable[objects[chosen]]
        taken.append(chosen)
    return np.concatenate(taken) if taken else _NONE


def _turns(dataset: Dataset, rows: Ints, scores: Floats, which: Ints) -> Ints:
    # of each pair: how many detections of the same image and class that are in a pair have a higher score
    in_pair = np.zeros(len(rows), bool)
    in_pair[which] = True
    asking = np.flatnonzero(in_pair)
    group = image_class(dataset, dataset.dt_images[rows[asking]], dataset.dt_classes[rows[asking]])
    order = np.lexsort((-scores[asking], group))
    group = group[order]
    first = np.flatnonzero(np.append(True, group[1:] != group[:-1])) if len(group) else _NONE
    turn = np.zeros(len(rows), np.int64)
    turn[asking[order]] = np.arange(len(group)) - np.repeat(first, np.diff(np.append(first, len(group))))
    return turn[which]


def counted_objects(dataset: Dataset) -> Bools:
    """``[m]`` whether each annotation is an object to find: no crowd region, and of an area within COCO's bounds."""
    return ~(dataset.gt_crowd | _beyond_all_areas(dataset.gt_areas))


def _beyond_all_areas(areas: Floats) -> Bools:
    return (areas < coco.ALL_AREAS[0]) | (areas > coco.ALL_AREAS[1])


def _flat(groups: list[dict[str, Any]], key: str, level: int, dtype: Any) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(group[key][level] for group in groups), dtype)


def _unmatched(
    dataset: Dataset,
    rows: Ints,
    scores: Floats,
    object_images: Ints,
    object_classes: Ints,
    pairs: Pairs | None = None,
) -> Matches:
    # what the matches at all thresholds share
    return Matches(
        rows=rows,
        images=dataset.dt_images[rows],
        classes=dataset.dt_classes[rows],
        scores=scores,
        ious=_NO_IOU,
        objects=_NONE,
        true_positive=np.zeros(0, bool),
        ignored=np.zeros(0, bool),
        object_images=object_images,
        object_classes=object_classes,
        n_objects=np.bincount(object_classes, minlength=len(dataset.class_ids)),
        pairs=pairs,
    )


def _matched(whole: Matches, objects: Ints, ious: Floats, ignored: Bools) -> Matches:
    # ties of IoUs equal boxes
    hit = (objects >= 0) & ~ignored
    return replace(whole, objects=objects, ious=np.round(ious, 12), true_positive=hit, ignored=ignored)


@dataclass(frozen=True)
class Pairs:
    """Detections and the annotations that each overlaps.

    Attributes:
        rows: ``[n]`` indices of the detections in the dataset, ascending.
        which, objects, ious: ``[p]`` a detection's position in ``rows``, the index of an annotation, and their IoU.
    """

    rows: Ints
    which: Ints
    objects: Ints
    ious: Floats


@dataclass(frozen=True)
class Matches:
    """Each kept detection with the object that it is matched to; all measures but AP are computed from this.

    Attributes:
        rows: ``[n]`` index of the detection in the dataset, ascending.
        images, classes: ``[n]`` indices of its image and class.
        scores: ``[n]`` its score.
        ious: ``[n]`` IoU with the annotation that it is matched to, 0 without one.
        objects: ``[n]`` index of that annotation, -1 without one.
        true_positive: ``[n]`` matched to an object that counts.
        ignored: ``[n]`` matched to a crowd region (or, under LVIS, not judged): neither true nor false.
        object_images, object_classes: ``[m]`` indices of image and class of each object that counts.
        n_objects: ``[K]`` objects that count, by class.
        pairs: The overlapping pairs that the matches were chosen from; None for masks and under LVIS's rules.
    """

    rows: Ints
    images: Ints
    classes: Ints
    scores: Floats
    ious: Floats
    objects: Ints
    true_positive: Bools
    ignored: Bools
    object_images: Ints
    object_classes: Ints
    n_objects: Ints
    pairs: Pairs | None = field(default=None, repr=False)

    @cached_property
    def ranked(self) -> Ints:
        """``[n]`` detections from the highest score down; pycocotools' order of equal ones: by image and index."""
        return np.lexsort((self.images, -self.scores))  # stable, and rows ascend

    def by_class(self, ranked: Ints) -> Ints:
        """These detections, in the order of rank, in the order of class and rank."""
        # numbers of two bytes are sorted by their digits, ten times as fast as others
        keys = self.classes[ranked].astype(np.min_scalar_type(len(self.n_objects)))
        return ranked[np.argsort(keys, kind="stable")]

    def average_precision(self, ranked: Ints) -> Floats:
        """``[K]`` AP of each class in this order of detections, 0 for a class without true positives or objects."""
        order = self.by_class(ranked[~self.ignored[ranked]])
        classes, hit = self.classes[order], np.flatnonzero(self.true_positive[order])
        of_hit = classes[hit]
        n_true = np.arange(1, len(hit) + 1) - np.searchsorted(of_hit, of_hit)
        return coco.interpolated_ap(of_hit, n_true, hit + 1 - np.searchsorted(classes, of_hit), self.n_objects)

    def targets(self) -> Floats:
        """``[n]`` IoU of each true positive with its object, 0 for every other detection."""
        return np.where(self.true_positive, self.ious, 0.0)
