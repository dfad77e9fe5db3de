"""The page of a calibrator: its effect on images that were not part of the fit, and its map per class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from concordet.calibration import Calibrator
from concordet.calibration.evaluation import METRICS
from concordet.measures.metrics import BY_KEY
from concordet.report.page import render, write_page
from concordet.report.plots import SLOTS, Line, calibration_plot, line_plot

SHOWN: Final = tuple(BY_KEY[key] for key in METRICS)
"""Metrics of the table."""


def write_calibration(calibrator: Calibrator, report: Mapping[str, Any], out: Path, *, title: str) -> Path:
    """Writes one self-contained page.

    Args:
        calibrator: the fitted calibrator.
        report: report of :func:`concordet.calibration.evaluate_calibration`.
        out: the HTML file; written under a temporary name, then renamed.
        title: heading of the page, such as the name of the results file.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` cannot be written.

    Example:
        >>> from concordet.calibration import evaluate_calibration
        >>> truth = {
        ...     "images": [{"id": 1}, {"id": 2}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in (1, 2)],
        ... }
        >>> results = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 10, 7 + i], "score": i / 4} for i in (1, 2)]
        >>> calibrator, report = evaluate_calibration(truth, results, method="linear", folds=2, n_resamples=10)
        >>> write_calibration(calibrator, report, Path("calibration.html"), title="cats").name
        'calibration.html'
    """
    return write_page(calibration_page(calibrator, report, title=title), out)


def calibration_page(calibrator: Calibrator, report: Mapping[str, Any], *, title: str) -> str:
    """The page as text."""
    return render(
        "calibration.html.jinja",
        title=title,
        sentence=sentence(report),
        facts=[
            f"{report['n_images']:,} images",
            f"{report['n_detections']:,} detections",
            f"{report['method']} maps",
            f"{report['folds']} folds of images",
        ],
        calibrated=calibration_view(calibrator, report),
        confidence=report["confidence"],
        notes=list(report.get("notes") or []),
    )


def calibration_view(calibrator: Calibrator, report: Mapping[str, Any]) -> dict[str, Any]:
    """Tables and plots of a calibration, for its own page and that of an analysis."""
    groups = [("All detections", _rows(report)), ("Above each class's threshold", _rows(report["operating"]))]
    return {
        "sentence": sentence(report),
        "groups": groups,
        "has_intervals": any(row["after_interval"] for _, rows in groups for row in rows),
        "plots": [
            (name, calibration_plot([(x, y, int(n)) for x, y, n in report["reliability"][side]], slot=slot, title=name))
            for slot, (side, name) in enumerate((("before", "Before"), ("after", "After")))
        ],
        "maps": _maps(calibrator),
        "classes": [{**row, **_class_texts(row)} for row in report["per_class"]],
    }


def sentence(report: Mapping[str, Any]) -> str:
    """The effect of calibration in one sentence.

    Example:
        >>> sentence({"before": {"LaECE0": 0.2}, "after": {"LaECE0": 0.05}})
        'On images that the fit did not see, LaECE₀ falls from 20.0 to 5.0; AP and the order do not change.'
    """
    before, after = report["before"]["LaECE0"], report["after"]["LaECE0"]
    if before is None or after is None:
        return "The calibration error is undefined: no class has an object and a detection."
    moves = "falls" if after < before else "rises" if after > before else "stays"
    first, second = (BY_KEY["LaECE0"].text(value) for value in (before, after))
    change = f"at {first}" if moves == "stays" else f"from {first} to {second}"
    return f"On images that the fit did not see, LaECE₀ {moves} {change}; AP and the order do not change."


def _rows(report: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for metric in SHOWN:
        name = metric.key
        intervals = report["intervals"].get(name, {})
        cells = {side: metric.text(report[side][name]) for side in ("before", "after")}
        for side in ("before", "after", "difference"):
            ends = intervals.get(side)
            texts = [metric.difference(0.0, end) if side == "difference" else metric.text(end) for end in ends or ()]
            cells[f"{side}_interval"] = " to ".join(texts)
        rows.append({"name": name, "title": metric.title, **cells, "reason": report["reasons"].get(name, "")})
    return rows


def _maps(calibrator: Calibrator) -> Any:
    """Maps of the classes with most detections, and of all classes together."""
    own = [entry for entry in calibrator.classes.values() if entry.reason is None]
    own.sort(key=lambda entry: -entry.n_detections)
    named = [("all classes", calibrator.shared), *((entry.name, entry.map) for entry in own[: SLOTS - 1])]
    scores = np.linspace(0, calibrator.fit.get("highest_score") or 1.0, 201)
    lines = [Line(name, slot, scores.tolist(), fitted(scores).tolist()) for slot, (name, fitted) in enumerate(named)]
    plot = line_plot(lines, title="Calibrated score by score", x_label="score", y_label="calibrated score")
    return {"plot": plot, "names": [name for name, _ in named], "left_out": len(own) - len(named) + 1}


def _class_texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "threshold": BY_KEY["lrp_threshold"].text(row["threshold"]),
        **{key: BY_KEY["LaECE0"].text(row[key]) for key in ("LaECE0_before", "LaECE0_after")},
    }
