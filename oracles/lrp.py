"""oLRP, its components and thresholds beside the evaluation code of LRP's authors."""

from __future__ import annotations

import contextlib
import io
import json
import types
from collections.abc import Iterator
from typing import Any

import lvis
import numpy as np
from pycocotools.coco import COCO

from concordet.measures import evaluate_detections
from oracles.clones import source
from oracles.comparison import Comparison
from oracles.measures import federated, lvis_files, make, without_boxes

REPOSITORY = "LRP-Error"
FIELDS = {
    "oLRP": "olrp", "oLRP_loc": "olrp_loc", "oLRP_fp": "olrp_fp", "oLRP_fn": "olrp_fn", "lrp_threshold": "lrp_opt_thr"
}  # fmt: skip
"""Names of our values of a class to the names in the authors' code."""

FILES = 8
TIED = "published code also cuts between detections of equal score, which no threshold can do"
UNDEFINED = -2.0
"""Replaces values that are undefined in both."""

Values = dict[str, np.ndarray[Any, Any]]


def module(path: str) -> Any:
    """A file of the repository as a module; None without a clone."""
    text = source(REPOSITORY, path)
    if text is None:
        return None
    loaded = types.ModuleType(path)
    exec(compile(text.replace("from . import mask", "from pycocotools import mask"), path, "exec"), loaded.__dict__)
    return loaded


def coco(loaded: Any, truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str) -> Values:
    """Values of the authors' code per class, and their means, by COCO's rules."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = json.loads(json.dumps(truth))
        ground.createIndex()
        results = without_boxes(results) if iou_type == "segm" else results
        evaluation = loaded.COCOeval(ground, ground.loadRes(json.loads(json.dumps(results))), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    return {name: evaluation.eval[other][:, 0, -1] for name, other in FIELDS.items()}


def federal(loaded: Any, truth: dict[str, Any], results: list[dict[str, Any]]) -> Values:
    """Values of the authors' code per class, by LVIS's rules."""
    with lvis_files(truth, results) as (ground, found), contextlib.redirect_stdout(io.StringIO()):
        evaluation = loaded.LVISEval(ground, lvis.LVISResults(ground, found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return {name: evaluation.eval[other][:, 0] for name, other in FIELDS.items()}


def deviations(report: dict[str, Any], theirs: Values) -> tuple[float, float]:
    """The largest difference of a class, and that of a mean over classes."""
    per_class = means = 0.0
    for name, values in theirs.items():
        counted = values > -1  # -1 stands for classes without objects, NaN for undefined values
        ours = np.array([row[name] if row[name] is not None else np.nan for row in report["per_class"]])
        others = np.where(counted | np.isnan(values), values, np.nan)
        difference = np.abs(np.nan_to_num(ours, nan=UNDEFINED) - np.nan_to_num(others, nan=UNDEFINED))
        per_class = max(per_class, float(difference.max()))
        if name in report:
            means = max(means, abs(report[name] - float(values[counted].mean())))
    return per_class, means


def compare() -> Iterator[Comparison]:
    """Boxes and masks by COCO's rules, boxes by LVIS's, scores with and without ties."""
    cocoeval, lviseval = module("pycocotools/pycocotools/cocoeval.py"), module("lvis-api/lvis/eval.py")
    if cocoeval is None:
        return
    for levels, tied in ((None, ""), (10, ", tied scores")):
        for iou_type, what in (("bbox", "boxes"), ("segm", "masks")):
            found = []
            for seed in range(FILES):
                truth, results = make(seed, crowd=0.1 * (seed % 2), levels=levels)
                report = evaluate_detections(truth, results, iou_type)
                found.append(deviations(report, coco(cocoeval, truth, results, iou_type)))
            yield from _rows(what + tied, found)
    found = []
    for seed in range(FILES):
        truth, results = federated(seed)
        found.append(deviations(evaluate_detections(truth, results, lvis=True), federal(lviseval, truth, results)))
    yield from _rows("boxes, LVIS's rules", found)


def _rows(what: str, found: list[tuple[float, float]]) -> Iterator[Comparison]:
    for index, of in enumerate(("each class: oLRP, components, threshold", "means over classes: oLRP, components")):
        deviation = max(f[index] for f in found)
        reason = TIED if "tied" in what else ""
        yield Comparison(f"{of}; {what}", REPOSITORY, len(found), deviation, "fraction", 1e-9, reason)
