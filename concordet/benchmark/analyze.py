"""Time and memory of ``analyze`` on generated results, with AP alone by pycocotools and hotcoco beside it.

``concordet benchmark analyze --out studies/results/analyze.csv``
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from concordet.benchmark.results import environment, write_rows
from concordet.files import write_json

PACKAGES: Final = ("numpy", "scipy", "hotcoco", "pycocotools")
_WHATS: Final = ("concordet analyze, bounds included", "hotcoco AP alone", "pycocotools AP alone")


def generate(case: Case, folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write ground truth and results of the case's size: about half of the boxes near an object, scores skewed low."""
    rng = np.random.default_rng(seed)
    image, label = rng.integers(0, case.images, case.objects), rng.integers(0, case.classes, case.objects)
    size = np.exp(rng.uniform(np.log(8), np.log(300), (case.objects, 2)))
    box = np.c_[rng.uniform(0, 500, (case.objects, 2)), size]
    held = rng.integers(0, case.objects, case.detections)
    near = rng.random(case.detections) < 0.5
    spread = rng.exponential(0.12, (case.detections, 1))
    found: Any = box[held]
    found[:, :2] += rng.normal(0, 1, (case.detections, 2)) * spread * found[:, 2:]
    found[:, 2:] *= np.exp(rng.normal(0, 1, (case.detections, 2)) * spread)
    found[~near, :2] = rng.uniform(0, 500, (int((~near).sum()), 2))
    score: Any = rng.beta(1, 5, case.detections) + near * np.exp(-4 * spread[:, 0]) * rng.uniform(
        0, 0.6, case.detections
    )
    found, score = found.round(2), np.minimum(score, 1).round(5)
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
        for a, b, c, d in zip(image[held].tolist(), label[held].tolist(), found.tolist(), score.tolist(), strict=True)
    ]
    paths = folder / f"{case.name}_truth.json", folder / f"{case.name}_results.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


def measure(what: str, truth: str, results: str) -> dict[str, float]:
    """Run one thing once in this process, from files to figures: seconds, CPU seconds, peak MB and AP."""
    start, cpu = time.perf_counter(), time.process_time()
    ap = _RUNS[what](truth, results)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak_mb": _peak_mb(),
        "AP": ap,
    }


def run_cases(cases: list[Case], *, repeats: int = 3, slow_up_to: int = 500_000) -> list[dict[str, Any]]:
    """Measure every case, each run in a fresh process; pycocotools only up to ``slow_up_to`` detections, and once."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            truth, results = generate(case, Path(folder))
            for what in _WHATS:
                slow = what.startswith("pycocotools")
                if slow and case.detections > slow_up_to:
                    continue
                runs = [_fresh(what, truth, results) for _ in range(1 if slow else repeats)]
                rows.append(_row(case, what, runs))
                print({key: rows[-1][key] for key in ("case", "what", "median_s", "peak_mb", "AP")}, flush=True)
            truth.unlink()
            results.unlink()
    return rows


def run(words: list[str]) -> None:
    """``concordet benchmark analyze``: run the cases, print them, and write them where asked."""
    parser = argparse.ArgumentParser(prog="concordet benchmark analyze", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--json", type=Path, help="JSON file to write")
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(CASES), help="which sizes to run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each but pycocotools, which runs once")
    options = parser.parse_args(words)
    rows = run_cases([CASES[name] for name in options.cases], repeats=max(options.repeats, 1))
    header = environment(packages=PACKAGES)
    if options.out is not None:
        write_rows(options.out, rows, header)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, {"environment": header, "rows": rows})


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _fresh(what: str, truth: Path, results: Path) -> dict[str, float]:
    code = "import json,sys;from concordet.benchmark.analyze import measure;print(json.dumps(measure(*sys.argv[1:])))"
    done = subprocess.run(
        [sys.executable, "-c", code, what, str(truth), str(results)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _row(case: Case, what: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    seconds = [r["seconds"] for r in runs]
    return {
        "case": case.name,
        "images": case.images,
        "classes": case.classes,
        "objects": case.objects,
        "detections": case.detections,
        "what": what,
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


_RUNS: Final = dict(zip(_WHATS, (_run_analyze, _run_hotcoco, _run_pycocotools), strict=True))


@dataclass(frozen=True)
class Case:
    """One size of results."""

    name: str
    images: int
    classes: int
    objects: int
    detections: int


CASES: Final = {
    case.name: case
    for case in (
        Case("small", 200, 10, 1_000, 5_000),
        Case("coco", 5_000, 80, 36_000, 500_000),
        Case("large", 20_000, 80, 144_000, 2_000_000),
    )
}
