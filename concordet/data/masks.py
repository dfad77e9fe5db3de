"""COCO's segmentations as pixels, rasterized by hotcoco, which also evaluates them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate


def encode_mask(mask: NDArray[Any]) -> dict[str, Any]:
    """A mask ``[h, w]`` as run lengths in COCO's compressed form, which is plain JSON.

    Example:
        >>> encode_mask(np.array([[0, 1], [0, 1]]))
        {'size': [2, 2], 'counts': '22'}
    """
    from hotcoco import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def decode_segmentation(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Pixels ``[height, width]`` of 0 and 1 from polygons or run lengths; all 0 for None and [].

    Polygons of fewer than three points have no area and are left out.

    Raises:
        ValueError: It is none of these, or run lengths of an image of another size.

    Example:
        >>> decode_segmentation([[0, 0, 2, 0, 2, 1, 0, 1]], 2, 3)
        array([[1, 1, 0],
               [0, 0, 0]], dtype=uint8)
        >>> decode_segmentation({"size": [2, 2], "counts": [2, 2]}, 2, 2)
        array([[0, 1],
               [0, 1]], dtype=uint8)
    """
    from hotcoco import mask as coco

    check_segmentation(segmentation, height, width)
    if not segmentation:
        return np.zeros((height, width), np.uint8)
    if isinstance(segmentation, dict):
        return np.ascontiguousarray(coco.decode(coco.frPyObjects(segmentation, height, width)))
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), np.uint8)
    return np.ascontiguousarray(coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))))


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Checks that a segmentation can be decoded for an image of this size, without decoding it.

    Raises:
        ValueError: It is neither None, nor a list of polygons, nor run lengths of an image of this size.

    Example:
        >>> check_segmentation([[0, 0, 2, 0, 2, 1]], 2, 3)
    """
    if segmentation is None or segmentation == []:
        return
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, height, width)
        return
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError(f"segmentation must be a list of polygons or run lengths, got {str(segmentation)[:40]}")
    for polygon in segmentation:
        if len(polygon) % 2 and len(polygon) >= 6:
            raise ValueError(f"polygon must have an even number of coordinates, got {len(polygon)}")
        for value in polygon:
            # NaN and infinities fail the comparison, and so do integers beyond the range of floats
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
                raise ValueError(f"polygon must have finite coordinates, got {str(value)[:40]}")


def _check_run_lengths(segmentation: dict[str, Any], height: int, width: int) -> None:
    from hotcoco import mask as coco

    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"size of a mask must be the image's, {[height, width]}, got {str(size)[:40]}")
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("run lengths of a mask must be whole numbers from 0, got others")
        if sum(counts) != height * width:
            raise ValueError(f"run lengths of a mask must add up to {height * width} pixels, got {sum(counts)}")
    elif isinstance(counts, str | bytes):
        try:
            area = coco.area({"size": [height, width], "counts": counts})
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"run lengths of a mask must be COCO's, got others that cannot be read ({error})"
            ) from error
        if area > height * width:
            raise ValueError(f"mask must have at most the {height * width} pixels of the image, got {area}")
    else:
        raise ValueError(f"counts of a mask must be a list or a string, got {type(counts).__name__}")


def masks_to_original(masks: Tensor, target: dict[str, Any]) -> Tensor:
    """Masks ``[n, 1, h, w]`` in [0, 1] of a resized image, in pixels of the original one.

    The counterpart of :func:`~concordet.data.to_original` for masks; bilinear, so apply it before thresholding.

    Example:
        >>> import torch
        >>> masks_to_original(torch.ones(1, 1, 2, 3), {"scale": torch.tensor([0.5, 0.25])}).shape
        torch.Size([1, 1, 8, 6])
    """
    (x, y), (height, width) = target["scale"].tolist(), masks.shape[-2:]
    size = round(height / y), round(width / x)
    return masks if size == (height, width) else interpolate(masks, size, mode="bilinear")
