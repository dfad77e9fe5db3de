"""Sections of an analysis's page, as contexts of the template ``findings.html.jinja``; nothing is computed here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from PIL import Image

from concordet.calibration.details import Details
from concordet.measures import Analysis
from concordet.measures.analysis import LOSSES
from concordet.measures.metrics import BY_KEY, METRICS, MISSING, is_missing
from concordet.report.calibration import calibration_view
from concordet.report.draw import draw_errors, score_text
from concordet.report.page import data_uri, fit
from concordet.report.pictures import Pictures, corners
from concordet.report.plots import SLOTS, Line, axis_end, calibration_plot, line_plot

MAX_MATRIX_CLASSES: Final = 16
"""Largest number of classes for which the confusion matrix is shown; beyond it would be unreadable."""

CONFUSIONS: Final = 12
CARDS: Final = 6
IMAGES: Final = 9
LISTED_IMAGES: Final = 20
POINTS: Final = 80
"""Points of a curve."""

LINES: Final = ("precision", "recall", "F1")

ADVICE: Final = {
    "order": "a loss that couples score and IoU, such as rank_sort or focal+concordance(0.3)",
    "scale": "calibration: concordet calibrate",
    "boxes": "a better box loss, higher resolution, longer training",
}


def difference_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the paired comparison: both values, their difference with its interval, and a verdict."""
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
                "interval": f"{metric.difference(0, entry['low'])} to {metric.difference(0, entry['high'])}"
                if known
                else MISSING,
                "verdict": ("better" if better else "worse") if entry["differs"] else "may be chance",
                "reason": entry.get("reason"),
            }
        )
    return rows


def gain_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the AP that each kind of error costs, the largest first."""
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


def cost_rows(details: Details) -> list[dict[str, Any]]:
    """Rows of the costs of order, scale and boxes, the largest first."""
    units = {"order": "AP", "scale": "LaECE₀ at the thresholds", "boxes": "AP"}
    names = {"order": "Order", "scale": "Scale", "boxes": "Boxes"}
    costs = details.costs
    largest = max([*costs.values(), 0.001])
    return [
        {
            "name": names[key],
            "text": f"{100 * costs[key]:.1f}",
            "unit": units[key],
            "advice": ADVICE[key],
            "share": round(100 * costs[key] / largest),
        }
        for key in sorted(costs, key=lambda key: -costs[key])
    ]


def confusion_view(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The confusion matrix, if it is small enough, and the most frequent confusions; None with a single class."""
    confusion = values["confusion"]
    names = [row["name"] for row in confusion["per_class"]]
    if len(names) < 2:
        return None
    counts = {(pair["object"], pair["detection"]): pair["count"] for pair in confusion["pairs"]}
    rows = []
    for row in confusion["per_class"] if len(names) <= MAX_MATRIX_CLASSES else []:
        shares = [row["right"] if name == row["name"] else counts.get((row["name"], name), 0) for name in names]
        cells = [_cell(count, row["n_objects"], row["name"] == name) for count, name in zip(shares, names, strict=True)]
        rows.append({"name": row["name"], "cells": [*cells, _cell(row["missed"], row["n_objects"], False)]})
    top = [
        {**pair, "text": f"{100 * pair['share']:.1f} %", "width": round(100 * pair["count"] / top_count)}
        for top_count in [max([pair["count"] for pair in confusion["pairs"]], default=1)]
        for pair in confusion["pairs"][:CONFUSIONS]
    ]
    background = [row["background"] for row in confusion["per_class"]]
    return {"names": names, "rows": rows, "background": background, "top": top}


def _cell(count: int, total: int, right: bool) -> dict[str, Any]:
    share = count / total if total else 0.0
    text = "" if not count else f"{100 * share:.0f}" if share >= 0.005 else "<1"
    return {"text": text, "count": count, "strength": round(100 * share), "right": right}


def curves_view(analysis: Analysis, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Curves of all classes together, and cards of the classes with most to gain; None without true positives."""
    if not values["n_true_positives"]:
        return None
    rows = [row for row in values["per_class"] if row["n_objects"] and not is_missing(row["lrp_threshold"])]
    rows.sort(key=lambda row: -row["n_objects"] * (1 - row["AP50"]))
    cards = [_card(analysis, row["id"], row["name"], row) for row in rows[:CARDS]] if len(rows) > 1 else []
    whole = _card(analysis, None, "all classes", rows[0] if len(rows) == 1 else None)
    if cards:
        shown = sorted(rows, key=lambda row: -row["n_objects"])[:SLOTS]
        curves = [analysis.curve(row["id"]).thinned(POINTS) for row in shown]
        lines = [
            Line(row["name"], slot, curve.recall.tolist(), curve.precision.tolist())
            for slot, (row, curve) in enumerate(zip(shown, curves, strict=True))
        ]
        plot = line_plot(
            lines, title="Precision and recall by class", x_label="recall", y_label="precision", shares=True, x_end=1.0
        )
        some = f"The {len(lines)} of {len(rows):,} classes with most objects are shown."
        whole |= {
            "plots": [*whole["plots"], plot],
            "lines": [line.name for line in lines],
            "left_out": some if len(rows) > len(lines) else None,
        }
    return {
        "whole": whole,
        "cards": cards,
        "n_classes": len(rows),
        "legend": [{"name": name, "slot": slot} for slot, name in enumerate(LINES)],
    }


def _card(analysis: Analysis, class_id: int | None, name: str, row: Mapping[str, Any] | None) -> dict[str, Any]:
    whole = analysis.curve(class_id)
    threshold = None if row is None else row["lrp_threshold"]
    advised = None if threshold is None else whole.at(threshold)
    f1_best = int(np.argmax(whole.f1))
    curve = whole.thinned(POINTS)
    points = [] if advised is None else [(float(whole.recall[advised]), float(whole.precision[advised]))]
    plots = [
        line_plot(
            [Line("precision", 0, curve.recall.tolist(), curve.precision.tolist())],
            title=f"Precision and recall of {name}",
            x_label="recall",
            y_label="precision",
            points=points,
            shares=True,
            x_end=1.0,
        ),
        line_plot(
            [
                Line(line, slot, curve.threshold.tolist(), getattr(curve, line.lower()).tolist())
                for slot, line in enumerate(LINES)
            ],
            title=f"Precision, recall and F1 of {name}",
            x_label="score threshold",
            mark=threshold,
            shares=True,
            x_end=axis_end(whole.threshold[:1]),
        ),
    ]
    threshold_text = BY_KEY["lrp_threshold"].text
    facts = [f"F1 is highest, {whole.f1[f1_best]:.2f}, from {threshold_text(float(whole.threshold[f1_best]))}"]
    if row is not None and advised is not None:
        facts.insert(
            0,
            f"from {threshold_text(threshold)}: {int(whole.n_kept[advised]):,} detections, precision"
            f" {whole.precision[advised]:.2f}, recall {whole.recall[advised]:.2f}",
        )
    if class_id is not None and row is not None and row.get("calibration"):
        bins = [(b["mean_score"], b["mean_iou"], b["count"]) for b in row["calibration"]]
        plots.append(calibration_plot(bins, slot=0, title=f"Calibration of {name}"))
        facts.append(f"LaECE₀ {BY_KEY['LaECE0'].text(row.get('LaECE0'))}")
    return {"name": name, "plots": plots, "facts": facts, "lines": []}


def size_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of objects, AP and fraction detected by size."""
    limits = {"small": "up to 32 × 32", "medium": "to 96 × 96", "large": "from 96 × 96"}
    ap = BY_KEY["AP"]
    return [
        {
            "name": row["size"].capitalize(),
            "limits": limits[row["size"]],
            "objects": row["n_objects"],
            "cells": [ap.text(row["AP"]), ap.text(row["AP50"])],
            "detected": MISSING if row["detected"] is None else f"{100 * row['detected']:.0f} %",
            "share": round(100 * (row["detected"] or 0)),
        }
        for row in values["sizes"]
    ]


def image_rows(values: Mapping[str, Any], link: Callable[[Mapping[str, Any]], str | None]) -> list[dict[str, Any]]:
    """Rows of the images with most errors, with links to their files from ``link``."""
    return [
        {
            "name": row["file_name"] or row["image_id"],
            "link": link(row),
            "objects": row["n_objects"],
            "missed": row["n_missed"],
            "false": row["n_false"],
            "highest": f"{row['false_positives'][0]['score']:.3g}" if row["false_positives"] else "",
        }
        for row in values["images"][:LISTED_IMAGES]
    ]


def image_picture(row: Mapping[str, Any], image: Image.Image, scale: float) -> dict[str, Any]:
    """The picture of an image with its errors drawn on it.

    Args:
        row: An entry of an analysis's ``images``.
        image: The whole image.
        scale: Pixels of ``image`` per pixel of the ground truth's image.
    """
    image, factor = fit(image)

    def boxes(entries: list[dict[str, Any]]) -> Any:
        return corners([entry["bbox"] for entry in entries]) * scale * factor

    drawn = draw_errors(
        image,
        [(box, entry["class_name"]) for box, entry in zip(boxes(row["missed"]), row["missed"], strict=True)],
        [
            (box, f"{entry['class_name']} {score_text(entry['score'])}")
            for box, entry in zip(boxes(row["false_positives"]), row["false_positives"], strict=True)
        ],
        boxes(row["true_positives"]),
    )
    missed = f"{row['n_missed']} of {row['n_objects']} object{'s' * (row['n_objects'] != 1)} missed"
    false = f"{row['n_false']} false positive{'s' * (row['n_false'] != 1)}"
    highest = f", highest score {row['false_positives'][0]['score']:.3g}" if row["false_positives"] else ""
    return {
        "image": row["file_name"] or row["image_id"],
        "uri": data_uri(drawn),
        "caption": f"{missed}, {false}{highest}",
    }


def linker(source: Pictures | None, start: Path | None) -> Callable[[Mapping[str, Any]], str | None]:
    """Function from an image's record to its file relative to the page's folder ``start``; None without a file."""

    def link(record: Mapping[str, Any]) -> str | None:
        path = None if source is None or start is None else source.path(record)
        if path is None or start is None:
            return None
        # names that are not in UTF-8 keep their bytes
        return quote(Path(os.path.relpath(path.resolve(), start.resolve())).as_posix(), errors="surrogateescape")

    return link


def calibration_section(details: Details) -> dict[str, Any]:
    """Calibration errors before and after, maps and thresholds, or the reason why there are none."""
    if details.calibrator is None or details.report is None:
        return {"reason": details.reason}
    return {"reason": None, **calibration_view(details.calibrator, details.report)}
