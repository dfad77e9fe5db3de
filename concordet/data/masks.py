"""COCO's segmentations as pixels: hotcoco rasterises them, as it does when it evaluates them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate


def encode_mask(mask: NDArray[Any]) -> dict[str, Any]:
    """A mask ``[h, w]`` as run lengths in COCO's compressed form, plain JSON.

    Example:
        >>> encode_mask(np.array([[0, 1], [0, 1]]))
        {'size': [2, 2], 'counts': '22'}
    """
    from hotcoco import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def decode_segmentation(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Pixels ``[height, width]`` of 0 and 1 of polygons, of run lengths, or of None and [] (all 0).

    Polygons of fewer than three points have no area and are left out.

    Raises:
        ValueError: it is none of these, or run lengths of an image of another size.

    Example:
        >>> decode_segmentation([[0, 0, 2, 0, 2, 1, 0, 1]], 2, 3)
        array([[1, 1, 0],
               [0, 0, 0]], dtype=uint8)
        >>> decode_segmentation({"size": [2, 2], "counts": [2, 2]}, 2, 2)
        array([[0, 1],
               [0, 1]], dtype=uint8)
    """
    from hotcoco import mask as coco

    if not segmentation:
        return np.zeros((height, width), np.uint8)
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if list(segmentation.get("size", ())) != [height, width]:
            raise ValueError(f"run lengths of a mask have size {segmentation.get('size')} instead of {[height, width]}")
        if isinstance(counts, list) and (sum(counts) != height * width or min(counts) < 0):
            raise ValueError(f"run lengths of a mask add up to {sum(counts)} pixels instead of {height * width}")
        if not isinstance(counts, list | str | bytes):
            raise ValueError(f"counts of a mask are {type(counts).__name__} instead of a list or a string")
        return np.ascontiguousarray(coco.decode(coco.frPyObjects(segmentation, height, width)))
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise ValueError("a segmentation is neither a list of polygons nor run lengths")
    polygons = [part for part in segmentation if len(part) >= 6]
    if any(len(part) % 2 for part in polygons):
        raise ValueError("a polygon has an odd number of coordinates")
    if not polygons:
        return np.zeros((height, width), np.uint8)
    return np.ascontiguousarray(coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))))


def masks_to_original(masks: Tensor, target: dict[str, Any]) -> Tensor:
    """Masks ``[n, 1, h, w]`` in [0, 1] in pixels of the given image, in pixels of the original one.

    As :func:`~concordet.data.to_original` does with boxes; bilinear, before anything is rounded to 0 and 1.

    Example:
        >>> import torch
        >>> masks_to_original(torch.ones(1, 1, 2, 3), {"scale": torch.tensor([0.5, 0.25])}).shape
        torch.Size([1, 1, 8, 6])
    """
    (x, y), (height, width) = target["scale"].tolist(), masks.shape[-2:]
    size = round(height / y), round(width / x)
    return masks if size == (height, width) else interpolate(masks, size, mode="bilinear")
