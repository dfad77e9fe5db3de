"""Bootstrap intervals: images are drawn with replacement, and measures are computed again on each draw.

Orders, ties and matches, which draws do not change, are prepared once; a draw is a weight (a count) per image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from concordet.errors import UsageError
from concordet.measures import coco
from concordet.measures.calibration import D_ECE_BINS, LAECE_BINS, bin_index
from concordet.measures.matching import ANY_OVERLAP, Matches, match_at
from concordet.measures.reading.arrays import Bools, Floats, Ints
from concordet.measures.reading.dataset import Dataset

CALIBRATION_ERRORS: Final = ("LaECE0", "LaACE0", "D_ECE")
MEASURES: Final = ("AP", "AP50", "AP75", "beta_cls", "oLRP", *CALIBRATION_ERRORS)

MAX_WORK: Final = 40_000_000
"""Largest number of detections times draws of :func:`intervals` by default, about three seconds of processor time."""


def intervals(
    sample: Sample, *, n_resamples: int | None = None, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Percentile intervals of AP, AP50, AP75, beta_cls and oLRP, and of every class's AP.

    Args:
        sample: Detections, from :func:`prepare`.
        n_resamples: Number of draws; None for 1000, and fewer from 40,000 detections on, so that they take seconds.
        confidence: Confidence of the intervals, in (0, 1).
        seed: Seed of the draws.

    Returns:
        Plain JSON: ``[low, high]`` for each metric, None where it is undefined; ``per_class`` lists those of AP, in the
        order of the classes; ``n_resamples`` and ``confidence``.

    Raises:
        ValueError: A setting is out of range.
    """
    if n_resamples is None:
        n_resamples = affordable_resamples(len(sample.images))
    check_settings(n_resamples, confidence)
    whole = evaluate_weighted(sample, np.ones(len(sample.image_ids), np.int64))
    metrics, classes = [], []
    for weights in draw_weights(len(sample.image_ids), n_resamples, seed):
        ap, objects = weighted_ap(sample, weights)
        metrics.append(_evaluate(sample, weights, ap, objects, calibration=False))
        classes.append(np.where(objects > 0, ap.mean(0), np.nan))
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    columns = np.array(metrics).reshape(-1, len(MEASURES))
    report: dict[str, Any] = {
        name: None if np.isnan(value) else _quantiles(column, ends)
        for name, value, column in zip(MEASURES, whole, columns.T, strict=True)
        if name not in CALIBRATION_ERRORS
    }
    by_class = np.array(classes).reshape(len(classes), sample.n_classes).T
    report["per_class"] = [_quantiles(column, ends) for column in by_class]
    return report | {"n_resamples": n_resamples, "confidence": confidence}


def affordable_resamples(n_detections: int) -> int:
    """1000 draws, and from 40,000 detections on fewer, down to 100.

    Example:
        >>> affordable_resamples(5_000), affordable_resamples(200_000)
        (1000, 200)
    """
    return int(np.clip(MAX_WORK // max(n_detections, 1), 100, 1000))


def check_settings(n_resamples: int, confidence: float) -> None:
    """Raises a ValueError for settings of a bootstrap that are out of range."""
    if isinstance(n_resamples, bool) or not isinstance(n_resamples, int) or n_resamples < 1:
        raise UsageError(f"n_resamples must be a positive integer, got {n_resamples!r}; 1000 is common")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}; 0.95 is common")


def draw_weights(n_images: int, n_resamples: int, seed: int) -> Iterator[Ints]:
    """Counts of how often each image is drawn, one array per draw; no draws without images."""
    generator = np.random.default_rng(seed)
    for _ in range(n_resamples if n_images else 0):
        yield np.bincount(generator.integers(0, n_images, n_images), minlength=n_images)


def _quantiles(draws: Floats, ends: list[float]) -> list[float] | None:
    draws = draws[~np.isnan(draws)]
    return np.quantile(draws, ends).tolist() if len(draws) else None


def prepare(dataset: Dataset, max_dets: int, *, calibrated: Floats | None = None) -> Sample:
    """Everything that resampling does not change: orders, ties and matches at the ten IoU thresholds.

    Args:
        dataset: Detections and objects.
        max_dets: Detections kept per image and class.
        calibrated: Scores of the kept detections, in the order of their rows, for the calibration errors only; None for
            the scores of the data set.
    """
    overlaps, *matches = match_at(dataset, max_dets=max_dets, thresholds=[ANY_OVERLAP, *coco.IOU_THRESHOLDS])
    base = matches[0]
    order = base.by_class(base.ranked)
    curves: list[Curve] = []
    for m in matches:
        judged = ~m.ignored[order]
        if curves and np.array_equal(judged, curves[-1].judged):
            judged = curves[-1].judged
        curves.append(_curve(base.classes[order], m.true_positive[order], judged))
    hit = np.flatnonzero(base.true_positive)
    by_class = {"scores": base.scores[hit], "ious": base.ious[hit]}
    return Sample(
        image_ids=dataset.image_ids,
        n_classes=len(dataset.class_ids),
        object_images=base.object_images,
        object_classes=base.object_classes,
        images=base.images[order],
        classes=base.classes[order],
        curves=tuple(curves),
        tied=_last_of_tie(base.scores[order], base.classes[order]),
        errors=np.where(base.true_positive, 1 - base.ious, 0.0)[order] / 0.5,
        hit_images=base.images[hit],
        hit_classes=base.classes[hit],
        score_runs=_runs(by_class["scores"], base.classes[hit]),
        iou_runs=_runs(by_class["ious"], base.classes[hit]),
        calibration=_calibration(base, overlaps, base.scores if calibrated is None else calibrated),
    )


def evaluate_weighted(sample: Sample, weights: Ints) -> tuple[float, ...]:
    """:data:`MEASURES` with each image counted ``weights`` times; NaN where undefined."""
    return _evaluate(sample, weights, *weighted_ap(sample, weights))


def weighted_ap(sample: Sample, weights: Ints) -> tuple[Floats, Floats]:
    """``[T, K]`` AP by IoU threshold and class, and ``[K]`` objects; AP of a class without objects is meaningless."""
    drawn = weights[sample.object_images].astype(np.float64)
    objects: Floats = np.bincount(sample.object_classes, drawn, sample.n_classes).astype(np.float64)
    w = weights[sample.images]
    masks = {id(curve.judged): curve.judged for curve in sample.curves}  # one for all thresholds without crowds
    seen = {key: np.cumsum(np.where(mask, w, 0)) for key, mask in masks.items()}
    ap = [_average_precision(sample, curve, w, seen[id(curve.judged)], objects) for curve in sample.curves]
    return np.array(ap), objects


def _evaluate(
    sample: Sample, weights: Ints, ap: Floats, objects: Floats, *, calibration: bool = True
) -> tuple[float, ...]:
    present = objects > 0
    errors = (np.nan,) * len(CALIBRATION_ERRORS)
    if calibration:
        errors = _calibration_errors(sample.calibration, weights, present)
    if not present.any():
        return (*[np.nan] * (len(MEASURES) - len(errors)), *errors)
    ap = ap[:, present]
    return (
        ap.mean(),
        ap[0].mean(),
        ap[5].mean(),
        _beta(sample, weights),
        _olrp(sample, weights, objects)[present].mean(),
        *errors,
    )


def _average_precision(sample: Sample, curve: Curve, w: Ints, seen: Ints, objects: Floats) -> Floats:
    # [K]: only true positives change the envelope of precision, so the curve is evaluated at them
    hits = w[curve.hits]
    classes = sample.classes[curve.hits]
    tp = _within(np.cumsum(hits), hits, curve.starts)
    n_seen = seen[curve.hits] - curve.before(seen)[classes]
    drawn = np.flatnonzero(hits)
    return coco.interpolated_ap(classes[drawn], tp[drawn], n_seen[drawn], objects)


def _olrp(sample: Sample, weights: Ints, objects: Floats) -> Floats:
    # [K]: the optimum is at a threshold that adds a true positive, at the end of its ties
    curve = sample.curves[0]
    w = weights[sample.images]
    ends = sample.tied[curve.hits]
    classes = sample.classes[curve.hits]
    columns = np.where(curve.judged, w, 0), np.where(curve.is_hit, w, 0), w * sample.errors
    seen, tp, error = (sums[ends] - curve.before(sums)[classes] for sums in map(np.cumsum, columns))
    total = seen + objects[classes] - tp
    value = (error + total - tp) / np.maximum(total, 1)
    best = np.ones(sample.n_classes)
    np.minimum.at(best, classes, np.where(total > 0, value, 1.0))
    return best


def _calibration(base: Matches, overlaps: Matches, scores: Floats) -> Calibration | None:
    # the summands of the errors; None if a score is outside [0, 1]
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        return None
    counted, judged = ~overlaps.ignored, ~base.ignored
    classes = overlaps.classes[counted]
    gaps = (scores - overlaps.targets())[counted]
    return Calibration(
        images=overlaps.images[counted],
        classes=classes,
        cells=classes * LAECE_BINS + bin_index(scores[counted], LAECE_BINS),
        gaps=gaps,
        distances=np.abs(gaps),
        judged_images=base.images[judged],
        judged_bins=bin_index(scores[judged], D_ECE_BINS),
        judged_gaps=scores[judged] - base.true_positive[judged],
    )


def _calibration_errors(c: Calibration | None, weights: Ints, has_object: Bools) -> tuple[float, float, float]:
    # LaECE0, LaACE0 and D_ECE with each image counted as often as its weight
    if c is None:
        return np.nan, np.nan, np.nan
    w, k = weights[c.images], len(has_object)
    count = np.bincount(c.classes, w, k)
    present = has_object & (count > 0)
    gaps = np.abs(np.bincount(c.cells, w * c.gaps, k * LAECE_BINS)).reshape(k, LAECE_BINS).sum(1)
    distances = np.bincount(c.classes, w * c.distances, k)
    laece, laace = (
        float((each[present] / count[present]).mean()) if present.any() else np.nan for each in (gaps, distances)
    )
    w = weights[c.judged_images]
    total = w.sum()
    pooled = np.abs(np.bincount(c.judged_bins, w * c.judged_gaps, D_ECE_BINS)).sum()
    return laece, laace, float(pooled / total) if total else np.nan


def _beta(sample: Sample, weights: Ints) -> float:
    w = weights[sample.hit_images]
    k = sample.n_classes
    total = np.bincount(sample.hit_classes, w, k)
    center = ((total - 1) / 2)[sample.hit_classes]
    u, v = (_weighted_ranks(runs, w) - center for runs in (sample.score_runs, sample.iou_runs))
    cross, uu, vv = (np.bincount(sample.hit_classes, w * x, k) for x in (u * v, u * u, v * v))
    norm = np.sqrt(uu * vv)
    defined = norm > 0
    return float(np.clip(cross[defined] / norm[defined], -1, 1).mean()) if defined.any() else np.nan


def _weighted_ranks(runs: Runs, weights: Ints) -> Floats:
    totals = np.bincount(runs.member, weights, len(runs.starts_at))
    before = np.cumsum(totals) - totals
    return (before - before[runs.starts_at] + (totals - 1) / 2)[runs.member]


def _runs(values: Floats, classes: Ints) -> Runs:
    # ties of one class, numbered in ascending order of value
    order = np.lexsort((values, classes))
    v, c = values[order], classes[order]
    fresh = np.append(True, (v[1:] != v[:-1]) | (c[1:] != c[:-1])) if len(v) else np.zeros(0, bool)
    number = np.cumsum(fresh) - 1
    member = np.empty(len(v), np.int64)
    member[order] = number
    run_class = c[fresh]
    first = np.append(True, run_class[1:] != run_class[:-1]) if len(run_class) else np.zeros(0, bool)
    starts_at = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    return Runs(member, starts_at)


def _curve(classes: Ints, is_hit: Bools, judged: Bools) -> Curve:
    hits = np.flatnonzero(is_hit)
    n_classes = int(classes[-1]) + 1 if len(classes) else 0
    starts = np.searchsorted(classes, np.arange(n_classes))
    hit_classes = classes[hits]
    return Curve(judged, is_hit, hits, np.searchsorted(hit_classes, hit_classes), starts)


def _within(running: Ints, values: Ints, starts: Ints) -> Ints:
    return running - running[starts] + values[starts] if len(running) else running


def _last_of_tie(scores: Floats, classes: Ints) -> Ints:
    # [n] index of the last detection with the same class and score
    if not len(scores):
        return np.zeros(0, np.int64)
    final = np.append((scores[1:] != scores[:-1]) | (classes[1:] != classes[:-1]), True)
    ends = np.flatnonzero(final)
    return ends[np.cumsum(final) - final]


@dataclass(frozen=True)
class Curve:
    """Matches at one IoU threshold, in order of class and rank."""

    judged: Bools
    is_hit: Bools
    hits: Ints
    starts: Ints
    class_starts: Ints

    def before(self, running: Any) -> Any:
        """``[K]`` a running sum just before each class's first detection."""
        return np.append(0, running)[self.class_starts]


@dataclass(frozen=True)
class Runs:
    """Runs of equal values of a class: the run of each value, and the first run of each run's class."""

    member: Ints
    starts_at: Ints


@dataclass(frozen=True)
class Calibration:
    """Counted detections with the difference of score and target, judged ones with that of score and hit."""

    images: Ints
    classes: Ints
    cells: Ints
    gaps: Floats
    distances: Floats
    judged_images: Ints
    judged_bins: Ints
    judged_gaps: Floats


@dataclass(frozen=True)
class Sample:
    """Detections of one results file, sorted and matched."""

    image_ids: Ints
    n_classes: int
    object_images: Ints
    object_classes: Ints
    images: Ints
    classes: Ints
    curves: tuple[Curve, ...]
    tied: Ints
    errors: Floats
    hit_images: Ints
    hit_classes: Ints
    score_runs: Runs
    iou_runs: Runs
    calibration: Calibration | None
