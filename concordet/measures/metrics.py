"""The figures that concordet reports: titles, directions and formats in one place, for pages, tables and documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

MISSING: Final = "–"
"""What stands in a table where a figure is undefined or was not measured."""


@dataclass(frozen=True)
class Metric:
    """One figure: where it is found, how it is called, and how it is read.

    Attributes:
        key: its name in ``evaluation.json`` and ``Analysis.to_dict()``.
        title: its name in tables.
        better: "higher", "lower", or "neither" for a setting.
        scale: factor between the stored value (a fraction) and the shown one; 100 for points of AP.
        decimals: digits shown after the point.
        unit: what a difference is counted in, after the scale; "" where it has none.
        explanation: one sentence for people who meet the figure for the first time.

    Example:
        >>> ap = METRICS[0]
        >>> ap.text(0.3871), ap.difference(0.3871, 0.4032), ap.verdict(0.3871, 0.4032)
        ('38.7', '+1.6', 'better')
    """

    key: str
    title: str
    better: Literal["higher", "lower", "neither"]
    scale: float
    decimals: int
    unit: str
    explanation: str

    @property
    def arrow(self) -> str:
        """Upwards where more is better, downwards where less is, nothing where neither is."""
        return {"higher": "↑", "lower": "↓", "neither": ""}[self.better]

    def text(self, value: float | None) -> str:
        """The value as tables show it; :data:`MISSING` for None and NaN."""
        return MISSING if is_missing(value) else f"{self.shown(value):.{self.decimals}f}".replace("-", "−")

    def difference(self, reference: float | None, value: float | None) -> str:
        """Signed difference of the two values as shown, so that it agrees with the printed figures."""
        if is_missing(reference) or is_missing(value):
            return MISSING
        step = round(self.shown(value) - self.shown(reference), self.decimals)
        return f"{step:+.{self.decimals}f}".replace("-", "−") if step else "±0"

    def verdict(self, reference: float | None, value: float | None) -> Literal["better", "worse", "same", "unknown"]:
        """How ``value`` compares with ``reference``, at the precision that is shown."""
        if self.better == "neither" or is_missing(reference) or is_missing(value):
            return "unknown"
        step = round(self.shown(value) - self.shown(reference), self.decimals)
        if step == 0:
            return "same"
        return "better" if (step > 0) == (self.better == "higher") else "worse"

    def best(self, values: Sequence[float | None]) -> set[int]:
        """Places of the best values (ties at the precision shown share it); empty where there is nothing to win."""
        shown = {i: self.shown(v) for i, v in enumerate(values) if not is_missing(v)}
        if self.better == "neither" or len(set(shown.values())) < 2:
            return set()
        winner = (max if self.better == "higher" else min)(shown.values())
        return {i for i, v in shown.items() if v == winner}

    def shown(self, value: float | None) -> float:
        """The value scaled and rounded to the precision that is shown; NaN for None."""
        return math.nan if value is None else round(value * self.scale, self.decimals) + 0.0  # no negative zero


def number(value: object) -> float | None:
    """The value as float; None for None, NaN and whatever is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def is_missing(value: object) -> bool:
    """Whether :func:`number` finds none."""
    return number(value) is None


def pick(metrics: Sequence[Metric], values: Mapping[str, object]) -> dict[str, float | None]:
    """The figures of ``metrics`` found in ``values``, in the order of ``metrics``; None where one is undefined."""
    return {metric.key: number(values.get(metric.key)) for metric in metrics}


def _points(key: str, title: str, better: Literal["higher", "lower"], explanation: str) -> Metric:
    return Metric(key, title, better, 100, 1, "points", explanation)


def _plain(key: str, title: str, better: Literal["higher", "lower"], explanation: str) -> Metric:
    return Metric(key, title, better, 1, 3, "", explanation)


METRICS: Final[tuple[Metric, ...]] = (
    _points("AP", "AP", "higher", "Average precision over IoU thresholds 0.50 to 0.95 and classes, as COCO has it."),
    _points("AP50", "AP50", "higher", "Average precision if a box is right from IoU 0.50: loose localisation."),
    _points("AP75", "AP75", "higher", "Average precision if a box is right from IoU 0.75: tight localisation."),
    _points("AP90", "AP90", "higher", "Average precision if a box is right from IoU 0.90: near-perfect boxes."),
    _plain("beta_img", "beta_img", "higher",
           "Spearman correlation of score and IoU over the positives of one image before NMS, averaged over images; "
           "from −1 to 1."),
    _plain("beta_cls", "beta_cls", "higher",
           "Spearman correlation of score and IoU over the true positives of one class after NMS, averaged over "
           "classes; from −1 to 1."),
    _points("oLRP", "oLRP", "lower",
            "Optimal localisation-recall-precision error: missed, false and badly placed boxes in one number at the "
            "best score threshold; from 0 to 100."),
    Metric("AIC", "AIC", "lower", 1, 1, "",
           "Sum of |score − IoU| over the true positives; it grows with their number, so read it beside its mean."),
    _plain("AIC_mean", "AIC mean", "lower",
           "Mean of |score − IoU| over the true positives: how far confidence is from localisation; from 0 to 1."),
    Metric("seconds_per_iteration", "s / iteration", "lower", 1, 3, "seconds",
           "Seconds that one training step took, on the machine the run was made on."),
)  # fmt: skip
"""The figures of a comparison, in the order of its table."""

FIGURES: Final = {metric.key: metric for metric in METRICS}

MASK_METRICS: Final[tuple[Metric, ...]] = (
    _points("AP_mask", "AP, masks", "higher", "Average precision by the IoU of instance masks, as COCO has it."),
    _points("AP50_mask", "AP50, masks", "higher", "Average precision if a mask is right from IoU 0.50."),
    _points("AP75_mask", "AP75, masks", "higher", "Average precision if a mask is right from IoU 0.75."),
)
"""Figures of runs whose detectors predict masks."""


def metrics_of(figures: Iterable[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """``METRICS``, and those of masks where any of the runs' figures has them."""
    has_masks = any(MASK_METRICS[0].key in own for own in figures)
    return (*METRICS, *MASK_METRICS) if has_masks else METRICS


PER_CLASS: Final[tuple[Metric, ...]] = tuple(FIGURES[key] for key in ("AP", "AP75", "beta_cls", "oLRP"))
"""The figures that a comparison shows for every class."""

AGREEMENT: Final[tuple[Metric, ...]] = (
    FIGURES["beta_img"],
    FIGURES["beta_cls"],
    _plain("spearman", "Spearman", "higher",
           "Correlation of the ranks of score and IoU over all true positives; from −1 to 1."),
    _plain("pearson", "Pearson", "higher", "Linear correlation of score and IoU over true positives; from −1 to 1."),
    _plain("kendall", "Kendall", "higher",
           "Share of pairs of true positives in the right order less that in the wrong one; from −1 to 1."),
    _plain("concordance", "Concordance", "higher",
           "Lin's coefficient over all true positives: 1 only if the score equals the IoU; from −1 to 1."),
    FIGURES["AIC_mean"],
    _plain("calibration_error", "Calibration error", "lower",
           "Mean distance between score and IoU over bins of score, false positives having IoU 0; from 0 to 1."),
)  # fmt: skip
"""How well scores and IoUs agree, in the order of an analysis."""

ERRORS: Final[tuple[Metric, ...]] = (
    FIGURES["oLRP"],
    _points("oLRP_loc", "oLRP, localisation", "lower", "Its part for badly placed boxes: mean of 1 − IoU where found."),
    _points("oLRP_fp", "oLRP, false positives", "lower", "Its part for boxes on no object: 1 − precision."),
    _points("oLRP_fn", "oLRP, false negatives", "lower", "Its part for objects not found: 1 − recall."),
)
"""oLRP with its parts."""

ANALYSIS_PER_CLASS: Final[tuple[Metric, ...]] = (
    FIGURES["AP"],
    _points("AP_upper", "AP, perfect", "higher", "AP if the class had its true positives ranked by their IoU."),
    _points("AP_left", "AP left", "lower", "What a perfect ranking of the same boxes would add."),
    FIGURES["beta_cls"],
    FIGURES["AIC_mean"],
    FIGURES["oLRP"],
    Metric(
        "lrp_threshold",
        "Threshold",
        "neither",
        1,
        2,
        "",
        "The score at which LRP is lowest: the one to keep boxes from.",
    ),
)
"""The figures that an analysis shows for every class."""

ANALYSIS: Final[tuple[Metric, ...]] = (
    *(FIGURES[key] for key in ("AP", "AP50", "AP75")),
    _points("AR100", "AR100", "higher", "Average recall with at most 100 boxes an image."),
    _points("AP_upper", "AP, best ranking", "higher", "AP if every class had its true positives ranked by their IoU."),
    _points("AP_lower", "AP, worst ranking", "higher", "AP if every class had them ranked against their IoU."),
    *AGREEMENT,
    FIGURES["AIC"],
    *ERRORS,
)
"""The figures of one results file, in the order of a terminal's table."""
