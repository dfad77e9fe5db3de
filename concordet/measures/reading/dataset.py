"""Reading of ground truth and detections, with common indices of images and classes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from concordet.errors import UsageError, counted
from concordet.files import no_garbage_collection, parse_json, read_bytes
from concordet.measures.reading.arrays import Bools, Floats, Ints, is_integer, to_numpy
from concordet.measures.reading.decoding import decoded_results, decoded_truth
from concordet.measures.reading.masks import mask_areas, mask_fault
from concordet.measures.reading.records import Columns, annotation_columns
from concordet.measures.reading.suspicions import box_notes, image_sizes, lvis_notes, score_notes
from concordet.measures.reading.text_files import read_text_folder, read_text_truth


@no_garbage_collection()
def read_dataset(
    ground_truth: Any, detections: Any, *, iou_type: str = "bbox", lvis: bool = False, max_dets: int | None = None
) -> Dataset:
    """Reads ground truth and detections and aligns them.

    Args:
        ground_truth, detections: see :func:`concordet.measures.analyze`. If images or categories are not listed, those
            of annotations and detections are used.
        iou_type: ``"bbox"`` or ``"segm"``.
        lvis: whether images have LVIS's ``neg_category_ids`` and ``not_exhaustive_category_ids``.
        max_dets: with ``lvis``, number of detections of an image to keep, highest scores first; None for all.

    Raises:
        ValueError: one sentence naming the file, the record and what is wrong with it.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type must be 'bbox' or 'segm', got {iou_type!r}")
    notes: list[str] = []
    doubts: list[str] = []
    masks = iou_type == "segm"
    truth, gt, gt_name = _truth(ground_truth, notes, masks)
    dt, dt_name = _detections(detections, truth, gt_name, doubts, masks)
    images = _images(truth, gt_name, gt, dt, notes)
    classes = _classes(truth, gt_name, gt, dt, notes)
    if lvis:
        _require_lvis(images, gt_name)
    image_ids = np.array([image["id"] for image in images], np.int64)
    class_ids = np.array([c["id"] for c in classes], np.int64)

    gt_images, gt_classes = _indices(gt.image_ids, image_ids), _indices(gt.class_ids, class_ids)
    _require_known(gt_images, gt.image_ids, f"{gt_name}: annotation", "image_id", "images")
    _require_known(gt_classes, gt.class_ids, f"{gt_name}: annotation", "category_id", "categories")
    dt_images, dt_classes = _indices(dt.image_ids, image_ids), _indices(dt.class_ids, class_ids)
    rows = _known_rows(dt, dt_images, dt_classes, dt_name, gt_name, doubts)
    doubts += lvis_notes(images, lvis)
    sizes = image_sizes(images)
    doubts += box_notes(gt.boxes, gt_images, sizes, "annotations")
    doubts += box_notes(dt.boxes[rows], dt_images[rows], sizes, "detections") + score_notes(dt.scores[rows])
    if iou_type == "bbox" and len(dt) and not dt.has_boxes:
        notes.append("the detections have masks and no boxes: the boxes around the masks are evaluated")
    if gt.n_duplicate_ids:
        notes.append(f"{_repeats(gt.n_duplicate_ids, 'annotation')} an id; each counts as a separate object")
    if gt.n_ignore:
        verbs = ("has", "counts as an object") if gt.n_ignore == 1 else ("have", "count as objects")
        notes.append(
            f"{counted(gt.n_ignore, 'annotation')} {verbs[0]} ignore without iscrowd and {verbs[1]}, as in pycocotools;"
            " iscrowd 1 would leave out the region"
        )
    if iou_type == "segm":
        _require_sizes(images, gt_name)
        _require_masks(gt, f"{gt_name}: annotation", np.arange(len(gt)), [images[i] for i in gt_images])
        _require_masks(dt, f"{dt_name}: detection", rows, [images[i] for i in dt_images])
        if dt.has_boxes:
            notes.append(
                "the detections have boxes and masks: APs, APm and APl use the areas of the masks; pycocotools uses the"
                " boxes' areas unless the boxes are removed"
            )
    areas = np.where(np.isnan(gt.areas), gt.boxes[:, 2] * gt.boxes[:, 3], gt.areas)
    if iou_type == "segm":
        areas = _with_mask_areas(gt, areas, [images[i] for i in gt_images])
    n_read = len(rows)
    if lvis and max_dets is not None:
        rows = np.sort(rows[highest_by_group(dt_images[rows], dt.scores[rows], max_dets)])
    whole = Dataset(
        images=images,
        classes=classes,
        class_names=[c["name"] for c in classes],
        class_ids=class_ids,
        image_ids=image_ids,
        gt_images=gt_images,
        gt_classes=gt_classes,
        gt_boxes=gt.boxes,
        gt_areas=areas,
        gt_crowd=gt.crowd,
        gt_masks=gt.segmentations if iou_type == "segm" else None,
        dt_images=dt_images,
        dt_classes=dt_classes,
        dt_boxes=dt.boxes,
        dt_scores=dt.scores,
        dt_masks=dt.segmentations if iou_type == "segm" else None,
        dt_rows=np.arange(len(dt)),
        iou_type=iou_type,
        lvis=lvis,
        n_read=n_read,
        notes=[*doubts, *notes],
        doubts=doubts,
        dt_file=dt_name if isinstance(detections, str | os.PathLike) else "",
    )
    return whole if len(rows) == len(dt) else whole.only(rows)


def _known_rows(dt: Columns, dt_images: Ints, dt_classes: Ints, dt_name: str, gt_name: str, doubts: list[str]) -> Ints:
    # detections on images and of classes that the ground truth lists; a doubt counts the others
    on_image = dt_images >= 0
    if len(dt) and not on_image.any():
        raise ValueError(
            f"{dt_name}: no detection is on an image of {gt_name} (the first has image_id {dt.image_ids[0]});"
            " give the results of the same images"
        )
    rows = np.flatnonzero(on_image & (dt_classes >= 0))
    if len(dt) and not len(rows):
        raise ValueError(
            f"{dt_name}: no detection is of a category of {gt_name} (the first has category_id"
            f" {_class_name(dt, int(dt.class_ids[0]))}); give the results of the same classes"
        )
    if not on_image.all():
        missing = len(np.unique(dt.image_ids[~on_image]))
        doubts.append(
            f"{counted(int((~on_image).sum()), 'detection')} on {counted(missing, 'image')} that the ground truth lacks"
            f" {_were(int((~on_image).sum()))} left out"
        )
    unknown = np.flatnonzero(on_image & (dt_classes < 0))
    if len(unknown):
        ids, counts = np.unique(dt.class_ids[unknown], return_counts=True)
        names = [_class_name(dt, ident) for ident in ids[np.argsort(-counts, kind="stable")].tolist()]
        listed = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
        doubts.append(
            f"{counted(len(unknown), 'detection')} of {counted(len(ids), 'category', 'categories')}"
            f" that the ground truth lacks ({listed}) {_were(len(unknown))} left out"
        )
    return rows


def _class_name(dt: Columns, ident: int) -> str:
    return dt.class_names.get(ident, str(ident))


def _repeats(n: int, noun: str, plural: str | None = None) -> str:
    return f"{counted(n, noun, plural)} {'repeats' if n == 1 else 'repeat'}"


def _were(n: int) -> str:
    return "was" if n == 1 else "were"


def checked_limit(max_dets: int | None, lvis: bool) -> int:
    """Number of detections to keep: by default COCO's 100 per image and class, or LVIS's 300 per image."""
    if max_dets is None:
        return 300 if lvis else 100
    if isinstance(max_dets, bool) or not isinstance(max_dets, int | np.integer) or max_dets < 1:
        raise UsageError(f"max_dets must be a positive integer, got {max_dets!r}; COCO takes 100")
    return int(max_dets)


def highest_by_group(groups: Ints, scores: Floats, limit: int) -> Ints:
    """Indices of the ``limit`` highest scores of each group, ties in order."""
    sorted_groups = np.sort(groups)
    if np.all(sorted_groups[limit:] != sorted_groups[:-limit]):  # no group has more
        return np.arange(len(scores))
    order = np.lexsort((np.arange(len(scores)), -scores, groups))
    return order[np.arange(len(order)) - np.searchsorted(sorted_groups, sorted_groups) < limit]


def _truth(source: Any, notes: list[str], masks: bool) -> tuple[dict[str, Any], Columns, str]:
    # the lists of images and categories, the annotations, and the name for errors
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        truth, own = read_text_truth(Path(source))
        name = Path(source).name
        notes += own
    else:
        content, name = _content(source, "ground truth")
        read = None if content is None else decoded_truth(content, f"{name}: annotation", masks=masks)
        if read is not None:
            return *read, name
        truth = _opened(source, name, content)
        if not isinstance(truth, dict):
            truth = {"annotations": truth}
        if "annotations" not in truth:
            raise ValueError(f"{name} must be an object with images, annotations and categories, got no annotations")
    columns = annotation_columns(truth["annotations"], f"{name}: annotation", scored=False)
    # without the annotations, a gigabyte for a million
    return {key: value for key, value in truth.items() if key != "annotations"}, columns, name


def _detections(
    source: Any, truth: dict[str, Any], gt_name: str, doubts: list[str], masks: bool
) -> tuple[Columns, str]:
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        images, classes = _listed(truth, "images", gt_name), _listed(truth, "categories", gt_name)
        if images is None or classes is None:
            raise ValueError(f"{gt_name} must list images and categories, which text files name; add both lists")
        columns, own = read_text_folder(Path(source), images, classes)
        doubts += own
        return columns, Path(source).name
    content, name = _content(source, "detections")
    read = None if content is None else decoded_results(content, f"{name}: detection", masks=masks)
    if read is not None:
        return read, name
    results = _opened(source, name, content)
    if isinstance(results, dict):
        if "annotations" not in results:
            raise ValueError(f"{name} must be a list of results in COCO format, got an object without annotations")
        if "images" in results and not any(isinstance(r, dict) and "score" in r for r in results["annotations"] or []):
            raise ValueError(
                f"{name} must hold detections with scores, got annotations of images; are the two files swapped?"
            )
        results = results["annotations"]
    return annotation_columns(results, f"{name}: detection", scored=True), name


def _content(source: Any, name: str) -> tuple[bytes | None, str]:
    # the bytes of a file, read once, as a pipe can be, and its name; None and this name for what is no file
    if not isinstance(source, str | os.PathLike):
        return None, name
    return read_bytes(Path(source)), Path(source).name


def _opened(source: Any, name: str, content: bytes | None) -> Any:
    if content is not None:
        value = parse_json(content, source)
        if not isinstance(value, dict | list):
            raise ValueError(f"{name} must hold a list or an object in COCO format, got one {type(value).__name__}")
        return value
    return source if isinstance(source, dict | list | tuple) else to_numpy(source)


def _listed(truth: dict[str, Any], key: str, name: str) -> list[dict[str, Any]] | None:
    records = truth.get(key)
    if records is None:
        return None
    if not isinstance(records, list):
        raise ValueError(f"{name}: {key} must be a list of objects with an integer id, got {type(records).__name__}")
    for index, record in enumerate(records):
        ident = record.get("id") if isinstance(record, dict) else None
        if not is_integer(ident):
            raise ValueError(f"{name}: {key}[{index}] must be an object with an integer id, got id {ident!r:.60}")
    return records


def _images(truth: dict[str, Any], name: str, gt: Columns, dt: Columns, notes: list[str]) -> list[dict[str, Any]]:
    records = _listed(truth, "images", name)
    if records is None:
        notes.append("the ground truth lists no images; those named by annotations or detections are used")
        return [{"id": int(i)} for i in np.union1d(gt.image_ids, dt.image_ids)]
    unique = {record["id"]: record for record in reversed(records)}
    if len(unique) < len(records):
        notes.append(f"{_repeats(len(records) - len(unique), 'image')} an id; the first of each is used")
    return [unique[i] for i in sorted(unique)]


def _classes(truth: dict[str, Any], name: str, gt: Columns, dt: Columns, notes: list[str]) -> list[dict[str, Any]]:
    records = _listed(truth, "categories", name)
    if records is None:
        notes.append("the ground truth lists no categories; those named by annotations or detections are used")
        return [{"id": int(i), "name": str(i)} for i in np.union1d(gt.class_ids, dt.class_ids)]
    unique: dict[int, dict[str, Any]] = {}
    for record in records:
        label = str(record.get("name") or record["id"])
        known = unique.setdefault(record["id"], {**record, "name": label})["name"]
        if known != label:
            raise ValueError(
                f"{name}: category id {record['id']} must have one name, got {known!r} and {label!r}; split it"
            )
    if len(unique) < len(records):
        notes.append(
            f"{_repeats(len(records) - len(unique), 'category', 'categories')} an id; the first of each is used"
        )
    return [unique[i] for i in sorted(unique)]


def _indices(ids: Ints, known: Ints) -> Ints:
    # [n] index of each id in the sorted known ids, -1 for unknown ones
    if not len(known):
        return np.full(len(ids), -1, np.int64)
    index = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[index] == ids, index, -1)


def _require_known(indices: Ints, ids: Ints, what: str, key: str, where: str) -> None:
    bad = np.flatnonzero(indices < 0)
    if bad.size:
        raise ValueError(f"{what} {bad[0]} (from 0): {key} must be among the {where}, got {ids[bad[0]]}")


def _require_masks(columns: Columns, what: str, rows: Ints, images: list[dict[str, Any]]) -> None:
    for row in rows.tolist():
        mask = columns.segmentations[row] if columns.segmentations is not None else None
        if not mask:
            raise ValueError(
                f"{what} {row} (from 0) must have a segmentation, got none; give it one or evaluate boxes ('bbox')"
            )
        size = [images[row]["height"], images[row]["width"]]
        fault = mask_fault(mask, size)
        if fault is not None:
            raise ValueError(f"{what} {row} (from 0): segmentation {fault}")


def _with_mask_areas(gt: Columns, areas: Floats, images: list[dict[str, Any]]) -> Floats:
    # areas that are not in the file are computed from the masks
    rows = np.flatnonzero(np.isnan(gt.areas)).tolist()
    masks = gt.segmentations or []
    areas[rows] = mask_areas([masks[i] for i in rows], [(images[i]["height"], images[i]["width"]) for i in rows])
    return areas


def _require_lvis(images: list[dict[str, Any]], name: str) -> None:
    if not any("neg_category_ids" in image for image in images):
        raise ValueError(
            f"{name}: images must have neg_category_ids, got none; name an LVIS annotation file, or"
            " evaluate without LVIS's rules"
        )
    for image in images:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(key) or []
            if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
                raise ValueError(
                    f"{name}: {key} of image {image['id']} must be a list of category ids, got {ids!r:.60}"
                )


def _require_sizes(images: list[dict[str, Any]], name: str) -> None:
    for image in images:
        for key in ("height", "width"):
            side = image.get(key)
            if isinstance(side, bool) or not isinstance(side, int) or not 0 < side < 1 << 16:
                raise ValueError(
                    f"{name}: {key} of image {image['id']} must be in 1..65535 pixels for masks, got {side!r}"
                )


@dataclass(frozen=True)
class Dataset:
    """Aligned columns: ``*_images`` and ``*_classes`` index ``image_ids`` and ``class_ids``; boxes are xywh.

    ``notes`` says what was done with the input. ``doubts`` are those of them that suggest a mistake, such as
    detections on unknown images. ``dt_file`` is the name of the file of the detections, for messages; "" if they are
    not from a file.
    """

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
    lvis: bool
    n_read: int
    notes: list[str]
    doubts: list[str]
    dt_file: str = ""

    @property
    def n_detections(self) -> int:
        """Number of detections."""
        return len(self.dt_scores)

    def dt_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each detection's image, for masks."""
        return [(self.images[i]["height"], self.images[i]["width"]) for i in self.dt_images.tolist()]

    def only(self, rows: Ints) -> Dataset:
        """The dataset with these detections only."""
        return replace(
            self,
            dt_images=self.dt_images[rows],
            dt_classes=self.dt_classes[rows],
            dt_boxes=self.dt_boxes[rows],
            dt_scores=self.dt_scores[rows],
            dt_masks=[self.dt_masks[row] for row in rows.tolist()] if self.dt_masks is not None else None,
            dt_rows=self.dt_rows[rows],
        )
