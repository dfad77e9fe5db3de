"""Calibration errors of scores: LaECE, LaACE, D-ECE, OCE and AIC.

A detection's *target* is the IoU with the object it is matched to, 0 for a false positive; see
:func:`concordet.measures.match_detections`. Score bins are (a, b], the first [0, b].
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from concordet.measures.correlation import Value
from concordet.measures.overlaps import box_iou
from concordet.measures.reading.arrays import (
    Bools,
    Floats,
    Ints,
    group_column,
    require_unit,
    to_numpy,
    unit_columns,
)

LAECE_BINS: Final = 25
D_ECE_BINS: Final = 10

NO_OBJECT: Final = "the class has no object"
NO_DETECTION: Final = "the class has no counted detection"


def localization_aware_ece(
    scores: Any, targets: Any, class_ids: Any, n_objects: Mapping[Any, int] | None = None, *, bins: int = LAECE_BINS
) -> CalibrationReport:
    r"""Localization-aware expected calibration error (LaECE) of each class, and its mean over classes.

    .. math:: LaECE^c = \sum_j \frac{n_j}{n} \left|\, \overline{p}_j - \overline{y}_j \right|

    over the bins j of score, with p the scores and y the targets (Oksuz et al., CVPR 2023, Eq. 5, where the mean target
    is written as precision times the mean IoU of true positives). Targets matched at IoU 0 give ``LaECE_0`` (Kuzucu et
    al., 2024).

    Args:
        scores: ``[n]`` confidences in [0, 1].
        targets: ``[n]`` IoU in [0, 1] with the matched object, 0 for a false positive. Leave out detections that do not
            count (in crowd regions).
        class_ids: ``[n]`` class of each, any sortable type.
        n_objects: objects per class; a class without objects has no error and is left out of the mean. None if every
            class has objects.
        bins: number of bins of equal width; 25 is the paper's.

    Returns:
        A report whose ``value`` is in [0, 1] (lower is better), or None with a reason.

    Raises:
        ValueError: lengths differ, a value is not in [0, 1], or ``bins`` is not a positive integer.

    Example:
        >>> scores, targets, classes = [0.9, 0.9, 0.2], [0.7, 0.0, 0.2], ["cat", "cat", "dog"]
        >>> report = localization_aware_ece(scores, targets, classes, {"cat": 1, "dog": 3})
        >>> round(report.value, 3), {name: round(value, 3) for name, value in report.per_class.items()}
        (0.275, {'cat': 0.55, 'dog': 0.0})
    """
    columns = _columns(scores, targets, class_ids)
    return _report(columns, n_objects, _binned_gaps(columns, bins))


def localization_aware_ace(
    scores: Any, targets: Any, class_ids: Any, n_objects: Mapping[Any, int] | None = None
) -> CalibrationReport:
    r"""Localization-aware adaptive calibration error (LaACE) of each class, and its mean over classes.

    .. math:: LaACE^c = \frac{1}{n} \sum_i |p_i - y_i|

    with one bin per detection (Kuzucu et al., 2024): unlike in :func:`localization_aware_ece`, overconfident detections
    do not cancel underconfident ones.

    Args:
        scores, targets, class_ids, n_objects: see :func:`localization_aware_ece`.

    Returns:
        A report whose ``value`` is in [0, 1] (lower is better), or None with a reason.

    Raises:
        ValueError: lengths differ, or a value is not in [0, 1].

    Example:
        >>> round(localization_aware_ace([0.9, 0.4], [0.4, 0.9], ["cat", "cat"]).value, 3)
        0.5
    """
    columns = _columns(scores, targets, class_ids)
    distances = np.abs(columns.scores - columns.targets)
    gaps = np.bincount(columns.codes, distances, len(columns.ids)).astype(np.float64)
    return _report(columns, n_objects, gaps)


def detection_ece(scores: Any, hits: Any, *, bins: int = D_ECE_BINS) -> Value:
    r"""Detection expected calibration error (D-ECE): difference of score and precision in score bins.

    .. math:: D\text{-}ECE = \sum_j \frac{n_j}{n} \left|\, \overline{p}_j - \overline{z}_j \right|

    with z 1 for a true positive and 0 for a false one, all classes pooled (Kueppers et al., CVPRW 2020).

    Args:
        scores: ``[n]`` confidences in [0, 1].
        hits: ``[n]`` whether each is a true positive, usually at IoU 0.5.
        bins: number of bins of equal width; 10 is common practice.

    Returns:
        ``(value in [0, 1], None)``, lower is better, or ``(None, reason)``.

    Raises:
        ValueError: lengths differ, a score is not in [0, 1], or ``bins`` is not a positive integer.

    Example:
        >>> detection_ece([0.75, 0.75, 0.75, 0.75], [True, True, True, False])
        Value(value=0.0, reason=None)
    """
    columns = _columns(scores, hits, None)
    gaps = _binned_gaps(columns, bins)
    if not len(columns.scores):
        return Value(None, "there is no counted detection")
    return Value(float(gaps[0] / len(columns.scores)), None)


def object_calibration_error(
    probabilities: Any,
    boxes: Any,
    image_ids: Any,
    object_boxes: Any,
    object_classes: Any,
    object_image_ids: Any,
    *,
    thresholds: tuple[float, ...] = (0.5, 0.75),
) -> Value:
    r"""Object-level calibration error (OCE) of a set predictor: Brier score of the classes predicted for each object.

    .. math:: OCE = \frac{1}{|T|\, m} \sum_{\tau \in T} \sum_{o} \sum_c (\overline{p}_{o,c} - [c = c_o])^2

    with the mean of p over all predictions, of any class, whose IoU with the object is at least tau; an object without
    one contributes 1 (Park et al., 2024, arXiv 2412.01782). It needs the class distribution of every prediction, which
    results files do not have.

    Args:
        probabilities: ``[n, C]`` class distribution of each prediction, without the no-object class, in [0, 1].
        boxes: ``[n, 4]`` xywh in pixels.
        image_ids: ``[n]`` image of each prediction.
        object_boxes: ``[m, 4]`` xywh in pixels.
        object_classes: ``[m]`` class of each object as column 0..C-1 of ``probabilities``.
        object_image_ids: ``[m]`` image of each object.
        thresholds: IoUs tau.

    Returns:
        ``(value in [0, 2], None)``, lower is better, or ``(None, reason)``.

    Raises:
        ValueError: shapes disagree, a probability is not in [0, 1], or a class is out of range.

    Example:
        >>> value, _ = object_calibration_error([[0.8, 0.2]], [[0, 0, 10, 10]], [1], [[0, 0, 10, 10]], [0], [1])
        >>> round(value, 3)
        0.08
    """
    p, predicted, objects = (to_numpy(a).astype(np.float64) for a in (probabilities, boxes, object_boxes))
    n, m = len(predicted), len(objects)
    if p.ndim != 2 or len(p) != n:
        raise ValueError(f"probabilities must have shape [{n}, C], as many rows as boxes, got {list(p.shape)}")
    predicted, objects = predicted.reshape(n, 4), objects.reshape(m, 4)
    images, object_images = (
        group_column(image_ids, "image_ids", n),
        group_column(object_image_ids, "object_image_ids", m),
    )
    classes = group_column(object_classes, "object_classes", m).astype(np.int64)
    require_unit(p.ravel(), "probabilities")
    if not m:
        return Value(None, "there is no object")
    if n and (classes.min() < 0 or classes.max() >= p.shape[1]):
        raise ValueError(
            f"object_classes must be in 0..{p.shape[1] - 1}, got {classes.min()}..{classes.max()}; number them as the"
            " columns of probabilities"
        )
    total = 0.0
    for image in np.unique(object_images):
        detections, image_objects = np.flatnonzero(images == image), np.flatnonzero(object_images == image)
        overlap = box_iou(objects[image_objects][:, None], predicted[detections][None])
        for tau in thresholds:
            near = overlap >= tau
            count = near.sum(1)
            mean = near @ p[detections] / np.maximum(count, 1)[:, None]
            if n:
                mean[np.arange(len(image_objects)), classes[image_objects]] -= 1
            total += float(np.where(count > 0, (mean**2).sum(1), 1.0).sum())
    return Value(total / (len(thresholds) * m), None)


def average_inconsistency(scores: Any, ious: Any) -> Inconsistency:
    r"""Differences of score and IoU over positives: the paper's sum, and the mean.

    .. math:: AIC = \sum_{i \in Pos}^{N} |p_i - IoU_i|, \qquad AIC_{mean} = AIC / N

    (Harmonic Loss, Wang et al. 2021, Eq. 14: despite its name a sum, over the *positive samples* of training.) Pass
    the assigned predictions of a training step for the paper's curve; :func:`concordet.measures.analyze` passes the
    true positives at IoU 0.5, the only positives in a results file. The sum grows with the number of positives, so
    compare detectors by the mean.

    Args:
        scores: ``[n]`` probabilities in [0, 1].
        ious: ``[n]`` IoU in [0, 1] of each with its object.

    Returns:
        ``(total, mean)``: the sum >= 0 and the mean in [0, 1], lower is better; without any pair the sum is 0.0 and the
        mean None.

    Raises:
        ValueError: the lengths differ, or a value is not a number in [0, 1].

    Example:
        >>> average_inconsistency([1.0, 0.5], [0.75, 0.75])
        Inconsistency(total=0.5, mean=0.25)
        >>> average_inconsistency([], []).mean is None
        True
    """
    p, iou = unit_columns(scores, ious, "ious")
    gap = np.abs(p - iou)
    return Inconsistency(float(gap.sum()), float(gap.mean()) if gap.size else None)


def reliability_bins(scores: Floats, targets: Floats, hits: Bools, *, bins: int = D_ECE_BINS) -> list[dict[str, Any]]:
    """Score bins that are not empty, each with its limits, count, mean score, mean target and precision."""
    edges = _bin_edges(bins)
    index = bin_index(scores, bins)
    count = np.bincount(index, minlength=bins)
    score_sum, target_sum, hit_sum = (np.bincount(index, x, bins) for x in (scores, targets, hits))
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "count": int(count[i]),
            "mean_score": float(score_sum[i] / count[i]),
            "mean_iou": float(target_sum[i] / count[i]),
            "precision": float(hit_sum[i] / count[i]),
        }
        for i in np.flatnonzero(count).tolist()
    ]


def _columns(scores: Any, targets: Any, class_ids: Any) -> _Columns:
    p, y = unit_columns(scores, targets, "targets")
    if class_ids is None:
        return _Columns(p, y, np.zeros(len(p), np.int64), [None])
    ids, codes = np.unique(group_column(class_ids, "class_ids", len(p)), return_inverse=True)
    return _Columns(p, y, codes.astype(np.int64), ids.tolist())


def _binned_gaps(columns: _Columns, bins: int) -> Floats:
    # [classes] sum over bins of n_j |mean score - mean target|
    key = columns.codes * bins + bin_index(columns.scores, bins)
    sums = np.bincount(key, columns.scores - columns.targets, len(columns.ids) * bins)
    return np.abs(sums).reshape(-1, bins).sum(1)


def bin_index(scores: Floats, bins: int) -> Ints:
    """``[n]`` bin of each score in [0, 1]: bins are (a, b], the first one [0, b].

    Example:
        >>> bin_index(np.array([0.0, 0.1, 0.100001, 1.0]), 10).tolist()
        [0, 0, 1, 9]
    """
    return np.maximum(np.searchsorted(_bin_edges(bins), scores, side="left") - 1, 0).astype(np.int64)


def _bin_edges(bins: int) -> Floats:
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"bins must be a positive integer, got {bins!r}")
    return np.arange(bins + 1) / bins


def _report(columns: _Columns, n_objects: Mapping[Any, int] | None, gaps: Floats) -> CalibrationReport:
    counts = dict(zip(columns.ids, np.bincount(columns.codes, minlength=len(columns.ids)).tolist(), strict=True))
    total = dict(zip(columns.ids, gaps.tolist(), strict=True))
    per_class: dict[Hashable, float | None] = {}
    reasons: dict[Hashable, str] = {}
    for name in dict.fromkeys([*(n_objects or {}), *columns.ids]):
        count = counts.get(name, 0)
        per_class[name] = None
        if n_objects is not None and not n_objects.get(name, 0):
            reasons[name] = NO_OBJECT
        elif not count:
            reasons[name] = NO_DETECTION
        else:
            per_class[name] = total[name] / count
    defined = [value for value in per_class.values() if value is not None]
    return CalibrationReport(
        value=float(np.mean(defined)) if defined else None,
        reason=None if defined else "no class has an object and a counted detection",
        per_class=per_class,
        reasons=reasons,
    )


class Inconsistency(NamedTuple):
    """The sum of the distances between scores and IoUs, and their mean.

    Attributes:
        total: Sum of abs(score - IoU) over the detections (AIC), at least 0.
        mean: Their mean in [0, 1], or None without a detection.

    Example:
        >>> average_inconsistency([0.9, 0.4], [0.7, 0.6]).mean
        0.2
    """

    total: float
    mean: float | None


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration error averaged over classes.

    Attributes:
        value: Mean over the classes that have an object and a counted detection, or None if no class has both.
        reason: Why ``value`` is None, else None.
        per_class: Error of each class, None where it is undefined.
        reasons: Why a class's error is undefined, by class.

    Example:
        >>> from concordet.measures import localization_aware_ece
        >>> report = localization_aware_ece([0.75, 0.25], [0.5, 0.0], ["cat", "dog"], {"cat": 1, "dog": 0})
        >>> report.per_class, report.n_defined
        ({'cat': 0.25, 'dog': None}, 1)
    """

    value: float | None
    reason: str | None = None
    per_class: dict[Hashable, float | None] = field(default_factory=dict)
    reasons: dict[Hashable, str] = field(default_factory=dict)

    @property
    def n_defined(self) -> int:
        """Number of classes that the mean is over."""
        return sum(value is not None for value in self.per_class.values())


@dataclass(frozen=True)
class _Columns:
    scores: Floats
    targets: Floats
    codes: Ints
    ids: list[Any]
