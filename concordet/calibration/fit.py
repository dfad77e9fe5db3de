"""Fitting a map to scores and the values they should have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from concordet.calibration.maps import Identity, Isotonic, Linear, Map, Platt, Temperature, log_odds
from concordet.errors import UsageError
from concordet.measures.reading.arrays import Floats, unit_columns

Method = Literal["isotonic", "linear", "platt", "temperature"]


def fit_map(scores: Any, targets: Any, method: Method = "isotonic") -> Map:
    """The map that brings scores closest to their targets.

    ``isotonic`` and ``linear`` minimize the squared error, ``platt`` and ``temperature`` the binary cross entropy with
    soft targets. Slopes are at least 0, so that the map increases.

    Args:
        scores: ``[n]`` in [0, 1].
        targets: ``[n]`` in [0, 1]: the IoU of a true positive, 0 for a false positive.
        method: ``"isotonic"``, ``"linear"``, ``"platt"`` or ``"temperature"``.

    Returns:
        The map; the identity if there are no scores.

    Raises:
        ValueError: for an unknown method, lengths that differ or a value that is not in [0, 1].

    Example:
        >>> fitted = fit_map(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 0.5, 0.5, 1.0]), "linear")
        >>> round(fitted.slope, 6), round(fitted.intercept, 6)
        (3.0, -0.25)
    """
    if method not in FITS:
        raise UsageError(f"method must be one of {', '.join(FITS)}, got {method!r}")
    p, y = unit_columns(scores, targets, "targets")
    return FITS[method](p, y) if len(p) else Identity()


def _isotonic(scores: Floats, targets: Floats) -> Map:
    unique, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(index, targets) / counts
    values = np.clip(isotonic_regression(means, weights=counts.astype(np.float64)).x, 0.0, 1.0)
    same = values[1:] == values[:-1]
    kept = ~(np.append(False, same) & np.append(same, False))  # both ends of each step say it all
    return Isotonic(tuple(unique[kept].tolist()), tuple(values[kept].tolist()))


def _linear(scores: Floats, targets: Floats) -> Map:
    x, y = scores - scores.mean(), targets - targets.mean()
    variance = float(x @ x)
    slope = max(float(x @ y) / variance, 0.0) if variance > 0 else 0.0
    return Linear(slope, float(targets.mean() - slope * scores.mean()))


def _platt(scores: Floats, targets: Floats) -> Map:
    odds = _finite_log_odds(scores)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logits = parameters[0] * odds + parameters[1]
        residuals = expit(logits) - targets
        value = np.mean(np.logaddexp(0, logits) - targets * logits)
        return float(value), np.array([np.mean(residuals * odds), np.mean(residuals)])

    result = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, 1e3), (-1e3, 1e3)])
    return Platt(float(result.x[0]), float(result.x[1]))


def _temperature(scores: Floats, targets: Floats) -> Map:
    odds = _finite_log_odds(scores)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logits = parameters[0] * odds
        value = np.mean(np.logaddexp(0, logits) - targets * logits)
        return float(value), np.array([np.mean((expit(logits) - targets) * odds)])

    result = minimize(loss, np.array([1.0]), jac=True, method="L-BFGS-B", bounds=[(1e-3, 1e3)])
    return Temperature(float(1 / result.x[0]))


def _finite_log_odds(scores: Floats) -> Floats:
    """Log-odds within about 36 of 0, so that scores of exactly 0 or 1 do not dominate the fit."""
    return log_odds(np.clip(scores, 2.2e-16, 1 - 2.2e-16))


FITS: Final[dict[str, Callable[[Floats, Floats], Map]]] = {
    "isotonic": _isotonic,
    "linear": _linear,
    "platt": _platt,
    "temperature": _temperature,
}
"""Method to the function that fits it."""
