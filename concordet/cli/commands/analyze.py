"""``concordet analyze``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "analyze",
        "Analyzes the results of any detector: AP, how well scores and IoUs agree, and what a better ranking would "
        "gain.",
        "concordet analyze instances_val2017.json results.json --images val2017 --html report.html --json out.json",
        "concordet analyze annotations.json ours.json --compare theirs.json",
    )
    options.add_argument("ground_truth", type=str, help="COCO annotation file, or a folder of text files.")
    options.add_argument("detections", type=str, help="COCO results file, or a folder of text files.")
    options.add_argument("--html", type=str | None, help="HTML page to write.")
    options.add_argument("--images", type=str | None, help="Folder with the images, to show pictures on the page.")
    options.add_argument(
        "--allow_outside",
        "--allow-outside",
        action="store_true",
        help="Also read images outside the folder of --images.",
    )
    options.add_argument("--title", type=str | None, help="Title of the page; by default the name of the results file.")
    options.add_argument("--json", type=str | None, help="JSON file for the metrics; - is standard output.")
    options.add_argument("--csv", type=str | None, help="CSV file for the metrics per class.")
    options.add_argument("--compare", type=str | None, help="Second results file to compare with.")
    options.add_matching("Evaluate")
    options.add_argument("--raw", type=str | None, help="Results before NMS, for beta_img.")
    options.add_argument(
        "--resamples",
        type=int | None,
        help="Bootstrap samples for the intervals; by default 1000, on the page fewer for 40,000 detections or more.",
    )
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.cli.outputs import check_outputs, messages
    from concordet.errors import UsageError, unknown
    from concordet.files import write_json, write_text

    args = parser().parse_args(words)
    if args.iou_type not in ("bbox", "segm"):
        raise UsageError(unknown("iou_type", args.iou_type, ("bbox", "segm")))
    if args.resamples is not None and args.resamples < 1:
        raise UsageError(f"resamples must be at least 1, got {args.resamples}; 1000 is common")
    inputs = (args.ground_truth, args.detections, args.compare, args.raw, args.images)
    check_outputs({"--html": args.html, "--json": args.json, "--csv": args.csv}, inputs, force=args.force)
    if args.images is not None and not Path(args.images).is_dir():
        raise ValueError(f"images must be a folder, got {args.images}; name the folder that contains the images")

    from concordet.calibration.calibrator import has_raw_scores
    from concordet.measures import analyze, compare

    rules: dict[str, Any] = {"iou_type": args.iou_type, "lvis": args.lvis, "max_dets": args.max_dets}
    analysis = analyze(args.ground_truth, args.detections, raw_detections=args.raw, **rules)
    if has_raw_scores(args.detections):
        analysis.summary["notes"].append(
            "the scores are calibrated (the records have a raw_score too): on the images of the fit, the calibration "
            "errors are smaller than on others; evaluation.json of the run has cross-fitted ones"
        )
    values = analysis.to_dict()
    difference = None
    if args.compare is not None:
        other = analyze(args.ground_truth, args.compare, **rules)
        difference = compare(
            args.ground_truth,
            args.detections,
            args.compare,
            n_resamples=1000 if args.resamples is None else args.resamples,
            **rules,
        )
        values["comparison"] = {"other": other.to_dict(), "difference": difference}
    names = {"title": Path(args.detections).name}
    if args.compare is not None:
        names |= {"other": Path(args.compare).name}
        if names["title"] == names["other"]:
            # run folders all call their results detections.json
            names = {
                key: f"{Path(name).absolute().parent.name}/{Path(name).name}"
                for key, name in (("title", args.detections), ("other", args.compare))
            }
    if args.title is not None:
        names["title"] = args.title
    if args.html is not None:
        from concordet.calibration.details import details
        from concordet.report import write_analysis

        extra = details(analysis, n_resamples=args.resamples)
        values |= extra.to_dict()
        images = None if args.images is None else Path(args.images)
        options: dict[str, Any] = {
            "images": images,
            "comparison": difference,
            "details": extra,
            "allow_outside": args.allow_outside,
            **names,
        }
        write_analysis(analysis, Path(args.html), **options)
    with messages(args.json, args.csv, args.html):
        if difference is not None:
            from concordet.measures.compare import comparison_sentence

            print(comparison_sentence(difference, names["title"], names["other"]))
        print(analysis.sentence)
        print_metrics(values, analysis.evidence.dataset.doubts)
        if args.html is not None:
            print(f"page: {args.html}")
        if args.csv is not None:
            print(f"metrics per class: {args.csv}")
    if args.json is not None:
        write_json(args.json, values)
    if args.csv is not None:
        from concordet.measures.metrics import class_csv

        write_text(args.csv, class_csv(values["per_class"]))


def print_metrics(values: dict[str, Any], doubts: Sequence[str] = ()) -> None:
    """Prints a table of the metrics by group, with differences to a second results file if there is one.

    Args:
        values: Values by metric, and notes.
        doubts: Notes that suggest a mistake in the input; red on a terminal.
    """
    from rich.table import Table

    from concordet.cli.tables import wide_console
    from concordet.measures.metrics import ANALYSIS, GROUPS, present

    comparison, intervals = values.get("comparison"), values.get("intervals") or {}
    headings = ["first", "second", "difference", "95 % interval"] if comparison else ["value"]
    if intervals and not comparison:
        headings.append("95 % interval")
    table = Table("metric", *headings)
    for column in table.columns[1:]:
        column.justify = "right"
    for group in GROUPS:
        table.add_section()
        for metric in present(ANALYSIS, values):
            if metric.group != group:
                continue
            cells = [metric.text(values.get(metric.key))]
            ends = intervals.get(metric.key)
            if comparison:
                difference = comparison["difference"].get(metric.key) or {}
                cells += [metric.text(comparison["other"].get(metric.key)), metric.text(difference.get("difference"))]
                ends = None if difference.get("low") is None else (difference["low"], difference["high"])
            if len(headings) > 1:
                cells.append("" if not ends else " to ".join(map(metric.text, ends)))
            table.add_row(metric.heading, *cells)
    console = wide_console()
    console.print(table)
    for metric in present(ANALYSIS, values):
        if values[metric.key] is None and metric.key in values.get("reasons", {}):
            print(f"{metric.title} is undefined: {values['reasons'][metric.key]}")
    for note in values.get("notes") or []:
        console.print(
            f"note: {note}", style="red" if note in doubts else None, markup=False, highlight=False, soft_wrap=True
        )
