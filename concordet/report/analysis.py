"""The page of one results file: how well scores and IoUs agree, what that costs, and where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageOps

from concordet.measures.metrics import (
    AGREEMENT,
    ANALYSIS_PER_CLASS,
    ERRORS,
    FIGURES,
    METRICS,
    MISSING,
    Metric,
    is_missing,
    number,
)
from concordet.report.matching import Disagreement
from concordet.report.page import fit, listed, render, write_page
from concordet.report.pictures import disagreement_picture
from concordet.report.plots import Line, calibration_plot, density_plot, line_plot

if TYPE_CHECKING:
    from concordet.measures import Analysis

PICTURES: Final = 12
CASES: Final = 20
GROUPS: Final = (("Agreement of score and IoU", AGREEMENT), ("Errors at the best threshold", ERRORS))
BOUNDED: Final = ("AP", "AP50", "AP75", "AP90")


def write_analysis(
    analysis: Analysis,
    out: Path,
    *,
    images: Path | None = None,
    title: str = "Analysis",
    comparison: Mapping[str, Any] | None = None,
    other: str = "the other",
) -> Path:
    """Write one self-contained page on what :func:`concordet.measures.analyze` found.

    Args:
        analysis: its result.
        out: the HTML file; written under a temporary name, then renamed.
        images: folder of the images, found by the ground truth's ``file_name``, or by image id; without it the worst
            cases are a table.
        title: heading of the page, such as the name of the results file.
        comparison: what :func:`concordet.measures.compare` gives for these detections and others, to be shown too.
        other: the name of those others.

    Returns:
        ``out``.

    Raises:
        ValueError: ``images`` is no folder, or ``out`` cannot be written.
    """
    if images is not None and not Path(images).is_dir():
        raise ValueError(f"{images} is not a folder; name the folder that holds the images, or leave it away")
    return write_page(analysis_page(analysis, images=images, title=title, comparison=comparison, other=other), out)


def analysis_page(
    analysis: Analysis,
    *,
    images: Path | None = None,
    title: str = "Analysis",
    comparison: Mapping[str, Any] | None = None,
    other: str = "the other",
) -> str:
    """The page as text; arguments as :func:`write_analysis` takes them."""
    figures = analysis.to_dict()
    cases = figures.get("disagreements") or []
    pictures = [] if images is None else _pictures(cases, Path(images), analysis.images)
    notes = [str(note) for note in figures.get("notes") or []]
    if images is not None and len(pictures) < min(PICTURES, len(cases)):
        notes.append(f"Of the worst cases, {len(pictures)} had a readable image in {Path(images).name}.")
    hit = analysis.true_positive
    return render(
        "analysis.html.jinja",
        title=title,
        facts=_facts(figures),
        summary=[analysis.sentence, *_findings(figures)],
        bounds=_bounds(figures, "", "upper", "lower"),
        image_bounds=_bounds(figures, "_raw", "image_upper", "image_lower") if "AP_raw" in figures else [],
        differences=_differences(comparison) if comparison is not None else [],
        resampling=comparison,
        other=other,
        groups=[(heading, _rows(metrics, figures)) for heading, metrics in GROUPS],
        density=density_plot(analysis.scores[hit], analysis.ious[hit], slot=0, title="True positives"),
        n_true_positives=int(np.count_nonzero(hit)),
        thresholds=_threshold_plot(figures["ap_by_threshold"]),
        calibration=_calibration(figures),
        calibration_error=FIGURES["AIC_mean"].text(figures.get("calibration_error")),
        classes=_class_table(figures["per_class"]),
        runs=[{"name": title, "slot": 0}],
        pictures=pictures,
        cases=[_case(case) for case in cases[:CASES]],
        notes=notes,
    )  # fmt: skip


def _findings(figures: Mapping[str, Any]) -> list[str]:
    """What the summary says after its first sentence."""
    ap = FIGURES["AP"]
    sentences = []
    beta = number(figures.get("beta_cls"))
    if beta is not None:
        strength = (
            "agree"
            if beta >= 0.6
            else "agree in part"
            if beta >= 0.1
            else "hardly agree"
            if beta > -0.1
            else "disagree"
        )
        sentences.append(
            f"Within a class, scores and IoUs of true positives {strength}: their rank correlation is "
            f"{FIGURES['beta_cls'].text(beta)} on average, where 1 is perfect."
        )
    lost = [(gap, row["name"]) for row in figures["per_class"] if (gap := _left(row)) is not None]
    worst = sorted((pair for pair in lost if pair[0] >= 0.001), reverse=True)[:3]
    if len(lost) > 1 and worst:
        sentences.append(f"Most is lost on {listed([f'{name} ({ap.difference(0, gap)})' for gap, name in worst])}.")
    return sentences


def _facts(figures: Mapping[str, Any]) -> list[str]:
    names = {
        "n_images": "images",
        "n_objects": "objects",
        "n_detections": "detections",
        "n_true_positives": "true positives",
    }
    return [f"{figures[key]:,} {name}" for key, name in names.items() if not is_missing(figures.get(key))]


def _bounds(figures: Mapping[str, Any], reached: str, upper: str, lower: str) -> list[dict[str, Any]]:
    """Rows of AP as it is (keys with the ending ``reached``) between the bounds of the endings ``upper``, ``lower``."""
    rows = []
    for key in BOUNDED:
        metric, value, perfect = FIGURES[key], figures.get(f"{key}{reached}"), figures.get(f"{key}_{upper}")
        rows.append(
            {
                "metric": metric,
                "reached": metric.text(value),
                "upper": metric.text(perfect),
                "left": metric.difference(value, perfect),
                "lower": metric.text(figures.get(f"{key}_{lower}")),
            }
        )
    return rows


def _differences(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the paired comparison: both values, their difference, its interval and what that says."""
    rows = []
    for metric in METRICS:
        found = comparison.get(metric.key)
        if not isinstance(found, Mapping):
            continue
        known = not is_missing(found["difference"])
        better = known and (found["difference"] > 0) == (metric.better == "higher")
        rows.append(
            {
                "metric": metric,
                "first": metric.text(found["first"]),
                "second": metric.text(found["second"]),
                "difference": metric.difference(found["first"], found["second"]),
                "interval": f"{_signed(metric, found['low'])} to {_signed(metric, found['high'])}"
                if known
                else MISSING,
                "verdict": ("better" if better else "worse") if found["differs"] else "may be chance",
                "reason": found.get("reason"),
            }
        )
    return rows


def _signed(metric: Metric, value: float) -> str:
    return metric.difference(0, value)


def _rows(metrics: tuple[Metric, ...], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    reasons = figures.get("reasons") or {}
    return [
        {"metric": metric, "text": metric.text(figures.get(metric.key)), "reason": reasons.get(metric.key)}
        for metric in metrics
    ]


def _threshold_plot(curve: Mapping[str, Any]) -> Any:
    thresholds = curve["iou"]
    if any(is_missing(value) for name in ("AP", "AP_upper", "AP_lower") for value in curve[name]):
        return None
    lines = {name: [100 * value for value in curve[name]] for name in ("AP", "AP_upper", "AP_lower")}
    return line_plot(
        [Line("AP", 0, thresholds, lines["AP"])],
        band=(Line("worst", 0, thresholds, lines["AP_lower"]), Line("perfect", 0, thresholds, lines["AP_upper"])),
        title="AP by IoU threshold",
        x_label="IoU threshold",
        y_label="AP",
        y_from_zero=True,
        markers=True,
    )


def _calibration(figures: Mapping[str, Any]) -> Any:
    bins = [b for b in figures.get("calibration") or [] if b["count"]]
    if not bins:
        return None
    points = [(b["mean_score"], b["mean_iou"], b["count"]) for b in bins]
    return calibration_plot(points, slot=0, title="Calibration")


def _class_table(per_class: list[dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for row in per_class:
        values = row | {"AP_left": _left(row)}
        cells = []
        for metric in ANALYSIS_PER_CLASS:
            value = number(values.get(metric.key))
            cells.append(
                {
                    "value": "" if value is None else repr(value),
                    "text": metric.text(value),
                    "best": False,
                    "reason": (row.get("reasons") or {}).get(metric.key) if value is None else None,
                }
            )
        rows.append({"name": row["name"], "objects": row.get("n_objects"), "cells": cells})
    return {"metrics": ANALYSIS_PER_CLASS, "rows": rows, "with_objects": True}


def _left(row: Mapping[str, Any]) -> float | None:
    """What a perfect ranking would add to the class's AP."""
    reached, upper = number(row.get("AP")), number(row.get("AP_upper"))
    ap = FIGURES["AP"]  # from the figures as shown, so that the columns add up
    return None if reached is None or upper is None else (ap.shown(upper) - ap.shown(reached)) / ap.scale


def _case(case: Mapping[str, Any]) -> dict[str, Any]:
    first, better = case["first"], case["better"]
    return {
        "image": case.get("file_name") or case["image_id"],
        "class_name": case["class_name"],
        "cells": [first["score"], first["iou"], better["score"], better["iou"], case["gap"]],
    }


def _pictures(
    cases: list[dict[str, Any]], folder: Path, records: Mapping[Any, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    pictures: list[dict[str, Any]] = []
    for case in cases:
        if len(pictures) == PICTURES:
            break
        image = _open(case, folder)
        if image is None:
            continue
        known = records.get(case["image_id"], {}).get("width")
        stored = image.width / known if known else 1.0
        image, factor = fit(image)
        pair = Disagreement(
            image_id=case["image_id"],
            first=case["first"],
            second=case["better"],
            first_iou=case["first"]["iou"],
            second_iou=case["better"]["iou"],
            objects=({"bbox": case["object"]},),
            size=case["gap"],
        )
        pictures.append(disagreement_picture(pair, image, stored * factor, case["class_name"]))
    return pictures


def _open(case: Mapping[str, Any], folder: Path) -> Image.Image | None:
    name = case.get("file_name")
    paths = [folder / name, folder / Path(name).name] if name else []
    paths += [folder / f"{case['image_id']}{suffix}" for suffix in (".png", ".jpg", ".jpeg")]
    for path in paths:
        try:
            with Image.open(path) as file:
                return ImageOps.exif_transpose(file).convert("RGB")
        except OSError:
            continue
    return None
