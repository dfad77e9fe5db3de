"""What does calibration give each detector? Cross-fitted errors of the runs of `learning`, before and after.

    python -m studies.calibration                                # all detectors, both losses
    python -m studies.calibration --detectors fcos --losses rank_sort
    python -m studies.calibration --detectors dssd detr --epochs 1   # where the runs of `learning` take too long
    python -m studies.calibration --bccd BCCD --detectors atss       # photographs of blood cells instead of scenes

Writes studies/results/calibration.csv and keeps its other rows. Trains what `studies.learning` has not trained yet,
with the same settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from concordet.benchmark.results import environment, merge_rows, write_rows
from concordet.benchmark.results import table as markdown_table
from concordet.calibration import evaluate_calibration
from concordet.calibration.calibrator import raw_results
from concordet.detectors import list_detectors
from concordet.engine.config import load_config
from concordet.files import read_json
from studies import learning

RESULTS = Path(__file__).parent / "results" / "calibration.csv"
WHAT = (
    "`python -m studies.calibration`: nano detectors, isotonic maps per class, cross-fitted over 5 folds of the "
    "evaluated images (400 scenes, 87 photographs), 95 % intervals over images; errors in percent"
)
BCCD = Path(__file__).parent / "configs" / "bccd.yaml"
KEYS = ("data", "detector", "loss")
RESAMPLES = 200


def measure(detector: str, loss: str, threads: int, epochs: int | None, bccd: str | None) -> dict[str, Any]:
    """Row of a detector and a loss, trained as in `learning` or for fewer epochs, on digit scenes or on blood cells."""
    config, folder = learning.config_of(detector, loss), learning.RUNS / f"{detector}-{loss}"
    if bccd is not None:
        config = replace(load_config(BCCD), detector=detector, loss=loss)
        config = replace(config, data=replace(config.data, path=bccd))
        folder = learning.RUNS / f"bccd-{detector}-{loss}"
    if epochs is not None:
        config = replace(config, optim=replace(config.optim, epochs=epochs))
        folder = folder.with_name(f"{folder.name}-{epochs}")
    learning.train(config, folder, threads)
    raw = raw_results(read_json(folder / "detections.json"))
    _, report = evaluate_calibration(read_json(folder / "ground_truth.json"), raw, n_resamples=RESAMPLES)
    n_images = read_json(folder / "data.json")["train"]["images"]
    row: dict[str, Any] = {
        "data": "blood cells" if bccd else "digit scenes",
        "detector": detector,
        "loss": loss,
        "updates": config.optim.epochs * -(-n_images // config.data.batch_size),
        "resamples": RESAMPLES,
    }
    for side in ("before", "after"):
        row[f"AP_{side}"] = report[side]["AP"]
        for name in ("LaECE0", "D_ECE", "AIC_mean"):
            row[f"{name}_{side}"] = report[side][name]
        row |= ends(f"LaECE0_{side}", report["intervals"], side)
        row[f"operating_LaECE0_{side}"] = report["operating"][side]["LaECE0"]
        row[f"operating_AIC_mean_{side}"] = report["operating"][side]["AIC_mean"]
    return row


def ends(name: str, intervals: dict[str, Any], side: str) -> dict[str, float]:
    """The columns of an interval."""
    low, high = intervals[name.split("_")[0]][side]
    return {f"{name}_low": low, f"{name}_high": high}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row per run."""

    def number(row: dict[str, Any], key: str, scale: float = 100, decimals: int = 1) -> str:
        return "–" if row[key] in ("", None) else f"{scale * float(row[key]):.{decimals}f}"

    lines = []
    for row in rows:
        cells = [row["data"], row["detector"], row["loss"], f"{int(row['updates']):,}", number(row, "AP_after")]
        for side in ("before", "after"):
            span = " to ".join(number(row, f"LaECE0_{side}_{end}") for end in ("low", "high"))
            cells.append(f"{number(row, f'LaECE0_{side}')} ({span})")
        cells += [number(row, f"operating_LaECE0_{side}") for side in ("before", "after")]
        cells += [number(row, f"D_ECE_{side}") for side in ("before", "after")]
        cells += [number(row, f"AIC_mean_{side}", 1, 2) for side in ("before", "after")]
        lines.append(cells)
    head = [
        "data",
        "detector",
        "loss",
        "updates",
        "AP",
        "LaECE0",
        "calibrated",
        "LaECE0 above the thresholds",
        "calibrated",
    ]
    head += ["D-ECE", "calibrated", "AIC mean", "calibrated"]
    return markdown_table(head, lines, text_columns=3)


def main() -> None:
    """Parses the command line, trains where needed, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--detectors",
        nargs="+",
        default=[d for d in list_detectors() if d not in learning.SLOW],
        choices=list_detectors(),
    )
    parser.add_argument("--losses", nargs="+", default=["default", "rank_sort"])
    parser.add_argument("--epochs", type=int, help="epochs of training instead of those of `learning`")
    parser.add_argument("--bccd", metavar="FOLDER", help="photographs of blood cells (BCCD) to train and evaluate on")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    options = parser.parse_args()
    order = list_detectors()
    for detector, loss in product(options.detectors, options.losses):
        measured_in = {**environment(), "threads": str(options.threads)}
        rows = merge_rows(RESULTS, [measure(detector, loss, options.threads, options.epochs, options.bccd)], KEYS)
        rows.sort(key=lambda r: (-len(r["data"]), order.index(r["detector"]), r["loss"]))
        write_rows(RESULTS, rows, measured_in)
    print(table(rows))


if __name__ == "__main__":
    main()
