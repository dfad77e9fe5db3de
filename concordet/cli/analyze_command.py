"""``concordet analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from concordet.cli.options import Parser

# figure, heading, factor, decimals
SHOWN = (
    ("AP", "AP", 100, 1),
    ("AP50", "AP50", 100, 1),
    ("AP75", "AP75", 100, 1),
    ("AR100", "AR100", 100, 1),
    ("AP_upper", "AP, best ranking", 100, 1),
    ("AP_lower", "AP, worst ranking", 100, 1),
    ("beta_cls", "beta_cls", 1, 3),
    ("pearson", "Pearson", 1, 3),
    ("spearman", "Spearman", 1, 3),
    ("kendall", "Kendall", 1, 3),
    ("concordance", "concordance", 1, 3),
    ("AIC", "AIC", 1, 1),
    ("AIC_mean", "AIC mean", 1, 3),
    ("oLRP", "oLRP", 100, 1),
    ("oLRP_loc", "oLRP localisation", 100, 1),
    ("oLRP_fp", "oLRP false positives", 100, 1),
    ("oLRP_fn", "oLRP false negatives", 100, 1),
)


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
    from concordet.engine.errors import UsageError
    from concordet.engine.files import writable, write_json

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
    if given.compare is not None:
        other = analyze(given.ground_truth, given.compare, **rules)
        difference = compare(given.ground_truth, given.detections, given.compare, n_resamples=given.resamples, **rules)
        figures["comparison"] = {"other": other.to_dict(), "difference": difference}
    if given.html is not None:
        from concordet.report import write_analysis

        images = None if given.images is None else Path(given.images)
        write_analysis(analysis, Path(given.html), images=images, title=Path(given.detections).name)
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

    comparison = figures.get("comparison")
    table = Table("figure", *("first", "second", "difference", "95 % interval") if comparison else ("value",))
    for column in table.columns[1:]:
        column.justify = "right"
    for key, heading, factor, decimals in SHOWN:
        if not comparison:
            table.add_row(heading, _text(figures.get(key), factor, decimals))
            continue
        difference = comparison["difference"].get(key) or {}
        low, high = difference.get("low"), difference.get("high")
        table.add_row(
            heading,
            _text(figures.get(key), factor, decimals),
            _text(comparison["other"].get(key), factor, decimals),
            _text(difference.get("difference"), factor, decimals),
            "" if low is None else f"{_text(low, factor, decimals)} to {_text(high, factor, decimals)}",
        )
    Console().print(table)
    for note in figures.get("notes") or []:
        print(f"note: {note}")


def _text(value: float | None, factor: int, decimals: int) -> str:
    return "-" if value is None else f"{factor * value:.{decimals}f}"
