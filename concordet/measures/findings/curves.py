"""Precision, recall and F1 over the score threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from concordet.measures.reading.arrays import Bools, Floats


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision, recall and F1 at each threshold, from the highest score down.

    Attributes:
        threshold: ``[m]`` scores from which detections are kept.
        precision, recall, f1: ``[m]`` in [0, 1].
        n_kept: ``[m]`` number of detections at or above the threshold.
    """

    threshold: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    n_kept: Floats

    def at(self, threshold: float) -> int | None:
        """Index of the last point whose threshold is not below this one; None if there is none."""
        index = int(np.searchsorted(-self.threshold, -threshold, side="right")) - 1
        return index if index >= 0 else None

    def thinned(self, points: int) -> ThresholdCurve:
        """The curve with at most ``points`` points, spread evenly along it; the ends stay."""
        n = len(self.threshold)
        if n <= points:
            return self
        width = max(float(np.ptp(self.threshold)), 1e-300)
        step = np.abs(np.diff(self.threshold)) / width + np.abs(np.diff(self.precision)) + np.abs(np.diff(self.recall))
        along = np.append(0, np.cumsum(step))
        chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)).clip(max=n - 1))
        chosen = np.unique(np.append(chosen, [0, n - 1]))
        return ThresholdCurve(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def threshold_curve(scores: Floats, hits: Bools, n_objects: int) -> ThresholdCurve:
    """Precision, recall and F1 at every distinct score.

    Args:
        scores: ``[n]`` scores of the detections that are true or false positives.
        hits: ``[n]`` whether each is a true positive.
        n_objects: Number of objects.

    Example:
        >>> curve = threshold_curve(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 4)
        >>> curve.precision.round(2).tolist(), curve.recall.tolist(), curve.f1.round(2).tolist()
        ([1.0, 0.5, 0.67], [0.25, 0.25, 0.5], [0.4, 0.33, 0.57])
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, np.int64)
    true = np.cumsum(hits[order])[last].astype(np.float64)
    kept: Floats = (last + 1).astype(np.float64)
    return ThresholdCurve(
        threshold=ordered[last],
        precision=true / kept,
        recall=true / max(n_objects, 1),
        f1=2 * true / (kept + n_objects),
        n_kept=kept,
    )
