"""The page of one results file: what costs most, how well scores and IoUs agree, and where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from concordet.images import read_rgb
from concordet.measures.analysis import LOSSES
from concordet.measures.compare import comparison_sentence
from concordet.measures.metrics import (
    BY_KEY,
    GROUPS,
    METRICS,
    MISSING,
    TABLE,
    Metric,
    is_missing,
    number,
    table,
)
from concordet.paths import require_inside
from concordet.report.page import fit, listed, render, write_page
from concordet.report.pictures import disagreement_picture
from concordet.report.plots import Line, calibration_plot, density_plot, line_plot

if TYPE_CHECKING:
    from concordet.measures import Analysis

PICTURES: Final = 12
CASES: Final = 20
DIAGRAMS: Final = 12
"""Reliability diagrams of classes, those with the most detections."""

BOUNDED: Final = ("AP", "AP50", "AP75", "AP90")

MIN_OBJECTS: Final = 10
"""Objects from which a class is named in the summary; AP of fewer is noise."""

ALLOW: Final = "move the file, or allow it with allow_outside=True (--allow_outside)"

MAX_WIDTH: Final = 1_000_000
"""Pixels from which the width that a ground truth gives is not believed."""

STRENGTHS: Final = (
    (-0.2, "disagree"),
    (0.0, "do not agree"),
    (0.2, "barely agree"),
    (0.4, "agree weakly"),
    (0.6, "agree moderately"),
    (0.8, "agree well"),
    (np.inf, "agree very well"),
)
"""Words for correlations below each limit."""


def write_analysis(
    analysis: Analysis,
    out: Path,
    *,
    images: Path | None = None,
    title: str = "Analysis",
    comparison: Mapping[str, Any] | None = None,
    other: str = "the other",
    allow_outside: bool = False,
) -> Path:
    """Write one self-contained page on the result of :func:`concordet.measures.analyze`.

    Args:
        analysis: its result.
        out: the HTML file; written under a temporary name, then renamed.
        images: folder of the images, named by the ground truth's ``file_name``, or by image id; without it the worst
            cases are a table.
        title: heading of the page, such as the name of the results file.
        comparison: what :func:`concordet.measures.compare` gives for these detections and others, to be shown too.
        other: the name of those others.
        allow_outside: whether names and links may lead to images outside of ``images``.

    Returns:
        ``out``.

    Raises:
        ValueError: ``images`` is no folder, an image lies outside of it, or ``out`` cannot be written.

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
    options: dict[str, Any] = {"title": title, "comparison": comparison, "other": other, "allow_outside": allow_outside}
    return write_page(analysis_page(analysis, images=images, **options), out)


def analysis_page(
    analysis: Analysis,
    *,
    images: Path | None = None,
    title: str = "Analysis",
    comparison: Mapping[str, Any] | None = None,
    other: str = "the other",
    allow_outside: bool = False,
) -> str:
    """The page as text; arguments as :func:`write_analysis` takes them."""
    values = analysis.to_dict()
    cases = values.get("disagreements") or []
    pictures = [] if images is None else _pictures(cases, Path(images), analysis.images, allow_outside)
    notes = [str(note) for note in values.get("notes") or []]
    if images is not None and len(pictures) < min(PICTURES, len(cases)):
        wanted = min(PICTURES, len(cases))
        first = cases[0].get("file_name") or f"{cases[0]['image_id']}.jpg"
        notes.append(
            f"{len(pictures)} of {wanted} images of the worst cases were readable in {Path(images).name}"
            f" (looked for {first}, for example)"
        )
    hit = analysis.true_positive
    bounds, clipped = _bounds(values, "", "upper", "lower")
    lead = [comparison_sentence(comparison, title, other)] if comparison is not None else []
    return render(
        "analysis.html.jinja",
        title=title,
        facts=_facts(values),
        summary=[*lead, analysis.sentence, *_findings(values)],
        gains=_gains(values),
        bounds=bounds,
        clipped=clipped,
        image_bounds=_bounds(values, "_raw", "image_upper", "image_lower")[0] if "AP_raw" in values else [],
        differences=_differences(comparison) if comparison is not None else [],
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
        diagrams=_diagrams(values["per_class"]),
        classes=_class_table(values["per_class"]),
        n_hidden=sum(not row.get("n_objects") for row in values["per_class"]),
        runs=[{"name": title, "slot": 0}],
        pictures=pictures,
        cases=[_case(case) for case in cases[:CASES]],
        notes=notes,
    )  # fmt: skip


def _findings(values: Mapping[str, Any]) -> list[str]:
    """What the summary says after its first sentence."""
    ap = BY_KEY["AP"]
    sentences = []
    beta = number(values.get("beta_cls"))
    if beta is not None:
        strength = next(words for limit, words in STRENGTHS if beta < limit)
        n = values["n_classes_correlated"]
        sentences.append(
            f"Within a class, scores and IoUs of true positives {strength}: their rank correlation is "
            f"{BY_KEY['beta_cls'].text(beta)}, {f'on average over {n} classes' if n > 1 else 'in one class'}, "
            "where 1 is perfect."
        )
    left = [
        (gap, row["n_objects"], row["name"])
        for row in values["per_class"]
        if row.get("n_objects", 0) >= MIN_OBJECTS and (gap := _left(row)) is not None and gap >= 0.001
    ]
    if len(left) > 1:
        worst = sorted(left, key=lambda each: -each[0])[:3]
        named = [f"{name} ({ap.difference(0, gap)} AP, {n:,} objects)" for gap, n, name in worst]
        sentences.append(f"A better ranking has most to gain on {listed(named)}.")
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


def _gains(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of what each kind of error costs, the largest first."""
    gains = values.get("gains") or {}
    largest = max([*gains.values(), 0.001])
    return [
        {
            "name": LOSSES[key][:1].upper() + LOSSES[key][1:],
            "metric": "AP" if key == "ranking" else "AP50",
            "text": BY_KEY["AP"].difference(0, gains[key]),
            "share": round(100 * max(gains[key], 0) / largest),
        }
        for key in sorted(gains, key=lambda key: -gains[key])
    ]


def _bounds(values: Mapping[str, Any], suffix: str, upper: str, lower: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of AP as ranked (keys with ``suffix``) between its bounds, and the metrics whose bounds do not bracket it.

    Where an object has several boxes, permuted scores change which of them is matched, and a bound can cross the value:
    the table then shows the value itself.
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
                "upper": metric.text(perfect),
                "left": metric.difference(value, perfect),
                "lower": metric.text(worst),
            }
        )
    return rows, clipped


def _differences(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the paired comparison: both values, their difference, its interval and what that says."""
    rows = []
    for metric in METRICS:
        entry = comparison.get(metric.key)
        if not isinstance(entry, Mapping):
            continue
        known = not is_missing(entry["difference"])
        better = known and (entry["difference"] > 0) == (metric.better == "higher")
        rows.append(
            {
                "metric": metric,
                "first": metric.text(entry["first"]),
                "second": metric.text(entry["second"]),
                "difference": metric.difference(entry["first"], entry["second"]),
                "interval": f"{_signed(metric, entry['low'])} to {_signed(metric, entry['high'])}"
                if known
                else MISSING,
                "verdict": ("better" if better else "worse") if entry["differs"] else "may be chance",
                "reason": entry.get("reason"),
            }
        )
    return rows


def _signed(metric: Metric, value: float) -> str:
    return metric.difference(0, value)


def _groups(values: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Every metric that the analysis has, under its heading."""
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


def _diagrams(per_class: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reliability diagrams of the classes with objects and the most detections; none for a single class."""
    rows = [row for row in per_class if row.get("n_objects") and row.get("calibration")]
    if len(rows) < 2:
        return []
    rows = sorted(rows, key=lambda row: -row["n_kept"])[:DIAGRAMS]
    return [
        {
            "name": row["name"],
            "plot": _calibration(row["calibration"], f"Calibration of {row['name']}"),
            "error": BY_KEY["LaECE0"].text(row.get("LaECE0")),
        }
        for row in rows
    ]


def _class_table(per_class: list[dict[str, Any]]) -> dict[str, Any]:
    """Classes that have objects, those first on which a better ranking gains most."""
    rows = []
    metrics = table("classes")
    for row in sorted(per_class, key=lambda row: -(_left(row) or 0) * (row.get("n_objects") or 0)):
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
                    "best": False,
                    "reason": (row.get("reasons") or {}).get(metric.key) if value is None else None,
                }
            )
        rows.append({"name": row["name"], "objects": row.get("n_objects"), "cells": cells})
    return {"metrics": metrics, "rows": rows, "with_objects": True}


def _left(row: Mapping[str, Any]) -> float | None:
    """What a perfect ranking would add to the class's AP, from the values as printed, so that the columns add up."""
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


def _pictures(
    cases: list[dict[str, Any]], folder: Path, records: Mapping[Any, Mapping[str, Any]], allow_outside: bool
) -> list[dict[str, Any]]:
    pictures: list[dict[str, Any]] = []
    for case in cases:
        if len(pictures) == PICTURES:
            break
        image = _open(case, folder, allow_outside)
        if image is None:
            continue
        width = number(records.get(case["image_id"], {}).get("width"))
        stored = image.width / width if width is not None and 1 <= width < MAX_WIDTH else 1.0
        image, factor = fit(image)
        pictures.append(disagreement_picture(case, image, stored * factor))
    return pictures


def _open(case: Mapping[str, Any], folder: Path, allow_outside: bool) -> Image.Image | None:
    """The image of a case, or None where no file of the folder is it.

    Raises:
        ValueError: the only file is outside of the folder.
    """
    name, where = case.get("file_name"), f"image {case['image_id']} of the ground truth"
    paths = [folder / name, folder / Path(name).name] if name else []
    paths += [folder / f"{case['image_id']}{suffix}" for suffix in (".png", ".jpg", ".jpeg")]
    outside = None
    for path in paths:
        try:
            require_inside(path, [folder], where, allow_outside, fix=ALLOW)
        except ValueError as error:
            outside = outside or (error if "\0" not in str(path) and path.is_file() else None)
            continue
        try:
            return read_rgb(path, turn=True)
        except (ValueError, FileNotFoundError):
            continue
    if outside is not None:
        raise outside
    return None
