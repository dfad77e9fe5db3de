"""Masks as polygons or run lengths: checks, encoding and areas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from concordet.measures.reading.arrays import Floats, is_integer, is_number


def mask_areas(masks: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> Floats:
    """``[n]`` area of each mask (polygons or run lengths) in pixels, given the (height, width) of its image."""
    from hotcoco import mask as rle

    encoded = [encode(mask, size) for mask, size in zip(masks, sizes, strict=True)]
    return np.asarray(rle.area(encoded), np.float64) if encoded else np.zeros(0)


def encode(mask: Any, size: tuple[int, int]) -> Any:
    """The compressed run lengths of a mask on an image of this (height, width)."""
    from hotcoco import mask as rle

    parts = rle.frPyObjects(mask, *size)
    return rle.merge(parts) if isinstance(parts, list) else parts


def is_polygons(value: Any) -> bool:
    """Whether this is a list of polygons, each of three points or more."""
    if not isinstance(value, list | tuple):
        return False
    parts = [part for part in value if isinstance(part, list | tuple | np.ndarray)]
    return len(parts) == len(value) and all(
        len(part) >= 6 and len(part) % 2 == 0 and all(is_number(v) for v in part) for part in parts
    )


def mask_box(mask: Any) -> list[float]:
    """The box [x, y, width, height] around polygons or run lengths without fault."""
    from hotcoco import mask as rle

    if isinstance(mask, dict):
        return [float(v) for v in rle.to_bbox(rle.frPyObjects(mask, *mask["size"]))]
    points = np.concatenate([np.asarray(part, np.float64).reshape(-1, 2) for part in mask])
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def mask_fault(mask: Any, size: list[int] | None = None) -> str | None:
    """The fault of polygons or run lengths, or None.

    Args:
        mask: Value of ``segmentation``.
        size: Height and width of the image; None to take those that the run lengths have.
    """
    if not isinstance(mask, dict):
        return None if is_polygons(mask) else "must be a list of polygons [x, y, x, y, ...] of three points or more"
    if size is None:
        size = mask.get("size")
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(is_integer(v) and v > 0 for v in size):
            return f"must have the image's height and width as size, got {size}"
        size = list(size)
    counts = mask.get("counts")
    if not isinstance(counts, str | bytes | list) or not counts:
        return "must have counts, run lengths as a string or a list"
    if list(mask.get("size") or []) != size:
        return f"must have the image's height and width {size} as size, got {mask.get('size')}"
    if isinstance(counts, list) and (
        not all(is_integer(v) and v >= 0 for v in counts) or sum(counts) != math.prod(size)
    ):
        return f"must have counts that are whole numbers and add up to {math.prod(size)}, the image's pixels"
    if not isinstance(counts, list):
        from hotcoco import mask as rle

        try:
            rle.area({"size": size, "counts": counts})
        except ValueError as error:
            return f"must have counts that can be decoded, got an error ({error})"
    return None
