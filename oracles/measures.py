"""Average precision and calibration errors of results files."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lvis import LVIS, LVISEval, LVISResults
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from concordet.calibration import evaluate_calibration
from concordet.measures import evaluate_detections
from concordet.measures.matching import match_detections
from oracles.comparison import Comparison

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
FILES = 8


def make(seed: int, *, crowd: float = 0.0, levels: int | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A ground truth and results around it: crowds, ties, polygons and false positives."""
    rng = np.random.default_rng(seed)
    images = [{"id": 10 * i + 1, "height": 480, "width": 640} for i in range(15)]
    categories = [{"id": 3 * i + 2, "name": f"class {i}"} for i in range(4)]
    annotations, results = [], []
    for ident in range(150):
        side = rng.uniform(6, 200, 2)
        corner = rng.uniform(0, 1, 2) * (np.array([640, 480]) - side)
        image, category = images[rng.integers(15)], categories[rng.integers(4)]
        is_crowd = bool(rng.random() < crowd)
        annotations.append(
            {
                "id": ident + 1, "image_id": image["id"], "category_id": category["id"],
                "bbox": [*corner, *side], "area": diamond_area(side), "iscrowd": int(is_crowd),
                "segmentation": runs(corner, side) if is_crowd else [diamond(corner, side)],
            }
        )  # fmt: skip
        for _ in range(rng.integers(0, 5)):
            near = np.clip(side * rng.uniform(0.6, 1.4, 2), 4, None)
            where = np.clip(corner + side * rng.normal(0, 0.15, 2), 0, np.array([640, 480]) - near)
            score = rng.random()
            results.append(
                {
                    "image_id": image["id"], "category_id": category["id"], "bbox": [*where, *near],
                    "segmentation": [diamond(where, near)],
                    "score": float(np.round(score * levels) / levels if levels else score),
                }
            )  # fmt: skip
    return {"images": images, "categories": categories, "annotations": annotations}, results


def diamond(corner: Any, side: Any) -> list[float]:
    """The polygon through the middles of a box's sides."""
    (x, y), (w, h) = corner, side
    return [x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]


def diamond_area(side: Any) -> float:
    """Area of a polygon."""
    return float(side[0] * side[1] / 2)


def merged(polygons: list[list[float]]) -> dict[str, Any]:
    """Polygons as compressed run lengths, the only form of results that pycocotools reads."""
    mask = coco_mask.merge(coco_mask.frPyObjects(polygons, 480, 640))
    return {**mask, "counts": mask["counts"].decode("ascii")}


def runs(corner: Any, side: Any) -> dict[str, Any]:
    """A filled box as COCO's uncompressed run lengths."""
    x, y, w, h = (int(v) for v in (*corner, *side))
    mask = np.zeros((480, 640), np.uint8)
    mask[y : y + max(h, 1), x : x + max(w, 1)] = 1
    values = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(values)) + 1
    return {"size": [480, 640], "counts": np.diff([0, *ends, len(values)]).tolist()}


def without_boxes(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Masks as run lengths, without boxes."""
    return [{**{k: v for k, v in r.items() if k != "bbox"}, "segmentation": merged(r["segmentation"])} for r in results]


def pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str) -> dict[str, float]:
    """The six AP values of pycocotools; masks are given without boxes."""
    if iou_type == "segm":
        results = without_boxes(results)
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = json.loads(json.dumps(truth))
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(json.loads(json.dumps(results))), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats[:6].tolist(), strict=True))


@contextlib.contextmanager
def lvis_files(truth: dict[str, Any], results: list[dict[str, Any]]) -> Iterator[tuple[LVIS, str]]:
    """The ground truth as lvis reads it, with frequencies of classes, and the path of the results."""
    frequencies = ("r", "c", "f", "f")
    truth = {
        **truth,
        "categories": [
            {**c, "frequency": f, "image_count": 9} for c, f in zip(truth["categories"], frequencies, strict=True)
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("truth", truth), ("results", results)):
            (Path(folder) / f"{name}.json").write_text(json.dumps(content))
        yield LVIS(f"{folder}/truth.json"), f"{folder}/results.json"


def lvis(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """The official LVIS values of boxes."""
    with lvis_files(truth, results) as (ground, found), contextlib.redirect_stdout(io.StringIO()):
        evaluation = LVISEval(ground, LVISResults(ground, found), "bbox")
        evaluation.run()
    return {name: float(evaluation.results[name]) for name in NAMES}


def compare() -> Iterator[Comparison]:
    """AP with boxes and masks, by COCO's and LVIS's rules, and D-ECE."""
    files = [make(seed, crowd=0.1 * (seed % 2), levels=10 if seed % 3 == 0 else None) for seed in range(FILES)]
    for iou_type in ("bbox", "segm"):
        deviation = 0.0
        for truth, results in files:
            expected = pycocotools(truth, results, iou_type)
            for given in (results, [{k: v for k, v in r.items() if k != "bbox"} for r in results]):
                if iou_type == "bbox" and given is not results:
                    continue
                found = evaluate_detections(truth, given, iou_type)
                deviation = max(deviation, *(abs(found[name] - expected[name]) for name in NAMES))
        what = f"AP family of {'boxes' if iou_type == 'bbox' else 'masks'}, with crowds, ties, polygons and run lengths"
        yield Comparison(what, "pycocotools 2.0", FILES, deviation, "AP as a fraction", 1e-12)
    yield _lvis()
    yield _d_ece(files)


def federated(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A ground truth of which some classes are not judged, or not exhaustively, on some images; and results."""
    truth, results = make(seed)
    rng = np.random.default_rng(seed)
    ids = [c["id"] for c in truth["categories"]]
    for image in truth["images"]:
        present = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
        absent = [i for i in ids if i not in present]
        image["neg_category_ids"] = [i for i in absent if rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [i for i in present if rng.random() < 0.2]
    return truth, results


def _lvis() -> Comparison:
    deviation = 0.0
    for seed in range(4):
        truth, results = federated(seed)
        expected = lvis(truth, results)
        found = evaluate_detections(truth, results, lvis=True)
        deviation = max(deviation, *(abs(found[name] - expected[name]) for name in NAMES))
    return Comparison("AP family of boxes, LVIS's rules", "lvis 0.5.3", 4, deviation, "AP as a fraction", 1e-12)


def _d_ece(files: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> Comparison:
    from netcal.metrics import ECE

    deviation = 0.0
    for truth, results in files:
        # netcal's bins are [a, b), ours (a, b]: no score may lie on an edge
        moved = [{**r, "score": 0.999 * r["score"] + 0.00037} for r in results]
        matched = match_detections(truth, moved, tau=0.5)
        counted = matched.counted
        hits = (matched.targets[counted] > 0).astype(int)
        expected = ECE(bins=10, detection=True).measure(matched.scores[counted], hits)
        _, report = evaluate_calibration(truth, moved, n_resamples=0)
        deviation = max(deviation, abs(report["before"]["D_ECE"] - float(expected)))
    return Comparison("D-ECE, 10 bins, after our matching", "netcal 1.4.0", len(files), deviation, "fraction", 1e-9)
