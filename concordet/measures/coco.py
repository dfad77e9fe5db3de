"""hotcoco as the one source of average precision and of matches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from concordet.measures.reading.arrays import Bools, Floats, Ints, collector_paused
from concordet.measures.reading.dataset import Dataset
from concordet.measures.reading.masks import encode, mask_areas

IOU_THRESHOLDS: Final = tuple(np.linspace(0.5, 0.95, 10).tolist())
AREAS: Final = ("all", "small", "medium", "large")
_AREA_RANGES: Final = ([0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10])


def load(dataset: Dataset) -> Any:
    """The ground truth as a hotcoco dataset whose ids are places + 1, so that no id is 0 and order is kept."""
    from hotcoco import COCO

    images: list[dict[str, Any]] = [{"id": i + 1} for i in range(len(dataset.images))]
    if dataset.iou_type == "segm":
        for image, source in zip(images, dataset.images, strict=True):
            image |= {"height": source["height"], "width": source["width"]}
    if dataset.lvis:
        places = {ident: i + 1 for i, ident in enumerate(dataset.class_ids.tolist())}
        for image, source in zip(images, dataset.images, strict=True):
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                image[key] = [places[ident] for ident in source.get(key) or [] if ident in places]
    classes = [{"id": i + 1, "name": name} for i, name in enumerate(dataset.class_names)]
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
    """A hotcoco evaluator after ``evaluate()``, with these scores in place of the detections' own where given.

    Areas of masks are the masks', not their boxes', whether or not the results carry boxes: what pycocotools gives for
    results of masks only, and what mmdetection reports.
    """
    from hotcoco import COCOeval, LVISResults

    rows = np.column_stack(
        [
            dataset.dt_images + 1,
            dataset.dt_boxes,
            dataset.dt_scores if scores is None else scores,
            dataset.dt_classes + 1,
        ]
    ).reshape(-1, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the parameters are not the leaderboard's
        if dataset.lvis:
            results = LVISResults(truth, _as_records(rows, dataset.dt_masks), max_dets=-1)  # capped when read
        else:
            results = truth.load_res(rows, segmentation=dataset.dt_masks)
        if dataset.dt_masks is not None and all_areas:
            results.update_anns(ids=np.arange(1, len(rows) + 1), area=mask_areas(dataset.dt_masks, dataset.dt_sizes()))
        result = COCOeval(truth, results, dataset.iou_type, lvis_style=dataset.lvis)
        params = result.params
        params.iou_thrs = list(thresholds)
        params.max_dets = max_dets
        if not all_areas:
            params.area_rng, params.area_rng_lbl = [_AREA_RANGES[0]], [AREAS[0]]
        result.evaluate()
    return result


def _as_records(rows: Floats, masks: list[Any] | None) -> Any:
    if masks is None:
        return rows
    return [
        {"image_id": int(r[0]), "bbox": r[1:5].tolist(), "score": r[5], "category_id": int(r[6]), "segmentation": mask}
        for r, mask in zip(rows, masks, strict=True)
    ]


def average_precision(
    dataset: Dataset, truth: Any, *, scores: Floats | None = None, max_dets: int = 100, all_areas: bool = True
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


def match(dataset: Dataset, truth: Any, *, max_dets: int = 100) -> Matches:
    """pycocotools' matches at IoU 0.5, over all areas, of the detections that ``max_dets`` keeps."""
    return match_at(dataset, truth, max_dets=max_dets, thresholds=IOU_THRESHOLDS[:1])[0]


def match_at(dataset: Dataset, truth: Any, *, max_dets: int, thresholds: Sequence[float]) -> list[Matches]:
    """pycocotools' matches at each IoU threshold; all hold the same detections in the same order."""
    result = evaluator(dataset, truth, scores=None, max_dets=[max_dets], all_areas=False, thresholds=thresholds)
    with collector_paused():
        groups = [group for group in result.eval_imgs if group is not None]
    ids = np.fromiter(chain.from_iterable(group["dtIds"] for group in groups), np.int64)
    order = np.argsort(ids, kind="stable")  # rows ascend, as in the dataset
    rows = ids[order] - 1
    held = [sum(group["gtInDenominator"]) for group in groups]
    places = np.array([(g["image_id"] - 1, g["category_id"] - 1) for g in groups], np.int64).reshape(-1, 2)
    object_images, object_classes = np.repeat(places, held, axis=0).T
    found = []
    for place in range(len(thresholds)):
        matched = _flat(groups, "dtMatched", place, bool)[order]
        ignored = _flat(groups, "dtIgnore", place, bool)[order]
        objects = np.where(matched, _flat(groups, "dtMatches", place, np.int64)[order] - 1, -1)
        found.append(_matches(dataset, rows, objects, matched & ~ignored, ignored, object_images, object_classes))
    return found


def _flat(groups: list[dict[str, Any]], key: str, place: int, dtype: Any) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(group[key][place] for group in groups), dtype)


def _matches(
    dataset: Dataset,
    rows: Ints,
    objects: Ints,
    true_positive: Bools,
    ignored: Bools,
    object_images: Ints,
    object_classes: Ints,
) -> Matches:
    matched = objects >= 0
    ious = np.zeros(len(rows))
    ious[matched] = np.round(paired_iou(dataset, rows[matched], objects[matched]), 12)  # equal boxes tie
    return Matches(
        rows=rows,
        images=dataset.dt_images[rows],
        classes=dataset.dt_classes[rows],
        scores=dataset.dt_scores[rows],
        ious=ious,
        objects=objects,
        true_positive=true_positive,
        ignored=ignored,
        object_images=object_images,
        object_classes=object_classes,
        n_objects=np.bincount(object_classes, minlength=len(dataset.class_ids)),
    )


def paired_iou(dataset: Dataset, detections: Ints, objects: Ints) -> Floats:
    """``[n]`` IoU of detections with annotations pair by pair; with a crowd the area in common over the detection's."""
    if dataset.iou_type == "segm":
        return _paired_mask_iou(dataset, detections, objects)
    d, g = dataset.dt_boxes[detections], dataset.gt_boxes[objects]
    low = np.maximum(d[:, :2], g[:, :2])
    side = np.maximum(np.minimum(d[:, :2] + d[:, 2:], g[:, :2] + g[:, 2:]) - low, 0)
    common = side[:, 0] * side[:, 1]
    area_d, area_g = d[:, 2] * d[:, 3], g[:, 2] * g[:, 3]
    union = np.where(dataset.gt_crowd[objects], area_d, area_d + area_g - common)
    return np.divide(common, union, out=np.zeros(len(d)), where=union > 0)


def _paired_mask_iou(dataset: Dataset, detections: Ints, objects: Ints) -> Floats:
    from hotcoco import mask as masks

    rle: dict[tuple[str, int], Any] = {}

    def encoded(side: str, index: int, segmentation: Any, size: tuple[int, int]) -> Any:
        if (side, index) not in rle:
            rle[side, index] = encode(segmentation, size)
        return rle[side, index]

    gt_masks, dt_masks = dataset.gt_masks or [], dataset.dt_masks or []
    ious = np.zeros(len(detections))
    for i, (d, g) in enumerate(zip(detections.tolist(), objects.tolist(), strict=True)):
        image = dataset.images[dataset.gt_images[g]]
        size = image["height"], image["width"]
        pair = encoded("d", d, dt_masks[d], size), encoded("g", g, gt_masks[g], size)
        ious[i] = masks.iou([pair[0]], [pair[1]], [bool(dataset.gt_crowd[g])])[0, 0]
    return ious


@dataclass(frozen=True)
class Precision:
    """AP ``[T, K, A]`` and recall ``[T, K, M]`` by IoU threshold, class, area and detection count; NaN is undefined."""

    ap: Floats
    recall: Floats
    counts: list[int]


@dataclass(frozen=True)
class Matches:
    """Each kept detection with the object it is matched to at IoU 0.5; the one source of every measure but AP.

    Attributes:
        rows: ``[n]`` the detection's place in the dataset, ascending.
        images, classes: ``[n]`` places of its image and class.
        scores: ``[n]`` its score.
        ious: ``[n]`` IoU with the annotation it is matched to, 0 without one.
        objects: ``[n]`` that annotation's place, -1 without one.
        true_positive: ``[n]`` matched to an object that counts.
        ignored: ``[n]`` matched to a crowd region (or, under LVIS, not judged): neither true nor false.
        object_images, object_classes: ``[m]`` places of image and class of each object that counts.
        n_objects: ``[K]`` objects that count, by class.
    """

    rows: Ints
    images: Ints
    classes: Ints
    scores: Floats
    ious: Floats
    objects: Ints
    true_positive: Bools
    ignored: Bools
    object_images: Ints
    object_classes: Ints
    n_objects: Ints
