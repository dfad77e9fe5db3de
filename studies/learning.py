"""Does every detector learn? Trains each at nano size on digit scenes, with its default loss and with Rank & Sort.

    python -m studies.learning                                  # all detectors, both losses
    python -m studies.learning --detectors fcos --losses default

Writes studies/results/learning.csv and keeps its other rows. Runs are in runs/learning; a finished run is not trained
again. All runs use the demonstration's data and settings, except for what ``SETTINGS`` changes. The file also has the
processor time of each run (user and system, summed over threads).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from concordet.benchmark.results import environment, merge_rows, write_rows
from concordet.benchmark.results import table as markdown_table
from concordet.detectors import list_detectors
from concordet.engine.config import TrainConfig, save_config
from concordet.engine.demo import DEMO
from concordet.files import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "learning.csv"
RUNS = Path("runs") / "learning"

BATCH: int = DEMO.config.data.batch_size
SCENES: int = DEMO.config.data.train_options["length"]
SETTINGS: dict[str, dict[str, Any]] = {
    "ssd": {"epochs": 15},
    "dssd": {"epochs": 7, "scenes": 12_800},
    "refinedet": {"epochs": 15},
    "faster_rcnn": {"epochs": 3},
    "cascade_rcnn": {"epochs": 2},
    "mask_rcnn": {"epochs": 3},
    "sparse_rcnn": {"epochs": 6, "lr": 5e-4, "batch": 8},
    "detr": {"lr": 5e-4, "batch": 8},
    "deformable_detr": {"lr": 5e-4, "batch": 8},
    "co_detr": {"lr": 5e-4, "batch": 8, "scenes": 1600},
}
"""Settings that differ from the demonstration: more epochs where learning is slow, fewer where a step takes long.

DSSD overfits 3200 scenes (a classification loss of 0.04) before it generalizes (AP50 0.49 after 28 epochs); Sparse
R-CNN needs many updates (AP50 0.45 after 6 epochs in batches of 16).
"""

SLOW = ("detr", "deformable_detr", "co_detr")
"""Detectors that are left out by default: DETR needs hundreds of epochs, a step of the others takes seconds.
``detection_transformers.py`` shows that they learn.
"""

WHAT = (
    "`python -m studies.learning`: nano detectors, digit scenes of 128 pixels, AP on "
    f"{DEMO.config.data.val_options['length']} other scenes, one seed"
)


def config_of(detector: str, loss: str) -> TrainConfig:
    """Configuration of the run of this detector and loss."""
    own = dict(SETTINGS.get(detector, {}))
    data = DEMO.config.data
    options = {**data.train_options, "length": own.pop("scenes", SCENES)}
    data = replace(data, batch_size=own.pop("batch", BATCH), train_options=options)
    return replace(DEMO.config, detector=detector, loss=loss, data=data, optim=replace(DEMO.config.optim, **own))


def train(config: TrainConfig, folder: Path, threads: int) -> None:
    """Trains and evaluates in a process of its own, and records the time it took."""
    if (folder / "evaluation.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    chosen = folder.with_suffix(".yaml")
    save_config(chosen, config)
    words = ["train", "--config", str(chosen), "--out", str(folder)]
    if folder.exists():
        words.append("--resume")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "concordet", *words], check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    write_json(folder.with_suffix(".json"), {"processor_s": used, "wall_s": wall})


def metrics_of(folder: Path) -> dict[str, Any]:
    """Metrics of a finished run."""
    return read_json(folder / "evaluation.json")["metrics"]


def measure(detector: str, loss: str, threads: int) -> dict[str, Any]:
    """Row of a detector and a loss: trains it, and once more for a single update with a learning rate of zero."""
    config = config_of(detector, loss)
    folder = RUNS / f"{detector}-{loss}"
    untrained = RUNS / f"{detector}-untrained"
    train(replace(config, loss="default", optim=replace(config.optim, steps=1, lr=1e-12, ema=0.0)), untrained, threads)
    train(config, folder, threads)
    metrics = metrics_of(folder)
    taken = read_json(folder.with_suffix(".json"))
    return {
        "detector": detector,
        "loss": loss,
        "scenes": config.data.train_options["length"],
        "batch": config.data.batch_size,
        "epochs": config.optim.epochs,
        "lr": config.optim.lr,
        "AP50_untrained": metrics_of(untrained)["AP50"] or 0.0,
        "AP50": metrics["AP50"],
        "AP": metrics["AP"],
        "processor_minutes": taken["processor_s"] / 60,
        "wall_minutes": taken["wall_s"] / 60,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row per detector."""
    losses = list(dict.fromkeys(r["loss"] for r in rows))
    head = ["detector", "scenes", "batch", "epochs", "lr", "AP50 untrained"]
    head += [f"{metric}, {loss}" for loss in losses for metric in ("AP", "AP50")]
    lines = []
    for detector in dict.fromkeys(r["detector"] for r in rows):
        own = {r["loss"]: r for r in rows if r["detector"] == detector}
        first = next(iter(own.values()))
        cells = [detector, first["scenes"], first["batch"], first["epochs"], f"{float(first['lr']):g}"]
        cells.append(percent(first["AP50_untrained"]))
        cells += [percent(own[loss][key]) if loss in own else "–" for loss in losses for key in ("AP", "AP50")]
        lines.append(cells)
    return markdown_table(head, lines)


def percent(fraction: Any) -> str:
    """A fraction as the documents show AP."""
    return f"{100 * float(fraction):.1f}"


def main() -> None:
    """Parses the command line, trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--detectors", nargs="+", default=[d for d in list_detectors() if d not in SLOW], choices=list_detectors()
    )
    parser.add_argument("--losses", nargs="+", default=["default", "rank_sort"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads per run")
    options = parser.parse_args()
    order = list_detectors()
    rows: list[dict[str, Any]] = []
    for detector, loss in product(options.detectors, options.losses):
        measured_in = {**environment(), "threads": str(options.threads)}
        rows = merge_rows(RESULTS, [measure(detector, loss, options.threads)], ("detector", "loss"))
        rows.sort(key=lambda r: (order.index(r["detector"]), r["loss"]))
        write_rows(RESULTS, rows, measured_in)
    print(table(rows))


if __name__ == "__main__":
    main()
