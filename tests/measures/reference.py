"""Slow and obvious counterparts: pycocotools run as it comes, and loops that read like the definitions."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np


def run_pycocotools(truth: Any, found: Any, iou_type: str = "bbox", max_dets: tuple[int, ...] = (1, 10, 100)) -> Any:
    """A ``COCOeval`` after ``evaluate`` and ``accumulate``, quiet."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        result = COCOeval(gt, gt.loadRes(copy.deepcopy(found)), iou_type)
        result.params.maxDets = list(max_dets)
        result.evaluate()
        result.accumulate()
    return result


def coco_figures(result: Any) -> dict[str, float | None]:
    """AP, AP50 ... as ``COCOeval.summarize`` takes them from its arrays, None for its -1."""
    precision, recall = result.eval["precision"], result.eval["recall"]

    def mean(values: Any) -> float | None:
        values = values[values > -1]
        return float(values.mean()) if values.size else None

    return {
        "AP": mean(precision[:, :, :, 0, -1]),
        "AP50": mean(precision[0, :, :, 0, -1]),
        "AP75": mean(precision[5, :, :, 0, -1]),
        "AP90": mean(precision[8, :, :, 0, -1]),
        "APs": mean(precision[:, :, :, 1, -1]),
        "APm": mean(precision[:, :, :, 2, -1]),
        "APl": mean(precision[:, :, :, 3, -1]),
        "AR100": mean(recall[:, :, 0, -1]),
    }


def matched_pairs(result: Any, max_dets: int = 100) -> dict[int, tuple[int, bool]]:
    """Detection id to (annotation id or 0, ignored) at IoU 0.5 over all areas, from pycocotools' own arrays."""
    pairs = {}
    for group in result.evalImgs:
        if group is None or group["aRng"] != result.params.areaRng[0]:
            continue
        for ident, match, ignored in zip(
            group["dtIds"][:max_dets], group["dtMatches"][0], group["dtIgnore"][0], strict=False
        ):
            pairs[ident] = int(match), bool(ignored)
    return pairs


def box_iou(a: list[float], b: list[float]) -> float:
    """IoU of two xywh boxes."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(w, 0) * max(h, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def best_lrp(scores: Any, ious: Any, hit: Any, n_objects: int, tau: float) -> tuple[float, float | None]:
    """min over thresholds of LRP, each computed anew, with the highest that attains it; 1 for no detection."""
    best, threshold = 1.0, None
    for s in sorted(set(scores), reverse=True):
        kept = [i for i in range(len(scores)) if scores[i] >= s]
        tp = [i for i in kept if hit[i]]
        fp, fn = len(kept) - len(tp), n_objects - len(tp)
        error = (sum((1 - ious[i]) / (1 - tau) for i in tp) + fp + fn) / (len(tp) + fp + fn)
        if error < best - 1e-12:
            best, threshold = error, float(s)
    return best, threshold


def lin(x: Any, y: Any) -> float:
    """Lin's concordance, from its definition."""
    n = len(x)
    mx, my = sum(x) / n, sum(y) / n
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / n
    return 2 * cov / (np.var(x) + np.var(y) + (mx - my) ** 2)
