"""The page that compares runs: metrics, training curves and detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from concordet.calibration.runs import run_differences
from concordet.measures.metrics import BY_KEY, Metric, is_missing, metrics_of, number
from concordet.measures.metrics import table as metrics_table
from concordet.measures.runs import DEFAULT_LOSS, Run, read_runs, same_ground_truth, setting_differences
from concordet.report.findings import difference_rows
from concordet.report.page import listed, render, write_page
from concordet.report.pictures import disagreement_pictures, sample_pictures
from concordet.report.plots import Line, density_plot, line_plot, thin

NO_BREAK: Final = "\u00a0"

MAX_COMPARED_TO_FIRST: Final = 3
"""Number of runs up to which the summary compares each with the first; with more, it names the best per metric."""


def write_comparison(run_folders: Sequence[Path], out: Path) -> Path:
    """Writes one self-contained page that compares runs with the first one.

    Runs may lack some of their files: the page shows what the others contain and says what is missing.

    Args:
        run_folders: evaluated runs, one or more.
        out: the HTML file; written under a temporary name, then renamed.

    Returns:
        ``out``.

    Raises:
        ValueError: a folder is not an evaluated run, one of its files is damaged, or ``out`` cannot be written.

    Example:
        >>> write_comparison([Path("runs/first")], Path("comparison.html")).name
        'comparison.html'
    """
    runs = read_runs(run_folders)
    return write_page(comparison_page(runs, run_differences(runs)), out)


def comparison_page(runs: Sequence[Run], differences: Sequence[Mapping[str, Any] | None]) -> str:
    """The page as text; ``differences`` are those of :func:`concordet.calibration.runs.run_differences`."""
    sample_rows = sample_pictures(runs)
    return render(
        "comparison.html.jinja",
        runs=[{"name": run.name, "in_text": _in_text(run), "slot": i} for i, run in enumerate(runs)],
        facts=_facts(runs),
        summary=summary(runs),
        cautions=cautions(runs),
        intervals=[
            {"name": run.name, "slot": slot, "rows": difference_rows(each), "comparison": each}
            for slot, (run, each) in enumerate(zip(runs[1:], differences, strict=True), start=1)
            if each is not None
        ],
        table=metrics_table_rows(runs),
        metrics=metrics_of(run.metrics for run in runs),
        curves=training_curves(runs),
        densities=densities(runs),
        thresholds=threshold_curves(runs),
        classes=class_table(runs),
        samples=sample_rows,
        disagreements=[
            {"name": run.name, "slot": i, "pairs": pairs}
            for i, run in enumerate(runs)
            if (pairs := disagreement_pictures(run))
        ],
        differences=setting_differences(runs),
        has_settings=sum(bool(run.settings) for run in runs),
        environment=_environment_rows(runs),
        notes=[note for run in runs for note in run.notes],
    )  # fmt: skip


def summary(runs: Sequence[Run]) -> list[str]:
    """The metrics in sentences, worded alike whether a run is better or worse."""
    first, others = runs[0], runs[1:]
    ap = BY_KEY["AP"]
    if not others:
        known = [m for m in _agreement([first]) if not is_missing(first.metrics.get(m.key))]
        agreement = listed([f"{m.title} {m.text(first.metrics[m.key])}" for m in known])
        sentences = [f"{first.detector} with {_in_text(first)} reaches {ap.text(first.metrics.get('AP'))} AP."]
        return sentences + ([f"Agreement of score and IoU: {agreement}."] if known else [])
    if len(runs) <= MAX_COMPARED_TO_FIRST:
        sentences = [_ap_sentence(first, run) for run in others]
        sentences += [sentence for run in others if (sentence := _agreement_sentence(first, run))]
    else:
        sentences = [text for metric in (ap, *_agreement(runs)) if (text := _best_sentence(metric, runs))]
    return sentences


def cautions(runs: Sequence[Run]) -> list[str]:
    """Reasons why a difference between these runs may not be due to their losses."""
    if not same_ground_truth(runs):
        return [
            "The runs were evaluated on different images or objects, so differences are not only due to the detectors."
        ]
    others = [name for name, _ in setting_differences(runs) if name.split(".")[-1] != "loss"]
    differ = len({run.loss for run in runs}) > 1
    sentences = []
    if differ and others:
        names = [*others[:3], f"{len(others) - 3} more"] if len(others) > 3 else others
        sentences.append(f"The runs also differ in {listed(names)}, so differences are not only due to the loss.")
    if differ and len({run.loss for run in runs}) == len(runs):
        sentences.append(
            "Each loss was trained only once: small differences can be due to the seed, so train with several seeds "
            "(concordet study) before relying on them."
        )
    return sentences


def metrics_table_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rows of the main table: a metric, and a cell per run with its value and the difference from the first run."""
    rows = []
    for metric in metrics_of(run.metrics for run in runs):
        values = [run.metrics.get(metric.key) for run in runs]
        if all(is_missing(value) for value in values):
            continue
        rows.append(
            {"metric": metric, "cells": _cells(metric, values, reasons=[_reason(run, metric.key) for run in runs])}
        )
    return rows


def training_curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Plots of validation AP, total loss, loss terms and learning rate, each with all runs."""
    named = [{_curve_name(name): run.curves[name] for name in _curve_columns(run)} for run in runs]
    names = sorted({name for curves in named for name in curves}, key=lambda n: (_curve_rank(n), n))
    plots = []
    for name in names:
        factor = 100 if name.startswith("val/AP") else 1
        lines = []
        for slot, (run, curves) in enumerate(zip(runs, named, strict=True)):
            if name in curves:
                x, y = thin(*curves[name])
                lines.append(Line(run.name, slot, x, [factor * value for value in y]))
        title = {"lr": "Learning rate", "train/total": "Total loss"}.get(name) or name.removeprefix("train/")
        title = f"{title.removeprefix('val/')} on validation" if name.startswith("val/") else title
        markers = name.startswith("val/")
        plots.append({"title": title, "plot": line_plot(lines, title=title, x_label="iteration", markers=markers)})
    return plots


def densities(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Density plots of score against IoU of positives, for runs that saved theirs."""
    plots = []
    for slot, run in enumerate(runs):
        if run.positives is None or len(run.positives["scores"]) == 0:
            continue
        scores, ious = run.positives["scores"], run.positives["ious"]
        plots.append(
            {
                "name": run.name,
                "slot": slot,
                "plot": density_plot(scores, ious, slot=slot, title=run.name),
                "count": len(scores),
                "beta_img": BY_KEY["beta_img"].text(run.metrics.get("beta_img")),
                "pooled": BY_KEY["spearman"].text(run.spearman),
            }
        )
    return plots


def threshold_curves(runs: Sequence[Run]) -> dict[str, Any] | None:
    """AP by IoU threshold, a line per run, and the AP of a perfect ranking; None without detections."""
    lines, perfect = [], []
    for slot, run in enumerate(runs):
        if run.analysis is None:
            continue
        summary = run.analysis.summary
        curve = summary["ap_by_threshold"]
        if is_missing(summary["AP"]):
            continue
        lines.append(Line(run.name, slot, curve["iou"], [100 * value for value in curve["AP"]]))
        ap = BY_KEY["AP"]
        perfect.append(
            {
                "in_text": _in_text(run),
                "slot": slot,
                "upper": ap.text(summary["AP_upper"]),
                "left": ap.difference(summary["AP"], summary["AP_upper"]),
            }
        )
    if not lines:
        return None
    plot = line_plot(
        lines, title="AP by IoU threshold", x_label="IoU threshold", y_label="AP", y_from_zero=True, markers=True
    )
    return {"plot": plot, "perfect": perfect}


def class_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Columns and rows of the table by class; without rows if no run has metrics by class."""
    names = list(dict.fromkeys(row["name"] for run in runs for row in run.per_class))
    by_name = [{row["name"]: row for row in run.per_class} for run in runs]
    metrics = [
        m
        for m in metrics_table("run classes")
        if any(not is_missing(row.get(m.key)) for run in runs for row in run.per_class)
    ]
    objects = _objects_by_class(runs)
    rows = []
    for name in names:
        cells = []
        for metric in metrics:
            cells += _cells(metric, [rows_of_run.get(name, {}).get(metric.key) for rows_of_run in by_name])
        rows.append({"name": name, "objects": objects.get(name), "cells": cells})
    return {"metrics": metrics, "rows": rows, "with_objects": bool(objects)}


def _cells(metric: Metric, values: Sequence[Any], reasons: Sequence[str | None] = ()) -> list[dict[str, Any]]:
    best = set() if metric.is_timing else metric.best(values)
    return [
        {
            "value": "" if (shown := number(value)) is None else repr(shown),
            "text": metric.text(value),
            "interval": "",
            "best": i in best,
            "difference": metric.difference(values[0], value) if i else "",
            "verdict": _verdict(metric, values[0], value) if i else "unknown",
            "reason": (reasons[i] if reasons else None) if is_missing(value) else None,
        }
        for i, value in enumerate(values)
    ]


def _verdict(metric: Metric, reference: Any, value: Any) -> str:
    verdict = metric.verdict(reference, value)
    return "same" if metric.is_timing and verdict != "unknown" else verdict


def _reason(run: Run, key: str) -> str:
    return run.reasons.get(key, "not measured, or undefined on these data")


def _in_text(run: Run) -> str:
    """The name of a run in a sentence: the default loss has an article, names of other losses have none."""
    return f"the {run.name}" if run.name.startswith(DEFAULT_LOSS) else run.name


def _capital(text: str) -> str:
    return f"The {text[4:]}" if text.startswith("the ") else text


def _ap_sentence(first: Run, run: Run) -> str:
    ap = BY_KEY["AP"]
    before, after = first.metrics.get("AP"), run.metrics.get("AP")
    verdict = ap.verdict(before, after)
    if verdict == "unknown":
        return f"AP of {_in_text(run)} and {_in_text(first)} cannot be compared: it is undefined for one of them."
    if verdict == "same":
        return _capital(f"{_in_text(run)} and {_in_text(first)} reach the same AP, {ap.text(after)}.")
    step = ap.difference(before, after).lstrip("+−")
    return _capital(
        f"{_in_text(run)} reaches {ap.text(after)} AP where {_in_text(first)} reaches {ap.text(before)}: "
        f"{step} points {verdict}."
    )


def _agreement_sentence(first: Run, run: Run) -> str | None:
    parts: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
    for metric in _agreement([first, run]):
        before, after = first.metrics.get(metric.key), run.metrics.get(metric.key)
        verdict = metric.verdict(before, after)
        if verdict == "same":
            parts["same"].append(f"{metric.title} {metric.text(after)}".replace(" ", NO_BREAK))
        elif verdict != "unknown":
            change = f"{metric.title} {metric.text(before)} → {metric.text(after)}"
            parts[verdict].append(change.replace(" ", NO_BREAK))
    said = [f"{'the same' if word == 'same' else word} by {listed(items)}" for word, items in parts.items() if items]
    if not said:
        return None
    return f"Compared with {_in_text(first)}, scores of {_in_text(run)} agree with IoUs {listed(said)}."


def _best_sentence(metric: Metric, runs: Sequence[Run]) -> str | None:
    values = [run.metrics.get(metric.key) for run in runs]
    best = sorted(metric.best(values))
    if not best:
        return None
    names = listed([_in_text(runs[i]) for i in best])
    own = "" if 0 in best else f", {metric.text(values[0])} for {_in_text(runs[0])}"
    return f"{metric.title} is best for {names}: {metric.text(values[best[0]])}{own}."


def _agreement(runs: Sequence[Run]) -> list[Metric]:
    # scores of ranking losses have no scale until they are calibrated
    raw = any(run.scores.startswith("not calibrated") for run in runs)
    scale = [] if raw and len({run.loss for run in runs}) > 1 else ["AIC_mean"]
    return [BY_KEY[key] for key in ("beta_img", "beta_cls", *scale)]


def _facts(runs: Sequence[Run]) -> list[str]:
    facts = [listed(list(dict.fromkeys(run.detector for run in runs)))]
    truth = next((run.ground_truth for run in runs if run.ground_truth is not None), None)
    if truth is not None and same_ground_truth(runs):
        objects = sum(not a.get("iscrowd") for a in truth.get("annotations", []))
        facts.append(f"{len(truth.get('images', [])):,} images with {objects:,} objects")
    return facts


def _objects_by_class(runs: Sequence[Run]) -> dict[str, int]:
    truth = next((run.ground_truth for run in runs if run.ground_truth is not None), None)
    if truth is None:
        return {}
    names = {c["id"]: str(c["name"]) for c in truth.get("categories", [])}
    counts = dict.fromkeys(names.values(), 0)
    for annotation in truth.get("annotations", []):
        if not annotation.get("iscrowd") and annotation["category_id"] in names:
            counts[names[annotation["category_id"]]] += 1
    return counts


def _environment_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    names = list(dict.fromkeys(name for run in runs for name in run.environment))
    return [(name, [run.environment.get(name, "") for run in runs]) for name in names]


def _curve_columns(run: Run) -> list[str]:
    """Columns to plot; for values logged both by step and by epoch, the one by step."""
    wanted = [n for n in run.curves if n.startswith(("train/", "lr")) or _curve_name(n) in {"val/AP", "val/AP75"}]
    return [n for n in wanted if not (n.endswith("_epoch") and n.removesuffix("_epoch") + "_step" in run.curves)]


def _curve_name(column: str) -> str:
    name = column.removesuffix("_step").removesuffix("_epoch")
    return "lr" if name.startswith("lr") else name


def _curve_rank(name: str) -> int:
    order = ("val/AP", "val/AP75", "train/total", "lr")
    return (order.index(name) if name != "lr" else 9) if name in order else 5
