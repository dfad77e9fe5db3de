"""Comparison of two sets of detections by a paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from concordet.measures.bootstrap import MEASURES, Sample, check_settings, draw_weights, evaluate_weighted, prepare
from concordet.measures.metrics import BY_KEY
from concordet.measures.reading.arrays import Floats
from concordet.measures.reading.dataset import checked_limit, read_dataset


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
    that images that are hard for both do not widen the interval. An interval that excludes 0 says that the difference
    would keep its sign on other images of the same distribution; it says nothing about another training run of the same
    method.

    Args:
        ground_truth, detections, iou_type, lvis, max_dets: see :func:`concordet.measures.analyze`.
        other: the second results, in any form of ``detections``.
        n_resamples: number of draws; with 1000, the ends of 95 % intervals vary by a few percent of their width.
        confidence: confidence of the intervals, in (0, 1).
        seed: seed of the draws.

    Returns:
        For each of AP, AP50, AP75, beta_cls, oLRP, LaECE0, LaACE0 and D_ECE: ``first``, ``second``, ``difference``
        (second - first), ``low``, ``high``, ``differs`` (whether the interval excludes 0) and ``share_higher`` (share
        of resamples in which the second is higher; lower is better for oLRP and the calibration errors); None with a
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
    check_settings(n_resamples, confidence)
    limit = checked_limit(max_dets, lvis)
    sides = [
        prepare(read_dataset(ground_truth, d, iou_type=iou_type, lvis=lvis, max_dets=limit), limit)
        for d in (detections, other)
    ]
    return compare_samples(*sides, n_resamples=n_resamples, confidence=confidence, seed=seed)


def compare_samples(first: Sample, second: Sample, *, n_resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    """:func:`compare` of two samples from :func:`concordet.measures.bootstrap.prepare`."""
    sides = first, second
    n = len(sides[0].image_ids)
    if not np.array_equal(sides[0].image_ids, sides[1].image_ids):
        raise ValueError(
            "ground_truth must list its images where the two results name different ones, got no list; add it"
        )
    whole = [evaluate_weighted(side, np.ones(n, np.int64)) for side in sides]
    draws = np.full((n_resamples, 2, len(MEASURES)), np.nan)
    for i, weights in enumerate(draw_weights(n, n_resamples, seed)):
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
