"""The page of a study: which loss is better, how sure that is, and everything it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from concordet.measures.bootstrap import MEASURES
from concordet.measures.metrics import BY_KEY, METRICS
from concordet.report.page import render, write_page
from concordet.report.plots import forest_plot


def write_study(report: Mapping[str, Any], out: Path, *, title: str, summary: str | None = None) -> Path:
    """Writes one self-contained page.

    Args:
        report: What :func:`concordet.study.compare_study` gives.
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
        failures=report["failures"],
    )


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        (e["loss"], *(100 * e["differences"]["AP"][key] for key in ("value", "low", "high")))
        for e in group["losses"][1:]
        if "AP" in e["differences"]
    ]
    rows.sort(key=lambda row: -row[1])
    shown = [m for m in METRICS if any(m.key in e["metrics"] for e in group["losses"])]
    return {
        "name": group["detector"] + (f", {group['variant']}" if group["variant"] else ""),
        "plot": forest_plot(rows, title="Difference in AP", x_label="points of AP") if rows else None,
        "losses": [e["loss"] for e in group["losses"]],
        "differences": [
            {
                "loss": e["loss"],
                "pairs": e["n_pairs"],
                "needed": e["seeds_needed"],
                "cells": [_difference(BY_KEY[key], e["differences"].get(key)) for key in MEASURES],
            }
            for e in group["losses"][1:]
        ],
        "titles": [BY_KEY[key].title for key in MEASURES],
        "metrics": [
            {
                "title": m.title,
                "arrow": m.arrow,
                "cells": [_spread(m, e["metrics"].get(m.key)) for e in group["losses"]],
            }
            for m in shown
        ],
        "seeds": [len(e["seeds"]) for e in group["losses"]],
    }


def _difference(metric: Any, row: Mapping[str, Any] | None) -> dict[str, str]:
    if row is None:
        return {"text": "–", "interval": "", "verdict": ""}
    text = [metric.difference(0.0, row[key]) for key in ("value", "low", "high")]
    return {"text": text[0], "interval": f"{text[1]} to {text[2]}", "verdict": row["verdict"]}


def _spread(metric: Any, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    spread = "" if entry["std"] is None else f" ± {metric.text(entry['std'])}"
    return metric.text(entry["mean"]) + spread
