"""Detections in COCO's results form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from concordet.data import to_original


def batch_results(
    detections: list[dict[str, Tensor]], targets: list[dict[str, Any]], category_ids: list[int]
) -> list[dict[str, Any]]:
    """Detections of a batch as COCO results in the pixels of the original images, whatever size the data set gave.

    Args:
        detections: boxes in pixels of the given images; see :func:`coco_results`.
        targets: of the same images, for their ``image_id`` and ``scale``.
        category_ids: the data set's id of each class, in the order of labels.
    """
    moved = [found | {"boxes": to_original(found["boxes"], t)} for found, t in zip(detections, targets, strict=True)]
    return coco_results(moved, [int(target["image_id"]) for target in targets], category_ids)


def coco_results(
    detections: list[dict[str, Tensor]], image_ids: list[int], category_ids: list[int]
) -> list[dict[str, Any]]:
    """Detections of a batch as COCO results.

    Args:
        detections: for each image ``boxes`` ``[k, 4]`` xyxy in the image's pixels, ``labels`` ``[k]`` 1..c and
            ``scores`` ``[k]``.
        image_ids: of the same images.
        category_ids: the data set's id of each class, in the order of labels.

    Returns:
        ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`` each; boxes to a thousandth of a pixel,
        scores as they are, since rounding would tie them.

    Example:
        >>> import torch
        >>> boxes, labels = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([1])
        >>> coco_results([{"boxes": boxes, "labels": labels, "scores": torch.tensor([0.5])}], [7], [90])
        [{'image_id': 7, 'category_id': 90, 'bbox': [1.0, 2.0, 3.0, 6.0], 'score': 0.5}]
    """
    results = []
    for found, image_id in zip(detections, image_ids, strict=True):
        boxes = found["boxes"].detach().double().cpu()
        sizes = boxes[:, 2:] - boxes[:, :2]
        rows = zip(
            boxes[:, :2].tolist(), sizes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
        for corner, size, label, score in rows:
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category_ids[label - 1],
                    "bbox": [round(value, 3) for value in (*corner, *size)],
                    "score": score,
                }
            )
    return results


def is_federated(ground_truth: Any) -> bool:
    """Whether images say which classes were looked for (LVIS), so that LVIS's rules judge detections.

    Example:
        >>> is_federated({"images": [{"id": 1, "neg_category_ids": [3]}]})
        True
    """
    images = ground_truth.get("images", []) if isinstance(ground_truth, dict) else []
    return any("neg_category_ids" in image for image in images)
