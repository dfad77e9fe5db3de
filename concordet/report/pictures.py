"""The pictures of a page: the same images under every run, and pairs of boxes in the wrong order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from concordet.images import read_rgb
from concordet.measures.runs import Run
from concordet.report.draw import draw_detections
from concordet.report.page import data_uri, fit

PICTURE_BUDGET: Final = 30
"""Pictures of whole images on one page: about 40 kB each."""


def sample_pictures(runs: Sequence[Run], *, limit: int = 6) -> list[dict[str, Any]]:
    """One row per evaluation image: the objects, then the detections of each run, drawn."""
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
    """Cut-outs of the sample images in which a looser box ranks above a tighter one on the same object."""
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
    """One object, drawn: the box that ranks first (1), the better one below it (2), the object as white dashes.

    Args:
        case: an entry of ``disagreements`` of an analysis.
        image: the whole image, as :func:`open_sample` gives it.
        scale: pixels of ``image`` per pixel of the ground truth's image.
    """
    first, better = case["first"], case["better"]
    boxes = corners([first["bbox"], better["bbox"]]) * scale
    held = corners(case["object"]) * scale
    window = _window(np.concatenate([boxes, held]), image.size)
    cut, factor = fit(image.crop(window))
    offset = np.array([window[0], window[1], window[0], window[1]], float)
    drawn = draw_detections(
        cut,
        (boxes - offset) * factor,
        [2, 1],
        [first["score"], better["score"]],
        ["second", "first"],
        ground_truth={"boxes": (held - offset) * factor},
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
    """A sample at the size that pages show, and its pixels per pixel of the ground truth's image.

    Raises:
        ValueError: the picture cannot be read.
    """
    image = read_rgb(path, turn=True)
    known: Mapping[str, Any] = next((entry for entry in ground_truth.get("images", []) if entry["id"] == image_id), {})
    stored = image.width / known["width"] if known.get("width") else 1.0
    image, factor = fit(image)
    return image, stored * factor


def category_labels(ground_truth: Mapping[str, Any]) -> tuple[list[str], dict[Any, int]]:
    """(class names, label 1..C by category id), in the order of the ground truth's categories."""
    categories = ground_truth.get("categories", [])
    return [str(c["name"]) for c in categories], {c["id"]: i + 1 for i, c in enumerate(categories)}


def above_threshold(
    detections: Iterable[Mapping[str, Any]], run: Run, names: Sequence[str], labels: Mapping[Any, int]
) -> list[Mapping[str, Any]]:
    """Detections that a user would keep: above their class's threshold."""
    limits = {ident: run.threshold(names[label - 1]) for ident, label in labels.items()}
    return [d for d in detections if d["category_id"] in limits and d["score"] >= limits[d["category_id"]]]


def corners(bbox: Any) -> np.ndarray:
    """``[n, 4]`` xyxy of COCO's xywh."""
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
    """The part of an image around boxes, half their extent wider, as near to 4:3 as the image allows."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    wide = 1.5 * max(high[0] - low[0], (high[1] - low[1]) * 4 / 3)
    extent = np.minimum(np.maximum(np.ceil([wide, wide * 3 / 4]), 8), size).astype(int)
    start = np.clip(((low + high - extent) / 2).astype(int), 0, np.array(size) - extent)
    return int(start[0]), int(start[1]), int(start[0] + extent[0]), int(start[1] + extent[1])
