"""Calibration maps as tables of numbers, for exported graphs and for NumPy.

:class:`concordet.calibration.Calibrator` needs SciPy; tables need no more than NumPy or the operators of a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LOWEST, HIGHEST = -745.2, 36.8
"""Log-odds at scores of 0 and 1, as in :mod:`concordet.calibration.maps`."""

TILT = 1e-4
"""Weight of the strictly increasing part, as in :mod:`concordet.calibration.maps`."""


@dataclass(frozen=True)
class Tables:
    """Calibration maps of c classes as arrays: a score s becomes

    (1 - tilt) clip(knots(s) + slope s + sigmoid part) + tilt (log-odds(s) - LOWEST) / (HIGHEST - LOWEST).

    Attributes:
        knots: ``[c, m]`` scores at knots, ascending, repeated at the end; zeros for maps without knots.
        values: ``[c, m]`` calibrated scores at the knots.
        linear: ``[c, 2]`` slope and intercept; zeros for other maps.
        logistic: ``[c, 3]`` slope and intercept of the log-odds, and 1; zeros for other maps.
        tilt: ``[c]`` weight of the strictly increasing part, 0 for scores that stay as they are.
    """

    knots: np.ndarray
    values: np.ndarray
    linear: np.ndarray
    logistic: np.ndarray
    tilt: np.ndarray

    @classmethod
    def of(cls, calibrator: Mapping[str, Any], category_ids: Sequence[int]) -> Tables:
        """Tables of classes from ``Calibrator.to_dict()``, in the order of their ids ``category_ids``."""
        own = {entry["id"]: entry["map"] for entry in calibrator["classes"]}
        maps = [own.get(ident) or calibrator["shared"] for ident in category_ids]
        width = max(2, *(len(m.get("scores", ())) for m in maps))
        count = len(maps)
        knots, values, linear, logistic = (np.zeros((count, n)) for n in (width, width, 2, 3))
        tables = cls(knots, values, linear, logistic, np.full(count, TILT))
        for i, fitted in enumerate(maps):
            name = fitted["kind"]
            if name == "isotonic":
                missing = width - len(fitted["scores"])
                tables.knots[i] = [*fitted["scores"], *[fitted["scores"][-1]] * missing]
                tables.values[i] = [*fitted["values"], *[fitted["values"][-1]] * missing]
            elif name == "linear":
                tables.linear[i] = fitted["slope"], fitted["intercept"]
            elif name == "platt":
                tables.logistic[i] = fitted["slope"], fitted["intercept"], 1.0
            elif name == "temperature":
                tables.logistic[i] = 1 / fitted["temperature"], 0.0, 1.0
            else:  # identity
                tables.linear[i], tables.tilt[i] = (1.0, 0.0), 0.0
        return tables


def calibrated(tables: Tables, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """``[n]`` float64 calibrated scores of ``scores`` ``[n]`` in [0, 1] and ``classes`` ``[n]`` 0..c-1."""
    s = np.asarray(scores, np.float64)
    with np.errstate(divide="ignore"):
        odds = np.clip(np.log(s) - np.log1p(-s), LOWEST, HIGHEST)
    knots, values = tables.knots[classes], tables.values[classes]
    last = knots.shape[1] - 1
    left = np.clip((knots <= s[:, None]).sum(1) - 1, 0, last)
    right = np.minimum(left + 1, last)
    row = np.arange(len(s))
    width = knots[row, right] - knots[row, left]
    share = np.clip((s - knots[row, left]) / np.where(width > 0, width, 1.0), 0.0, 1.0)
    between = values[row, left] + share * (values[row, right] - values[row, left])
    slope, intercept = tables.linear[classes].T
    odds_slope, odds_intercept, logistic = tables.logistic[classes].T
    sigmoid = np.exp(-np.logaddexp(0.0, -(odds_slope * odds + odds_intercept)))
    increasing = between + slope * s + intercept + logistic * sigmoid
    tilt = tables.tilt[classes]
    return (1 - tilt) * np.clip(increasing, 0.0, 1.0) + tilt * (odds - LOWEST) / (HIGHEST - LOWEST)
