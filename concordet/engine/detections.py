"""Detections as COCO results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor

from concordet.data import to_original
from concordet.data.masks import encode_mask, masks_to_original
from concordet.errors import missing_package
from concordet.measures.reading.records import is_federated

MASK_METRICS = ("AP", "AP50", "AP75")


def batch_results(
    detections: list[dict[str, Tensor]], targets: list[dict[str, Any]], category_ids: list[int]
) -> list[dict[str, Any]]:
    """Detections of a batch as COCO results, in pixels of the original images.

    Args:
        detections: Boxes and masks in pixels of the detector's input; see :func:`coco_results`.
        targets: Targets of the same images, for their ``image_id`` and ``scale``.
        category_ids: Category id of each class, in the order of labels.
    """
    results = []
    for detection, target in zip(detections, targets, strict=True):  # one by one, because masks are large
        original = detection | {"boxes": to_original(detection["boxes"], target)}
        if "masks" in detection:
            original["masks"] = masks_to_original(detection["masks"], target)
        results += coco_results([original], [int(target["image_id"])], category_ids)
    return results


def coco_results(
    detections: list[dict[str, Tensor]], image_ids: list[int], category_ids: list[int]
) -> list[dict[str, Any]]:
    """Detections of a batch as COCO results.

    Args:
        detections: Per image ``boxes`` ``[k, 4]`` xyxy in the image's pixels, ``labels`` ``[k]`` 1..c and
            ``scores`` ``[k]``; optionally ``masks`` ``[k, 1, h, w]``, above 0.5 where the object is.
        image_ids: Ids of the same images.
        category_ids: Category id of each class, in the order of labels.

    Returns:
        One ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`` per detection, with run lengths as
        ``"segmentation"`` if there are masks; boxes are rounded to a thousandth of a pixel, scores are not, because
        rounding would create ties.

    Example:
        >>> import torch
        >>> boxes, labels = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([1])
        >>> coco_results([{"boxes": boxes, "labels": labels, "scores": torch.tensor([0.5])}], [7], [90])
        [{'image_id': 7, 'category_id': 90, 'bbox': [1.0, 2.0, 3.0, 6.0], 'score': 0.5}]
    """
    results = []
    for detection, image_id in zip(detections, image_ids, strict=True):
        boxes = detection["boxes"].detach().double().cpu()
        sizes = boxes[:, 2:] - boxes[:, :2]
        rows = zip(
            boxes[:, :2].tolist(),
            sizes.tolist(),
            detection["labels"].tolist(),
            detection["scores"].tolist(),
            strict=True,
        )
        image_results: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": category_ids[label - 1],
                "bbox": [round(value, 3) for value in (*corner, *size)],
                "score": score,
            }
            for corner, size, label, score in rows
        ]
        if "masks" in detection:
            for result, mask in zip(image_results, detection["masks"], strict=True):
                result["segmentation"] = encode_mask((mask[0] > 0.5).cpu().numpy())
        results += image_results
    return results


def plain_detections(detection: Mapping[str, Tensor], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One plain dict per detection: ``class``, ``label``, ``score`` and ``box`` (left, top, right, bottom).

    Example:
        >>> import torch
        >>> boxes, labels = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([1])
        >>> plain_detections({"boxes": boxes, "labels": labels, "scores": torch.tensor([0.5])}, ["cat"])
        [{'class': 'cat', 'label': 1, 'score': 0.5, 'box': [1.0, 2.0, 4.0, 8.0]}]
    """
    rows = zip(*(detection[name].tolist() for name in ("labels", "scores", "boxes")), strict=True)
    return [{"class": class_names[label - 1], "label": label, "score": score, "box": box} for label, score, box in rows]


def supervision_detections(detection: Mapping[str, Tensor], class_names: Sequence[str]) -> Any:
    """``supervision.Detections`` of one image; class ids are labels from 0, names are in ``data``.

    Raises:
        ValueError: the package supervision is not installed.
    """
    try:
        supervision = import_module("supervision")
    except ImportError as error:
        raise ValueError(missing_package("to_supervision", "supervision", "supervision")) from error
    labels = detection["labels"].cpu().numpy() - 1
    return supervision.Detections(
        xyxy=detection["boxes"].float().cpu().numpy().reshape(-1, 4),
        mask=(detection["masks"][:, 0] > 0.5).cpu().numpy() if "masks" in detection else None,
        confidence=detection["scores"].float().cpu().numpy(),
        class_id=labels,
        data={"class_name": np.array([class_names[label] for label in labels], dtype=str)},
    )


def mask_metrics(ground_truth: Any, detections: list[dict[str, Any]]) -> tuple[dict[str, float | None], dict[str, str]]:
    """AP of masks by name, ``AP_mask`` and so on, and reasons for those that are None."""
    from concordet.measures import evaluate_detections

    names = [f"{name}_mask" for name in MASK_METRICS]
    try:
        measured = evaluate_detections(ground_truth, detections, "segm", lvis=is_federated(ground_truth))
    except ValueError as error:  # such as an object without a mask; metrics of boxes do not depend on it
        return dict.fromkeys(names), dict.fromkeys(names, str(error))
    values = {f"{name}_mask": measured[name] for name in MASK_METRICS}
    return values, {f"{name}_mask": measured["reasons"][name] for name in MASK_METRICS if measured[name] is None}
