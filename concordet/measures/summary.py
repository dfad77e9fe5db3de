"""All measures of one aligned dataset, over all classes and for each, with a reason for each that is undefined."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from concordet.measures.coco import Precision
from concordet.measures.correlation import COEFFICIENTS, class_correlation, pooled_correlation
from concordet.measures.inconsistency import average_inconsistency
from concordet.measures.lrp import ClassLRP, LRPReport, lrp
from concordet.measures.matching import Matches
from concordet.measures.reading.arrays import Floats
from concordet.measures.reading.dataset import Dataset

AP_NAMES: Final = ("AP", "AP50", "AP75", "AP90", "APs", "APm", "APl")
_NO_AREA: Final = {
    "APs": "no object is small (area up to 32 x 32)",
    "APm": "no object is medium (area from 32 x 32 to 96 x 96)",
    "APl": "no object is large (area from 96 x 96)",
}
_NO_OBJECT: Final = "there is no object to find"


def summarize(dataset: Dataset, precision: Precision, matches: Matches) -> dict[str, Any]:
    """The figures of design 1.2 but for the bounds, as plain JSON: fractions, None with an entry in ``reasons``."""
    everything = np.ones(len(matches.rows), bool)
    losses = optimal_lrp(matches)
    report, reasons = _figures(matches, everything, precision, slice(None), losses)
    hit = matches.true_positive
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
    report["per_class"] = [
        _class_summary(dataset, precision, matches, losses, place) for place in range(len(dataset.class_ids))
    ]
    report["reasons"] = reasons
    report["notes"] = list(dataset.notes)
    return report


def optimal_lrp(matches: Matches) -> LRPReport:
    """oLRP of every class, by its place, from the shared matches."""
    judged = ~matches.ignored
    return lrp(
        matches.scores[judged],
        matches.ious[judged],
        matches.classes[judged],
        dict(enumerate(matches.n_objects.tolist())),
        true_positive=matches.true_positive[judged],
    )


def ap_figures(precision: Precision, classes: Any) -> dict[str, float | None]:
    """``AP AP50 AP75 AP90`` and, where area ranges were evaluated, ``APs APm APl``, over the chosen classes."""
    ap = precision.ap[:, classes]
    figures = {"AP": ap[..., 0], "AP50": ap[0, ..., 0], "AP75": ap[5, ..., 0], "AP90": ap[8, ..., 0]}
    if ap.shape[-1] == 4:
        figures |= {"APs": ap[..., 1], "APm": ap[..., 2], "APl": ap[..., 3]}
    return {name: _mean(values) for name, values in figures.items()}


def _figures(
    matches: Matches, chosen: Any, precision: Precision, classes: Any, losses: LRPReport | ClassLRP
) -> tuple[dict[str, Any], dict[str, str]]:
    report: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, value in ap_figures(precision, classes).items():
        _put(report, reasons, name, value, _NO_AREA.get(name, _NO_OBJECT))
    for place, count in enumerate(precision.counts):
        _put(report, reasons, f"AR{count}", _mean(precision.recall[:, classes, place]), _NO_OBJECT)
    if 100 not in precision.counts:
        _put(report, reasons, "AR100", None, f"{precision.counts[-1]} detections of an image are counted, not 100")
    hit = matches.true_positive & chosen
    scores, ious = matches.scores[hit], matches.ious[hit]
    for coefficient in COEFFICIENTS:
        _put(report, reasons, coefficient, *pooled_correlation(scores, ious, coefficient))
    _put_inconsistency(report, reasons, scores, ious)
    for name, part in (("oLRP", "value"), ("oLRP_loc", "loc"), ("oLRP_fp", "fp"), ("oLRP_fn", "fn")):
        _put(report, reasons, name, getattr(losses, part), losses.reason or "no class has a true positive")
    report["n_true_positives"] = int(hit.sum())
    return report, reasons


def _class_summary(
    dataset: Dataset, precision: Precision, matches: Matches, losses: LRPReport, place: int
) -> dict[str, Any]:
    chosen = matches.classes == place
    loss = losses.per_class[place]
    report, reasons = _figures(matches, chosen, precision, place, loss)
    for name in AP_NAMES:
        if name in reasons:
            reasons[name] = f"{reasons[name]} of this class"
    _put(report, reasons, "beta_cls", report["spearman"], reasons.get("spearman"))
    _put(report, reasons, "lrp_threshold", loss.threshold, loss.reason)
    return {
        "id": int(dataset.class_ids[place]),
        "name": dataset.class_names[place],
        **report,
        "n_objects": int(matches.n_objects[place]),
        "n_detections": int(np.count_nonzero(dataset.dt_classes == place)),
        "n_kept": int(np.count_nonzero(chosen)),
        "reasons": reasons,
    }


def _put_lvis(report: dict[str, Any], reasons: dict[str, str], dataset: Dataset, precision: Precision) -> None:
    frequency = np.array([str(c.get("frequency", "")) for c in dataset.classes])
    for letter, word in (("r", "rare"), ("c", "common"), ("f", "frequent")):
        value = _mean(precision.ap[:, frequency == letter, 0])
        _put(report, reasons, f"AP{letter}", value, f"no class with an object is {word} (frequency '{letter}')")


def _put_inconsistency(report: dict[str, Any], reasons: dict[str, str], scores: Floats, ious: Floats) -> None:
    outside = int(np.count_nonzero((scores < 0) | (scores > 1)))
    if outside:
        why = f"{outside} true positives have a score outside [0, 1]"
        _put(report, reasons, "AIC", None, why)
        _put(report, reasons, "AIC_mean", None, why)
        return
    total, mean = average_inconsistency(scores, np.minimum(ious, 1))
    _put(report, reasons, "AIC", total, None)
    _put(report, reasons, "AIC_mean", mean, "there is no true positive")


def _put(report: dict[str, Any], reasons: dict[str, str], name: str, value: float | None, reason: str | None) -> None:
    report[name] = value
    if value is None and reason is not None:
        reasons[name] = reason


def _mean(values: Floats) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None
