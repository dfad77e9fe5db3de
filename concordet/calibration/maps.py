r"""Increasing maps from scores to calibrated scores.

Every map is :math:`(1 - \tau) f(s) + \tau u(s)` with :math:`f` increasing but possibly flat (an isotonic regression's
steps, a clipped line, a saturated sigmoid) and :math:`u` strictly increasing, so that the order of detections is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit

from concordet.measures.reading.arrays import Floats

TILT = 1e-4
r"""Weight :math:`\tau` of the strictly increasing part.

It changes a calibrated score by at most 1e-4, below the precision that calibration errors are reported with.
Neighboring float32 scores stay at least 7e-15 apart, above float64's spacing of 1e-16 near 1 and far below float32's.
"""

_LOWEST, _HIGHEST = -745.2, 36.8  # log-odds of the smallest positive float64, and of the largest one below 1


def log_odds(scores: Floats) -> Floats:
    """``[n]`` log(s / (1 - s)) in float64, finite at 0 and 1.

    Example:
        >>> log_odds(np.array([0.0, 0.5, 1.0])).tolist()
        [-745.2, 0.0, 36.8]
    """
    with np.errstate(divide="ignore"):
        return np.clip(np.log(scores) - np.log1p(-scores), _LOWEST, _HIGHEST)


def strictly_increasing(scores: Floats, values: Floats) -> Floats:
    """``values`` raised by the least possible amounts so that they are ordered as ``scores`` are, with the same ties.

    In float64, maps keep float32 scores apart without this; it also keeps apart float64 scores that differ in the last
    digits, and calibrated scores that were rounded to float32.

    Args:
        scores: ``[n]`` scores before calibration.
        values: ``[n]`` calibrated scores, in any floating dtype, increasing but for rounding.

    Returns:
        ``[n]`` in the dtype of ``values``, at most 1.

    Example:
        >>> strictly_increasing(np.array([0.3, 0.1, 0.3, 0.2]), np.array([0.5, 0.5, 0.5, 0.25])).argsort(kind="stable")
        array([1, 3, 0, 2])
    """
    unique, index = np.unique(scores, return_inverse=True)
    if len(unique) < 2:
        return values
    levels = np.empty(len(unique), values.dtype)
    levels[index] = values  # equal scores have equal values
    if (levels[1:] > levels[:-1]).all():
        return values
    # Read as integers, positive floats keep their order and consecutive floats differ by 1: "at least the next float
    # after the previous value" is then a running maximum of bits - steps.
    bits = levels.view(np.int64 if values.dtype.itemsize == 8 else np.int32).astype(np.int64)
    steps = np.arange(len(bits))
    bits = np.maximum.accumulate(bits - steps) + steps
    top = np.array(1, values.dtype).view(np.int64 if values.dtype.itemsize == 8 else np.int32).astype(np.int64)
    bits = np.minimum(bits, top - steps[::-1])  # leaves room below 1 for the values that follow
    return bits.astype(np.int64 if values.dtype.itemsize == 8 else np.int32).view(values.dtype)[index]


class Map(ABC):
    """A strictly increasing map of scores in [0, 1] to calibrated scores in [0, 1]."""

    name: ClassVar[str]

    def __call__(self, scores: Floats) -> Floats:
        """``[n]`` calibrated scores, float64, of ``[n]`` scores in [0, 1]."""
        scores = np.asarray(scores, np.float64)
        tilt = (log_odds(scores) - _LOWEST) / (_HIGHEST - _LOWEST)
        with np.errstate(over="ignore"):  # a steep map may overflow before it is clipped
            values = np.clip(self.increasing(scores), 0.0, 1.0)
        return (1 - TILT) * values + TILT * tilt

    @abstractmethod
    def increasing(self, scores: Floats) -> Floats:
        """``[n]`` the fitted function, increasing and possibly flat."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The parameters as plain JSON."""


@dataclass(frozen=True)
class Isotonic(Map):
    """Isotonic regression: linear interpolation between knots, constant beyond the first and the last.

    Attributes:
        scores: knots, increasing.
        values: calibrated scores at the knots, non-decreasing.
    """

    name: ClassVar[str] = "isotonic"
    scores: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        increasing = list(self.scores) == sorted(set(self.scores)) and list(self.values) == sorted(self.values)
        if not increasing or not len(self.scores) == len(self.values) > 0:
            raise ValueError(
                f"knots must increase, one value per score, got {len(self.scores)} scores and {len(self.values)} values"
            )

    def increasing(self, scores: Floats) -> Floats:
        return np.interp(scores, self.scores, self.values)

    def to_dict(self) -> dict[str, Any]:
        return {"scores": list(self.scores), "values": list(self.values)}


@dataclass(frozen=True)
class Linear(Map):
    """slope x score + intercept, clipped to [0, 1]."""

    name: ClassVar[str] = "linear"
    slope: float
    intercept: float

    def __post_init__(self) -> None:
        _check_slope(self.slope)

    def increasing(self, scores: Floats) -> Floats:
        return self.slope * scores + self.intercept

    def to_dict(self) -> dict[str, Any]:
        return {"slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True)
class Platt(Map):
    """sigmoid(slope x log-odds(score) + intercept)."""

    name: ClassVar[str] = "platt"
    slope: float
    intercept: float

    def __post_init__(self) -> None:
        _check_slope(self.slope)

    def increasing(self, scores: Floats) -> Floats:
        return expit(self.slope * log_odds(scores) + self.intercept)

    def to_dict(self) -> dict[str, Any]:
        return {"slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True)
class Temperature(Map):
    """sigmoid(log-odds(score) / temperature)."""

    name: ClassVar[str] = "temperature"
    temperature: float

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def increasing(self, scores: Floats) -> Floats:
        return expit(log_odds(scores) / self.temperature)

    def to_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature}


@dataclass(frozen=True)
class Identity(Map):
    """Leaves scores unchanged, for a fit without detections."""

    name: ClassVar[str] = "identity"

    def __call__(self, scores: Floats) -> Floats:
        return np.asarray(scores, np.float64)

    def increasing(self, scores: Floats) -> Floats:
        return scores

    def to_dict(self) -> dict[str, Any]:
        return {}


def _check_slope(slope: float) -> None:
    if not slope >= 0:
        raise ValueError(f"slope must be at least 0, got {slope}")


MAPS: dict[str, type[Map]] = {m.name: m for m in (Isotonic, Linear, Platt, Temperature, Identity)}
"""Name to map."""
