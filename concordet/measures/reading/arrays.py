"""Conversion of arguments (lists, NumPy arrays, torch tensors) to checked NumPy columns."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

GIVE_IOUS: Final = "give the IoU of each detection with its object"


def to_numpy(values: Any) -> NDArray[Any]:
    """``values`` as an array; torch tensors of any device and dtype are converted without importing torch."""
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.double()  # NumPy has no bfloat16
        return np.asarray(values.numpy())
    return np.asarray(values)


def bool_column(values: Any, name: str, length: int) -> Bools:
    """``values`` as ``[length]`` bool; 0 and 1 are taken, other numbers raise ValueError."""
    column = float_column(values, name)
    if len(column) != length:
        raise ValueError(f"{name} must have one value for each of {length} scores, got {len(column)}")
    other = np.flatnonzero((column != 0) & (column != 1))
    if other.size:
        raise ValueError(f"{name}[{other[0]}] must be True or False, got {column[other[0]]:g}")
    return column.astype(bool)


def float_column(values: Any, name: str) -> Floats:
    """``values`` as finite float64 ``[n]``; raises ValueError naming the first index that is not a finite number."""
    array = to_numpy(values)
    if array.size == 0:
        return np.zeros(0)
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} must be a one-dimensional array of numbers, got shape {list(array.shape)} and type {array.dtype}"
        )
    column = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(column))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] must be a finite number, got {column[bad[0]]}; drop or repair it")
    return column


def group_column(values: Any, name: str, length: int) -> NDArray[Any]:
    """``values`` as ``[length]`` group labels of any sortable type."""
    array = to_numpy(values)
    if array.ndim != 1 or len(array) != length:
        raise ValueError(f"{name} must have one label for each of {length} scores, got shape {list(array.shape)}")
    return array


def same_length(first: Floats, second: Floats, names: str) -> None:
    """Raises ValueError if two columns differ in length."""
    if len(first) != len(second):
        raise ValueError(
            f"{names} must have equal lengths, got {len(first)} and {len(second)}; give one of each per detection"
        )


def unit_columns(scores: Any, ious: Any, name: str) -> tuple[Floats, Floats]:
    """Scores and as many IoUs, called ``name``, all in [0, 1]; raises ValueError for others."""
    p, y = float_column(scores, "scores"), float_column(ious, name)
    same_length(p, y, f"scores and {name}")
    require_unit(p, "scores")
    require_unit(y, name, GIVE_IOUS)
    return p, y


def require_unit(column: Floats, name: str, fix: str = "apply sigmoid to logits") -> None:
    """Raises ValueError naming the first value outside [0, 1]; ``fix`` says what to do."""
    outside = np.flatnonzero((column < 0) | (column > 1))
    if outside.size:
        at = outside[0]
        raise ValueError(f"{name}[{at}] must be in [0, 1], got {column[at]:g}; {fix}")


def is_integer(value: Any) -> bool:
    """Whether a value is a 64-bit integer."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and abs(int(value)) < 2**63


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
