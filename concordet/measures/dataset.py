"""Ground truth and detections brought to one numbering of images and classes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from concordet.measures.arrays import Bools, Floats, Ints, to_numpy
from concordet.measures.records import Columns, annotation_columns, load_json


def read_dataset(ground_truth: Any, detections: Any, *, iou_type: str = "bbox") -> Dataset:
    """Read both sides in COCO form and align them.

    Args:
        ground_truth: path of a JSON file, the dict in it, a list of annotations, or an array ``[n, 6]`` of image_id,
            x, y, width, height, category_id. Where images or categories are not listed they are those that are named.
        detections: path of a results file, a list of results, a dict with ``annotations``, or an array ``[n, 7]``
            of image_id, x, y, width, height, score, category_id.
        iou_type: ``"bbox"`` or ``"segm"``.

    Raises:
        ValueError: one sentence naming the file, the record and what is wrong with it.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type is {iou_type!r}; expected 'bbox' or 'segm'.")
    notes: list[str] = []
    truth, truth_name = _opened(ground_truth, "ground truth")
    found, found_name = _opened(detections, "detections")
    if isinstance(found, dict):
        if "annotations" not in found:
            raise ValueError(f"{found_name} is an object without annotations; expected a list of results in COCO form.")
        found = found["annotations"]
    dt = annotation_columns(found, f"{found_name}: detection", scored=True)
    if not isinstance(truth, dict):
        truth = {"annotations": truth}
    elif "annotations" not in truth:
        raise ValueError(
            f"{truth_name} has no annotations; expected an object with images, annotations and categories."
        )
    gt = annotation_columns(truth["annotations"], f"{truth_name}: annotation", scored=False)
    images = _images(truth, truth_name, gt, dt, notes)
    classes = _classes(truth, truth_name, gt, dt, notes)
    image_ids = np.array([image["id"] for image in images], np.int64)
    class_ids = np.array([c["id"] for c in classes], np.int64)

    gt_images, gt_classes = _places(gt.image_ids, image_ids), _places(gt.class_ids, class_ids)
    _require_known(gt_images, gt.image_ids, f"{truth_name}: annotation", "image_id", "images")
    _require_known(gt_classes, gt.class_ids, f"{truth_name}: annotation", "category_id", "categories")
    dt_images, dt_classes = _places(dt.image_ids, image_ids), _places(dt.class_ids, class_ids)
    _require_known(dt_classes, dt.class_ids, f"{found_name}: detection", "category_id", f"categories of {truth_name}")
    rows = np.flatnonzero(dt_images >= 0)
    if len(dt) and not len(rows):
        raise ValueError(
            f"{found_name}: no detection is on an image of {truth_name} (the first names image {dt.image_ids[0]});"
            " give the results of the same images."
        )
    if len(rows) < len(dt):
        outside = len(np.unique(dt.image_ids[dt_images < 0]))
        notes.append(
            f"{len(dt) - len(rows)} detections on {outside} images that the ground truth does not list were left out"
        )
    if gt.n_duplicate_ids:
        notes.append(f"{gt.n_duplicate_ids} annotations repeat an id; each counts as an object of its own")
    if gt.n_ignore:
        notes.append(
            f"{gt.n_ignore} annotations have ignore without iscrowd and count as objects, as in pycocotools;"
            " give them iscrowd 1 to leave their regions out"
        )
    if iou_type == "segm":
        _require_masks(gt, f"{truth_name}: annotation", np.arange(len(gt)))
        _require_masks(dt, f"{found_name}: detection", rows)
    return Dataset(
        images=images,
        class_ids=class_ids,
        class_names=[str(c["name"]) for c in classes],
        classes=classes,
        image_ids=image_ids,
        gt_images=gt_images,
        gt_classes=gt_classes,
        gt_boxes=gt.boxes,
        gt_areas=np.where(np.isnan(gt.areas), gt.boxes[:, 2] * gt.boxes[:, 3], gt.areas),
        gt_crowd=gt.crowd,
        gt_masks=gt.segmentations if iou_type == "segm" else None,
        dt_images=dt_images[rows],
        dt_classes=dt_classes[rows],
        dt_boxes=dt.boxes[rows],
        dt_scores=dt.scores[rows],
        dt_masks=[dt.segmentations[i] for i in rows] if iou_type == "segm" and dt.segmentations else None,
        dt_rows=rows,
        iou_type=iou_type,
        notes=notes,
    )


def _opened(source: Any, name: str) -> tuple[Any, str]:
    if isinstance(source, str | os.PathLike):
        content, name = load_json(source), Path(source).name
        if not isinstance(content, dict | list):
            raise ValueError(
                f"{name} holds {type(content).__name__} at its top; expected a list or an object in COCO form."
            )
        return content, name
    if isinstance(source, dict | list | tuple):
        return source, name
    return to_numpy(source), name


def _listed(truth: dict[str, Any], key: str, name: str) -> list[dict[str, Any]] | None:
    records = truth.get(key)
    if records is None:
        return None
    if not isinstance(records, list):
        raise ValueError(f"{name} has {key} that is no list; expected a list of objects with an integer id.")
    for place, record in enumerate(records):
        ident = record.get("id") if isinstance(record, dict) else None
        if not isinstance(ident, int) or isinstance(ident, bool):
            raise ValueError(f"{name}: {key}[{place}] has id {ident!r}; expected an object with an integer id.")
    return records


def _images(truth: dict[str, Any], name: str, gt: Columns, dt: Columns, notes: list[str]) -> list[dict[str, Any]]:
    records = _listed(truth, "images", name)
    if records is None:
        notes.append("the ground truth lists no images; those that an annotation or a detection names were taken")
        return [{"id": int(i)} for i in np.union1d(gt.image_ids, dt.image_ids)]
    unique = {record["id"]: record for record in reversed(records)}
    if len(unique) < len(records):
        notes.append(f"{len(records) - len(unique)} images repeat an id; the first of each was taken")
    return [unique[i] for i in sorted(unique)]


def _classes(truth: dict[str, Any], name: str, gt: Columns, dt: Columns, notes: list[str]) -> list[dict[str, Any]]:
    records = _listed(truth, "categories", name)
    if records is None:
        notes.append("the ground truth lists no categories; those that an annotation or a detection names were taken")
        return [{"id": int(i), "name": str(i)} for i in np.union1d(gt.class_ids, dt.class_ids)]
    unique: dict[int, dict[str, Any]] = {}
    for record in records:
        known = unique.setdefault(record["id"], {**record, "name": record.get("name", str(record["id"]))})
        if known["name"] != record.get("name", known["name"]):
            raise ValueError(
                f"{name}: category id {record['id']} is both {known['name']!r} and {record['name']!r}; give each an id."
            )
    if len(unique) < len(records):
        notes.append(f"{len(records) - len(unique)} categories repeat an id; the first of each was taken")
    return [unique[i] for i in sorted(unique)]


def _places(ids: Ints, known: Ints) -> Ints:
    # [n] place of each id in the sorted known ones, -1 where it is not among them
    if not len(known):
        return np.full(len(ids), -1, np.int64)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[place] == ids, place, -1)


def _require_known(places: Ints, ids: Ints, what: str, key: str, where: str) -> None:
    bad = np.flatnonzero(places < 0)
    if bad.size:
        raise ValueError(
            f"{what} {bad[0]} (from 0) has {key} {ids[bad[0]]}, which is not among the {where}; mend the id."
        )


def _require_masks(columns: Columns, what: str, rows: Ints) -> None:
    masks = columns.segmentations
    for row in rows:
        if masks is None or not masks[row]:
            raise ValueError(
                f"{what} {row} (from 0) has no segmentation; give it one or evaluate boxes (iou_type 'bbox')."
            )


@dataclass(frozen=True)
class Dataset:
    """Aligned columns: ``*_images`` and ``*_classes`` are places in ``image_ids`` and ``class_ids``; boxes are xywh."""

    images: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    class_names: list[str]
    class_ids: Ints
    image_ids: Ints
    gt_images: Ints
    gt_classes: Ints
    gt_boxes: Floats
    gt_areas: Floats
    gt_crowd: Bools
    gt_masks: list[Any] | None
    dt_images: Ints
    dt_classes: Ints
    dt_boxes: Floats
    dt_scores: Floats
    dt_masks: list[Any] | None
    dt_rows: Ints
    iou_type: str
    notes: list[str]

    @property
    def n_detections(self) -> int:
        """How many detections are on images of the ground truth."""
        return len(self.dt_scores)
