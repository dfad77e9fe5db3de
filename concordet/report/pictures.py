"""The pictures of a page: sample images with each run's detections, and pairs of boxes in the wrong order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from concordet.images import read_rgb
from concordet.measures.metrics import number
from concordet.measures.runs import Run
from concordet.paths import require_inside
from concordet.report.draw import draw_detections
from concordet.report.page import data_uri, fit

ALLOW: Final = "move the file, or allow it with allow_outside=True (--allow_outside)"

MAX_WIDTH: Final = 1_000_000
"""Widths of images in a ground truth from this number of pixels on are ignored as implausible."""

PICTURE_BUDGET: Final = 30
"""Largest number of pictures of whole images on one page: about 40 kB each."""


def sample_pictures(runs: Sequence[Run], *, limit: int = 6) -> list[dict[str, Any]]:
    """One row per sample image: a picture of the objects, then one of each run's detections."""
    able = [run for run in runs if run.samples and run.analysis is not None]
    if not able:
        return []
    shared = [i for i in able[0].samples if all(i in run.samples for run in able)]
    truth = able[0].ground_truth or {}
    detections = [by_image(run.detections or []) for run in able]
    objects = by_image(truth.get("annotations", []))
    file_names = {image["id"]: image.get("file_name") for image in truth.get("images", [])}
    names, labels = category_labels(truth)
    rows = []
    for image_id in shared[: max(1, min(limit, PICTURE_BUDGET // (len(able) + 1)))]:
        image, scale = open_sample(able[0].samples[image_id], truth, image_id)
        own = [o for o in objects.get(image_id, []) if o["category_id"] in labels]
        plain = [o for o in own if not o.get("iscrowd")]
        cells: list[dict[str, Any]] = [
            {
                "title": "Ground truth",
                "caption": f"{len(plain)} object{'s' * (len(plain) != 1)}",
                "uri": data_uri(draw_detections(image, *_columns(plain, labels, scale), class_names=names)),
            }
        ]
        for run, records in zip(able, detections, strict=True):
            kept = above_threshold(records.get(image_id, []), run, names, labels)
            right, false = run.counts(image_id)
            picture = draw_detections(
                image,
                *_columns(kept, labels, scale),
                [d["score"] for d in kept],
                names,
                ground_truth={"boxes": corners([o["bbox"] for o in plain]) * scale},
                score_threshold=0,
            )
            caption = f"{right} of {len(plain)} detected, {false} false"
            cells.append({"title": run.name, "slot": runs.index(run), "caption": caption, "uri": data_uri(picture)})
        rows.append({"image_id": image_id, "file_name": file_names.get(image_id) or image_id, "cells": cells})
    return rows


def disagreement_pictures(run: Run, *, limit: int = 3) -> list[dict[str, Any]]:
    """Crops of sample images in which a looser box ranks above a tighter one on the same object."""
    if not run.samples or run.analysis is None or run.ground_truth is None:
        return []
    pictures: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for case in run.analysis.summary["disagreements"]:
        if len(pictures) == limit:
            break
        if case["image_id"] in run.samples and case["image_id"] not in seen:
            seen.add(case["image_id"])
            image, scale = open_sample(run.samples[case["image_id"]], run.ground_truth, case["image_id"])
            pictures.append(disagreement_picture(case, image, scale))
    return pictures


def disagreement_picture(case: Mapping[str, Any], image: Image.Image, scale: float) -> dict[str, Any]:
    """The picture of one object, in white dashes, with the box that ranks first (1) and the better one below it (2).

    Args:
        case: an entry of an analysis's ``disagreements``.
        image: the whole image, from :func:`open_sample`.
        scale: pixels of ``image`` per pixel of the ground truth's image.
    """
    first, better = case["first"], case["better"]
    boxes = corners([first["bbox"], better["bbox"]]) * scale
    outline = corners(case["object"]) * scale
    window = _window(np.concatenate([boxes, outline]), image.size)
    cut, factor = fit(image.crop(window))
    offset = np.array([window[0], window[1], window[0], window[1]], float)
    drawn = draw_detections(
        cut,
        (boxes - offset) * factor,
        [2, 1],
        [first["score"], better["score"]],
        ["second", "first"],
        ground_truth={"boxes": (outline - offset) * factor},
        score_threshold=0,
    )
    return {
        "image": case.get("file_name") or case["image_id"],
        "class_name": case["class_name"],
        "first": {"score": f"{first['score']:.3g}", "iou": f"{first['iou']:.2f}"},
        "second": {"score": f"{better['score']:.3g}", "iou": f"{better['iou']:.2f}"},
        "uri": data_uri(drawn),
    }


def open_sample(path: Path, ground_truth: Mapping[str, Any], image_id: Any) -> tuple[Image.Image, float]:
    """A sample resized for a page, and its pixels per pixel of the ground truth's image.

    Raises:
        ValueError: the picture cannot be read.
    """
    image = read_rgb(path, turn=True)
    known: Mapping[str, Any] = next((entry for entry in ground_truth.get("images", []) if entry["id"] == image_id), {})
    stored = image.width / known["width"] if known.get("width") else 1.0
    image, factor = fit(image)
    return image, stored * factor


class Pictures:
    """Images of a folder, by the ground truth's ``file_name`` or by id.

    Args:
        folder: Folder of the images.
        records: Image id to its record in the ground truth.
        allow_outside: Whether names and links may lead outside of the folder.
    """

    def __init__(self, folder: Path, records: Mapping[Any, Mapping[str, Any]], *, allow_outside: bool = False) -> None:
        self.folder: Path
        self.records: Mapping[Any, Mapping[str, Any]]
        self.allow_outside: bool
        self.folder, self.records, self.allow_outside = folder, records, allow_outside
        self.missing: set[Any] = set()

    def draw(
        self,
        entries: Sequence[Mapping[str, Any]],
        draw: Callable[[Any, Image.Image, float], dict[str, Any]],
        limit: int,
    ) -> list[dict[str, Any]]:
        """Pictures by ``draw`` of the first ``limit`` entries whose image can be read.

        Raises:
            ValueError: the only file of an image is outside of the folder.
        """
        pictures: list[dict[str, Any]] = []
        for entry in entries:
            if len(pictures) == limit:
                break
            path = self.path(entry)
            try:
                image = None if path is None else read_rgb(path, turn=True)
            except (ValueError, FileNotFoundError):
                image = None
            if image is None:
                self.missing.add(entry["image_id"])
                continue
            width = number(self.records.get(entry["image_id"], {}).get("width"))
            scale = image.width / width if width is not None and 1 <= width < MAX_WIDTH else 1.0
            pictures.append(draw(entry, image, scale))
        return pictures

    def notes(self, wanted: Sequence[Mapping[str, Any]]) -> list[str]:
        """A note if images of these entries could not be read."""
        ids = {entry["image_id"] for entry in wanted}
        gone = [entry for entry in wanted if entry["image_id"] in self.missing]
        if not gone:
            return []
        first = gone[0].get("file_name") or f"{gone[0]['image_id']}.jpg"
        read = len(ids - self.missing)
        return [
            f"{read} of {len(ids)} images of the worst cases were readable in {self.folder.name}"
            f" (looked for {first}, for example)"
        ]

    def path(self, entry: Mapping[str, Any]) -> Path | None:
        """File of an entry's image, None if the folder has none.

        Raises:
            ValueError: the only file is outside of the folder.
        """
        name, where = entry.get("file_name"), f"image {entry['image_id']} of the ground truth"
        paths = [self.folder / name, self.folder / Path(name).name] if name else []
        paths += [self.folder / f"{entry['image_id']}{suffix}" for suffix in (".png", ".jpg", ".jpeg")]
        outside = None
        for path in paths:
            try:
                require_inside(path, [self.folder], where, self.allow_outside, fix=ALLOW)
            except ValueError as error:
                outside = outside or (error if "\0" not in str(path) and path.is_file() else None)
                continue
            if path.is_file():
                return path
        if outside is not None:
            raise outside
        return None


def category_labels(ground_truth: Mapping[str, Any]) -> tuple[list[str], dict[Any, int]]:
    """(class names, label 1..C by category id), in the order of the ground truth's categories."""
    categories = ground_truth.get("categories", [])
    return [str(c["name"]) for c in categories], {c["id"]: i + 1 for i, c in enumerate(categories)}


def above_threshold(
    detections: Iterable[Mapping[str, Any]], run: Run, names: Sequence[str], labels: Mapping[Any, int]
) -> list[Mapping[str, Any]]:
    """Detections from their class's threshold on."""
    limits = {ident: run.threshold(names[label - 1]) for ident, label in labels.items()}
    return [d for d in detections if d["category_id"] in limits and d["score"] >= limits[d["category_id"]]]


def corners(bbox: Any) -> np.ndarray:
    """``[n, 4]`` xyxy boxes from COCO's xywh."""
    boxes = np.asarray(bbox, dtype=float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def by_image(records: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    """Annotations or detections grouped by their image."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["image_id"], []).append(record)
    return groups


def _columns(
    records: Sequence[Mapping[str, Any]], labels: Mapping[Any, int], scale: float
) -> tuple[np.ndarray, list[int]]:
    return corners([r["bbox"] for r in records]) * scale, [labels[r["category_id"]] for r in records]


def _window(boxes: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The crop (x1, y1, x2, y2) around boxes with a margin, in the shape 4:3 unless it reaches the image's border."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    wide = 1.5 * max(high[0] - low[0], (high[1] - low[1]) * 4 / 3)
    extent = np.minimum(np.maximum(np.ceil([wide, wide * 3 / 4]), 8), size).astype(int)
    start = np.clip(((low + high - extent) / 2).astype(int), 0, np.array(size) - extent)
    return int(start[0]), int(start[1]), int(start[0] + extent[0]), int(start[1] + extent[1])
