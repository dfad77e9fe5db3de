"""The pictures of a page: the same images under every run, and the pairs of boxes that rank the wrong way round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps

from concordet.measures.metrics import is_missing
from concordet.report.draw import draw_detections
from concordet.report.matching import Disagreement, by_image, corners, count_matches, worst_disagreements
from concordet.report.page import data_uri, fit
from concordet.report.runs import Run

PICTURE_BUDGET: Final = 30
"""Pictures of whole images on one page: about 40 kB each."""

DEFAULT_THRESHOLD: Final = 0.3


def sample_pictures(runs: Sequence[Run], *, limit: int = 6) -> list[dict[str, Any]]:
    """One row for each evaluation image: the objects, then each run's detections, drawn."""
    able = [run for run in runs if run.samples and run.detections is not None and run.ground_truth is not None]
    if not able:
        return []
    shared = [i for i in able[0].samples if all(i in run.samples for run in able)]
    truth = able[0].ground_truth or {}
    detections = [by_image(run.detections or []) for run in able]
    objects = by_image(truth.get("annotations", []))
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
        for run, found in zip(able, detections, strict=True):
            kept = above_threshold(found.get(image_id, []), run, names, labels)
            right, false = count_matches(own, kept)
            picture = draw_detections(
                image,
                *_columns(kept, labels, scale),
                [d["score"] for d in kept],
                names,
                ground_truth={"boxes": corners([o["bbox"] for o in plain]) * scale},
                score_threshold=0,
            )
            caption = f"{right} of {len(plain)} found, {false} false"
            cells.append({"title": run.name, "slot": runs.index(run), "caption": caption, "uri": data_uri(picture)})
        rows.append({"image_id": image_id, "cells": cells})
    return rows


def disagreement_pictures(run: Run, *, limit: int = 3) -> list[dict[str, Any]]:
    """Cut-outs of the pairs in which a worse placed box ranks above a better placed one, with the figures of both."""
    if not run.samples or run.detections is None or run.ground_truth is None:
        return []
    names, labels = category_labels(run.ground_truth)
    detections = [d for d in run.detections if d["category_id"] in labels]
    pairs = worst_disagreements(run.ground_truth, detections, image_ids=list(run.samples), limit=limit)
    pictures = []
    for pair in pairs:
        image, scale = open_sample(run.samples[pair.image_id], run.ground_truth, pair.image_id)
        pictures.append(disagreement_picture(pair, image, scale, names[labels[pair.first["category_id"]] - 1]))
    return pictures


def disagreement_picture(pair: Disagreement, image: Image.Image, scale: float, class_name: str) -> dict[str, Any]:
    """One pair, drawn: the box that ranks first (1), the better one below it (2), the objects as white dashes.

    Args:
        pair: the two boxes.
        image: the whole image, as :func:`open_sample` gives it.
        scale: pixels of ``image`` for one of the ground truth's.
        class_name: the name of their class.
    """
    boxes = corners([pair.first["bbox"], pair.second["bbox"]]) * scale
    objects = corners([o["bbox"] for o in pair.objects]) * scale
    window = _window(np.concatenate([boxes, objects]), image.size)
    cut, factor = fit(image.crop(window))
    offset = np.array([window[0], window[1], window[0], window[1]], float)
    drawn = draw_detections(
        cut,
        (boxes - offset) * factor,
        [2, 1],
        [pair.first["score"], pair.second["score"]],
        ["second", "first"],
        ground_truth={"boxes": (objects - offset) * factor},
        score_threshold=0,
    )
    return {
        "image_id": pair.image_id,
        "class_name": class_name,
        "same_object": pair.same_object,
        "first": {"score": f"{pair.first['score']:.2f}", "iou": f"{pair.first_iou:.2f}"},
        "second": {"score": f"{pair.second['score']:.2f}", "iou": f"{pair.second_iou:.2f}"},
        "uri": data_uri(drawn),
    }


def open_sample(path: Path, ground_truth: Mapping[str, Any], image_id: Any) -> tuple[Image.Image, float]:
    """A sample at the size pages show, and pixels of it for one of the ground truth's image.

    Raises:
        ValueError: the picture cannot be read.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}); remove it or write the samples again"
        ) from error
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
    """Detections that a user would keep: above the score that is best for their class (by LRP) where it is known."""
    best = {row["name"]: row.get("lrp_threshold") for row in run.per_class}
    kept = []
    for detection in detections:
        if detection["category_id"] in labels:
            threshold = best.get(names[labels[detection["category_id"]] - 1])
            if detection["score"] >= (DEFAULT_THRESHOLD if is_missing(threshold) else threshold):
                kept.append(detection)
    return kept


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
