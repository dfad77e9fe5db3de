"""The page of one results file: largest errors, agreement of scores and IoUs, and examples of disagreement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np

from concordet.calibration.details import Details
from concordet.calibration.details import details as compute_details
from concordet.measures.analysis import LOSSES
from concordet.measures.compare import comparison_sentence
from concordet.measures.metrics import (
    BY_KEY,
    GROUPS,
    TABLE,
    class_csv,
    is_missing,
    number,
    table,
)
from concordet.report.findings import (
    IMAGES,
    calibration_section,
    confusion_view,
    cost_rows,
    curves_view,
    difference_rows,
    gain_rows,
    image_picture,
    image_rows,
    linker,
    size_rows,
)
from concordet.report.page import listed, render, write_page
from concordet.report.pictures import Pictures, disagreement_picture
from concordet.report.plots import Line, calibration_plot, density_plot, line_plot

if TYPE_CHECKING:
    from concordet.measures import Analysis

PICTURES: Final = 6
CASES: Final = 20
BOUNDED: Final = ("AP", "AP50", "AP75", "AP90")

MIN_OBJECTS: Final = 10
"""Fewest objects for which the summary names a class; AP of fewer is noise."""

STRENGTHS: Final = (
    (-0.2, "disagree"),
    (0.0, "do not agree"),
    (0.2, "barely agree"),
    (0.4, "agree weakly"),
    (0.6, "agree moderately"),
    (0.8, "agree well"),
    (np.inf, "agree very well"),
)
"""Upper limits of the rank correlation, and the words for it."""


def write_analysis(
    analysis: Analysis,
    out: Path,
    *,
    images: Path | None = None,
    title: str = "Analysis",
    comparison: Mapping[str, Any] | None = None,
    other: str = "the other",
    allow_outside: bool = False,
    details: Details | None = None,
) -> Path:
    """Writes one self-contained page about the result of :func:`concordet.measures.analyze`.

    Args:
        analysis: its result.
        out: the HTML file; written under a temporary name, then renamed.
        images: folder of the images, named by the ground truth's ``file_name``, or by image id; without it, the page
            lists the worst cases in a table.
        title: heading of the page, such as the name of the results file.
        comparison: result of :func:`concordet.measures.compare` with other detections, to be shown too.
        other: name of the other detections.
        allow_outside: whether names and links may lead to images outside of ``images``.
        details: intervals and calibration from :func:`concordet.calibration.details.details`; None to compute them.

    Returns:
        ``out``.

    Raises:
        ValueError: ``images`` is not a folder, an image lies outside of it, or ``out`` cannot be written.

    Example:
        >>> from concordet.measures import analyze
        >>> truth = {
        ...     "images": [{"id": 1}, {"id": 2}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in (1, 2)],
        ... }
        >>> results = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 10, 7 + i], "score": i / 4} for i in (1, 2)]
        >>> write_analysis(analyze(truth, results), Path("report.html"), title="cats").name
        'report.html'
    """
    if images is not None and not Path(images).is_dir():
        raise ValueError(
            f"images must be a folder, got {images}; name the folder that holds the images, or leave it out"
        )
    if details is None:
        details = compute_details(analysis)
    options: dict[str, Any] = {"title": title, "comparison": comparison, "other": other, "allow_outside": allow_outside}
    page = analysis_page(analysis, details, images=images, folder=Path(out).parent, **options)
    return write_page(page, out)


def analysis_page(
    analysis: Analysis,
    details: Details,
    *,
    images: Path | None = None,
    title: str = "Analysis",
    comparison: Mapping[str, Any] | None = None,
    other: str = "the other",
    allow_outside: bool = False,
    folder: Path | None = None,
) -> str:
    """The page as text; arguments are those of :func:`write_analysis`, and ``folder``, which links are relative to."""
    values = analysis.to_dict()
    cases, worst = values["disagreements"], values["images"]
    notes, doubts = [str(note) for note in values["notes"]], analysis.evidence.dataset.doubts
    pictures, image_pictures, source = [], [], None
    if images is not None:
        source = Pictures(Path(images), analysis.images, allow_outside=allow_outside)
        image_pictures = source.draw(worst, image_picture, IMAGES)
        pictures = source.draw(cases, disagreement_picture, PICTURES)
        notes += source.notes([*worst[:IMAGES], *cases[:PICTURES]])
    hit = analysis.true_positive
    bounds, clipped = _bounds(values, "", "upper", "lower", details.intervals)
    lead = [comparison_sentence(comparison, title, other)] if comparison is not None else []
    return render(
        "analysis.html.jinja",
        title=title,
        facts=_facts(values),
        summary=[*lead, *headline(analysis, details), *findings(values)],
        gains=gain_rows(values),
        costs=cost_rows(details) if values["n_kept"] else [],
        bounds=bounds,
        clipped=clipped,
        image_bounds=_bounds(values, "_raw", "image_upper", "image_lower", {})[0] if "AP_raw" in values else [],
        intervals=details.intervals,
        differences=difference_rows(comparison) if comparison is not None else [],
        resampling=comparison,
        other=other,
        groups=_groups(values),
        density=density_plot(analysis.scores[hit], analysis.ious[hit], slot=0, title="True positives"),
        n_true_positives=int(np.count_nonzero(hit)),
        thresholds=_threshold_plot(values["ap_by_threshold"]),
        calibration=_calibration(values["calibration"], "Calibration"),
        calibration_errors=[
            f"{BY_KEY[key].title} {BY_KEY[key].text(values.get(key))}" for key in ("LaECE0", "LaACE0", "D_ECE")
        ],
        calibrated=calibration_section(details),
        confusion=confusion_view(values),
        curves=curves_view(analysis, values),
        sizes=size_rows(values),
        classes=_class_table(values["per_class"], details.intervals["per_class"]),
        csv=csv_address(values["per_class"]),
        n_hidden=sum(not row.get("n_objects") for row in values["per_class"]),
        runs=[{"name": title, "slot": 0}],
        pictures=pictures,
        image_pictures=image_pictures,
        image_rows=image_rows(values, linker(source, folder)),
        cases=[_case(case) for case in cases[:CASES]],
        notes=notes,
        doubts=doubts,
    )  # fmt: skip


def headline(analysis: Analysis, details: Details) -> list[str]:
    """Sentences on the largest error, the largest of order, scale and boxes, and AP with that of a perfect ranking."""
    values, costs = analysis.summary, details.sentence
    if values["AP"] is None or not values["n_kept"]:
        return [analysis.sentence]
    largest = max(values["gains"], key=values["gains"].__getitem__)
    ap = BY_KEY["AP"]
    ends = details.intervals["AP"]
    interval = f" ({100 * details.intervals['confidence']:g} % interval {ap.text(ends[0])} to {ap.text(ends[1])})"
    state = (
        f"AP is {ap.text(values['AP'])}{interval if ends else ''}; a perfect ranking of the same boxes would give"
        f" {ap.text(values['AP_upper'])}."
    )
    if values["gains"][largest] < 0.0005:
        return [state] if costs is None else [f"{costs[:1].upper()}{costs[1:]}.", state]
    unit = "AP" if largest == "ranking" else "AP50"
    first = f"The largest cost is {LOSSES[largest]} ({100 * values['gains'][largest]:.1f} points of {unit})"
    return [f"{first}; {costs}." if costs else f"{first}.", state]


def findings(values: Mapping[str, Any]) -> list[str]:
    """Sentences of the summary that follow :func:`headline`."""
    ap = BY_KEY["AP"]
    sentences = []
    beta = number(values.get("beta_cls"))
    if beta is not None:
        strength = next(words for limit, words in STRENGTHS if beta < limit)
        n = values["n_classes_correlated"]
        sentences.append(
            f"Within a class, scores and IoUs of true positives {strength}: their rank correlation is "
            f"{BY_KEY['beta_cls'].text(beta)}, {f'on average over {n} classes' if n > 1 else 'in one class'} "
            "(1 is perfect)."
        )
    left = [
        (gap, row["n_objects"], row["name"])
        for row in values["per_class"]
        if row.get("n_objects", 0) >= MIN_OBJECTS and (gap := _left(row)) is not None and gap >= 0.001
    ]
    if len(left) > 1:
        worst = sorted(left, key=lambda each: -each[0])[:3]
        named = [f"{name} ({ap.difference(0, gap)} AP, {n:,} objects)" for gap, n, name in worst]
        sentences.append(f"A better ranking would gain most for {listed(named)}.")
    return sentences


def _facts(values: Mapping[str, Any]) -> list[str]:
    names = {
        "n_images": "image",
        "n_objects": "object",
        "n_detections": "detection",
        "n_true_positives": "true positive",
    }
    return [
        f"{values[key]:,} {name}{'s' * (values[key] != 1)}"
        for key, name in names.items()
        if not is_missing(values.get(key))
    ]


def _bounds(
    values: Mapping[str, Any], suffix: str, upper: str, lower: str, intervals: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of AP (keys with ``suffix``) with its bounds, and the metrics whose bounds do not bracket the value.

    If objects have several boxes, permuted scores change which of them is matched, and a bound can cross the value; the
    table then shows the value as the bound.
    """
    rows, clipped = [], []
    for key in BOUNDED:
        metric, value = BY_KEY[key], number(values.get(f"{key}{suffix}"))
        perfect, worst = number(values.get(f"{key}_{upper}")), number(values.get(f"{key}_{lower}"))
        if value is not None and perfect is not None and worst is not None:
            if metric.shown(worst) > metric.shown(value) or metric.shown(perfect) < metric.shown(value):
                clipped.append(metric.title)
            perfect, worst = max(perfect, value), min(worst, value)
        rows.append(
            {
                "metric": metric,
                "value": metric.text(value),
                "interval": "" if not (ends := intervals.get(key)) else " to ".join(map(metric.text, ends)),
                "upper": metric.text(perfect),
                "left": metric.difference(value, perfect),
                "lower": metric.text(worst),
            }
        )
    return rows, clipped


def _groups(values: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The metrics of the analysis by heading."""
    reasons = values.get("reasons") or {}
    rows: dict[str, list[dict[str, Any]]] = {heading: [] for heading in GROUPS}
    for metric in TABLE:
        if metric.group and metric.key in values:
            reason = reasons.get(metric.key)
            rows[metric.group].append({"metric": metric, "text": metric.text(values[metric.key]), "reason": reason})
    return [(heading, rows[heading]) for heading in GROUPS if rows[heading]]


def _threshold_plot(curve: Mapping[str, Any]) -> Any:
    thresholds = curve["iou"]
    if any(is_missing(value) for name in ("AP", "AP_upper", "AP_lower") for value in curve[name]):
        return None
    lines = {name: [100 * value for value in curve[name]] for name in ("AP", "AP_upper", "AP_lower")}
    return line_plot(
        [Line("AP", 0, thresholds, lines["AP"])],
        bands=[(Line("worst", 0, thresholds, lines["AP_lower"]), Line("perfect", 0, thresholds, lines["AP_upper"]))],
        title="AP by IoU threshold",
        x_label="IoU threshold",
        y_label="AP",
        y_from_zero=True,
        markers=True,
    )


def _calibration(bins: list[dict[str, Any]], title: str) -> Any:
    if not bins:
        return None
    return calibration_plot([(b["mean_score"], b["mean_iou"], b["count"]) for b in bins], slot=0, title=title)


def _class_table(per_class: list[dict[str, Any]], intervals: list[list[float] | None]) -> dict[str, Any]:
    """Classes that have objects, first those with most to gain from a better ranking."""
    rows = []
    metrics = table("classes")
    pairs = zip(per_class, intervals, strict=True)
    for row, ends in sorted(pairs, key=lambda pair: -(_left(pair[0]) or 0) * (pair[0].get("n_objects") or 0)):
        if not row.get("n_objects"):
            continue
        values = row | {"AP_left": _left(row)}
        cells = []
        for metric in metrics:
            value = number(values.get(metric.key))
            cells.append(
                {
                    "value": "" if value is None else repr(value),
                    "text": metric.text(value),
                    "interval": "–".join(map(metric.text, ends)) if ends and metric.key == "AP" else "",
                    "best": False,
                    "reason": (row.get("reasons") or {}).get(metric.key) if value is None else None,
                }
            )
        rows.append({"name": row["name"], "objects": row.get("n_objects"), "cells": cells})
    return {"metrics": metrics, "rows": rows, "with_objects": True}


def csv_address(per_class: list[dict[str, Any]]) -> str:
    """The table of classes as a ``data:`` URL of a CSV file."""
    return f"data:text/csv;charset=utf-8,{quote(class_csv(per_class), errors='replace')}"


def _left(row: Mapping[str, Any]) -> float | None:
    """AP that a perfect ranking would add for the class, from rounded values so that the printed columns add up."""
    value, upper = number(row.get("AP")), number(row.get("AP_upper"))
    ap = BY_KEY["AP"]
    return None if value is None or upper is None else max(ap.shown(upper) - ap.shown(value), 0.0) / ap.scale


def _case(case: Mapping[str, Any]) -> dict[str, Any]:
    first, better = case["first"], case["better"]
    return {
        "image": case.get("file_name") or case["image_id"],
        "class_name": case["class_name"],
        "cells": [first["score"], first["iou"], better["score"], better["iou"], case["gap"]],
    }
