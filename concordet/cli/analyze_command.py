"""``concordet analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "analyze",
        "Measures how well scores and IoUs agree in any detector's results, and what a better ranking is worth.",
        "concordet analyze instances_val2017.json results.json --images val2017 --html report.html --json out.json",
        "concordet analyze annotations.json ours.json --compare theirs.json",
    )
    options.add_argument("ground_truth", type=str, help="annotations in COCO form")
    options.add_argument("detections", type=str, help="results in COCO form, or a folder of text files")
    options.add_argument("--images", type=str | None, help="folder of the images, for the page's pictures")
    options.add_argument("--html", type=str | None, help="write a page")
    options.add_argument("--json", type=str | None, help="write the figures")
    options.add_argument("--iou_type", "--iou-type", type=str, default="bbox", help="bbox or segm")
    options.add_argument("--lvis", action="store_true", help="judge by LVIS's federated rules")
    options.add_argument("--max_dets", "--max-dets", type=int | None, help="detections kept per image and class")
    options.add_argument("--raw", type=str | None, help="the detector's output before NMS: adds beta_img")
    options.add_argument("--compare", type=str | None, help="a second results file, with intervals of the difference")
    options.add_argument("--resamples", type=int, default=1000, help="bootstrap draws of --compare")
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.errors import UsageError
    from concordet.files import writable, write_json

    given = parser().parse_args(words)
    if given.iou_type not in ("bbox", "segm"):
        raise UsageError(f"iou_type is bbox or segm, not {given.iou_type}")
    for name in (given.html, given.json):
        if name is not None:
            writable(Path(name).parent)
    if given.images is not None and not Path(given.images).is_dir():
        raise ValueError(f"{given.images} is not a folder; name the folder that holds the images")

    from concordet.measures import analyze, compare

    rules: dict[str, Any] = {"iou_type": given.iou_type, "lvis": given.lvis, "max_dets": given.max_dets}
    analysis = analyze(given.ground_truth, given.detections, raw_detections=given.raw, **rules)
    figures = analysis.to_dict()
    difference = None
    if given.compare is not None:
        other = analyze(given.ground_truth, given.compare, **rules)
        difference = compare(given.ground_truth, given.detections, given.compare, n_resamples=given.resamples, **rules)
        figures["comparison"] = {"other": other.to_dict(), "difference": difference}
    if given.html is not None:
        from concordet.report import write_analysis

        images = None if given.images is None else Path(given.images)
        names = {"title": Path(given.detections).name}
        if given.compare is not None:
            names |= {"other": Path(given.compare).name}
            if names["title"] == names["other"]:
                # run folders all call their results detections.json
                names = {
                    key: f"{Path(name).absolute().parent.name}/{Path(name).name}"
                    for key, name in (("title", given.detections), ("other", given.compare))
                }
        write_analysis(analysis, Path(given.html), images=images, comparison=difference, **names)
    if given.json is not None:
        write_json(given.json, figures)
    print(analysis.sentence)
    print_figures(figures)
    if given.html is not None:
        print(f"page: {given.html}")


def print_figures(figures: dict[str, Any]) -> None:
    """A table of the figures, and of the difference to a second results file where there is one."""
    from rich.console import Console
    from rich.table import Table

    from concordet.measures.metrics import ANALYSIS

    comparison = figures.get("comparison")
    table = Table("figure", *("first", "second", "difference", "95 % interval") if comparison else ("value",))
    for column in table.columns[1:]:
        column.justify = "right"
    for metric in ANALYSIS:
        value = figures.get(metric.key)
        if not comparison:
            table.add_row(metric.title, metric.text(value))
            continue
        difference = comparison["difference"].get(metric.key) or {}
        low, high = difference.get("low"), difference.get("high")
        table.add_row(
            metric.title,
            metric.text(value),
            metric.text(comparison["other"].get(metric.key)),
            metric.text(difference.get("difference")),
            "" if low is None else f"{metric.text(low)} to {metric.text(high)}",
        )
    Console().print(table)
    for note in figures.get("notes") or []:
        print(f"note: {note}")
