"""The page of a study: differences between losses with intervals, and the metrics of all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from concordet.measures.bootstrap import MEASURES
from concordet.measures.metrics import BY_KEY, MISSING, Metric
from concordet.report.page import render, write_page
from concordet.report.plots import SLOTS, Line, forest_plot, line_plot

FIGURES: Final = (
    ("Learning curves", "AP during training", "curve", "update", "update"),
    ("AP by IoU threshold", "AP at each of COCO's ten IoU thresholds", "by_threshold", "iou", "IoU threshold"),
)
"""Title, description, part of the report, its axis and the axis's label."""


def write_study(report: Mapping[str, Any], out: Path, *, title: str, summary: str | None = None) -> Path:
    """Writes one self-contained page.

    Args:
        report: Result of :func:`concordet.study.compare_study`.
        out: The HTML file; written under a temporary name, then renamed.
        title: Heading of the page.
        summary: Sentence at the top.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` cannot be written.

    Example:
        >>> from concordet.study import Study, compare_study
        >>> study = Study(Path("study"), ("fcos",), ("default", "rank_sort"), seeds=(0, 1))
        >>> write_study(compare_study(study), Path("study.html"), title="fcos, not yet trained").name
        'study.html'
    """
    return write_page(study_page(report, title=title, summary=summary), out)


def study_page(report: Mapping[str, Any], *, title: str, summary: str | None = None) -> str:
    """The page as text."""
    states = report["states"]
    return render(
        "study.html.jinja",
        title=title,
        summary=summary,
        facts=[f"{count} {state}" for state, count in states.items() if count],
        reference=report["reference"],
        confidence=report["confidence"],
        groups=[_group(group) for group in report["groups"]],
        settings=report["settings"],
        failures=report["failures"],
    )


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    losses = group["losses"]
    aps = {e["loss"]: e["differences"]["AP"] for e in losses[1:] if "AP" in e["differences"]}
    aps = dict(sorted(aps.items(), key=lambda item: -item[1]["value"]))
    shown = [m for m in BY_KEY.values() if any(m.key in e["metrics"] for e in losses)]
    return {
        "name": group["detector"] + (f", {group['variant']}" if group["variant"] else ""),
        "plot": _forest(aps) if aps else None,
        "figures": [
            {"title": title, "about": about, "plots": plots}
            for title, about, *points in FIGURES
            if (plots := _curves(losses, *points))
        ],
        "losses": [e["loss"] for e in losses],
        "differences": [
            {
                "loss": e["loss"],
                "pairs": e["n_pairs"],
                "needed": e["seeds_needed"],
                "limit": None if e["limit_of_images"] is None else f"{100 * e['limit_of_images']:.1f}",
                "cells": [_difference(BY_KEY[key], e["differences"].get(key)) for key in MEASURES],
            }
            for e in losses[1:]
        ],
        "titles": [BY_KEY[key].title for key in MEASURES],
        "columns": [*(m.heading for m in shown), "processor ms per update ↓"],
        "rows": [
            {
                "loss": e["loss"],
                "seeds": len(e["seeds"]),
                "cells": [*(_spread(m, e["metrics"].get(m.key)) for m in shown), _milliseconds(e["processor_ms"])],
            }
            for e in losses
        ],
        "classes": [
            {"name": name, "cells": [_spread(BY_KEY["AP"], e["per_class"].get(name)) for e in losses]}
            for name in dict.fromkeys(name for e in losses for name in e["per_class"])
        ],
    }


def _forest(differences: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The differences in AP by loss, from top to bottom."""
    return forest_plot(
        [(loss, *(100 * row[key] for key in ("value", "low", "high"))) for loss, row in differences.items()],
        significant=[row["verdict"] in ("better", "worse") for row in differences.values()],
        title="Difference in AP",
        x_label="points of AP",
    )


def _curves(entries: Sequence[Mapping[str, Any]], key: str, axis: str, x_label: str) -> list[dict[str, Any]]:
    """AP of a loss and the reference along an axis, a plot each: bands of all losses in one would cover each other."""
    reference, *others = entries
    if len(reference[key]) < 2:
        return []
    plots = []
    for slot, entry in enumerate((e for e in others if len(e[key]) > 1), 1):
        lines, bands = [], []
        for e, color in ((reference, 0), (entry, 1 + (slot - 1) % (SLOTS - 1))):
            x = [point[axis] for point in e[key]]
            lines.append(Line(e["loss"], color, x, [100 * point["mean"] for point in e[key]]))
            if all(point["std"] is not None for point in e[key]):
                ends = ([100 * (p["mean"] + sign * p["std"]) for p in e[key]] for sign in (-1, 1))
                low, high = (Line(e["loss"], color, x, y) for y in ends)
                bands.append((low, high))
        plot = line_plot(lines, title=f"AP by {x_label}", x_label=x_label, y_label="AP", bands=bands)
        plots.append({"loss": entry["loss"], "slot": lines[1].slot, "plot": plot})
    return plots


def _milliseconds(entry: Mapping[str, Any] | None) -> dict[str, str | None]:
    if entry is None:
        return {"mean": MISSING, "std": None}
    return {"mean": f"{entry['mean']:.0f}", "std": None if entry["std"] is None else f"{entry['std']:.0f}"}


def _difference(metric: Metric, row: Mapping[str, Any] | None) -> dict[str, str]:
    if row is None:
        return {"text": MISSING, "interval": "", "verdict": ""}
    text = [metric.difference(0.0, row[key]) for key in ("value", "low", "high")]
    return {"text": text[0], "interval": f"{text[1]} to {text[2]}", "verdict": row["verdict"]}


def _spread(metric: Metric, entry: Mapping[str, Any] | None) -> dict[str, str | None]:
    if entry is None:
        return {"mean": MISSING, "std": None}
    return {"mean": metric.text(entry["mean"]), "std": None if entry["std"] is None else metric.text(entry["std"])}
