"""The analysis of a results file: everything that the report page and the command line show."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from concordet.measures import coco
from concordet.measures.bootstrap import intervals, prepare
from concordet.measures.evaluation import match_evaluation
from concordet.measures.findings.bounds import image_level, reranking_bounds
from concordet.measures.findings.confusion import confusion
from concordet.measures.findings.curves import ThresholdCurve, threshold_curve
from concordet.measures.findings.disagreements import worst_disagreements
from concordet.measures.findings.errors import error_gains
from concordet.measures.findings.images import by_size, worst_images
from concordet.measures.matching import Matches, match_both
from concordet.measures.reading.arrays import Bools, Floats, Ints
from concordet.measures.reading.dataset import Dataset, checked_limit, read_dataset
from concordet.measures.summary import ap_metrics, summarize

LOSSES: Final = {
    "classification": "wrong classes",
    "localization": "inaccurate boxes",
    "both": "inaccurate boxes of the wrong class",
    "duplicates": "duplicate boxes",
    "background": "boxes on the background",
    "missed": "missed objects",
    "ranking": "the ranking",
}
"""Names of the types of errors in ``gains``, for sentences."""


def analyze(
    ground_truth: Any,
    detections: Any,
    *,
    iou_type: str = "bbox",
    lvis: bool = False,
    max_dets: int | None = None,
    raw_detections: Any = None,
    nms_threshold: float = 0.6,
    n_disagreements: int = 50,
    n_images: int = 20,
) -> Analysis:
    """Measures how well scores agree with IoUs, and the AP that a better ranking of the same boxes would have.

    Args:
        ground_truth: path of a JSON file in COCO form, the dict in it, a list of annotations, an array ``[n, 6]`` of
            image_id, x, y, width, height, category_id, or a folder of text files, one per image, of lines
            ``class left top right bottom [difficult]``.
        detections: path of a results file in COCO form, a list of results, an array ``[n, 7]`` of image_id, x, y,
            width, height, score, category_id, or a folder of text files, one per image and with its name, of lines
            ``class score left top right bottom``.
        iou_type: ``"bbox"`` or ``"segm"``.
        lvis: whether to apply LVIS's federated rules; the ground truth then lists ``neg_category_ids`` and
            ``not_exhaustive_category_ids`` with each image.
        max_dets: detections kept, highest scores first: per image and class, 100 by default as in COCO; with ``lvis``
            per image, 300.
        raw_detections: the detector's output before NMS, in any form of ``detections``; adds beta_img and the
            image-level bounds.
        nms_threshold: IoU from which NMS removes the lower box of a class when ``raw_detections`` are evaluated;
            0.6 is ATSS's, the detector of the paper's tables.
        n_disagreements: number of worst disagreements to keep.
        n_images: number of images with most errors to keep.

    Returns:
        An :class:`Analysis`; ``to_dict()`` is plain JSON.

    Raises:
        ValueError: one sentence naming the file, the record, what is wrong with it and how to fix it.

    Example:
        >>> truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}],
        ...          "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
        ...                          {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 0, 10, 10]}]}
        >>> results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 6], "score": 0.9},
        ...            {"image_id": 1, "category_id": 1, "bbox": [50, 0, 10, 9], "score": 0.6}]
        >>> report = analyze(truth, results).to_dict()
        >>> [round(report[name], 3) for name in ("AP", "AP_upper", "AP_lower", "beta_cls")]
        [0.451, 0.603, 0.451, -1.0]
    """
    limit = checked_limit(max_dets, lvis)
    dataset = read_dataset(ground_truth, detections, iou_type=iou_type, lvis=lvis, max_dets=limit)
    truth = coco.load(dataset)
    precision = coco.average_precision(dataset, truth, max_dets=limit)
    matches, overlaps = match_both(dataset, truth, max_dets=limit)
    upper, lower = reranking_bounds(dataset, truth, matches, max_dets=limit)
    report = summarize(dataset, precision, matches, overlaps)
    _add_bounds(report, upper, lower)
    report["gains"] = _gains(report, dataset, matches)
    report["costs"] = _costs(report)
    report["ap_by_threshold"] = {
        "iou": list(coco.IOU_THRESHOLDS),
        **{name: _by_threshold(p) for name, p in (("AP", precision), ("AP_upper", upper), ("AP_lower", lower))},
    }
    shown, rows, pairs = dataset, matches.rows, matches.pairs
    if raw_detections is not None:
        raw = read_dataset(ground_truth, raw_detections, iou_type=iou_type, lvis=lvis, max_dets=None)
        within = image_level(raw, truth, max_dets=limit, nms_threshold=nms_threshold)
        report["reasons"] |= within.reasons
        report |= within.values
        shown, rows, pairs = raw, np.arange(raw.n_detections), None
    else:
        report["beta_img"] = None
        report["reasons"]["beta_img"] = "it needs the detections before NMS: raw_detections=..., or --raw FILE"
    report["disagreements"] = worst_disagreements(shown, rows, pairs, limit=n_disagreements)
    thresholds = [row["lrp_threshold"] for row in report["per_class"]]
    kept = matches.scores >= np.array([np.inf if t is None else t for t in thresholds])[matches.classes]
    report["confusion"] = confusion(dataset, truth, matches.rows[kept & ~matches.ignored], max_dets=limit)
    report["sizes"] = by_size(dataset, matches, precision, kept)
    report["images"] = worst_images(dataset, matches, kept, limit=n_images)
    return Analysis(
        summary=report,
        scores=matches.scores,
        ious=matches.ious,
        true_positive=matches.true_positive,
        ignored=matches.ignored,
        image_ids=dataset.image_ids[matches.images],
        class_ids=dataset.class_ids[matches.classes],
        boxes=dataset.dt_boxes[matches.rows],
        class_names=dict(zip(dataset.class_ids.tolist(), dataset.class_names, strict=True)),
        images={image["id"]: image for image in dataset.images},
        evidence=Evidence(dataset, matches, overlaps, limit),
    )


def evaluate_detections(
    ground_truth: Any, detections: Any, iou_type: str = "bbox", *, max_dets: int | None = None, lvis: bool = False
) -> dict[str, Any]:
    """AP family, correlations, AIC and oLRP of detections in COCO form; :func:`analyze` without the bounds.

    AP and AR are hotcoco's, which equal pycocotools'; all other measures use pycocotools' matches at IoU 0.5.
    ``beta_cls`` is averaged over classes; ``pearson spearman kendall concordance`` are over all true positives pooled;
    ``AP90`` is AP at IoU 0.90.

    Args:
        ground_truth, detections, iou_type, max_dets, lvis: see :func:`analyze`.

    Returns:
        Plain JSON: fractions; an undefined value is None, its reason under ``reasons``; ``per_class`` is a list.

    Raises:
        ValueError: one sentence naming the file, the record and what is wrong with it.

    Example:
        >>> truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}],
        ...          "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}]}
        >>> results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 8], "score": 0.9}]
        >>> metrics = evaluate_detections(truth, results)
        >>> round(metrics["AP"], 3), round(metrics["AP50"], 3), round(metrics["oLRP"], 3), metrics["beta_cls"]
        (0.7, 1.0, 0.4, None)
    """
    return match_evaluation(ground_truth, detections, iou_type=iou_type, max_dets=max_dets, lvis=lvis).metrics()


def _gains(report: dict[str, Any], dataset: Dataset, matches: Matches) -> dict[str, float] | None:
    """Gains of AP50 without each type of error, and of AP with a perfect ranking; None without any object."""
    if report["AP"] is None:
        return None
    return error_gains(dataset, matches) | {"ranking": max(report["AP_upper"] - report["AP"], 0.0)}


def _costs(report: dict[str, Any]) -> dict[str, float] | None:
    """The difference of AP50 and AP, split into what a perfect order would add to AP and the rest, due to boxes."""
    if report["AP"] is None:
        return None
    order = max(report["AP_upper"] - report["AP"], 0.0)
    return {"order": order, "boxes": max(report["AP50"] - report["AP"] - order, 0.0)}


def _add_bounds(report: dict[str, Any], upper: coco.Precision, lower: coco.Precision) -> None:
    for side, precision in (("upper", upper), ("lower", lower)):
        _put_bounds(report, precision, slice(None), side)
        for index, entry in enumerate(report["per_class"]):
            _put_bounds(entry, precision, index, side)
    shifts = {
        f"AP50_{side}": report[f"AP50_{side}"] - report["AP50"]
        for side in ("upper", "lower")
        if report["AP50"] is not None
    }
    report["rematching"] = shifts
    visible = {name: shift for name, shift in shifts.items() if abs(shift) >= 5e-5}  # in four digits
    if visible:
        names = {"AP50_upper": "best", "AP50_lower": "worst"}
        listed = " and ".join(
            f"{100 * shift:+.2f} points in the {names[name]} ranking" for name, shift in visible.items()
        )
        report["notes"].append(
            f"permuting scores changes which of several boxes on an object is matched, and with it AP50: {listed}"
        )


def _put_bounds(entry: dict[str, Any], precision: coco.Precision, classes: Any, side: str) -> None:
    for name, value in ap_metrics(precision, classes).items():
        entry[f"{name}_{side}"] = value
        if value is None:
            entry["reasons"][f"{name}_{side}"] = entry["reasons"][name]


def _by_threshold(precision: coco.Precision) -> list[float | None]:
    ap = precision.ap[..., 0]
    return [float(row[~np.isnan(row)].mean()) if not np.isnan(row).all() else None for row in ap]


@dataclass(frozen=True)
class Evidence:
    """The data that the metrics were computed from: the dataset, matches at IoU 0.5 and at tau = 0, ``max_dets``."""

    dataset: Dataset
    matches: Matches
    overlaps: Matches
    max_dets: int


@dataclass(frozen=True)
class Analysis:
    """All metrics of a results file, with the detections that they were computed from.

    Attributes:
        summary: the metrics, which :meth:`to_dict` copies.
        scores, ious: ``[n]`` of each kept detection; IoU with the annotation that it is matched to, 0 without one.
        true_positive: ``[n]`` matched at IoU 0.5 to an object that counts.
        ignored: ``[n]`` matched to a crowd region (or not judged, under LVIS).
        image_ids, class_ids: ``[n]`` ids as in the ground truth.
        boxes: ``[n, 4]`` xywh in pixels.
        class_names: class id to name.
        images: image id to its record in the ground truth.
        evidence: dataset and matches, for computations that take longer than the metrics.

    Example:
        >>> from concordet.measures import analyze
        >>> truth = {
        ...     "images": [{"id": 1}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
        ...         {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 50, 10, 10]},
        ...     ],
        ... }
        >>> results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 8], "score": 0.6}]
        >>> analysis = analyze(truth, results)
        >>> analysis.ious, analysis.true_positive
        (array([0.8]), array([ True]))
        >>> analysis.to_dict()["oLRP_fn"]  # one of two objects is missed
        0.5
    """

    summary: dict[str, Any]
    scores: Floats
    ious: Floats
    true_positive: Bools
    ignored: Bools
    image_ids: Ints
    class_ids: Ints
    boxes: Floats
    class_names: dict[int, str]
    images: dict[int, dict[str, Any]]
    evidence: Evidence = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: fractions, None with an entry in ``reasons`` where undefined, ``per_class`` a list."""
        return copy.deepcopy(self.summary)

    def curve(self, class_id: int | None = None) -> ThresholdCurve:
        """Precision, recall and F1 over the score threshold at IoU 0.5.

        Args:
            class_id: the class; None for all detections together, under one threshold.

        Raises:
            ValueError: the ground truth has no such class.
        """
        rows = [row for row in self.summary["per_class"] if class_id in (None, row["id"])]
        if not rows and class_id is not None:
            raise ValueError(f"class_id must be one of {sorted(self.class_names)}, got {class_id}")
        chosen = ~self.ignored if class_id is None else ~self.ignored & (self.class_ids == class_id)
        n_objects = sum(row["n_objects"] for row in rows)
        return threshold_curve(self.scores[chosen], self.true_positive[chosen], n_objects)

    def intervals(self, *, n_resamples: int | None = None, confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
        """Intervals of AP, AP50, AP75, beta_cls and oLRP, and of the AP of each class, by a bootstrap over images.

        They say how far the values would move on other images of the same distribution. Each draw evaluates everything
        again: that takes seconds, so :func:`analyze` does not do it.

        Args:
            n_resamples: draws; None takes 1000, and fewer from 40,000 detections on.
            confidence: of the intervals, in (0, 1).
            seed: of the draws.

        Returns:
            ``[low, high]`` by metric, None where it is undefined; ``per_class`` has a list of those of AP in the order
            of ``to_dict()["per_class"]``; ``n_resamples`` and ``confidence``.

        Raises:
            ValueError: a setting is out of range.
        """
        sample = prepare(self.evidence.dataset, self.evidence.max_dets)
        return intervals(sample, n_resamples=n_resamples, confidence=confidence, seed=seed)

    @property
    def sentence(self) -> str:
        """The main finding in one sentence: what costs most, and what a perfect ranking would give, in points."""
        ap, upper, gains = self.summary["AP"], self.summary["AP_upper"], self.summary["gains"]
        if ap is None:
            return f"AP is undefined: {self.summary['reasons']['AP']}."
        if not self.summary["n_kept"]:
            return "There are no detections, so AP is 0.0."
        ranking = f"a perfect ranking of the same boxes would give {100 * upper:.1f} AP; you have {100 * ap:.1f}."
        largest = max(gains, key=gains.__getitem__)
        if largest == "ranking" or gains[largest] < 0.0005:
            return ranking[:1].upper() + ranking[1:]
        return f"The largest cost is {LOSSES[largest]} ({100 * gains[largest]:.1f} points of AP50), while {ranking}"
