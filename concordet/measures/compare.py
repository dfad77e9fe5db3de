"""Whether one set of detections differs from another: paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from concordet.measures import coco
from concordet.measures.calibration import D_ECE_BINS, LAECE_BINS, bin_index
from concordet.measures.matching import ANY_OVERLAP, Matches, match_at
from concordet.measures.metrics import BY_KEY
from concordet.measures.reading.arrays import Bools, Floats, Ints
from concordet.measures.reading.dataset import Dataset, checked_limit, read_dataset

MEASURES: Final = ("AP", "AP50", "AP75", "beta_cls", "oLRP", "LaECE0", "LaACE0", "D_ECE")
_RECALLS: Final = np.linspace(0, 1, 101)


def compare(
    ground_truth: Any,
    detections: Any,
    other: Any,
    *,
    iou_type: str = "bbox",
    lvis: bool = False,
    max_dets: int | None = None,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference of two detectors on the same images, with percentile intervals of a paired bootstrap over images.

    Each resample draws as many images as there are, with replacement, and evaluates both detectors on the same draw, so
    that images hard for both do not widen the interval. An interval that excludes 0 says that the difference
    would keep its sign on other images of this kind; it says nothing of another training run of the same method.

    Args:
        ground_truth, detections, iou_type, lvis, max_dets: as :func:`concordet.measures.analyze` takes them.
        other: the second results, in any form of ``detections``.
        n_resamples: 1000 gives 95 % intervals whose ends move by a few percent of their width.
        confidence: of the intervals, in (0, 1).
        seed: of the draws.

    Returns:
        For each of AP, AP50, AP75, beta_cls, oLRP, LaECE0, LaACE0 and D_ECE: ``first``, ``second``, ``difference``
        (second - first), ``low``, ``high``, ``differs`` (whether the interval excludes 0) and ``share_higher`` (of
        resamples, where the second is higher; lower is better for oLRP and the calibration errors); None with
        ``reason`` where undefined. Also ``n_images``, ``n_resamples``, ``confidence``.

    Raises:
        ValueError: as :func:`analyze`, or a setting is out of range.

    Example:
        >>> truth = {"images": [{"id": i} for i in range(8)], "categories": [{"id": 1, "name": "cat"}], "annotations": [
        ...     {"id": 1 + i, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in range(8)]}
        >>> loose, tight = ([{"image_id": i, "category_id": 1, "bbox": [0, 0, 10, w], "score": 0.5 + i / 20}
        ...     for i in range(8)] for w in (6, 9))
        >>> ap = compare(truth, loose, tight, n_resamples=50)["AP"]
        >>> round(ap["difference"], 3), ap["differs"]
        (0.6, True)
    """
    if isinstance(n_resamples, bool) or not isinstance(n_resamples, int) or n_resamples < 1:
        raise ValueError(f"n_resamples must be a positive integer, got {n_resamples!r}; 1000 is common")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}; 0.95 is common")
    limit = checked_limit(max_dets, lvis)
    sides = [
        prepare(read_dataset(ground_truth, d, iou_type=iou_type, lvis=lvis, max_dets=limit), limit)
        for d in (detections, other)
    ]
    n = len(sides[0].image_ids)
    if not np.array_equal(sides[0].image_ids, sides[1].image_ids):
        raise ValueError(
            "ground_truth must list its images where the two results name different ones, got no list; add it"
        )
    whole = [evaluate_weighted(side, np.ones(n, np.int64)) for side in sides]
    rng = np.random.default_rng(seed)
    draws = np.full((n_resamples, 2, len(MEASURES)), np.nan)
    for i in range(n_resamples if n else 0):
        weights = np.bincount(rng.integers(0, n, n), minlength=n)
        draws[i] = [evaluate_weighted(side, weights) for side in sides]
    tail = (1 - confidence) / 2
    report: dict[str, Any] = {
        name: _interval(whole[0][k], whole[1][k], draws[:, :, k], tail) for k, name in enumerate(MEASURES)
    }
    return report | {"n_images": n, "n_resamples": n_resamples, "confidence": confidence}


def comparison_sentence(comparison: Mapping[str, Any], first: str, second: str) -> str:
    """The main finding of :func:`compare` in one sentence, in points of AP.

    Args:
        comparison: What :func:`compare` returns.
        first, second: Names of the two results.

    Example:
        >>> entry = {"first": 0.4, "second": 0.37, "difference": -0.03, "low": -0.039, "high": -0.021, "differs": True}
        >>> comparison_sentence({"AP": entry, "confidence": 0.95}, "a.json", "b.json")
        'b.json has 3.0 points of AP less than a.json (95 % interval: −3.9 to −2.1).'
    """
    entry, ap = comparison["AP"], BY_KEY["AP"]
    if entry["difference"] is None:
        return f"AP of {second} and {first} cannot be compared: it is {entry['reason']}."
    low, high = (ap.difference(0, entry[end]) for end in ("low", "high"))
    interval = f"{100 * comparison['confidence']:g} % interval: {low} to {high}"
    verdict = ap.verdict(entry["first"], entry["second"])
    if verdict == "same":
        return f"{second} has the same AP as {first} ({interval})."
    step = ap.difference(entry["first"], entry["second"]).lstrip("+−")
    direction = "more" if verdict == "better" else "less"
    doubt = "" if entry["differs"] else "; this may be chance"
    return f"{second} has {step} points of AP {direction} than {first} ({interval}{doubt})."


def prepare(dataset: Dataset, max_dets: int) -> Sample:
    """Everything of one side that no resample changes: orders, ties and matches at the ten IoU thresholds."""
    truth = coco.load(dataset)
    overlaps, *matches = match_at(dataset, truth, max_dets=max_dets, thresholds=[ANY_OVERLAP, *coco.IOU_THRESHOLDS])
    base = matches[0]
    order = np.lexsort((base.rows, base.images, -base.scores, base.classes))
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
        calibration=_calibration(base, overlaps),
    )


def evaluate_weighted(sample: Sample, weights: Ints) -> tuple[float, ...]:
    """:data:`MEASURES` of the images taken ``weights`` times each; NaN where undefined."""
    drawn = weights[sample.object_images].astype(np.float64)
    objects: Floats = np.bincount(sample.object_classes, drawn, sample.n_classes).astype(np.float64)
    w = weights[sample.images]
    masks = {id(curve.judged): curve.judged for curve in sample.curves}  # one for all thresholds, but for crowds
    seen = {key: np.cumsum(np.where(mask, w, 0)) for key, mask in masks.items()}
    ap = np.array([_average_precision(sample, curve, w, seen[id(curve.judged)], objects) for curve in sample.curves])
    present = objects > 0
    calibration = _calibration_errors(sample.calibration, weights, present)
    if not present.any():
        return (*[np.nan] * (len(MEASURES) - len(calibration)), *calibration)
    ap = ap[:, present]
    return (
        ap.mean(),
        ap[0].mean(),
        ap[5].mean(),
        _beta(sample, weights),
        _olrp(sample, weights, objects)[present].mean(),
        *calibration,
    )


def _average_precision(sample: Sample, curve: Curve, w: Ints, seen: Ints, objects: Floats) -> Floats:
    # [K]: precision changes the envelope only at true positives, so the curve is taken there
    hits = w[curve.hits]
    classes = sample.classes[curve.hits]
    tp = _within(np.cumsum(hits), hits, curve.starts)
    n_seen = seen[curve.hits] - curve.before(seen)[classes]
    drawn = np.flatnonzero(hits)
    tp, n_seen, classes = tp[drawn], n_seen[drawn], classes[drawn]
    if not len(drawn):
        return np.zeros(sample.n_classes)
    recall = tp / objects[classes]
    reached = np.searchsorted(_RECALLS, recall, side="right")
    lead = np.append(True, classes[1:] != classes[:-1])
    newly = reached - np.where(lead, 0, np.append(0, reached[:-1]))
    lifted = (tp / (n_seen + np.spacing(1)) - 2 * classes)[::-1]
    envelope = np.maximum.accumulate(lifted)[::-1] + 2 * classes
    return np.bincount(classes, envelope * newly, sample.n_classes) / len(_RECALLS)


def _olrp(sample: Sample, weights: Ints, objects: Floats) -> Floats:
    # [K]: the optimum lies where a true positive was just added, at the end of its ties
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


def _calibration(base: Matches, overlaps: Matches) -> Calibration | None:
    # what the errors are sums of; None where a score lies outside [0, 1]
    if len(base.scores) and (base.scores.min() < 0 or base.scores.max() > 1):
        return None
    counted, judged = ~overlaps.ignored, ~base.ignored
    classes = overlaps.classes[counted]
    gaps = overlaps.scores[counted] - overlaps.targets()[counted]
    return Calibration(
        images=overlaps.images[counted],
        classes=classes,
        cells=classes * LAECE_BINS + bin_index(overlaps.scores[counted], LAECE_BINS),
        gaps=gaps,
        distances=np.abs(gaps),
        judged_images=base.images[judged],
        judged_bins=bin_index(base.scores[judged], D_ECE_BINS),
        judged_gaps=base.scores[judged] - base.true_positive[judged],
    )


def _calibration_errors(c: Calibration | None, weights: Ints, has_object: Bools) -> tuple[float, float, float]:
    # LaECE0, LaACE0 and D_ECE of the images taken as often as their weights say
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
    held = np.bincount(runs.member, weights, len(runs.starts_at))
    before = np.cumsum(held) - held
    return (before - before[runs.starts_at] + (held - 1) / 2)[runs.member]


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


def _interval(first: float, second: float, draws: Floats, tail: float) -> dict[str, Any]:
    difference = draws[:, 1] - draws[:, 0]
    difference = difference[~np.isnan(difference)]
    point = [None if np.isnan(value) else float(value) for value in (first, second)]
    entry: dict[str, Any] = {"first": point[0], "second": point[1]}
    if point[0] is None or point[1] is None or not len(difference):
        undefined = dict.fromkeys(("difference", "low", "high", "differs", "share_higher"))
        return entry | undefined | {"reason": "undefined for one of the two"}
    low, high = np.quantile(difference, [tail, 1 - tail])
    return entry | {
        "difference": float(second - first),
        "low": float(low),
        "high": float(high),
        "differs": bool(low > 0 or high < 0),
        "share_higher": float(np.mean(difference > 0)),
        "reason": None,
    }


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
    """Ties of one class: which run each value is in, and the first run of that run's class."""

    member: Ints
    starts_at: Ints


@dataclass(frozen=True)
class Calibration:
    """Counted detections with the distance of score and target, and judged ones with that of score and hit."""

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
    """One side of a comparison, sorted once."""

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
