"""Localization-Recall-Precision (LRP) error and its optimum over score thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from concordet.measures.reading.arrays import (
    GIVE_IOUS,
    Bools,
    Floats,
    Ints,
    bool_column,
    float_column,
    group_column,
    require_unit,
    same_length,
)


def lrp(
    scores: Any,
    ious: Any,
    class_ids: Any,
    n_objects: Mapping[Any, int] | int,
    *,
    true_positive: Any = None,
    tau: float = 0.5,
) -> LRPReport:
    r"""LRP error at its best score threshold (oLRP), per class and averaged, with its three components.

    With the detections of one class whose score is at least s,

    .. math:: LRP(s) = \frac{\sum_{TP} (1 - IoU)/(1 - \tau) + N_{FP} + N_{FN}}{N_{TP} + N_{FP} + N_{FN}},
        \qquad oLRP = \min_s LRP(s)

    (Oksuz et al. 2018 and 2021; aLRP Loss, Eq. 6). At the optimum: ``loc`` is the mean of 1 - IoU over the true
    positives, ``fp`` is 1 - precision, ``fn`` is 1 - recall. Every distinct score is tried; of thresholds with equal
    error the highest is taken. The published code (LRP-Error) also cuts between detections of equal score, which no
    threshold can do, so its values differ where scores are tied (by up to 0.08 in the mean over classes).

    Args:
        scores: ``[n]`` confidences of all kept detections that are not ignored.
        ious: ``[n]`` IoU in [0, 1] with the object that each is matched to; 0 without one.
        class_ids: ``[n]`` class of each.
        n_objects: number of objects per class (also classes without detections), or one number for a single class.
        true_positive: ``[n]`` bool; None for ``ious >= tau``, correct only if no two detections share an object.
        tau: IoU from which a match counts, in [0, 1); 0.5 in the papers.

    Returns:
        A report; a class without objects has no LRP and is left out of the averages. A class with objects and no true
        positive has oLRP 1, ``fn`` 1, no threshold, and no other component.

    Raises:
        ValueError: lengths differ, a value is not in its range, a class of a detection is not in ``n_objects``, or true
            positives outnumber objects.

    Example:
        >>> report = lrp([0.9, 0.8, 0.1], [0.9, 0.8, 0.0], [7, 7, 7], {7: 2})
        >>> round(report.value, 6), report.per_class[7].threshold, report.per_class[7].fp
        (0.3, 0.8, 0.0)
    """
    s, iou = float_column(scores, "scores"), float_column(ious, "ious")
    same_length(s, iou, "scores and ious")
    require_unit(iou, "ious", GIVE_IOUS)
    if not 0 <= tau < 1:
        raise ValueError(f"tau must be an IoU in [0, 1), got {tau}; the papers take 0.5")
    labels = group_column(class_ids, "class_ids", len(s))
    hit = iou >= tau if true_positive is None else bool_column(true_positive, "true_positive", len(s))
    order = np.argsort(labels, kind="stable")
    first = np.flatnonzero(np.append(True, labels[order[1:]] != labels[order[:-1]])) if len(labels) else order
    present = labels[order[first]].tolist()
    if not isinstance(n_objects, Mapping):
        if len(present) > 1:
            raise ValueError(f"n_objects must be a dict of class to count for {len(present)} classes, got one number")
        n_objects = {present[0] if present else 0: int(n_objects)}
    missing = [c for c in present if c not in n_objects]
    if missing:
        raise ValueError(
            f"n_objects must have every class with detections, got none for {missing[0]!r}; give its count, 0 included"
        )
    bounds = [*first.tolist(), len(s)]
    rows = {c: order[bounds[i] : bounds[i + 1]] for i, c in enumerate(present)}
    nothing = np.zeros(0, np.int64)
    per_class = {
        c: _class_lrp(s[r], iou[r], hit[r], int(n), tau, c)
        for c, n in n_objects.items()
        for r in [rows.get(c, nothing)]
    }
    return _average(per_class)


def _class_lrp(scores: Floats, ious: Floats, hit: Bools, n_objects: int, tau: float, name: Any) -> ClassLRP:
    n_hits = int(hit.sum())
    if n_hits > n_objects:
        raise ValueError(
            f"class {name!r} must have at most one true positive per object, got {n_hits} for {n_objects} objects;"
            " pass true_positive with duplicates as False"
        )
    if n_objects == 0:
        return ClassLRP(None, None, None, None, None, "the class has no object")
    if n_hits == 0:
        return ClassLRP(1.0, None, None, 1.0, None, "the class has no true positive")
    error, last, tp, thresholds = _curve(scores, ious, hit, n_objects, tau)
    best = int(np.argmin(error))
    n_best, kept, threshold = int(tp[best]), int(last[best]) + 1, float(thresholds[best])
    if n_best == 0:
        return ClassLRP(1.0, None, None, 1.0, None, "no threshold is better than detecting nothing")
    above = hit & (scores >= threshold)
    return ClassLRP(
        value=float(error[best]),
        loc=float(np.mean(1 - ious[above])),
        fp=1 - n_best / kept,
        fn=1 - n_best / n_objects,
        threshold=threshold,
        reason=None,
    )


def _curve(scores: Floats, ious: Floats, hit: Bools, n_objects: int, tau: float) -> tuple[Floats, Ints, Ints, Floats]:
    # [m] error, index of the last kept detection, true positives and the score, for each distinct score, descending
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    last = np.flatnonzero(np.append(sorted_scores[1:] != sorted_scores[:-1], True)).astype(np.int64)
    tp = np.cumsum(hit[order], dtype=np.int64)[last]
    loc = np.cumsum(np.where(hit, 1 - ious, 0.0)[order])[last] / (1 - tau)
    fp = last + 1 - tp
    fn = n_objects - tp
    return (loc + fp + fn) / (tp + fp + fn), last, tp, sorted_scores[last]


def _average(per_class: dict[Any, ClassLRP]) -> LRPReport:
    def mean(field: str) -> float | None:
        values = [v for c in per_class.values() if (v := getattr(c, field)) is not None]
        return float(np.mean(values)) if values else None

    value = mean("value")
    return LRPReport(
        value=value,
        loc=mean("loc"),
        fp=mean("fp"),
        fn=mean("fn"),
        reason=None if value is not None else "no class has an object",
        per_class=per_class,
    )


@dataclass(frozen=True)
class ClassLRP:
    """One class's oLRP with its components in [0, 1], lower is better, and the score threshold that attains it.

    Attributes:
        value: oLRP, the smallest LRP error over all score thresholds.
        loc: Mean of 1 - IoU over the true positives at that threshold.
        fp: 1 - precision there.
        fn: 1 - recall there.
        threshold: The score threshold.
        reason: Why values are None, else None.

    Example:
        >>> report = lrp([0.9, 0.8, 0.3], [0.9, 0.7, 0.0], ["cat"] * 3, {"cat": 2})
        >>> cat = report.per_class["cat"]
        >>> cat.threshold, round(cat.loc, 6), cat.fp, cat.fn  # the threshold leaves the false positive out
        (0.8, 0.2, 0.0, 0.0)
    """

    value: float | None
    loc: float | None
    fp: float | None
    fn: float | None
    threshold: float | None
    reason: str | None


@dataclass(frozen=True)
class LRPReport:
    """oLRP and components averaged over the classes where each is defined; None with a reason if there is none.

    Attributes:
        value: Mean oLRP over the classes that have objects, in [0, 1]; lower is better.
        loc: Mean localization error of the true positives.
        fp: Mean of 1 - precision.
        fn: Mean of 1 - recall.
        reason: Why ``value`` is None, else None.
        per_class: Values of each class.

    Example:
        >>> report = lrp([0.9, 0.8], [0.9, 0.7], ["cat", "dog"], {"cat": 1, "dog": 2})
        >>> round(report.value, 6), {name: round(entry.value, 6) for name, entry in report.per_class.items()}
        (0.5, {'cat': 0.2, 'dog': 0.8})
    """

    value: float | None
    loc: float | None
    fp: float | None
    fn: float | None
    reason: str | None
    per_class: dict[Any, ClassLRP]
