"""The effect of calibration on images that were not part of the fit, by cross-fitting, with intervals."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from scipy.sparse import csr_matrix

from concordet.calibration.calibrator import Calibrator, check_scores
from concordet.calibration.fit import Method
from concordet.calibration.fitting import (
    MIN_DETECTIONS,
    MIN_MATCHED,
    Matched,
    fit_matched,
    match_all,
    matched_columns,
)
from concordet.errors import UsageError
from concordet.measures import Analysis, coco
from concordet.measures.bootstrap import check_settings, draw_weights
from concordet.measures.calibration import (
    D_ECE_BINS,
    LAECE_BINS,
    bin_index,
    localization_aware_ece,
    reliability_bins,
)
from concordet.measures.reading.arrays import Bools, Floats, Ints
from concordet.measures.reading.dataset import checked_limit, read_dataset
from concordet.measures.summary import CALIBRATION_ERRORS, ap_metrics

METRICS: Final = (*CALIBRATION_ERRORS, "AIC_mean")


def evaluate_calibration(
    ground_truth: Any,
    detections: Any,
    *,
    method: Method = "isotonic",
    per_class: bool = True,
    folds: int = 5,
    iou_type: str = "bbox",
    lvis: bool = False,
    max_dets: int | None = None,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    min_detections: int = MIN_DETECTIONS,
    min_matched: int = MIN_MATCHED,
) -> tuple[Calibrator, dict[str, Any]]:
    """A calibrator fitted on these detections, and a cross-fitted report of what calibration changes.

    Images are split into folds; the detections of each fold are calibrated by a fit on the other folds, so that all
    values under ``after`` are measured on images outside the fit. ``AP`` is the exception: it is that of the returned
    calibrator, which equals the one before by construction.

    Args:
        ground_truth, detections, iou_type, lvis, max_dets: as :func:`concordet.measures.analyze` takes them.
        method, per_class, min_detections, min_matched: as :func:`concordet.calibration.fit_calibrator` takes them.
        folds: number of parts that the images are split into, at least 2.
        n_resamples: draws of the bootstrap over images; 0 leaves intervals out.
        confidence: confidence of the intervals, in (0, 1).
        seed: seed of the folds and of the draws.

    Returns:
        The calibrator, fitted on all images, and plain JSON with ``before`` and ``after`` (``AP``, ``LaECE0``,
        ``LaACE0``, ``D_ECE``, ``AIC_mean``; None where undefined, with ``reasons``), ``intervals`` of both and of their
        difference, ``operating``, which has the same for detections above each class's LRP-optimal threshold (of the
        fit's images), ``reliability`` (bins of mean score, mean IoU and number) and ``per_class``.

    Raises:
        ValueError: one sentence, for files that cannot be read, scores outside [0, 1], fewer than two images or a
            setting out of range.

    Example:
        >>> truth = {
        ...     "images": [{"id": i} for i in range(40)],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in range(40)
        ...     ],
        ... }
        >>> results = [  # boxes of IoU 0.5 to 0.89, with scores near 0 in the same order
        ...     {"image_id": i, "category_id": 1, "bbox": [0, 0, 10, 5 + i / 10], "score": 0.01 + i / 4000}
        ...     for i in range(40)
        ... ]
        >>> calibrator, report = evaluate_calibration(truth, results, method="linear", min_detections=20, n_resamples=0)
        >>> round(report["before"]["LaECE0"], 2), round(report["after"]["LaECE0"], 2)
        (0.68, 0.0)
        >>> report["before"]["AP"] == report["after"]["AP"]
        True
    """
    limit = checked_limit(max_dets, lvis)
    dataset = read_dataset(ground_truth, detections, iou_type=iou_type, lvis=lvis, max_dets=limit)
    truth = coco.load(dataset)
    matched = match_all(dataset, limit, truth)
    calibrator, report = evaluate_matched(
        matched, folds=folds, n_resamples=n_resamples, seed=seed, method=method, confidence=confidence,
        per_class=per_class, min_detections=min_detections, min_matched=min_matched,
    )  # fmt: skip
    calibrated = calibrator.calibrate(dataset.dt_scores, dataset.class_ids[dataset.dt_classes])

    def ap(scores: Floats | None) -> float | None:
        precision = coco.average_precision(dataset, truth, scores=scores, max_dets=limit, all_areas=False)
        return ap_metrics(precision, slice(None))["AP"]

    report["before"]["AP"] = before = ap(None)
    same = same_order(dataset.dt_scores, calibrated, dataset.dt_classes)  # on which alone AP depends
    report["after"]["AP"] = before if same else ap(calibrated)
    report["notes"] = list(dataset.notes)
    return calibrator, report


def same_order(first: Floats, second: Floats, classes: Ints) -> bool:
    """Whether two columns of scores put the detections of each class in the same order, with the same ties.

    Example:
        >>> same_order(np.array([0.2, 0.9, 0.2]), np.array([0.1, 0.3, 0.1]), np.array([0, 0, 0]))
        True
    """
    order = np.lexsort((first, classes))
    a, b, c = first[order], second[order], classes[order]
    same_class = c[1:] == c[:-1]
    return bool(np.array_equal(np.sign(np.diff(a))[same_class], np.sign(np.diff(b))[same_class]))


def evaluate_analysis(
    analysis: Analysis,
    *,
    folds: int = 5,
    n_resamples: int = 0,
    seed: int = 0,
    method: Method = "isotonic",
    confidence: float = 0.95,
    per_class: bool = True,
    min_detections: int = MIN_DETECTIONS,
    min_matched: int = MIN_MATCHED,
) -> tuple[Calibrator, dict[str, Any]]:
    """:func:`evaluate_calibration` of detections that are read and matched already.

    Args:
        analysis: what :func:`concordet.measures.analyze` returns.
        folds, n_resamples, seed, method, confidence, per_class, min_detections, min_matched: as
            :func:`evaluate_calibration` takes them; without intervals by default.

    Returns:
        As :func:`evaluate_calibration`; ``AP`` after calibration is the one before, which no calibrator changes.

    Raises:
        ValueError: one sentence; for a score outside [0, 1] or fewer than two images.
    """
    evidence = analysis.evidence
    check_scores(evidence.dataset.dt_scores, evidence.dataset.dt_file)
    matched = matched_columns(evidence.dataset, evidence.overlaps, evidence.matches)
    calibrator, report = evaluate_matched(
        matched, folds=folds, n_resamples=n_resamples, seed=seed, method=method, confidence=confidence,
        per_class=per_class, min_detections=min_detections, min_matched=min_matched,
    )  # fmt: skip
    report["before"]["AP"] = report["after"]["AP"] = analysis.summary["AP"]
    return calibrator, report


def evaluate_matched(
    matched: Matched,
    *,
    folds: int,
    n_resamples: int,
    seed: int,
    method: Method = "isotonic",
    confidence: float = 0.95,
    per_class: bool = True,
    min_detections: int = MIN_DETECTIONS,
    min_matched: int = MIN_MATCHED,
) -> tuple[Calibrator, dict[str, Any]]:
    """The calibrator of matched detections and the cross-fitted report, without AP."""
    if n_resamples < 0:
        raise UsageError(f"n_resamples must be at least 0, got {n_resamples}; 0 leaves intervals out")
    check_settings(n_resamples or 1, confidence)
    settings: dict[str, Any] = {
        "method": method, "per_class": per_class, "min_detections": min_detections, "min_matched": min_matched
    }  # fmt: skip
    calibrator = fit_matched(matched, **settings)
    after, kept = cross_fitted(matched, folds=folds, seed=seed, **settings)
    everything = np.ones(len(after), bool)
    n_images = len(matched.image_ids)
    draws = list(draw_weights(n_images, n_resamples, seed + 1))  # another stream than that of the folds
    weights = np.array(draws, np.float64).reshape(-1, n_images)  # [draws, images]
    report = compare_scores(matched, matched.scores, after, everything, weights, confidence)
    report["operating"] = compare_scores(matched, matched.scores, after, kept, weights, confidence)
    report["method"], report["folds"], report["confidence"] = method, min(folds, n_images), confidence
    report["n_images"], report["n_detections"] = n_images, len(after)
    report["per_class"] = [
        {
            "id": ident,
            "name": entry.name,
            "n_detections": entry.n_detections,
            "n_matched": entry.n_matched,
            "threshold": entry.threshold,
            "reason": entry.reason,
            "LaECE0_before": before,
            "LaECE0_after": later,
        }
        for (ident, entry), before, later in zip(
            calibrator.classes.items(),
            *(_class_errors(matched, scores) for scores in (matched.scores, after)),
            strict=True,
        )
    ]
    report["reliability"] = {
        side: _reliability(matched, scores) for side, scores in (("before", matched.scores), ("after", after))
    }
    return calibrator, report


def cross_fitted(matched: Matched, *, folds: int, seed: int, **settings: Any) -> tuple[Floats, Bools]:
    """Scores calibrated by a fit on the other folds, and which of them reach the threshold of that fit.

    Returns:
        ``[n]`` calibrated scores and ``[n]`` bool.

    Raises:
        ValueError: for fewer than two folds or images.
    """
    n_images = len(matched.image_ids)
    if folds < 2:
        raise UsageError(f"folds must be at least 2, got {folds}; 5 is common")
    if n_images < 2:
        raise ValueError(f"cross-fitting must have at least 2 images, got {n_images}; give results of more images")
    fold = np.random.default_rng(seed).permutation(n_images) % min(folds, n_images)
    scores, kept = np.empty(len(matched.scores)), np.zeros(len(matched.scores), bool)
    for number in range(min(folds, n_images)):
        calibrator = fit_matched(matched.of_images(fold != number), unknown_classes=False, **settings)
        rows = fold[matched.images] == number
        ids = matched.class_ids[matched.classes[rows]]
        scores[rows] = calibrator.calibrate(matched.scores[rows], ids)
        thresholds = np.array([np.inf if t is None else t for t in calibrator.thresholds().values()])
        kept[rows] = scores[rows] >= thresholds[matched.classes[rows]]
    return scores, kept


def compare_scores(
    matched: Matched, before: Floats, after: Floats, kept: Bools, weights: Floats, confidence: float
) -> dict[str, Any]:
    """Calibration errors of two sets of scores of the ``kept`` detections, with intervals."""
    weights = np.concatenate([np.ones((1, len(matched.image_ids))), weights])  # the first is the value itself
    sides = {"before": before, "after": after}
    report: dict[str, Any] = {side: {} for side in sides} | {"reasons": {}, "intervals": {}}
    sums = _Sums(matched, kept, weights)
    draws = {side: sums.errors(scores) for side, scores in sides.items()}
    for name in METRICS:
        for side in sides:
            value = draws[side][name][0]
            report[side][name] = None if np.isnan(value) else float(value)
        if report["before"][name] is None:
            report["reasons"][name] = (
                "no detection is a true positive" if name == "AIC_mean" else "no class has an object and a detection"
            )
        elif len(weights) > 1:
            columns = {side: draws[side][name][1:] for side in sides}
            columns["difference"] = columns["after"] - columns["before"]
            values = {side: report[side][name] for side in sides}
            values["difference"] = None if values["after"] is None else values["after"] - values["before"]
            report["intervals"][name] = {key: _interval(columns[key], values[key], confidence) for key in columns}
    return report


def _interval(draws: Floats, value: float | None, confidence: float) -> list[float] | None:
    draws = draws[~np.isnan(draws)]
    if value is None or not len(draws):
        return None
    # Resampling adds noise to sums of absolute gaps: draws are biased upward, so they are centered on the value.
    centered = draws - draws.mean() + value
    return np.quantile(centered, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()


class _Sums:
    """Errors of every draw at once: sums per image and cell are linear, so a draw is a weighted sum over images."""

    def __init__(self, matched: Matched, kept: Bools, weights: Floats) -> None:
        self.matched, self.weights = matched, weights
        self.counted, self.judged, self.hits = (rows & kept for rows in (matched.counted, matched.judged, matched.hits))
        n_classes, ones = len(matched.class_ids), np.ones(len(kept))
        self.n_counted = self._by_cell(self.counted, matched.classes, n_classes, ones)  # [draws, classes]
        objects = self._weighted(
            matched.object_images, matched.object_classes, n_classes, np.ones(len(matched.object_classes))
        )
        self.present = (self.n_counted > 0) & (objects > 0)
        self.n_judged, self.n_hits = self._sum(self.judged, ones), self._sum(self.hits, ones)

    def errors(self, scores: Floats) -> dict[str, Floats]:
        """``[draws]`` values of each of :data:`METRICS`."""
        m, n_classes = self.matched, len(self.matched.class_ids)
        cells = m.classes * LAECE_BINS + bin_index(scores, LAECE_BINS)
        gaps = np.abs(self._by_cell(self.counted, cells, n_classes * LAECE_BINS, m.targets - scores))
        gaps = gaps.reshape(len(gaps), n_classes, LAECE_BINS).sum(2)
        distances = self._by_cell(self.counted, m.classes, n_classes, np.abs(m.targets - scores))
        pooled = self._by_cell(self.judged, bin_index(scores, D_ECE_BINS), D_ECE_BINS, m.hits - scores)
        apart = self._sum(self.hits, np.abs(m.hit_ious - scores))
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "LaECE0": self._mean_over_classes(gaps),
                "LaACE0": self._mean_over_classes(distances),
                "D_ECE": np.abs(pooled).sum(1) / self.n_judged,
                "AIC_mean": apart / self.n_hits,
            }

    def _mean_over_classes(self, totals: Floats) -> Floats:
        return np.where(self.present, totals / self.n_counted, 0).sum(1) / self.present.sum(1)

    def _by_cell(self, rows: Bools, cells: Ints, n_cells: int, values: Floats) -> Floats:
        return self._weighted(self.matched.images[rows], cells[rows], n_cells, values[rows])

    def _weighted(self, images: Ints, cells: Ints, n_cells: int, values: Floats) -> Floats:
        sums = csr_matrix((values, (images, cells)), shape=(self.weights.shape[1], n_cells))
        return np.asarray((sums.T @ self.weights.T).T)  # [draws, cells]

    def _sum(self, rows: Bools, values: Floats) -> Floats:
        by_image = np.bincount(self.matched.images[rows], values[rows], self.weights.shape[1])
        return np.asarray(self.weights @ by_image)  # [draws]


def _class_errors(matched: Matched, scores: Floats) -> list[float | None]:
    """LaECE0 of each class."""
    counted, n_classes = matched.counted, len(matched.class_ids)
    n_objects = dict(enumerate(np.bincount(matched.object_classes, minlength=n_classes).tolist()))
    targets, classes = matched.targets[counted], matched.classes[counted]
    errors = localization_aware_ece(scores[counted], targets, classes, n_objects).per_class
    return [errors.get(index) for index in range(n_classes)]


def _reliability(matched: Matched, scores: Floats) -> list[list[float]]:
    """Mean score, mean target and number of detections of each non-empty bin, over all classes."""
    counted = matched.counted
    bins = reliability_bins(scores[counted], matched.targets[counted], matched.hits[counted], bins=LAECE_BINS)
    return [[row["mean_score"], row["mean_iou"], float(row["count"])] for row in bins]
