"""What the page of an analysis adds to its metrics: bootstrap intervals and a cross-fitted calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from concordet.calibration.calibrator import Calibrator
from concordet.calibration.evaluation import evaluate_analysis
from concordet.measures import Analysis

COSTS: Final = {"order": "the order", "scale": "the scale of the scores", "boxes": "the boxes"}
"""Sources of error to the words for them in a sentence."""


@dataclass(frozen=True)
class Details:
    """Intervals of an analysis, and a cross-fitted calibration of its scores.

    Attributes:
        intervals: As :meth:`concordet.measures.Analysis.intervals` returns them.
        calibrator: Fitted on all images; None if that is not possible.
        report: As :func:`concordet.calibration.evaluate_calibration` returns it, without intervals; None without a
            calibrator.
        reason: Why there is no calibrator.
        costs: Keys of :data:`COSTS` to fractions: AP that a perfect order adds, AP that perfect boxes add to that, and
            the decrease of LaECE0 by calibration for detections above the thresholds. Unknown ones are missing.
    """

    intervals: dict[str, Any]
    calibrator: Calibrator | None
    report: dict[str, Any] | None
    reason: str | None
    costs: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: ``intervals``, ``costs`` and ``calibrated``, the report or None."""
        return {"intervals": self.intervals, "costs": self.costs, "calibrated": self.report}

    @property
    def sentence(self) -> str | None:
        """Which of order, scale and boxes costs most; None where AP is undefined or nothing is lost."""
        if "order" not in self.costs or max(self.costs.values()) < 0.0005:
            return None
        known = [name for name in COSTS if name in self.costs]
        largest = max(known, key=self.costs.__getitem__)
        listed = f"{', '.join(known[:-1])} and {known[-1]}"
        verb, unit = ("cost", "AP") if largest == "boxes" else ("costs", "AP")
        if largest == "scale":
            unit = "calibration error at the thresholds"
        return f"of {listed}, {COSTS[largest]} {verb} most ({100 * self.costs[largest]:.1f} points of {unit})"


def details(analysis: Analysis, *, n_resamples: int | None = None, seed: int = 0) -> Details:
    """Intervals by bootstrap and a cross-fitted calibration; seconds for 200,000 detections.

    Args:
        analysis: What :func:`concordet.measures.analyze` returns.
        n_resamples: Draws of the intervals; None as :meth:`concordet.measures.Analysis.intervals` takes it.
        seed: Seed of the draws and of the folds.
    """
    intervals = analysis.intervals(n_resamples=n_resamples, seed=seed)
    costs = dict(analysis.summary["costs"] or {})
    try:
        calibrator, report = evaluate_analysis(analysis, seed=seed)
    except ValueError as error:
        return Details(intervals, None, None, str(error), costs)
    before, after = (report["operating"][side]["LaECE0"] for side in ("before", "after"))
    if before is None or after is None:
        return Details(intervals, None, None, report["operating"]["reasons"].get("LaECE0", "no class has one"), costs)
    return Details(intervals, calibrator, report, None, costs | {"scale": max(before - after, 0.0)})
