"""The content of annotation files: one record per image, and the classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

THINNEST_BOX: Final = 0.01
"""Pixels; a box with a shorter side is degenerate."""

CLIPPED: Final = 0.5
"""Pixels beyond the image from which a box counts as clipped; published boxes reach up to half a pixel outside."""

MAX_FAULTS: Final = 1000
"""Number of faults that are kept with their file names; further ones are only counted."""


@dataclass(slots=True)
class Record:
    """One image with its annotations as published; n objects and ignored regions together.

    Attributes:
        path: Image file.
        image_id: Id in targets and ground truth.
        size: (width, height) according to the annotations, or None.
        boxes: ``[n, 4]`` float64 xyxy, before clipping.
        labels: ``[n]`` int64 1..C.
        ignored: ``[n]`` bool, crowd regions and difficult objects.
        areas: ``[n]`` float64 for the ground truth.
        ids: ``[n]`` int64 annotation ids; 0 for annotations without one.
        segmentations: n polygons or run lengths if masks are needed, otherwise None.
        name: ``file_name`` in the ground truth; None for the name of ``path``.
        extra: Further fields of the image in the ground truth.
        turn: Whether the annotations refer to the image turned upright by its EXIF orientation.
        normalized: Whether ``boxes`` and ``areas`` are fractions of the upright image's size, as in YOLO files.

    Example:
        >>> record = Record(
        ...     path=Path("street.jpg"), image_id=1, size=(640, 480),
        ...     boxes=np.array([[10.0, 10.0, 60.0, 40.0]]), labels=np.array([1]), ignored=np.array([False]),
        ...     areas=np.array([1500.0]), ids=np.array([7]),
        ... )
        >>> len(record.only(record.labels == 2).boxes)
        0
    """

    path: Path
    image_id: int
    size: tuple[int, int] | None
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    ids: NDArray[np.int64]
    segmentations: list[Any] | None = None
    name: str | None = None
    extra: dict[str, Any] | None = None
    turn: bool = False
    normalized: bool = False

    def only(self, keep: NDArray[np.bool_]) -> Record:
        """The record with the annotations that ``keep`` selects."""
        segmentations = self.segmentations
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            ignored=self.ignored[keep],
            areas=self.areas[keep],
            ids=self.ids[keep],
            segmentations=None if segmentations is None else [segmentations[i] for i in np.flatnonzero(keep)],
        )


@dataclass
class Annotations:
    """All images and annotations from a reader, for :class:`~concordet.data.file_dataset.FileDataset`.

    Attributes:
        records: One per image.
        class_names: Names in the order of labels.
        source: File or folder that errors name.
        folders: Folders that image files must be in; empty allows any file.
        category_ids: Category ids of the ground truth in the order of labels; empty for 1..C.
        counts: Counts for the summary.
        closed: Whether ``class_names`` has all possible classes; False if they were collected from the objects.

    Example:
        >>> empty = Annotations(records=[], class_names=["cat", "dog"], source=Path("photos/boxes.csv"))
        >>> empty.closed  # a third class would be an error
        True
    """

    records: list[Record]
    class_names: list[str]
    source: Path
    folders: tuple[Path, ...] = ()
    category_ids: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    closed: bool = True


@dataclass
class Faults:
    """Faults of a data set that can still be used, with the files that have them.

    Attributes:
        counts: Numbers of faults by name, for :meth:`DetectionDataset.summary`.
        examples: (file, fault) pairs, at most :data:`MAX_FAULTS`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, name: str, path: Path, fault: str) -> None:
        """Counts a fault and keeps it as an example."""
        self.counts[name] += 1
        if len(self.examples) < MAX_FAULTS:
            self.examples.append((path, fault))


def drop_degenerate(records: list[Record], sizes: list[tuple[int, int]], faults: Faults) -> list[Record]:
    """The records without degenerate boxes; all boxes are checked in one pass.

    Boxes with a side below :data:`THINNEST_BOX` or a coordinate that is not finite are dropped, and so are boxes wholly
    outside their image.
    """
    lengths = np.array([len(record.boxes) for record in records])
    if not lengths.sum():
        return records
    boxes = np.concatenate([record.boxes for record in records])
    limits = np.repeat(np.array(sizes, np.float64), lengths, axis=0)
    clipped = np.clip(boxes, 0, np.concatenate([limits, limits], axis=1))
    proper, visible = is_proper(boxes), is_proper(clipped)
    keep = proper & visible
    with np.errstate(invalid="ignore"):
        beyond = keep & (abs(clipped - boxes) > CLIPPED).any(1)
    image_of = np.repeat(np.arange(len(records)), lengths)
    for name, fault, chosen in (
        ("degenerate_boxes_dropped", "a box without width or height, or not finite", ~proper),
        ("boxes_outside_image_dropped", "a box outside the image", proper & ~visible),
        ("boxes_clipped", "a box that reaches beyond the image", beyond),
    ):
        faults.counts[name] += int(chosen.sum())
        for row in np.flatnonzero(chosen)[: max(MAX_FAULTS - len(faults.examples), 0)]:
            corners = ", ".join(f"{value:g}" for value in boxes[row])
            faults.examples.append((records[image_of[row]].path, f"{fault}: {corners}"))
    if keep.all():
        return records
    ends = np.cumsum(lengths)
    result = list(records)
    for index in np.unique(image_of[~keep]):
        result[index] = records[index].only(keep[ends[index] - lengths[index] : ends[index]])
    return result


def clip_boxes(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Boxes ``[n, 4]`` xyxy clipped to an image of ``size`` (width, height)."""
    return np.clip(boxes, 0, np.array([*size, *size], np.float64))


def is_proper(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """``[n]`` whether each box is finite and has width and height."""
    with np.errstate(invalid="ignore"):
        extents = boxes[:, 2:] - boxes[:, :2]
        return np.logical_and(np.isfinite(boxes).all(1), (extents >= THINNEST_BOX).all(1))
