"""How often permuting scores changes which of several boxes on an object is matched, and by how much AP50 then moves.

``python studies/rematching.py --out studies/results/rematching.csv``
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from concordet.benchmark.analyze import PACKAGES, Case, generate
from concordet.benchmark.results import environment, write_rows
from concordet.measures import analyze
from concordet.measures.raw import suppress
from concordet.measures.reading.dataset import read_dataset

SCENE = Case("scene", images=20, classes=3, objects=120, detections=900)
NMS = (0.3, 0.5, 0.6, 0.7, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=100)
    options = parser.parse_args()
    rows = [row(threshold, options.scenes) for threshold in NMS]
    write_rows(options.out, rows, environment(packages=PACKAGES))


def row(threshold: float, n_scenes: int) -> dict[str, Any]:
    """Counts over scenes after NMS at this IoU (1 is none)."""
    reports = [scene(threshold, seed) for seed in range(n_scenes)]
    shifts = np.array([[r[f"AP50_{side}"] - r["AP50"] for side in ("upper", "lower")] for r in reports])
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
    """One scene's analysis."""
    with tempfile.TemporaryDirectory() as folder:
        truth, results = generate(SCENE, Path(folder), seed)
        dataset = read_dataset(truth, results)
        (kept,) = suppress(dataset, [dataset.dt_scores], threshold)
        held = np.column_stack([dataset.dt_images, dataset.dt_boxes, dataset.dt_scores, dataset.dt_classes])
        return analyze(truth, held[kept]).to_dict()


if __name__ == "__main__":
    main()
