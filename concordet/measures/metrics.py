"""The one table of metrics: titles, directions, scales and units, for pages, terminal tables and documents.

A measure of the true positives' scores and IoUs needs a row in :data:`TABLE` with its function; any other is computed
in :mod:`concordet.measures.summary`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from concordet.measures.correlation import Value, pooled_correlation
from concordet.measures.reading.arrays import Floats

MISSING: Final = "–"
"""Text in a table for a metric that is undefined or was not measured."""

Direction = Literal["higher", "lower", "neither"]
Table = Literal["runs", "masks", "run classes", "analysis", "classes"]
"""Tables that show metrics: comparison of runs, of runs with masks, and by class; one results file, and its classes."""

OfTruePositives = Callable[[Floats, Floats], Value]
"""Measure of the scores and IoUs of true positives at IoU 0.5, of all classes together or of one class."""


@dataclass(frozen=True)
class Metric:
    """One metric: its key, its title, and how its values are read and printed.

    Attributes:
        key: Name in ``evaluation.json`` and ``Analysis.to_dict()``.
        title: Name in tables.
        better: "higher", "lower", or "neither" for a setting.
        scale: Factor between the stored value (a fraction) and the printed one; 100 for percent.
        decimals: Digits after the point.
        unit: Unit of a difference, after the scale; "" where it has none.
        explanation: One sentence for readers who do not know the metric.
        group: Heading under which the page of an analysis shows it.
        tables: Tables that have it.
        significant: Significant digits to print instead of ``decimals``.
        of_true_positives: Function that computes it, for all classes together and for each class; None for a metric
            that :mod:`concordet.measures.summary` computes in another way.
        is_timing: Whether it depends on what else the machine did, so that no value is called better.

    Example:
        >>> ap = METRICS[0]
        >>> ap.text(0.3871), ap.difference(0.3871, 0.4032), ap.verdict(0.3871, 0.4032)
        ('38.7', '+1.6', 'better')
    """

    key: str
    title: str
    better: Direction
    scale: float
    decimals: int
    unit: str
    explanation: str
    group: str = ""
    tables: tuple[Table, ...] = ()
    significant: int | None = None
    of_true_positives: OfTruePositives | None = None
    is_timing: bool = False

    @property
    def arrow(self) -> str:
        """Upward arrow if higher is better, downward if lower is, otherwise nothing."""
        return {"higher": "↑", "lower": "↓", "neither": ""}[self.better]

    @property
    def heading(self) -> str:
        """Title and arrow.

        Example:
            >>> METRICS[0].heading
            'AP ↑'
        """
        return f"{self.title} {self.arrow}".rstrip()

    def text(self, value: float | None) -> str:
        """The value as tables print it; :data:`MISSING` for None and NaN.

        Example:
            >>> BY_KEY["lrp_threshold"].text(0.022749), BY_KEY["lrp_threshold"].text(0.6)
            ('0.0227', '0.600')
        """
        if is_missing(value):
            return MISSING
        shown = self.shown(value)
        decimals = self.decimals
        if self.significant is not None and shown:
            decimals = max(self.significant - 1 - math.floor(math.log10(abs(shown))), 0)
        return f"{shown:.{decimals}f}".replace("-", "−")

    def difference(self, reference: float | None, value: float | None) -> str:
        """Signed difference of the two values as printed, so that it agrees with the printed values."""
        if is_missing(reference) or is_missing(value):
            return MISSING
        step = round(self.shown(value) - self.shown(reference), self.decimals)
        return f"{step:+.{self.decimals}f}".replace("-", "−") if step else "±0"

    def verdict(self, reference: float | None, value: float | None) -> Literal["better", "worse", "same", "unknown"]:
        """How ``value`` compares with ``reference``, at the precision that is printed."""
        if self.better == "neither" or is_missing(reference) or is_missing(value):
            return "unknown"
        step = round(self.shown(value) - self.shown(reference), self.decimals)
        if step == 0:
            return "same"
        return "better" if (step > 0) == (self.better == "higher") else "worse"

    def best(self, values: Sequence[float | None]) -> set[int]:
        """Indices of the best values, with ties at the printed precision; empty if all are equal."""
        shown = {i: self.shown(v) for i, v in enumerate(values) if not is_missing(v)}
        if self.better == "neither" or len(set(shown.values())) < 2:
            return set()
        winner = (max if self.better == "higher" else min)(shown.values())
        return {i for i, v in shown.items() if v == winner}

    def shown(self, value: float | None) -> float:
        """The value scaled and rounded to the precision that is printed; NaN for None."""
        if value is None:
            return math.nan
        scaled = value * self.scale
        if self.significant is not None:
            return float(f"{scaled:.{self.significant}g}")
        return round(scaled, self.decimals) + 0.0  # no negative zero


def number(value: object) -> float | None:
    """The value as float; None for None, NaN and anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def is_missing(value: object) -> bool:
    """Whether :func:`number` returns None."""
    return number(value) is None


def pick(metrics: Sequence[Metric], values: Mapping[str, object]) -> dict[str, float | None]:
    """The values of ``metrics``, in their order; None for those that are undefined or absent."""
    return {metric.key: number(values.get(metric.key)) for metric in metrics}


PRECISION: Final = "Precision and recall"
RANKING: Final = "Same boxes, other rankings"
AGREEMENT: Final = "Agreement of score and IoU"
CALIBRATION: Final = "Calibration"
ERRORS: Final = "Errors at the best threshold"
GROUPS: Final = (PRECISION, RANKING, AGREEMENT, CALIBRATION, ERRORS)
"""Headings of an analysis, in their order."""


def _percent(
    key: str, title: str, better: Direction, explanation: str, group: str = "", tables: tuple[Table, ...] = ()
) -> Metric:
    return Metric(key, title, better, 100, 1, "points", explanation, group, tables)


def _plain(
    key: str,
    title: str,
    better: Direction,
    explanation: str,
    group: str = "",
    tables: tuple[Table, ...] = (),
    of_true_positives: OfTruePositives | None = None,
) -> Metric:
    return Metric(key, title, better, 1, 3, "", explanation, group, tables, None, of_true_positives)


TABLE: Final[tuple[Metric, ...]] = (
    _percent("AP", "AP", "higher", "Average precision over IoU thresholds 0.50 to 0.95 and classes, as in COCO.",
             PRECISION, ("runs", "run classes", "analysis", "classes")),
    _percent("AP50", "AP50", "higher", "Average precision at IoU 0.50: loose localization.",
             PRECISION, ("runs", "analysis")),
    _percent("AP75", "AP75", "higher", "Average precision at IoU 0.75: tight localization.",
             PRECISION, ("runs", "run classes", "analysis")),
    _percent("AP90", "AP90", "higher", "Average precision at IoU 0.90: near-perfect boxes.",
             PRECISION, ("runs",)),
    _percent("APs", "AP, small", "higher", "AP of objects with an area up to 32 x 32 pixels.",
             PRECISION, ("analysis",)),
    _percent("APm", "AP, medium", "higher", "AP of objects with an area from 32 x 32 to 96 x 96 pixels.",
             PRECISION, ("analysis",)),
    _percent("APl", "AP, large", "higher", "AP of objects with an area of at least 96 x 96 pixels.",
             PRECISION, ("analysis",)),
    _percent("AP_few", "AP, few objects", "higher",
             "AP on the images that have at most the median number of objects per image.", PRECISION),
    _percent("AP_many", "AP, many objects", "higher",
             "AP on the images that have more than the median number of objects per image.", PRECISION),
    _percent("APr", "AP, rare", "higher", "AP of the classes that LVIS calls rare.", PRECISION, ("analysis",)),
    _percent("APc", "AP, common", "higher", "AP of the classes that LVIS calls common.", PRECISION, ("analysis",)),
    _percent("APf", "AP, frequent", "higher", "AP of the classes that LVIS calls frequent.", PRECISION, ("analysis",)),
    _percent("AR1", "AR1", "higher", "Average recall with at most 1 box per image and class.",
             PRECISION, ("analysis",)),
    _percent("AR10", "AR10", "higher", "Average recall with at most 10 boxes per image and class.",
             PRECISION, ("analysis",)),
    _percent("AR100", "AR100", "higher", "Average recall with at most 100 boxes per image and class.",
             PRECISION, ("analysis",)),
    _percent("AR300", "AR300", "higher", "Average recall with at most 300 boxes per image, as in LVIS.",
             PRECISION, ("analysis",)),
    _percent("AP_upper", "AP, best ranking", "higher",
             "AP if the true positives of every class were ranked by their IoU.", RANKING, ("analysis", "classes")),
    _percent("AP_lower", "AP, worst ranking", "higher",
             "AP if the true positives of every class were ranked in reverse order of their IoU.",
             RANKING, ("analysis",)),
    _percent("AP_left", "AP to gain", "lower", "AP that a perfect ranking of the same boxes would add.", "",
             ("classes",)),
    _plain("beta_img", "beta_img", "higher",
           "Spearman correlation of score and IoU over the positives of one image before NMS, averaged over images; "
           "from −1 to 1.", AGREEMENT, ("runs", "analysis")),
    _plain("beta_cls", "beta_cls", "higher",
           "Spearman correlation of score and IoU over the true positives of one class after NMS, averaged over "
           "classes; from −1 to 1.", AGREEMENT, ("runs", "run classes", "analysis", "classes")),
    _plain("spearman", "Spearman", "higher",
           "Correlation of the ranks of score and IoU over all true positives; from −1 to 1.",
           AGREEMENT, ("analysis",), partial(pooled_correlation, coefficient="spearman")),
    _plain("pearson", "Pearson", "higher", "Linear correlation of score and IoU over all true positives; from −1 to 1.",
           AGREEMENT, ("analysis",), partial(pooled_correlation, coefficient="pearson")),
    _plain("kendall", "Kendall", "higher",
           "Share of pairs of true positives in the right order minus that in the wrong order; from −1 to 1.",
           AGREEMENT, ("analysis",), partial(pooled_correlation, coefficient="kendall")),
    _plain("concordance", "Concordance", "higher",
           "Lin's coefficient over all true positives: 1 only if every score equals its IoU; from −1 to 1.",
           AGREEMENT, ("analysis",), partial(pooled_correlation, coefficient="concordance")),
    _percent("oLRP", "oLRP", "lower",
             "Optimal localization-recall-precision error: missed objects, false positives and inaccurate boxes at "
             "the best score threshold; from 0 to 100.", ERRORS, ("runs", "run classes", "analysis", "classes")),
    _percent("oLRP_loc", "oLRP, localization", "lower",
             "Localization component: mean of 1 − IoU over true positives; from 0 to 50.",
             ERRORS, ("analysis",)),
    _percent("oLRP_fp", "oLRP, false positives", "lower",
             "False positive component: 1 − precision; from 0 to 100.", ERRORS, ("analysis",)),
    _percent("oLRP_fn", "oLRP, false negatives", "lower",
             "False negative component: 1 − recall; from 0 to 100.", ERRORS, ("analysis",)),
    Metric("AIC", "AIC", "lower", 1, 1, "",
           "Sum of |score − IoU| over the true positives; it grows with their number, so compare its mean.",
           CALIBRATION, ("runs", "analysis")),
    _plain("AIC_mean", "AIC mean", "lower",
           "Mean of |score − IoU| over the true positives: how far confidence is from localization; from 0 to 1.",
           CALIBRATION, ("runs", "analysis", "classes")),
    _percent("LaECE0", "LaECE₀", "lower",
             "Distance between mean score and mean IoU in 25 score bins, averaged over "
             "classes; false positives have IoU 0; from 0 to 100.", CALIBRATION, ("runs", "analysis", "classes")),
    _percent("LaACE0", "LaACE₀", "lower",
             "Mean of |score − IoU| over all detections, averaged over classes; false positives have IoU 0; from 0 "
             "to 100.", CALIBRATION, ("runs", "analysis")),
    _percent("D_ECE", "D-ECE", "lower",
             "Distance between mean score and precision at IoU 0.50 in 10 score bins; from 0 to 100.",
             CALIBRATION, ("runs", "analysis")),
    _percent("OCE", "OCE", "lower",
             "Object-level calibration error of set predictors: Brier score of the classes predicted for each object; "
             "from 0 to 200. From arrays only.", CALIBRATION),
    _percent("AP_mask", "AP, masks", "higher", "Average precision by the IoU of instance masks, as in COCO.",
             "", ("masks",)),
    _percent("AP50_mask", "AP50, masks", "higher", "Average precision at a mask IoU of 0.50.",
             "", ("masks",)),
    _percent("AP75_mask", "AP75, masks", "higher", "Average precision at a mask IoU of 0.75.",
             "", ("masks",)),
    Metric("lrp_threshold", "Threshold", "neither", 1, 3, "",
           "Score at which LRP is lowest: the best score threshold.", "", ("classes",), significant=3),
    Metric("seconds_per_iteration", "s / iteration", "lower", 1, 3, "seconds",
           "Seconds per training step, on the machine that trained the run.", "", ("runs",), is_timing=True),
)  # fmt: skip
"""Every metric that concordet reports."""

BY_KEY: Final = {metric.key: metric for metric in TABLE}


def table(name: Table) -> tuple[Metric, ...]:
    """The metrics of one table, in its order.

    Example:
        >>> [metric.key for metric in table("masks")]
        ['AP_mask', 'AP50_mask', 'AP75_mask']
    """
    return tuple(metric for metric in TABLE if name in metric.tables)


METRICS: Final = table("runs")
"""The metrics of a comparison of runs."""

MASK_METRICS: Final = table("masks")
"""Additional metrics of runs whose detectors predict masks."""

ANALYSIS: Final = table("analysis")
"""The metrics of one results file."""


def metrics_of(runs: Iterable[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """:data:`METRICS`, and :data:`MASK_METRICS` if any of the runs has them.

    Args:
        runs: Values of each run by metric.

    Returns:
        The metrics in the order in which tables show them.

    Example:
        >>> [metric.key for metric in metrics_of([{"AP": 0.4}])] == [metric.key for metric in METRICS]
        True
        >>> "AP_mask" in [metric.key for metric in metrics_of([{"AP": 0.4, "AP_mask": 0.3}])]
        True
    """
    has_masks = any(MASK_METRICS[0].key in values for values in runs)
    return (*METRICS, *MASK_METRICS) if has_masks else METRICS


def present(metrics: Sequence[Metric], values: Mapping[str, object]) -> tuple[Metric, ...]:
    """The metrics that the values contain, defined or not: with LVIS also APr, for example, and AR300 for AR100."""
    replaced = {"AR100"} if "AR300" in values else set()
    return tuple(metric for metric in metrics if metric.key in values and metric.key not in replaced)


def class_csv(per_class: Sequence[Mapping[str, Any]]) -> str:
    """Classes with objects as comma-separated values: every metric as a fraction, empty where undefined.

    Example:
        >>> print(class_csv([{"id": 3, "name": "a, b", "n_objects": 2, "AP": 0.5}]).splitlines()[1])
        3,"a, b",2,,,0.5
    """
    keys = ["n_detections", "n_true_positives", *(m.key for m in TABLE if any(m.key in row for row in per_class))]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", "name", "n_objects", *keys])
    for row in per_class:
        if row.get("n_objects"):
            cells = [row.get(key) for key in keys]
            writer.writerow([row["id"], row["name"], row["n_objects"], *("" if c is None else c for c in cells)])
    return stream.getvalue()
