"""Notes on input that can be evaluated but is probably wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from concordet.measures.reading.arrays import Floats, Ints

BEYOND: Final = 0.25
"""Share of boxes reaching beyond their image from which a note suspects corners; a few such boxes are common."""


def box_notes(boxes: Floats, image_index: Ints, sizes: Floats, what: str) -> list[str]:
    """Notes on boxes in corners or in normalized coordinates.

    Args:
        boxes: ``[n, 4]`` as read; they should be xywh in pixels.
        image_index: ``[n]`` index of each box's image.
        sizes: ``[images, 2]`` width and height, infinite where unknown.
        what: "detections" or "annotations".
    """
    if not len(boxes):
        return []
    if boxes.max() <= 1.5 and boxes[:, 2:].max() > 0:
        return [
            f"all boxes of the {what} are smaller than two pixels: boxes must be in pixels, not normalized to [0, 1]"
        ]
    limit = 1.02 * sizes + 1
    beyond = int((boxes[:, :2] + boxes[:, 2:] > limit[image_index]).any(1).sum())
    if beyond >= BEYOND * len(boxes):
        return [
            f"{beyond:,} of {len(boxes):,} boxes of the {what} reach beyond their image: boxes must be x, y, width,"
            " height, not two corners"
        ]
    return []


def image_sizes(images: Sequence[dict[str, Any]]) -> Floats:
    """``[images, 2]`` width and height of records of images, infinite where unknown."""
    return np.array([[_side(image.get("width")), _side(image.get("height"))] for image in images]).reshape(-1, 2)


def score_notes(scores: Floats) -> list[str]:
    """A note on scores that are percentages or logits."""
    if not len(scores) or (scores.min() >= 0 and scores.max() <= 1):
        return []
    low, high = float(scores.min()), float(scores.max())
    advice = "divide percentages by 100" if low >= 0 and high <= 100 else "apply sigmoid to logits"
    return [f"scores run from {low:g} to {high:g}: calibration needs them in [0, 1], so {advice}"]


def lvis_notes(images: Sequence[dict[str, Any]], lvis: bool) -> list[str]:
    """A note on an LVIS ground truth that is evaluated by COCO's rules."""
    if lvis or not any("neg_category_ids" in image for image in images):
        return []
    return ["the ground truth lists LVIS's neg_category_ids: evaluate with LVIS's rules, lvis=True or --lvis"]


def _side(value: Any) -> float:
    return float(value) if type(value) in (int, float) and value > 0 else np.inf
