"""All measures of a dataset, over all classes and for each class, with a reason for each that is undefined."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from concordet.measures.bootstrap import CALIBRATION_ERRORS
from concordet.measures.calibration import (
    average_inconsistency,
    detection_ece,
    localization_aware_ace,
    localization_aware_ece,
    reliability_bins,
)
from concordet.measures.coco import Precision
from concordet.measures.correlation import class_correlation
from concordet.measures.lrp import ClassLRP, LRPReport, lrp
from concordet.measures.matching import Matches
from concordet.measures.metrics import TABLE
from concordet.measures.reading.arrays import Floats, Ints
from concordet.measures.reading.dataset import Dataset

CROWDED: Final = 0.9
"""Share of detections in one score bin from which a note warns that calibration errors mean little."""

_SIZES: Final = {
    "APs": "small (area up to 32 x 32)",
    "APm": "medium (area from 32 x 32 to 96 x 96)",
    "APl": "large (area from 96 x 96)",
}


def summarize(dataset: Dataset, precision: Precision, matches: Matches, overlaps: Matches) -> dict[str, Any]:
    """All measures but the bounds, as plain JSON: fractions, None with an entry in ``reasons`` where undefined.

    Args:
        dataset: Both sides, aligned.
        precision: AP and AR.
        matches: Matches at IoU 0.5.
        overlaps: Matches at tau = 0, of the same detections in the same order.
    """
    losses = optimal_lrp(matches)
    hit = np.flatnonzero(matches.true_positive)
    report, reasons = _metrics(matches, hit, precision, slice(None), losses)
    beta = class_correlation(matches.scores[hit], matches.ious[hit], matches.classes[hit])
    _put(report, reasons, "beta_cls", beta.value, beta.reason)
    report |= {
        "n_images": len(dataset.images),
        "n_objects": int(matches.n_objects.sum()),
        "n_detections": dataset.n_read,
        "n_kept": len(matches.rows),
        "n_classes_correlated": beta.n_defined,
    }
    if dataset.lvis:
        _put_lvis(report, reasons, dataset, precision)
    n_classes = len(dataset.class_ids)
    by_class = hit[np.argsort(matches.classes[hit], kind="stable")]  # one sort instead of a mask per class
    cuts = np.searchsorted(matches.classes[by_class], np.arange(n_classes + 1))
    counts = [np.bincount(each, minlength=n_classes) for each in (dataset.dt_classes, matches.classes)]
    # (image, class) pairs with an object
    pairs = np.sort(matches.object_images * n_classes + matches.object_classes)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    n_images = np.bincount(pairs % max(n_classes, 1), minlength=n_classes)
    report["per_class"] = [
        _class_summary(dataset, precision, matches, losses, index, by_class[cuts[index] : cuts[index + 1]], counts)
        | {"n_images": int(n_images[index])}
        for index in range(n_classes)
    ]
    report["reasons"] = reasons
    report["notes"] = list(dataset.notes)
    _put_calibration(report, matches, overlaps)
    return report


def optimal_lrp(matches: Matches) -> LRPReport:
    """oLRP of every class, by its index."""
    judged = ~matches.ignored
    return lrp(
        matches.scores[judged],
        matches.ious[judged],
        matches.classes[judged],
        dict(enumerate(matches.n_objects.tolist())),
        true_positive=matches.true_positive[judged],
    )


def ap_metrics(precision: Precision, classes: Any) -> dict[str, float | None]:
    """``AP AP50 AP75 AP90`` and, where area ranges were evaluated, ``APs APm APl``, over the chosen classes."""
    ap = precision.ap[:, classes]
    values = {"AP": ap[..., 0], "AP50": ap[0, ..., 0], "AP75": ap[5, ..., 0], "AP90": ap[8, ..., 0]}
    if ap.shape[-1] == 4:
        values |= {"APs": ap[..., 1], "APm": ap[..., 2], "APl": ap[..., 3]}
    return {name: _mean(each) for name, each in values.items()}


def _metrics(
    matches: Matches, hit: Ints, precision: Precision, classes: Any, losses: LRPReport | ClassLRP
) -> tuple[dict[str, Any], dict[str, str]]:
    report: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    owner, of_class = ("the class", " of the class") if isinstance(losses, ClassLRP) else ("the ground truth", "")
    no_object = f"{owner} has no object"
    for name, value in ap_metrics(precision, classes).items():
        _put(report, reasons, name, value, f"no object{of_class} is {_SIZES[name]}" if name in _SIZES else no_object)
    for index, count in enumerate(precision.counts):
        _put(report, reasons, f"AR{count}", _mean(precision.recall[:, classes, index]), no_object)
    if 100 not in precision.counts:
        _put(report, reasons, "AR100", None, f"{precision.counts[-1]} detections of an image are counted, not 100")
    scores, ious = matches.scores[hit], matches.ious[hit]
    for metric in TABLE:
        if metric.of_true_positives is not None:
            _put(report, reasons, metric.key, *metric.of_true_positives(scores, ious))
    _put_inconsistency(report, reasons, scores, ious)
    for name, attribute in (("oLRP", "value"), ("oLRP_loc", "loc"), ("oLRP_fp", "fp"), ("oLRP_fn", "fn")):
        _put(report, reasons, name, getattr(losses, attribute), losses.reason or "no class has a true positive")
    report["n_true_positives"] = len(hit)
    return report, reasons


def _class_summary(
    dataset: Dataset,
    precision: Precision,
    matches: Matches,
    losses: LRPReport,
    index: int,
    hit: Ints,
    counts: list[Ints],
) -> dict[str, Any]:
    loss = losses.per_class[index]
    report, reasons = _metrics(matches, hit, precision, index, loss)
    _put(report, reasons, "beta_cls", report["spearman"], reasons.get("spearman"))
    _put(report, reasons, "lrp_threshold", loss.threshold, loss.reason)
    return {
        "id": int(dataset.class_ids[index]),
        "name": dataset.class_names[index],
        **report,
        "n_objects": int(matches.n_objects[index]),
        "n_detections": int(counts[0][index]),
        "n_kept": int(counts[1][index]),
        "reasons": reasons,
    }


def _put_calibration(report: dict[str, Any], matches: Matches, overlaps: Matches) -> None:
    """LaECE0, LaACE0 and D_ECE at the top level and by class, the bins of reliability diagrams, and a note on them."""
    counted = np.flatnonzero(~overlaps.ignored)
    scores, targets, classes = overlaps.scores[counted], overlaps.targets()[counted], overlaps.classes[counted]
    judged = np.flatnonzero(~matches.ignored)
    judged_scores, hits = matches.scores[judged], matches.true_positive[judged]
    entries = [report, *report["per_class"]]
    outside = int(np.count_nonzero((matches.scores < 0) | (matches.scores > 1)))
    if outside:
        for entry in entries:
            entry["calibration"] = []
            for name in CALIBRATION_ERRORS:
                _put(entry, entry["reasons"], name, None, f"{_count(outside, 'detection')} a score outside [0, 1]")
        return
    n_objects = dict(enumerate(matches.n_objects.tolist()))
    for name, errors in (
        ("LaECE0", localization_aware_ece(scores, targets, classes, n_objects)),
        ("LaACE0", localization_aware_ace(scores, targets, classes, n_objects)),
    ):
        _put(report, report["reasons"], name, errors.value, errors.reason)
        for index, entry in enumerate(report["per_class"]):
            _put(entry, entry["reasons"], name, errors.per_class[index], errors.reasons.get(index))
    order, judged_order = np.argsort(classes, kind="stable"), np.argsort(matches.classes[judged], kind="stable")
    limits = np.arange(len(report["per_class"]) + 1)
    cuts = np.searchsorted(classes[order], limits)
    judged_cuts = np.searchsorted(matches.classes[judged][judged_order], limits)
    rows = [(slice(None), slice(None))] + [
        (order[cuts[i] : cuts[i + 1]], judged_order[judged_cuts[i] : judged_cuts[i + 1]]) for i in limits[:-1]
    ]
    is_hit = overlaps.true_positive[counted]
    for entry, (of_overlaps, of_matches) in zip(entries, rows, strict=True):
        _put(entry, entry["reasons"], "D_ECE", *detection_ece(judged_scores[of_matches], hits[of_matches]))
        entry["calibration"] = reliability_bins(scores[of_overlaps], targets[of_overlaps], is_hit[of_overlaps])
    fullest = max(report["calibration"], key=lambda b: b["count"], default=None)
    if fullest is not None and fullest["count"] >= CROWDED * len(scores) and len(scores) > 1:
        report["notes"].append(
            f"{100 * fullest['count'] / len(scores):.0f} % of the scores lie between {fullest['low']:g} and"
            f" {fullest['high']:g}, so LaECE0, LaACE0 and D_ECE are small whether or not the scores mean anything:"
            " read AIC_mean, which is over true positives"
        )


def _put_lvis(report: dict[str, Any], reasons: dict[str, str], dataset: Dataset, precision: Precision) -> None:
    frequency = np.array([str(c.get("frequency", "")) for c in dataset.classes])
    for letter, word in (("r", "rare"), ("c", "common"), ("f", "frequent")):
        value = _mean(precision.ap[:, frequency == letter, 0])
        _put(report, reasons, f"AP{letter}", value, f"no class with an object is {word} (frequency '{letter}')")


def _put_inconsistency(report: dict[str, Any], reasons: dict[str, str], scores: Floats, ious: Floats) -> None:
    outside = int(np.count_nonzero((scores < 0) | (scores > 1)))
    if outside:
        why = f"{_count(outside, 'true positive')} a score outside [0, 1]"
        _put(report, reasons, "AIC", None, why)
        _put(report, reasons, "AIC_mean", None, why)
        return
    total, mean = average_inconsistency(scores, ious)
    _put(report, reasons, "AIC", total, None)
    _put(report, reasons, "AIC_mean", mean, "there is no true positive")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun} has" if n == 1 else f"{n} {noun}s have"


def _put(report: dict[str, Any], reasons: dict[str, str], name: str, value: float | None, reason: str | None) -> None:
    report[name] = value
    if value is None and reason is not None:
        reasons[name] = reason


def _mean(values: Floats) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None
