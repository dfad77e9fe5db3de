"""``concordet calibrate``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from concordet.cli.options import Parser
from concordet.errors import UsageError


def parser() -> Parser:
    """The options."""
    options = Parser(
        "calibrate",
        "Maps scores to expected IoUs: boxes with a score of 0.8 then have an IoU of 0.8 on average. AP and the order "
        "of "
        "detections do not change.",
        "concordet calibrate annotations.json results.json --out calibrator.json --results calibrated.json",
        "concordet calibrate runs/first",
        "concordet calibrate --apply calibrator.json results.json --results calibrated.json",
    )
    options.add_argument("ground_truth", type=str, help="COCO annotation file, or the folder of an evaluated run.")
    options.add_argument("detections", type=str | None, nargs="?", help="COCO results file.")
    options.add_argument("--out", type=str | None, help="JSON file for the calibrator.")
    options.add_argument("--results", type=str | None, help="COCO results file for the calibrated detections.")
    options.add_argument("--apply", type=str | None, help="Calibrator to apply instead of fitting one.")
    options.add_argument(
        "--method", type=str, default="isotonic", help="Calibration method: isotonic, linear, platt or temperature."
    )
    options.add_argument(
        "--one_map", "--one-map", action="store_true", help="Fit one map for all classes instead of one per class."
    )
    options.add_argument(
        "--folds", type=int, default=5, help="Number of folds of images in which the report is cross-fitted."
    )
    options.add_argument("--resamples", type=int, default=1000, help="Bootstrap samples for the intervals.")
    options.add_matching("Match")
    options.add_argument("--json", type=str | None, help="JSON file for the report; - is standard output.")
    options.add_argument("--html", type=str | None, help="HTML page with the report.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.cli.outputs import check_outputs, messages

    options = parser().parse_args(words)
    if options.apply is not None:
        _apply(options)
        return
    if options.iou_type not in ("bbox", "segm"):
        raise UsageError(f"iou_type must be bbox or segm, got {options.iou_type}")

    of_run = options.detections is None and options.out is None
    truth, detections = _inputs(options)
    outputs = {name: getattr(options, name) for name in ("out", "results", "json", "html")}
    if not any(outputs.values()):
        raise UsageError("an output must be named, got none; add --out CALIBRATOR.json, --results, --json or --html")
    named = {f"--{name}": path for name, path in outputs.items()}
    check_outputs(named, [truth, detections], force=options.force, own="calibrator.json")

    from concordet.calibration import evaluate_calibration
    from concordet.files import write_json
    from concordet.locks import locked

    with _raw_results(detections) as raw:
        calibrator, report = evaluate_calibration(
            truth,
            raw,
            method=options.method,
            per_class=not options.one_map,
            folds=options.folds,
            n_resamples=options.resamples,
            iou_type=options.iou_type,
            lvis=options.lvis,
            max_dets=options.max_dets,
        )
    folder = Path(truth).parent
    # a training that wrote a checkpoint meanwhile would lose it to the one with this calibrator
    with locked(folder, "wait until it ends") if of_run else nullcontext():
        if options.out is not None:
            calibrator.save(options.out)
        updated = _update_checkpoint(folder, calibrator) if of_run else None
    if options.results is not None:
        _write_results(calibrator, detections, options.results)
    if options.json is not None:
        write_json(options.json, report)
    if options.html is not None:
        from concordet.report import write_calibration

        write_calibration(calibrator, report, Path(options.html), title=Path(detections).name)
    with messages(*outputs.values()):
        _print(report, outputs)
        if updated is not None:
            print(f"checkpoint with this calibrator: {updated}")


def _apply(options: Any) -> None:
    from concordet.calibration import Calibrator
    from concordet.cli.outputs import check_outputs, messages

    # with --apply the only positional argument is the results file
    detections = options.detections or options.ground_truth
    for name in ("out", "json", "html"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"--{name} must be left out with --apply, which only writes --results, got {getattr(options, name)}; "
                "calibrate without --apply to fit a calibrator"
            )
    if options.results is None:
        raise UsageError("--results must name the file to write with --apply, got none")
    check_outputs({"--results": options.results}, [detections, options.apply], force=options.force)
    calibrator = Calibrator.load(options.apply)
    count = _write_results(calibrator, detections, options.results)
    n_images = calibrator.fit.get("n_images", "?")
    with messages(options.results):
        print(f"{count} detections calibrated with {options.apply} (fitted on {n_images} images)")
        print(f"results: {options.results}")


def _inputs(options: Any) -> tuple[str, str]:
    """Paths of the ground truth and the detections, from the options or from a run folder."""
    if options.detections is not None:
        return options.ground_truth, options.detections
    folder = Path(options.ground_truth)
    truth, detections = folder / "ground_truth.json", folder / "detections.json"
    if not folder.is_dir():
        raise UsageError(
            f"detections must be named for the annotations {folder}, got none; or name the folder of an evaluated run"
        )
    for path in (truth, detections):
        if not path.is_file():
            raise ValueError(f"{folder} has no {path.name}; evaluate the run first: concordet evaluate {folder}")
    if options.out is None:
        options.out = str(folder / "calibrator.json")
    return str(truth), str(detections)


@contextmanager
def _raw_results(path: str) -> Iterator[str]:
    """The file, or, if it has calibrated scores, a temporary file of the same name with the detector's own scores."""
    from concordet.calibration.calibrator import has_raw_scores, raw_results
    from concordet.files import read_json, write_text

    if not has_raw_scores(path):
        yield path
        return
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        content = {**content, "annotations": raw_results(content["annotations"])}
    with TemporaryDirectory() as folder:
        copy = Path(folder) / Path(path).name
        write_text(copy, json.dumps(raw_results(content)))
        yield str(copy)


def _update_checkpoint(run: Path, calibrator: Any) -> Path | None:
    """Stores the calibrator in the checkpoint of the run that was evaluated, so that it is part of later exports."""
    from concordet.files import plain, read_json

    report = run / "evaluation.json"
    evaluated = read_json(report).get("evaluated") if report.is_file() else None
    name = evaluated.get("checkpoint") if isinstance(evaluated, dict) else None
    if not isinstance(name, str) or Path(name).name != name:  # a path would lead out of the run
        return None
    path = run / "checkpoints" / name
    if not path.is_file():
        return None
    from concordet.engine.checkpoint import add_to_description

    add_to_description(path, calibrator=plain(calibrator.to_dict()))
    return path


def _write_results(calibrator: Any, source: str, out: str) -> int:
    """Writes a results file with calibrated scores, otherwise unchanged."""
    from concordet.calibration.calibrator import raw_results
    from concordet.files import read_json, write_json

    if Path(source).is_dir():
        raise ValueError(f"results to calibrate must be a COCO JSON file, got the folder {source}; convert it first")
    content = read_json(source)
    records = content["annotations"] if isinstance(content, dict) and "annotations" in content else content
    if not isinstance(records, list):
        raise ValueError(
            f"{source} must hold a list of COCO results, got one {type(records).__name__}; name another file"
        )
    try:
        calibrated = calibrator.apply(raw_results(records))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    write_json(out, {**content, "annotations": calibrated} if isinstance(content, dict) else calibrated, indent=None)
    return len(calibrated)


def _print(report: dict[str, Any], outputs: dict[str, str | None]) -> None:
    from rich.table import Table

    from concordet.calibration.evaluation import METRICS
    from concordet.cli.tables import wide_console
    from concordet.measures.metrics import BY_KEY

    table = Table(
        "metric", "before", "after", "95 % interval after", title="cross-fitted: on images that the fit did not see"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    ap = [report[side]["AP"] for side in ("before", "after")]
    table.add_row("AP", *("–" if value is None else f"{100 * value:.1f}" for value in ap), "")
    for heading, part in (("", report), ("above the thresholds", report["operating"])):
        if heading:
            table.add_section()
            table.add_row(heading, "", "", "")
        for name in METRICS:
            ends = part["intervals"].get(name, {}).get("after")
            metric = BY_KEY[name]
            values = [metric.text(part[side][name]) for side in ("before", "after")]
            table.add_row(metric.title, *values, "" if ends is None else " to ".join(map(metric.text, ends)))
    wide_console().print(table)
    shared = [row for row in report["per_class"] if row["reason"] is not None]
    if shared:
        print(f"{len(shared)} of {len(report['per_class'])} classes share one map: {shared[0]['reason']}")
    for note in report["notes"]:
        print(f"note: {note}")
    titles = {"out": "calibrator", "results": "results", "json": "report", "html": "page"}
    for option, path in outputs.items():
        if path is not None:
            print(f"{titles[option]}: {path}")
