"""How often does permuting scores change which of several boxes is matched to an object, and how far does AP50 move?

python -m studies.rematching
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from concordet.benchmark.analyze import PACKAGES, Case, generate
from concordet.benchmark.results import environment, write_rows
from concordet.benchmark.results import table as markdown_table
from concordet.measures import analyze
from concordet.measures.findings.bounds import suppress
from concordet.measures.reading.dataset import read_dataset

RESULTS = Path(__file__).parent / "results" / "rematching.csv"
SCENE = Case("scene", images=20, classes=3, objects=120, detections=900)
NMS = (0.3, 0.5, 0.6, 0.7, 1.0)
WHAT = (
    "`python -m studies.rematching`: generated scenes with many boxes per object; how often AP50 changes when the "
    "scores of true positives are permuted, and by how much"
)


def main() -> None:
    """Parses the command line, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file (default: studies/results/rematching.csv)")
    parser.add_argument("--scenes", type=int, default=100, help="number of scenes (default: 100)")
    options = parser.parse_args()
    write_rows(options.out, [row(t, options.scenes) for t in NMS], environment(packages=PACKAGES))


def row(threshold: float, n_scenes: int) -> dict[str, Any]:
    """Counts over scenes after NMS at this IoU (1: no NMS)."""
    reports = [scene(threshold, seed) for seed in range(n_scenes)]
    shifts = np.array([[r[f"AP50_{bound}"] - r["AP50"] for bound in ("upper", "lower")] for r in reports])
    return {
        "nms_iou": threshold,
        "scenes": n_scenes,
        "AP50_upper_moved": int((np.abs(shifts[:, 0]) > 1e-9).sum()),
        "AP50_lower_moved": int((np.abs(shifts[:, 1]) > 1e-9).sum()),
        "mean_shift_upper": f"{shifts[:, 0].mean():+.5f}",
        "mean_shift_lower": f"{shifts[:, 1].mean():+.5f}",
        "largest_shift": f"{np.abs(shifts).max():.5f}",
        "AP_upper_below_AP": sum(r["AP_upper"] < r["AP"] - 1e-9 for r in reports),
        "AP_lower_above_AP": sum(r["AP_lower"] > r["AP"] + 1e-9 for r in reports),
    }


def scene(threshold: float, seed: int) -> dict[str, Any]:
    """Analysis of one scene."""
    with tempfile.TemporaryDirectory() as folder:
        truth, results = generate(SCENE, Path(folder), seed)
        dataset = read_dataset(truth, results)
        (kept,) = suppress(dataset, [dataset.dt_scores], threshold)
        boxes = np.column_stack([dataset.dt_images, dataset.dt_boxes, dataset.dt_scores, dataset.dt_classes])
        return analyze(truth, boxes[kept]).to_dict()


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown, one row per NMS threshold."""
    head = ["NMS at IoU", "scenes in which AP50_upper changed", "mean change of AP50_upper", "of AP50_lower", "largest"]
    lines = []
    for r in rows:
        threshold = "none" if float(r["nms_iou"]) == 1 else r["nms_iou"]
        moves = [f"{float(r[f'mean_shift_{bound}']):+.4f}" for bound in ("upper", "lower")]
        crossed = int(r["AP_upper_below_AP"]) + int(r["AP_lower_above_AP"])
        moved = f"{r['AP50_upper_moved']} of {r['scenes']}"
        lines.append([threshold, moved, *moves, f"{float(r['largest_shift']):.3f}", crossed])
    return markdown_table([*head, "bounds that did not bracket AP"], lines)


if __name__ == "__main__":
    main()
