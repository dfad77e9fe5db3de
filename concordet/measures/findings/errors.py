"""What AP50 would gain if all errors of one type were fixed (TIDE, Bolya et al., ECCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from concordet.measures.matching import Matches, candidate_pairs, counted_objects, paired_iou
from concordet.measures.reading.arrays import Bools, Floats, Ints
from concordet.measures.reading.dataset import Dataset

FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a detection is on an object, and up to which it is on the background (Section 2.2)."""
RECALLS: Final = np.linspace(0, 1, 101)


def error_gains(dataset: Dataset, matches: Matches) -> dict[str, float]:
    """The gain of AP50 if all errors of one type were fixed; types exclude each other, in this order.

    =================  =========================================================  ==================================
    type               a false positive whose largest IoU with an object          fixed by
    =================  =========================================================  ==================================
    ``localization``   of its class is 0.1 to 0.5                                 a correct box
    ``classification`` of another class is at least 0.5                           the correct class
    ``duplicates``     of its class is above 0.5                                  removing it
    ``background``     of any class is at most 0.1                                removing it
    ``both``           of another class is 0.1 to 0.5                             removing it
    ``missed``         (objects without a detection that one of the first two     counting fewer objects
                       fixes would match)
    =================  =========================================================  ==================================

    Of several false positives whose fix would match the same object, the one with the highest score is fixed, and the
    others are removed; they are removed too if the object already has a detection.

    Args:
        dataset: Detections and objects.
        matches: Matches at IoU 0.5.

    Returns:
        Gains of the mean AP50 of classes with objects, at least 0, as fractions.
    """
    wrong = np.flatnonzero(~matches.true_positive & ~matches.ignored)
    near = _nearest(dataset, matches.rows[wrong])
    inaccurate = (near.same_ious >= BACKGROUND) & (near.same_ious <= FOREGROUND)
    confused = ~inaccurate & (near.other_ious >= FOREGROUND)
    duplicate = ~inaccurate & ~confused & (near.same_ious >= FOREGROUND)
    background = ~inaccurate & ~confused & ~duplicate & (near.other_ious <= BACKGROUND)
    both = ~(inaccurate | confused | duplicate | background)

    counts = counted_objects(dataset)
    found = np.zeros(len(counts), bool)
    found[matches.objects[matches.true_positive]] = True
    target = np.where(inaccurate, near.same, near.other)
    fixable = np.flatnonzero((inaccurate | confused) & ~found[target])
    fixable = fixable[np.lexsort((matches.rows[wrong[fixable]], -matches.scores[wrong[fixable]], target[fixable]))]
    first = fixable[np.append(True, np.diff(target[fixable]) > 0)] if len(fixable) else fixable
    fixed = np.zeros(len(wrong), bool)
    fixed[first] = True
    missed = counts & ~found
    missed[target[first]] = False

    classes, hits, removed = matches.classes.copy(), matches.true_positive, matches.ignored.copy()
    base = _mean_ap(matches, classes, hits, removed, matches.n_objects)
    gains = {}
    for name, chosen in (
        ("classification", confused),
        ("localization", inaccurate),
        ("both", both),
        ("duplicates", duplicate),
        ("background", background),
    ):
        now_right = wrong[chosen & fixed]
        corrected, right, gone = classes.copy(), hits.copy(), removed.copy()
        corrected[now_right] = dataset.gt_classes[target[chosen & fixed]]
        right[now_right] = True
        gone[wrong[chosen & ~fixed]] = True
        gains[name] = _mean_ap(matches, corrected, right, gone, matches.n_objects) - base
    fewer = matches.n_objects - np.bincount(dataset.gt_classes[missed], minlength=len(matches.n_objects))
    gains["missed"] = _mean_ap(matches, classes, hits, removed, fewer) - base
    return {name: max(float(gain), 0.0) for name, gain in gains.items()}


def _mean_ap(matches: Matches, classes: Ints, hits: Bools, removed: Bools, n_objects: Ints) -> float:
    # AP50 over the classes that have objects; one whose objects are all taken out keeps 0
    kept = np.flatnonzero(~removed)
    order = kept[np.lexsort((matches.rows[kept], matches.images[kept], -matches.scores[kept], classes[kept]))]
    return float(_ap(classes[order], hits[order], n_objects)[matches.n_objects > 0].mean())


def _ap(classes: Ints, hits: Bools, n_objects: Ints) -> Floats:
    # [K] of detections in the order of class and rank: only true positives change the envelope of precision
    starts = np.searchsorted(classes, np.arange(len(n_objects)))
    hit = np.flatnonzero(hits)
    classes = classes[hit]
    n_hits = np.arange(1, len(hit) + 1) - np.searchsorted(hit, starts)[classes]
    reached = np.searchsorted(RECALLS, n_hits / n_objects[classes], side="right")
    newly = np.where(n_hits > 1, np.diff(reached, prepend=0), reached)
    # raised by class from the last to the first, so that the maximum from the right stays within a class
    precision = n_hits / (hit + 1 - starts[classes] + np.spacing(1)) - 2 * classes
    envelope = np.maximum.accumulate(precision[::-1])[::-1] + 2 * classes
    return np.bincount(classes, envelope * newly, len(n_objects)) / len(RECALLS)


def _nearest(dataset: Dataset, rows: Ints) -> Nearest:
    counts = np.flatnonzero(counted_objects(dataset))
    objects, ious = np.full((2, len(rows)), -1, np.int64), np.zeros((2, len(rows)))
    for which, held in candidate_pairs(dataset, rows, counts, any_class=True):
        iou = paired_iou(dataset, rows[which], held)
        other = (dataset.dt_classes[rows[which]] != dataset.gt_classes[held]).astype(np.int64)
        overlaps = np.flatnonzero(iou > 0)
        which, held, iou, other = which[overlaps], held[overlaps], iou[overlaps], other[overlaps]
        order = np.lexsort((-held, iou, which, other))  # of equal IoUs the first object
        last = order[np.append(np.diff(which[order]) != 0, True)] if len(order) else order
        objects[other[last], which[last]], ious[other[last], which[last]] = held[last], iou[last]
    return Nearest(*objects, *ious)


@dataclass(frozen=True)
class Nearest:
    """``[n]`` objects of the same and of other classes that detections overlap most (-1 without), and the IoUs."""

    same: Ints
    other: Ints
    same_ious: Floats
    other_ious: Floats
