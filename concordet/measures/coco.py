"""Average precision, matches and confusion from hotcoco."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from concordet.measures.reading.arrays import Floats, Ints
from concordet.measures.reading.dataset import Dataset
from concordet.measures.reading.masks import mask_areas

IOU_THRESHOLDS: Final = tuple(np.linspace(0.5, 0.95, 10).tolist())
ALL_AREAS: Final = [0.0, 1e10]

_RECALLS: Final = np.linspace(0, 1, 101)


def load(dataset: Dataset) -> Any:
    """The ground truth as a hotcoco dataset whose ids are indices + 1: no id is 0, and the order is kept."""
    from hotcoco import COCO

    images: list[dict[str, Any]] = [{"id": i + 1} for i in range(len(dataset.images))]
    if dataset.iou_type == "segm":
        for image, source in zip(images, dataset.images, strict=True):
            image |= {"height": source["height"], "width": source["width"]}
    if dataset.lvis:
        numbers = {ident: i + 1 for i, ident in enumerate(dataset.class_ids.tolist())}
        for image, source in zip(images, dataset.images, strict=True):
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                image[key] = [numbers[ident] for ident in source.get(key) or [] if ident in numbers]
    # half a character, which JSON can hold, is none for hotcoco
    names = [name.encode("utf-8", "replace").decode() for name in dataset.class_names]
    classes = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    return COCO.from_arrays(
        images,
        classes,
        dataset.gt_images + 1,
        dataset.gt_classes + 1,
        dataset.gt_boxes,
        ids=np.arange(1, len(dataset.gt_images) + 1),
        area=dataset.gt_areas,
        iscrowd=dataset.gt_crowd,
        segmentation=dataset.gt_masks,
    )


def evaluator(
    dataset: Dataset, truth: Any, *, scores: Floats | None, max_dets: list[int], all_areas: bool, thresholds: Any
) -> Any:
    """A hotcoco evaluator after ``evaluate()``, with ``scores`` instead of the detections' if not None.

    Areas of masks are the masks' own, not their boxes', even if the results have boxes: the same as pycocotools for
    results with masks only, and as mmdetection.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters other than the leaderboard's
        result = _evaluator(dataset, truth, scores=scores, all_areas=all_areas)
        params = result.params
        params.iou_thrs = list(thresholds)
        params.max_dets = max_dets
        if not all_areas:
            params.area_rng, params.area_rng_lbl = [ALL_AREAS], ["all"]
        result.evaluate()
    return result


def confusion_matrix(dataset: Dataset, truth: Any, *, max_dets: int) -> Any:
    """``[K + 1, K + 1]`` objects by class and by the class of the matched detection, at IoU 0.5.

    The last row counts detections that are not matched, the last column objects that are not. A detection may match an
    object of any class; crowd regions are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = _evaluator(dataset, truth, scores=None, all_areas=False)
        return result.confusion_matrix(iou_thr=IOU_THRESHOLDS[0], max_det=max_dets)["matrix"]


def _evaluator(dataset: Dataset, truth: Any, *, scores: Floats | None, all_areas: bool) -> Any:
    from hotcoco import COCOeval, LVISResults

    columns = (
        dataset.dt_images + 1,
        dataset.dt_boxes,
        dataset.dt_scores if scores is None else scores,
        dataset.dt_classes + 1,
    )
    rows = np.asarray(np.column_stack(columns), np.float64).reshape(-1, 7)
    if dataset.lvis:
        results = LVISResults(truth, _as_records(rows, dataset.dt_masks), max_dets=-1)  # capped when read
    else:
        results = truth.load_res(rows, segmentation=dataset.dt_masks)
    if dataset.dt_masks is not None and all_areas:
        results.update_anns(ids=np.arange(1, len(rows) + 1), area=mask_areas(dataset.dt_masks, dataset.dt_sizes()))
    return COCOeval(truth, results, dataset.iou_type, lvis_style=dataset.lvis)


def _as_records(rows: Floats, masks: list[Any] | None) -> Any:
    if masks is None:
        return rows
    return [
        {"image_id": int(r[0]), "bbox": r[1:5].tolist(), "score": r[5], "category_id": int(r[6]), "segmentation": mask}
        for r, mask in zip(rows, masks, strict=True)
    ]


def average_precision(
    dataset: Dataset,
    truth: Any,
    *,
    scores: Floats | None = None,
    max_dets: int = 100,
    all_areas: bool = True,
) -> Precision:
    """AP and AR of every IoU threshold, class and area range, at ``max_dets`` detections per image and class."""
    counts = [max_dets] if dataset.lvis else sorted({1, 10, 100, max_dets})
    result = evaluator(dataset, truth, scores=scores, max_dets=counts, all_areas=all_areas, thresholds=IOU_THRESHOLDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result.accumulate()
    precision = result.eval["precision"][..., counts.index(max_dets)]  # [T, R, K, A]
    recall = result.eval["recall"]  # [T, K, A, M]
    return Precision(
        ap=np.where(precision[:, 0] > -1, precision.mean(1), np.nan),
        recall=np.where(recall > -1, recall, np.nan)[:, :, 0],
        counts=counts,
    )


def interpolated_ap(classes: Ints, n_true: Ints, n_seen: Ints, n_objects: Ints | Floats) -> Floats:
    """``[K]`` AP at 101 recall thresholds, 0 for a class without true positives; used where hotcoco has none.

    Args:
        classes: ``[n]`` class of each true positive, in the order of class and rank.
        n_true, n_seen: ``[n]`` true positives, and detections, of the class from the first to this one.
        n_objects: ``[K]`` objects of each class.
    """
    first = np.append(True, classes[1:] != classes[:-1]) if len(classes) else np.zeros(0, bool)
    reached = np.searchsorted(_RECALLS, n_true / n_objects[classes], side="right")
    newly = np.where(first, reached, np.diff(reached, prepend=0))
    # lifted by class from the last to the first, so that the maximum from the right stays within a class
    lifted = n_true / (n_seen + np.spacing(1)) - 2 * classes
    envelope = np.maximum.accumulate(lifted[::-1])[::-1] + 2 * classes
    return np.bincount(classes, envelope * newly, len(n_objects)) / len(_RECALLS)


@dataclass(frozen=True)
class Precision:
    """AP ``[T, K, A]`` and recall ``[T, K, M]`` by IoU threshold, class, area and detection count; NaN is undefined."""

    ap: Floats
    recall: Floats
    counts: list[int]

    def mean(self, thresholds: Any, area: int) -> float | None:
        """Mean AP over IoU thresholds and classes with objects of this size (0 for any); None if there are none."""
        values = self.ap[thresholds, ..., area]
        return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else None
