"""Reading of ground truth and detections in COCO form into columns; an error names the faulty record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import numpy as np

from concordet.measures.reading.arrays import Bools, Floats, Ints, is_integer, is_number, to_numpy
from concordet.measures.reading.masks import mask_box, mask_fault

MAX_COORDINATE: Final = 1e9
"""Largest coordinate in pixels: products of larger ones are inexact or overflow."""

MAX_SCORE: Final = 1e30
"""Largest magnitude of a score: squares of larger ones may overflow."""


def annotation_columns(records: Any, what: str, *, scored: bool) -> Columns:
    """Columns of a list of COCO annotations or results (or of an array ``[n, 7]``), each value checked.

    Args:
        records: list of dicts, or array of image_id, x, y, width, height, score, category_id (``[n, 7]``) if
            ``scored``, else of image_id, x, y, width, height, category_id (``[n, 6]``).
        what: name of a record in errors, such as ``"results.json: detection"``.
        scored: whether a score is required.
    """
    if not isinstance(records, list | tuple):
        return _from_array(to_numpy(records), what, scored)
    n = len(records)
    columns = Columns(
        image_ids=_column(records, "image_id", what, is_integer, "an integer").astype(np.int64),
        class_ids=_column(records, "category_id", what, is_integer, "an integer").astype(np.int64),
        boxes=_boxes(records, what),
        scores=_column(records, "score", what, is_number, "a finite number").astype(np.float64)
        if scored
        else np.zeros(0),
        segmentations=[record.get("segmentation") for record in records],
        has_boxes=any(record.get("bbox") is not None for record in records),
    )
    if not scored:
        columns.areas = _optional(records, "area", what, math.nan)
        columns.crowd = _optional(records, "iscrowd", what, 0.0) != 0
        columns.n_ignore = sum(bool(r.get("ignore")) and not r.get("iscrowd") for r in records if "ignore" in r)
        ids = [record.get("id") for record in records]
        columns.n_duplicate_ids = 0 if None in ids else n - _n_different(ids)
    return check_values(columns, what)


def check_values(columns: Columns, what: str) -> Columns:
    """The columns; ValueError for a box of negative size, or a box or a score that is too large for exact results."""
    _check_sizes(columns.boxes, what)
    bad = np.flatnonzero(np.abs(columns.scores) > MAX_SCORE)
    if bad.size:
        raise ValueError(
            f"{what} {bad[0]} (from 0): score must be at most {MAX_SCORE:g}, got {columns.scores[bad[0]]:g}; fix it"
        )
    return columns


def _from_array(array: Any, what: str, scored: bool) -> Columns:
    width, form = (
        (7, "image_id, x, y, width, height, score, category_id")
        if scored
        else (
            6,
            "image_id, x, y, width, height, category_id",
        )
    )
    if array.size == 0:
        array = np.zeros((0, width))
    if array.ndim != 2 or array.shape[1] != width or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{what}s must be numbers [n, {width}] ({form}) or a list of records, got an array of shape"
            f" {list(array.shape)} and type {array.dtype}"
        )
    rows = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if bad.size:
        raise ValueError(f"{what} {bad[0]} (from 0) must be finite, got {rows[bad[0]].tolist()}; fix or drop it")
    boxes = np.ascontiguousarray(rows[:, 1:5])
    for column, name in ((rows[:, 0], "image_id"), (rows[:, -1], "category_id")):
        bad = np.flatnonzero(column != np.round(column))
        if bad.size:
            raise ValueError(f"{what} {bad[0]} (from 0): {name} must be an integer, got {column[bad[0]]:g}")
    columns = Columns(
        rows[:, 0].astype(np.int64), rows[:, -1].astype(np.int64), boxes, rows[:, 5] if scored else np.zeros(0)
    )
    if not scored:
        columns.areas = np.full(len(rows), np.nan)
        columns.crowd = np.zeros(len(rows), bool)
    return check_values(columns, what)


def _column(
    records: Sequence[Any], key: str, what: str, valid: Callable[[Any], bool], expected: str
) -> np.ndarray[Any, np.dtype[Any]]:
    if not records:
        return np.zeros(0)
    try:
        column = np.array([record[key] for record in records])
    except (KeyError, TypeError, IndexError, ValueError, OverflowError):
        column = np.zeros(0)
    kinds = "iu" if valid is is_integer else "iuf"
    if column.shape == (len(records),) and column.dtype.kind in kinds and np.isfinite(column).all():
        return column
    for index, record in enumerate(records):
        _require_dict(record, index, what)
        if key not in record:
            raise ValueError(f"{what} {index} (from 0): {key} must be {expected}, got none")
        if not valid(record[key]):
            raise ValueError(f"{what} {index} (from 0): {key} must be {expected}, got {_shown(record[key])}")
    return np.array([float(record[key]) if kinds == "iuf" else int(record[key]) for record in records])


def _boxes(records: Sequence[Any], what: str) -> Floats:
    if not records:
        return np.zeros((0, 4))
    try:
        boxes = np.array([record["bbox"] for record in records])
    except (KeyError, TypeError, IndexError, ValueError, OverflowError):
        boxes = np.zeros(0)
    if boxes.shape != (len(records), 4) or boxes.dtype.kind not in "iuf" or not np.isfinite(boxes).all():
        boxes = np.array([_one_box(record, index, what) for index, record in enumerate(records)])
    return boxes.astype(np.float64)


def _one_box(record: Any, index: int, what: str) -> list[float]:
    _require_dict(record, index, what)
    box = record.get("bbox")
    if box is None:
        mask = record.get("segmentation")
        if mask is not None:
            fault = mask_fault(mask)
            if fault is not None:
                raise ValueError(f"{what} {index} (from 0): segmentation {fault}")
            return mask_box(mask)
        raise ValueError(f"{what} {index} (from 0): bbox must be [x, y, width, height], got none")
    if not isinstance(box, list | tuple | np.ndarray) or len(box) != 4 or not all(is_number(v) for v in box):
        raise ValueError(
            f"{what} {index} (from 0): bbox must be four finite numbers [x, y, width, height], got {_shown(box)}"
        )
    return [float(v) for v in box]


def _check_sizes(boxes: Floats, what: str) -> None:
    bad = np.flatnonzero((np.abs(boxes) > MAX_COORDINATE).any(1))
    if bad.size:
        raise ValueError(
            f"{what} {bad[0]} (from 0): bbox must be in pixels, at most {MAX_COORDINATE:g}, got"
            f" {boxes[bad[0]].tolist()}; fix or drop it"
        )
    bad = np.flatnonzero((boxes[:, 2:] < 0).any(1))
    if bad.size:
        raise ValueError(
            f"{what} {bad[0]} (from 0): bbox must be [x, y, width, height], not two corners, got the negative size in"
            f" {boxes[bad[0]].tolist()}"
        )


def _optional(records: Sequence[Any], key: str, what: str, default: float) -> Floats:
    values = [record.get(key) for record in records]
    known = [value for value in values if value is not None]
    try:
        column = np.array(known)
    except (TypeError, ValueError, OverflowError):
        column = np.zeros(0)
    if column.shape != (len(known),) or column.dtype.kind not in "biuf" or not np.isfinite(column).all():
        for index, value in enumerate(values):
            if value is not None and not isinstance(value, bool) and not is_number(value):
                raise ValueError(f"{what} {index} (from 0): {key} must be a finite number, got {_shown(value)}")
    if len(known) == len(values):
        return np.array(known, np.float64)
    return np.array([default if value is None else value for value in values], np.float64)


def _n_different(ids: list[Any]) -> int:
    try:
        return len(set(ids))
    except TypeError:  # lists and dicts
        return len(set(map(str, ids)))


def _require_dict(record: Any, index: int, what: str) -> None:
    if not isinstance(record, dict):
        raise ValueError(
            f"{what} {index} (from 0) must be an object with image_id, category_id, bbox, got {_shown(record)}"
        )


def is_federated(ground_truth: Any) -> bool:
    """Whether the annotations are federated, so that LVIS's rules apply.

    Example:
        >>> is_federated({"images": [{"id": 1, "neg_category_ids": [3]}]})
        True
    """
    images = ground_truth.get("images", []) if isinstance(ground_truth, dict) else []
    return any("neg_category_ids" in image for image in images)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


@dataclass
class Columns:
    """Records as columns, in the order and with the ids of their source; boxes are xywh in pixels."""

    image_ids: Ints
    class_ids: Ints
    boxes: Floats
    scores: Floats
    segmentations: list[Any] | None = None
    areas: Floats = field(default_factory=lambda: np.zeros(0))
    crowd: Bools = field(default_factory=lambda: np.zeros(0, bool))
    has_boxes: bool = True
    class_names: dict[int, str] = field(default_factory=dict)
    n_ignore: int = 0
    n_duplicate_ids: int = 0

    def __len__(self) -> int:
        return len(self.image_ids)


def joined(parts: Sequence[Columns]) -> Columns:
    """The columns of several lists of records, one after the other; each has boxes and ids without duplicates."""
    masks = [part.segmentations for part in parts if part.segmentations is not None]

    def whole(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    return Columns(
        image_ids=whole("image_ids"),
        class_ids=whole("class_ids"),
        boxes=whole("boxes"),
        scores=whole("scores"),
        segmentations=list(chain.from_iterable(masks)) if masks else None,
        areas=whole("areas"),
        crowd=whole("crowd"),
        n_ignore=sum(part.n_ignore for part in parts),
    )
