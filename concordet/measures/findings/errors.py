"""What AP50 would gain if all errors of one type were fixed (TIDE, Bolya et al., ECCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from concordet.measures.matching import Matches, counted_objects
from concordet.measures.overlaps import overlapping
from concordet.measures.reading.arrays import Floats, Ints
from concordet.measures.reading.dataset import Dataset

FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a detection is on an object, and up to which it is on the background (Section 2.2)."""


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
    fixable = fixable[np.argsort(-matches.scores[wrong[fixable]], kind="stable")]
    first = fixable[np.unique(target[fixable], return_index=True)[1]]
    fixed = np.zeros(len(wrong), bool)
    fixed[first] = True
    missed = counts & ~found
    missed[target[first]] = False

    ranked, present = matches.ranked, matches.n_objects > 0
    base = matches.average_precision(ranked)
    gains = {}
    for name, chosen in (
        ("classification", confused),
        ("localization", inaccurate),
        ("both", both),
        ("duplicates", duplicate),
        ("background", background),
    ):
        now_right = wrong[chosen & fixed]
        classes, hits, removed = matches.classes.copy(), matches.true_positive.copy(), matches.ignored.copy()
        classes[now_right] = dataset.gt_classes[target[chosen & fixed]]
        hits[now_right] = True
        removed[wrong[chosen & ~fixed]] = True
        changed = replace(matches, classes=classes, true_positive=hits, ignored=removed)
        gains[name] = changed.average_precision(ranked) - base
    fewer = matches.n_objects - np.bincount(dataset.gt_classes[missed], minlength=len(matches.n_objects))
    # a class whose objects are all taken out keeps 0
    gains["missed"] = replace(matches, n_objects=fewer).average_precision(ranked) - base
    return {name: max(float(gain[present].mean()), 0.0) for name, gain in gains.items()}


def _nearest(dataset: Dataset, rows: Ints) -> Nearest:
    counts = np.flatnonzero(counted_objects(dataset))
    objects, ious = np.full((2, len(rows)), -1, np.int64), np.zeros((2, len(rows)))
    for which, held, iou in overlapping(dataset, rows, counts, any_class=True):
        other = (dataset.dt_classes[rows[which]] != dataset.gt_classes[held]).astype(np.int64)
        overlaps = np.flatnonzero(iou > 0)
        which, held, iou, other = which[overlaps], held[overlaps], iou[overlaps], other[overlaps]
        order = np.lexsort((-held, iou, which, other))  # of equal IoUs the first object
        ends = (np.diff(which[order]) != 0) | (np.diff(other[order]) != 0)
        last = order[np.append(ends, True)] if len(order) else order
        objects[other[last], which[last]], ious[other[last], which[last]] = held[last], iou[last]
    return Nearest(*objects, *ious)


@dataclass(frozen=True)
class Nearest:
    """``[n]`` objects of the same and of other classes that detections overlap most (-1 without), and the IoUs."""

    same: Ints
    other: Ints
    same_ious: Floats
    other_ious: Floats
