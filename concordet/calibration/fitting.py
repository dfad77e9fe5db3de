"""Fitting a calibrator to detections and ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from concordet.calibration.calibrator import Calibrator, ClassCalibration, check_scores
from concordet.calibration.fit import FITS, Method, fit_map
from concordet.calibration.maps import Identity
from concordet.errors import UsageError
from concordet.measures.lrp import lrp
from concordet.measures.matching import ANY_OVERLAP, Matches, match_at
from concordet.measures.reading.arrays import Bools, Floats, Ints
from concordet.measures.reading.dataset import Dataset, checked_limit, read_dataset

MIN_DETECTIONS: Final = 100
MIN_MATCHED: Final = 10
"""Minimum numbers of detections and of matched detections for a class to get its own map; other classes share one.

Chosen, not tuned: an isotonic fit to fewer points would follow their noise.
"""


def fit_calibrator(
    ground_truth: Any,
    detections: Any,
    *,
    method: Method = "isotonic",
    per_class: bool = True,
    iou_type: str = "bbox",
    lvis: bool = False,
    max_dets: int | None = None,
    min_detections: int = MIN_DETECTIONS,
    min_matched: int = MIN_MATCHED,
) -> Calibrator:
    """A calibrator that turns scores into expected IoUs, fitted on these detections (Kuzucu et al. 2024).

    Detections are matched to objects of their class, greedily by score and each object once, wherever boxes overlap
    (tau = 0). The target of a detection is its IoU, 0 for a false positive; detections of crowd regions are left out.

    Args:
        ground_truth, detections, iou_type, lvis, max_dets: as :func:`concordet.measures.analyze` takes them. Fit on
            images that the detector was not trained on.
        method: ``"isotonic"`` assumes only that the map increases; ``"linear"``, ``"platt"`` and ``"temperature"`` have
            one or two parameters and suit few detections.
        per_class: whether to fit a map per class instead of one for all.
        min_detections: fewest detections for which a class gets its own map; classes with fewer share one map.
        min_matched: fewest matched detections for which a class gets its own map.

    Returns:
        The calibrator.

    Raises:
        ValueError: one sentence, for files that cannot be read or scores outside [0, 1].

    Example:
        >>> objects = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in range(4)]
        >>> truth = {"images": [{"id": i} for i in range(4)], "categories": [{"id": 1, "name": "cat"}]}
        >>> results = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 10, 8], "score": i / 100} for i in range(4)]
        >>> calibrator = fit_calibrator(truth | {"annotations": objects}, results, method="linear")
        >>> [round(d["score"], 3) for d in calibrator.apply(results)]
        [0.8, 0.8, 0.8, 0.8]
    """
    if method not in FITS:
        raise UsageError(f"method must be one of {', '.join(FITS)}, got {method!r}")
    limit = checked_limit(max_dets, lvis)
    dataset = read_dataset(ground_truth, detections, iou_type=iou_type, lvis=lvis, max_dets=limit)
    return fit_matched(
        match_all(dataset, limit),
        method=method,
        per_class=per_class,
        min_detections=min_detections,
        min_matched=min_matched,
    )


@dataclass(frozen=True)
class Matched:
    """Evaluated detections, matched at IoU thresholds 0 (tau = 0) and 0.5; images and classes are indices.

    Attributes:
        images, classes: ``[n]`` image and class of each detection.
        scores: ``[n]`` in [0, 1].
        targets: ``[n]`` IoU of the match at tau = 0, 0 without a match.
        counted: ``[n]`` whether it takes part in calibration: not matched to a crowd region at tau = 0.
        hits: ``[n]`` whether it is a true positive at 0.5.
        hit_ious: ``[n]`` IoU of the match at 0.5.
        judged: ``[n]`` whether it is a true or false positive at 0.5: not matched to a crowd region.
        object_images, object_classes: ``[m]`` image and class of each evaluated object.
        rows: ``[n]`` row of each detection in the data set.
        image_ids, class_ids, class_names: what the indices of images and classes refer to.
    """

    images: Ints
    classes: Ints
    scores: Floats
    targets: Floats
    counted: Bools
    hits: Bools
    hit_ious: Floats
    judged: Bools
    object_images: Ints
    object_classes: Ints
    rows: Ints
    image_ids: Ints
    class_ids: Ints
    class_names: list[str]

    def of_images(self, chosen: Bools) -> Matched:
        """The detections and objects of chosen images; ``chosen`` is ``[images]``."""
        rows, objects = chosen[self.images], chosen[self.object_images]
        columns = ("images", "classes", "scores", "targets", "counted", "hits", "hit_ious", "judged", "rows")
        return Matched(
            **{name: getattr(self, name)[rows] for name in columns},
            object_images=self.object_images[objects],
            object_classes=self.object_classes[objects],
            image_ids=self.image_ids,
            class_ids=self.class_ids,
            class_names=self.class_names,
        )


def match_all(dataset: Dataset, max_dets: int, truth: Any = None) -> Matched:
    """Matches of a data set's detections at tau = 0 and at 0.5."""
    check_scores(dataset.dt_scores, dataset.dt_file)
    return matched_columns(dataset, *match_at(dataset, truth, max_dets=max_dets, thresholds=(ANY_OVERLAP, 0.5)))


def matched_columns(dataset: Dataset, any_overlap: Matches, half: Matches) -> Matched:
    """Combines matches at tau = 0 and at 0.5."""
    return Matched(
        images=any_overlap.images,
        classes=any_overlap.classes,
        scores=any_overlap.scores,
        targets=any_overlap.targets(),
        counted=~any_overlap.ignored,
        hits=half.true_positive,
        hit_ious=half.ious,
        judged=~half.ignored,
        object_images=any_overlap.object_images,
        object_classes=any_overlap.object_classes,
        rows=any_overlap.rows,
        image_ids=dataset.image_ids,
        class_ids=dataset.class_ids,
        class_names=dataset.class_names,
    )


def fit_matched(
    matched: Matched,
    *,
    method: Method = "isotonic",
    per_class: bool = True,
    min_detections: int = MIN_DETECTIONS,
    min_matched: int = MIN_MATCHED,
    unknown_classes: bool = True,
) -> Calibrator:
    """:func:`fit_calibrator` on detections that are matched already.

    Without ``unknown_classes`` the shared map is the identity where no class needs it, since it takes as long to fit as
    those of all classes.
    """
    counted = np.flatnonzero(matched.counted)
    counted = counted[np.argsort(matched.classes[counted], kind="stable")]
    scores, targets = matched.scores[counted], matched.targets[counted]
    starts = np.searchsorted(matched.classes[counted], np.arange(len(matched.class_ids) + 1)).tolist()
    n_matched = [int((targets[a:b] > 0).sum()) for a, b in pairwise(starts)]
    few = any(b - a < min_detections or n < min_matched for (a, b), n in zip(pairwise(starts), n_matched, strict=True))
    shared = fit_map(scores, targets, method) if unknown_classes or few or not per_class else Identity()
    thresholds = _thresholds(matched)
    entries = {}
    for index, (ident, name) in enumerate(zip(matched.class_ids.tolist(), matched.class_names, strict=True)):
        rows = slice(starts[index], starts[index + 1])
        count, hits = rows.stop - rows.start, n_matched[index]
        reason = None
        if not per_class:
            reason = "one map for all classes was requested"
        elif count < min_detections:
            reason = f"{count} detections are fewer than the {min_detections} needed for a separate map"
        elif hits < min_matched:
            reason = f"{hits} matched detections are fewer than the {min_matched} needed for a separate map"
        fitted = shared if reason is not None else fit_map(scores[rows], targets[rows], method)
        threshold = thresholds[index]
        entries[ident] = ClassCalibration(
            name=name,
            map=fitted,
            n_detections=count,
            n_matched=hits,
            threshold=None if threshold is None else float(fitted(np.array([threshold]))[0]),
            reason=reason,
        )
    return Calibrator(
        method=method,
        classes=entries,
        shared=shared,
        fit={
            "n_images": len(matched.image_ids),
            "n_detections": len(counted),
            "n_matched": int((targets > 0).sum()),
            "n_objects": len(matched.object_classes),
            "highest_score": float(scores.max()) if len(scores) else None,
            "target": "IoU of the match, 0 without one",
        },
    )


def _thresholds(matched: Matched) -> list[float | None]:
    """The LRP-optimal score of each class; None for a class that has none."""
    judged, n_classes = matched.judged, len(matched.class_ids)
    n_objects = np.bincount(matched.object_classes, minlength=n_classes)
    report = lrp(
        matched.scores[judged],
        matched.hit_ious[judged],
        matched.classes[judged],
        dict(enumerate(n_objects.tolist())),
        true_positive=matched.hits[judged],
    )
    return [report.per_class[index].threshold for index in range(n_classes)]
