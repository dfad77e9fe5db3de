"""Time and memory of ``analyze`` on generated detections, compared with AP by pycocotools and hotcoco."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from concordet.benchmark.memory import peak_mb
from concordet.benchmark.new_process import call_in_new_process
from concordet.benchmark.options import Parser, as_count, check_files
from concordet.benchmark.results import environment, write_results

PACKAGES: Final = ("numpy", "scipy", "hotcoco", "pycocotools")
PROGRAMS: Final = ("concordet analyze, bounds included", "hotcoco, AP only", "pycocotools, AP only")


@dataclass(frozen=True)
class Case:
    """One size of ground truth and detections."""

    name: str
    images: int
    classes: int
    objects: int
    detections: int


def generate(case: Case, folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Writes random ground truth and detections; half of the boxes are near an object, and most scores are low."""
    rng = np.random.default_rng(seed)
    image, label = rng.integers(0, case.images, case.objects), rng.integers(0, case.classes, case.objects)
    size = np.exp(rng.uniform(np.log(8), np.log(300), (case.objects, 2)))
    box = np.c_[rng.uniform(0, 500, (case.objects, 2)), size]
    owner = rng.integers(0, case.objects, case.detections)
    owner = owner[np.argsort(image[owner], kind="stable")]  # detectors write one image after the other
    near = rng.random(case.detections) < 0.5
    spread = rng.exponential(0.12, (case.detections, 1))
    boxes: Any = box[owner]
    boxes[:, :2] += rng.normal(0, 1, (case.detections, 2)) * spread * boxes[:, 2:]
    boxes[:, 2:] *= np.exp(rng.normal(0, 1, (case.detections, 2)) * spread)
    boxes[~near, :2] = rng.uniform(0, 500, (int((~near).sum()), 2))
    score: Any = rng.beta(1, 5, case.detections) + near * np.exp(-4 * spread[:, 0]) * rng.uniform(
        0, 0.6, case.detections
    )
    boxes, score = boxes.round(2), np.minimum(score, 1).round(5)
    corners: Any = np.round(box, 2).tolist()
    truth = {
        "images": [{"id": i, "width": 640, "height": 640} for i in range(case.images)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(case.classes)],
        "annotations": [
            {"id": i + 1, "image_id": int(a), "category_id": int(b), "bbox": c, "area": c[2] * c[3], "iscrowd": 0}
            for i, (a, b, c) in enumerate(zip(image, label, corners, strict=True))
        ],
    }
    results = [
        {"image_id": a, "category_id": b, "bbox": c, "score": d}
        for a, b, c, d in zip(image[owner].tolist(), label[owner].tolist(), boxes.tolist(), score.tolist(), strict=True)
    ]
    paths = folder / f"{case.name}_truth.json", folder / f"{case.name}_results.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths


def measure(program: str, truth: str, results: str) -> dict[str, float]:
    """Seconds, CPU seconds, peak MB and AP of one program from files to metrics, in this process."""
    start, cpu = time.perf_counter(), time.process_time()
    ap = _RUNS[program](truth, results)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak_mb": peak_mb(),
        "AP": ap,
    }


def run_cases(cases: list[Case], *, repeats: int = 3, slow_up_to: int = 500_000) -> list[dict[str, Any]]:
    """Measures all programs on all cases, each run in a new process.

    pycocotools runs once, and only on cases of up to ``slow_up_to`` detections.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            truth, results = generate(case, Path(folder))
            for program in PROGRAMS:
                slow = program.startswith("pycocotools")
                if slow and case.detections > slow_up_to:
                    continue
                files = {"truth": str(truth), "results": str(results)}
                runs = [
                    call_in_new_process("concordet.benchmark.analyze:measure", program, program=program, **files)
                    for _ in range(1 if slow else repeats)
                ]
                rows.append(_row(case, program, runs))
                print({key: rows[-1][key] for key in ("case", "program", "median_s", "peak_mb", "AP")}, flush=True)
            truth.unlink()
            results.unlink()
    return rows


def run(words: list[str]) -> None:
    """``concordet benchmark analyze``: runs the cases, prints them, and writes the files asked for."""
    parser = Parser("concordet benchmark analyze", __doc__ or "", "--cases small --json analyze.json")
    parser.add_outputs("CSV file to write.")
    parser.add_argument(
        "--cases", nargs="+", choices=sorted(CASES), default=list(CASES), help="Sizes of the data (default: all)."
    )
    parser.add_argument(
        "--repeats", type=as_count, default=3, metavar="N", help="Runs per case; pycocotools runs once (default: 3)."
    )
    options = parser.parse_args(words)
    check_files(options.out, options.json, force=options.force)
    rows = run_cases([CASES[name] for name in options.cases], repeats=options.repeats)
    write_results(options.out, options.json, rows, environment(packages=PACKAGES))


def _row(case: Case, program: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    seconds = [r["seconds"] for r in runs]
    return {
        "case": case.name,
        "images": case.images,
        "classes": case.classes,
        "objects": case.objects,
        "detections": case.detections,
        "program": program,
        "runs": len(runs),
        "median_s": round(float(np.median(seconds)), 2),
        "min_s": round(min(seconds), 2),
        "max_s": round(max(seconds), 2),
        "cpu_s": round(float(np.median([r["cpu"] for r in runs])), 2),
        "peak_mb": round(max(r["peak_mb"] for r in runs)),
        "AP": f"{runs[0]['AP']:.9f}",
    }


def _run_analyze(truth: str, results: str) -> float:
    from concordet.measures import analyze

    return analyze(truth, results).to_dict()["AP"]


def _run_hotcoco(truth: str, results: str) -> float:
    from hotcoco import COCO, COCOeval

    gt = COCO(truth)
    evaluation = COCOeval(gt, gt.load_res(results), "bbox")
    evaluation.run()
    return float(evaluation.stats[0])


def _run_pycocotools(truth: str, results: str) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    gt = COCO(truth)
    evaluation = COCOeval(gt, gt.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


_RUNS: Final = dict(zip(PROGRAMS, (_run_analyze, _run_hotcoco, _run_pycocotools), strict=True))


CASES: Final = {
    case.name: case
    for case in (
        Case("small", 200, 10, 1_000, 5_000),
        Case("coco", 5_000, 80, 36_000, 500_000),
        Case("large", 20_000, 80, 144_000, 2_000_000),
        Case("wide", 100_000, 80, 1_000_000, 1_000_000),
    )
}
