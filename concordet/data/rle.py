"""COCO's run-length code of masks: lengths of alternating runs of 0 and 1 in column-major order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_rle(mask: NDArray[Any]) -> dict[str, Any]:
    """A mask ``[h, w]`` as ``{"size": [h, w], "counts": str}`` in COCO's compressed form.

    Example:
        >>> encode_rle(np.array([[0, 1], [0, 1]]))
        {'size': [2, 2], 'counts': '22'}
    """
    flat = np.asarray(mask).astype(bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist() if flat.size else []
    if flat.size and flat[0]:
        runs.insert(0, 0)
    text = []
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text.append(chr((bits | 0x20 if more else bits) + 48))
    return {"size": list(mask.shape), "counts": "".join(text)}


def decode_rle(rle: dict[str, Any]) -> NDArray[np.uint8]:
    """The mask ``[h, w]`` of 0 and 1 from COCO's compressed or uncompressed form.

    Raises:
        ValueError: the runs do not add up to the size.

    Example:
        >>> decode_rle({"size": [2, 2], "counts": [2, 2]})
        array([[0, 1],
               [0, 1]], dtype=uint8)
    """
    height, width = rle["size"]
    counts = rle["counts"]
    runs = (
        _runs(counts.decode() if isinstance(counts, bytes) else counts) if isinstance(counts, str | bytes) else counts
    )
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"runs of a mask add up to {sum(runs)} pixels instead of {height} x {width}")
    values = np.arange(len(runs), dtype=np.uint8) & 1
    return np.repeat(values, np.asarray(runs, np.int64)).reshape((height, width), order="F")


def _runs(text: str) -> Sequence[int]:
    """Run lengths from groups of five bits, the lowest first; from the fourth on, differences to the one two before."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    return runs
