"""References: pycocotools, and loops that follow the definitions."""

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


def greedy_targets(truth: Any, found: Any, tau: float, max_dets: int = 100) -> tuple[dict[int, float], dict[int, bool]]:
    """IoU of each detection's match (0 without one) and whether it counts, by index: pycocotools' rule in a loop."""
    targets, counted = {}, {}
    for image in truth["images"]:
        for category in truth["categories"]:
            objects = [
                a for a in truth["annotations"] if a["image_id"] == image["id"] and a["category_id"] == category["id"]
            ]
            own = [i for i, d in enumerate(found) if d["image_id"] == image["id"]]
            own = [i for i in own if found[i]["category_id"] == category["id"]]
            own = sorted(own, key=lambda i: -found[i]["score"])[:max_dets]
            taken: set[int] = set()
            for i in own:
                best, held = tau, None
                for k, a in enumerate(objects):
                    if a["iscrowd"] or k in taken:
                        continue
                    iou = box_iou(found[i]["bbox"], a["bbox"])
                    if iou > 0 and iou >= best:
                        best, held = iou, k
                targets[i], counted[i] = 0.0, True
                if held is not None:
                    taken.add(held)
                    targets[i] = best
                elif any(
                    (share := crowd_overlap(found[i]["bbox"], a["bbox"])) > 0 and share >= tau
                    for a in objects
                    if a["iscrowd"]
                ):
                    counted[i] = False
    return targets, counted


def crowd_overlap(box: list[float], crowd: list[float]) -> float:
    """Share of a detection's area that lies in a crowd region."""
    w = min(box[0] + box[2], crowd[0] + crowd[2]) - max(box[0], crowd[0])
    h = min(box[1] + box[3], crowd[1] + crowd[3]) - max(box[1], crowd[1])
    return max(w, 0) * max(h, 0) / (box[2] * box[3])
