"""Do exported files give the detections of the detector that they were made from?

    python -m studies.export                                     # all detectors and formats, nano size
    python -m studies.export --detectors fcos detr --formats onnx
    python -m studies.export --sizes full --images 2 --input 320 480 --detectors fcos

Nano detectors are trained on a few digit scenes first, so that their scores differ as those of a trained detector do,
and get a calibrator; full-size ones have random weights, those of their classifiers enlarged. All have a low score
threshold, so that each image has detections to compare. Each file is read again and run on scenes of several sizes;
ONNX files run in ONNX Runtime. Writes studies/results/export.csv row by row, and keeps its other rows.

Parity has two parts. Scores before calibration and boxes are compared with PyTorch's. Calibrated scores are compared
with the calibrator's, applied to the scores of the same file without calibration: a map that is steep somewhere would
enlarge the rounding of the network there, in every runtime.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from concordet.benchmark.results import environment, merge_rows, write_rows
from concordet.benchmark.results import table as markdown_table
from concordet.calibration import Calibrator, fit_calibrator
from concordet.calibration.maps import Isotonic
from concordet.data import load_dataset
from concordet.detectors import Detector, build_detector, list_detectors
from concordet.detectors.networks.backbones import Size
from concordet.engine.detections import batch_results
from concordet.export import FORMATS, export_detector, load_exported
from studies.overfit import together

RESULTS = Path(__file__).parent / "results" / "export.csv"
IMAGES, STEPS, SCENES, SIDE = 50, 60, 6, 96
THRESHOLD = 0.002
"""Score threshold; detectors show detections from 0.05 on, of which some have only a few after so little training."""

SHAPES = ((96, 96), (96, 64), (72, 96), (50, 90))
"""Heights and widths that scenes are cut to."""

TIES = 1e-4
"""Scores nearer than this to the lowest one of an image, or IoUs to the threshold, may decide either way."""

CLASSIFIERS = (
    "cls_logits",
    "class_logits",
    "cls_score",
    "classes",
    "class_embed",
    "class_labels_classifier",
    "odm.classification_head",
    "classification_head.module_list",
)
"""Parts of the names of parameters of classifiers."""

WHAT = (
    "`python -m studies.export`: nano detectors after "
    f"{STEPS} steps on digit scenes, full-size ones with random weights, scaled so that scores differ and boxes "
    f"remain near their anchors, all with a score threshold of {THRESHOLD}; largest differences of boxes (pixels) "
    "and scores from PyTorch over all images; of calibrated scores from PyTorch and from the calibrator given the "
    "file's own scores; detections without a counterpart, and how many lack one when PyTorch is compared with itself, "
    "with and without oneDNN"
)
MOST = {"box": 1e-3, "score": 1e-5}
"""Largest differences from PyTorch that count as rounding, in pixels and in scores before calibration."""

OVERVIEW = (
    'Nano detectors in each format, and full-size ones in ONNX. "yes": the file was written, loaded, and returned '
    f"the detections of PyTorch, boxes within {MOST['box']:g} pixels and scores within {MOST['score']:g}"
)

SPREAD = {"retinanet": 400.0, "foveabox": 400.0}
"""Factors of the weights of classifiers whose scores nearly tie otherwise; 20 for the other detectors."""


@torch.no_grad()
def spread_scores(model: nn.Module, detector: str) -> None:
    """Enlarges the random weights of classifiers, so that few scores nearly tie, as in a trained detector."""
    for key, value in model.named_parameters():
        if any(part in key for part in CLASSIFIERS):
            if key.endswith("weight"):
                value.mul_(SPREAD.get(detector, 20.0))
            elif detector in SPREAD:
                value.zero_()  # instead of a prior of 0.01
        if key.endswith("bboxes_delta.weight"):  # six random stages would enlarge rounding without bound
            value.mul_(0.01)


@torch.no_grad()
def separate_scores(model: Detector, detector: str, images: Sequence[Tensor]) -> None:
    """:func:`spread_scores`, less where many scores of an image's detections would be 0 or 1.

    Regressions that would enlarge anchors to 30,000 pixels, whose rounding remains after they are clipped to the image,
    are made smaller too: a trained detector changes its anchors by small factors.
    """
    spread_scores(model, detector)
    for key, value in model.named_parameters():
        if key in ("rpn.head.bbox_pred.weight", "head.boxes.weight"):
            value.mul_(0.1)
    for _ in range(6):
        scores = [detection["scores"] for detection in detect(model, images)]
        if all(len(own.unique()) >= 0.9 * len(own) for own in scores):
            return
        for key, value in model.named_parameters():
            if key.endswith("weight") and any(part in key for part in CLASSIFIERS):
                value.mul_(0.2)


def learner(detector: str, size: Size, image_size: tuple[int, int] | None) -> tuple[Detector, Any]:
    """A detector in evaluation mode, trained if it is small, and the scenes that it has not seen."""
    torch.manual_seed(0)
    seen = load_dataset("digits", split="train", length=SCENES, size=SIDE, masks=True)
    options: dict[str, Any] = {"score_threshold": THRESHOLD}
    if size == "nano" or image_size is not None:
        options["image_size"] = (SIDE, SIDE) if size == "nano" else image_size
    model = build_detector(detector, num_classes=len(seen.class_names), size=size, **options)
    if size == "full":
        separate_scores(model.eval(), detector, [torch.rand(3, *(image_size or model.resize.size))])
    else:
        images, targets = together(seen, range(len(seen)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        for _ in range(STEPS):
            optimizer.zero_grad()
            sum(model.train()(images, targets).values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model.eval(), load_dataset("digits", split="val", length=IMAGES, size=SIDE, masks=True)


@torch.no_grad()
def calibrator_of(model: Detector, scenes: Any) -> Calibrator | None:
    """A calibrator fitted on the scenes; None where nothing is detected."""
    images, targets = together(scenes, range(len(scenes)))
    detections = [detection for image in images for detection in model([image])]
    results = batch_results(detections, targets, scenes.category_ids)
    boxes = [{key: value for key, value in row.items() if key != "segmentation"} for row in results]
    return fit_calibrator(scenes.ground_truth(), boxes, min_detections=20) if boxes else None


def pictures(scenes: Any, count: int) -> list[Tensor]:
    """Scenes, cut to several sizes."""
    shapes = [SHAPES[i % len(SHAPES)] for i in range(count)]
    return [scenes[i % len(scenes)][0][:, :h, :w] for i, (h, w) in enumerate(shapes)]


def differences(got: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float, int]:
    """Largest difference of boxes and of scores among pairs of detections, and the number without a partner.

    Pairs are of one class and have the least total difference. Detections at the lowest score of an image may lack a
    partner, since which of nearly tied ones a limit on their number cuts off is not determined.
    """
    boxes = (got["boxes"][:, None] - expected["boxes"][None]).abs().amax(-1)
    scores = (got["scores"][:, None].double() - expected["scores"][None].double()).abs()
    other = got["labels"][:, None] != expected["labels"][None]
    cost = (boxes + 1e3 * scores).masked_fill(other, 1e9)
    rows, columns = map(torch.as_tensor, linear_sum_assignment(cost.numpy()))
    paired = cost[rows, columns] < 10.0
    rows, columns = rows[paired], columns[paired]
    single = 0
    for side, used in ((got, rows), (expected, columns)):
        free = torch.ones(len(side["scores"]), dtype=torch.bool)
        free[used] = False
        if free.any():
            single += int((side["scores"][free] > side["scores"].min() + TIES).sum())
    if len(rows) == 0:
        return 0.0, 0.0, single
    return float(boxes[rows, columns].max()), float(scores[rows, columns].max()), single


@torch.no_grad()
def detect(model: Callable[[list[Tensor]], Any], images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Boxes, labels and scores of each image."""
    found = [model([image])[0] for image in images]
    return [{key: detection[key] for key in ("boxes", "labels", "scores")} for detection in found]


def compare(got: Sequence[dict[str, Tensor]], expected: Sequence[dict[str, Tensor]]) -> tuple[float, float, int]:
    """Largest differences of boxes and scores, and the number of detections without a partner, over images."""
    boxes, scores, singles = zip(*map(differences, got, expected), strict=True)
    return max(boxes), max(scores), sum(singles)


def steepest(calibrator: Calibrator) -> float:
    """The largest slope between two knots of a calibrator's maps, with no less than 1e-6 between the knots."""
    maps = [m for m in (calibrator.shared, *(c.map for c in calibrator.classes.values())) if isinstance(m, Isotonic)]
    slopes = [np.diff(m.values) / np.maximum(np.diff(m.scores), 1e-6) for m in maps]
    return float(max((s.max() for s in slopes if len(s)), default=1.0))


def measure(
    detector: str, size: Size, formats: Sequence[str], count: int, image_size: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """One row per format."""
    model, scenes = learner(detector, size, image_size)
    names, ids = list(scenes.class_names), list(scenes.category_ids)
    labels = dict(enumerate(ids, 1))
    images = pictures(scenes, count) if size == "nano" else [torch.rand(3, 480, 640) for _ in range(count)]
    calibrator = calibrator_of(model, scenes) if size == "nano" else None
    expected = detect(model, images)
    with torch.backends.mkldnn.flags(enabled=False):
        again = compare(detect(model, images), expected)[2]
    common = {
        "detector": detector,
        "size": size,
        "images": count,
        "detections": sum(len(e["scores"]) for e in expected),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in formats:
            row: dict[str, Any] = {**common, "file": kind, "input": " x ".join(map(str, model.resize.size))}
            path = Path(folder) / f"model{FORMATS[kind]}"
            start = time.process_time()
            try:
                export_detector(model, path, class_names=names, category_ids=ids)
                row["seconds"] = f"{time.process_time() - start:.0f}"
                row["MB"] = f"{path.stat().st_size / 1e6:.1f}"
                raw = detect(load_exported(path), images)
                box, score, single = compare(raw, expected)
                row |= {"box": f"{box:.2g}", "score": f"{score:.2g}", "unpaired": single, "torch_unpaired": again}
                if calibrator is not None:
                    export_detector(model, path, class_names=names, category_ids=ids, calibrator=calibrator)
                    got = detect(load_exported(path), images)
                    wanted, given = ([calibrator.apply(d, labels=labels) for d in side] for side in (expected, raw))
                    row["calibrated"] = f"{compare(got, wanted)[1]:.2g}"
                    row["map"] = f"{compare(got, given)[1]:.2g}"
                    row["slope"] = f"{steepest(calibrator):.3g}"
            except ValueError as error:
                row["limit"] = str(error)[:200]
            print(row, flush=True)
            rows.append(row)
    return rows


def overview(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row per detector: which formats work; the errors of those that do not follow."""
    cases = [("nano", kind) for kind in FORMATS] + [("full", "onnx")]
    known = {(row["detector"], row["size"], row["file"]): row for row in rows}
    limits = [f"- `{r['detector']}`, {r['size']}, {r['file']}: {r['limit']}" for r in rows if r.get("limit")]
    lines = [[f"`{name}`", *(verdict(known.get((name, *case))) for case in cases)] for name in list_detectors()]
    made = markdown_table(["detector", *FORMATS, "onnx, full size"], lines, text_columns=len(cases) + 1)
    return "\n".join([made, *([""] if limits else []), *limits])


def verdict(row: Mapping[str, Any] | None) -> str:
    """Whether a file works, by its row.

    Example:
        >>> verdict({"box": "3e-05", "score": "5e-07", "unpaired": "0"}), verdict({"limit": "refused"}), verdict(None)
        ('yes', 'no', 'not tested')
    """
    if row is None:
        return "not tested"
    if row.get("limit"):
        return "no"
    alike = all(float(row[key]) <= most for key, most in MOST.items()) and int(row["unpaired"]) == 0
    return "yes" if alike else "differs"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row per detector and format that works."""
    head = ["detector", "size", "format", "images", "detections", "boxes", "scores", "calibrated"]
    head += ["calibrated, given scores", "steepest map", "unpaired", "PyTorch unpaired"]
    order = {name: i for i, name in enumerate(list_detectors())}
    lines = []
    for row in sorted(rows, key=lambda r: (r["size"] != "nano", order.get(r["detector"], 99), r["file"])):
        if not row.get("limit"):
            keys = ("images", "detections", "box", "score", "calibrated", "map", "slope", "unpaired", "torch_unpaired")
            numbers = ["–" if row.get(key) in (None, "") else row[key] for key in keys]
            lines.append([row["detector"], row["size"], row["file"], *numbers])
    return markdown_table(head, lines, text_columns=3)


def main() -> None:
    """Measures, and writes row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", default=list_detectors(), choices=list_detectors())
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--sizes", nargs="+", default=["nano"], choices=get_args(Size))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--input", type=int, nargs=2, help="image_size of full-size detectors; their own by default")
    options = parser.parse_args()
    for size in options.sizes:
        for detector in options.detectors:
            rows = measure(detector, size, options.formats, options.images, options.input and tuple(options.input))
            merged = merge_rows(RESULTS, rows, ("detector", "size", "file"))
            write_rows(RESULTS, merged, environment(packages=("torch", "onnx", "onnxruntime")))
    print(table(merge_rows(RESULTS, [], ("detector", "size", "file"))))


if __name__ == "__main__":
    main()
