"""Turns candidates into detections in NumPy, for files whose metadata have ``"outputs": "candidates"``.

Needs NumPy only, so that a server without PyTorch can use it::

    meta = json.loads(session.get_modelmeta().custom_metadata_map["concordet"])
    boxes, labels, scores = session.run(None, {"images": images})
    detections = [postprocess(*image, meta) for image in zip(boxes, labels, scores)]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from concordet.export.calibration import Tables, calibrated

FAST_CANDIDATES = 200
"""Candidates per class that ``fast`` suppression compares (Bolya et al. 2019)."""


def postprocess(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, meta: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Detections of one image.

    Args:
        boxes: ``[n, 4]`` candidates, xyxy in pixels.
        labels: ``[n]`` from 1 on; 0 where there is no candidate.
        scores: ``[n]`` the detector's own scores in [0, 1].
        meta: Metadata of the exported file: ``postprocess``, ``category_ids`` and ``calibrator`` are read.

    Returns:
        ``boxes`` ``[k, 4]``, ``labels`` ``[k]`` from 1 on and ``scores`` ``[k]`` in descending order, calibrated
        where the file has a calibrator.

    Example:
        >>> settings = {"nms": "hard", "nms_threshold": 0.5, "score_threshold": 0.05, "detections_per_image": 100,
        ...             "class_wise": True, "score_voting": False, "sigma": 0.5}
        >>> boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 0, 0]])
        >>> found = postprocess(boxes, np.array([1, 1, 0]), np.array([0.9, 0.8, 0]), {"postprocess": settings})
        >>> found["scores"].tolist(), found["labels"].tolist()
        ([0.9], [1])
    """
    settings = meta["postprocess"]
    exist = labels > 0
    boxes, labels, scores = boxes[exist], labels[exist], scores[exist]
    order = np.argsort(-scores, kind="stable")
    boxes, labels, scores = boxes[order], labels[order], scores[order]
    groups = labels if settings["class_wise"] else np.zeros_like(labels)
    limit = settings["detections_per_image"]
    method = settings["nms"]
    if method in ("soft", "soft_linear"):
        kept, values = _soft(boxes, scores, groups, settings)
    else:
        suppress = _fast if method == "fast" else _hard
        kept = suppress(boxes, groups, settings["nms_threshold"])[:limit]
        values = scores[kept]
    chosen = boxes[kept]
    if settings["score_voting"]:
        chosen = _voted(chosen, groups[kept], boxes, scores, groups)
    found = {"boxes": chosen, "labels": labels[kept], "scores": values}
    if meta.get("calibrator") is None:
        return found
    tables = Tables.of(meta["calibrator"], meta["category_ids"])
    found["scores"] = calibrated(tables, found["scores"], found["labels"] - 1).astype(scores.dtype)
    order = np.argsort(-found["scores"], kind="stable")  # maps differ between classes, so the order may change
    return {name: value[order] for name, value in found.items()}


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``[n, m]`` IoU of boxes ``[n, 4]`` and ``[m, 4]``; 0 where the union is empty."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).clip(0).prod(-1) for b in (boxes, others))
    union = areas[:, None] + other_areas[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _hard(boxes: np.ndarray, groups: np.ndarray, threshold: float) -> np.ndarray:
    """Indices, best first, of boxes that no kept better box of their group overlaps above the threshold (NMS)."""
    if threshold >= 1:
        return np.arange(len(boxes))
    alive = np.ones(len(boxes), bool)
    kept = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        rest = np.flatnonzero(alive[i + 1 :] & (groups[i + 1 :] == groups[i])) + i + 1
        alive[rest[overlaps(boxes[i : i + 1], boxes[rest])[0] > threshold]] = False
    return np.array(kept, np.int64)


def _fast(boxes: np.ndarray, groups: np.ndarray, threshold: float) -> np.ndarray:
    """Indices, best first, of boxes that no better box of their group, kept or not, overlaps above the threshold."""
    kept = [np.empty(0, np.int64)]
    for group in np.unique(groups):
        best = np.flatnonzero(groups == group)[:FAST_CANDIDATES]
        worst = np.triu(overlaps(boxes[best], boxes[best]), 1).max(0)
        kept.append(best[worst <= threshold])
    return np.sort(np.concatenate(kept))


def _soft(
    boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and decayed scores: each kept box lowers the scores of its group's other boxes (Bodla et al. 2017)."""
    remaining, kept, values = scores.copy(), [], []
    for _ in range(min(len(scores), settings["detections_per_image"])):
        best = int(remaining.argmax())
        kept.append(best)
        values.append(remaining[best])
        shared = overlaps(boxes[best : best + 1], boxes)[0]
        if settings["nms"] == "soft":
            decay = np.exp(-(shared**2) / settings["sigma"])
        else:
            decay = np.where(shared > settings["nms_threshold"], 1 - shared, 1.0)
        remaining = np.where(groups == groups[best], remaining * decay, remaining).astype(scores.dtype)
        remaining[best] = -1.0
    lowered = np.array(values, scores.dtype)
    enough = lowered > settings["score_threshold"]
    return np.array(kept, np.int64)[enough], lowered[enough]


def _voted(
    kept: np.ndarray, kept_groups: np.ndarray, boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Kept boxes as weighted means of the candidates around them (Kim and Lee 2020)."""
    shared = overlaps(kept, boxes)
    weights = np.exp(-((1 - shared) ** 2) / 0.025) * scores
    weights = weights * ((shared > 0.01) & (kept_groups[:, None] == groups[None]))
    total = weights.sum(1, keepdims=True)
    mean = np.divide(weights @ boxes, total, out=kept.copy(), where=total > 0)
    return mean.astype(boxes.dtype)
