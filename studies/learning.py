"""Does every detector learn?  Trains each at nano size on digit scenes, with its usual loss and with Rank & Sort.

    python studies/learning.py                                  # all detectors, both losses
    python studies/learning.py --detectors fcos --losses default

Writes studies/results/learning.csv and learning.md, whose other rows stay.  Runs lie in runs/learning; one that is
finished is not trained again.  The demonstration's data and settings are used for all, but for what SETTINGS says.
Time is the processor's (user and system, summed over threads), which other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from concordet.benchmark.results import merge_rows, write_table
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
}
"""What differs from the demonstration: more epochs where learning is slow, fewer where a step takes long.

DSSD learns 3200 scenes by heart (a classification loss of 0.04) before it knows others (AP50 0.49 after 28 epochs);
Sparse R-CNN needs many updates (0.45 after 6 epochs in batches of 16).
"""

SLOW = ("detr", "deformable_detr", "co_detr")
"""Not among the defaults: DETR needs hundreds of epochs, a step of the others seconds; ``detection_transformers.py``
shows that they learn.
"""


def config_of(detector: str, loss: str) -> TrainConfig:
    """The run of this detector and loss."""
    own = dict(SETTINGS.get(detector, {}))
    data = DEMO.config.data
    options = {**data.train_options, "length": own.pop("scenes", SCENES)}
    data = replace(data, batch_size=own.pop("batch", BATCH), train_options=options)
    return replace(DEMO.config, detector=detector, loss=loss, data=data, optim=replace(DEMO.config.optim, **own))


def train(config: TrainConfig, folder: Path, threads: int) -> None:
    """Trains and evaluates in a process of its own, and keeps what that took."""
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


def ap50(folder: Path) -> float:
    """AP50 of a finished run."""
    return read_json(folder / "evaluation.json")["metrics"]["AP50"] or 0.0


def row(detector: str, loss: str, threads: int) -> dict[str, Any]:
    """Trains a detector with a loss, and once for a single update without learning; their figures."""
    config = config_of(detector, loss)
    folder = RUNS / f"{detector}-{loss}"
    untrained = RUNS / f"{detector}-untrained"
    train(replace(config, loss="default", optim=replace(config.optim, steps=1, lr=1e-12, ema=0.0)), untrained, threads)
    train(config, folder, threads)
    figures = read_json(folder / "evaluation.json")["metrics"]
    taken = read_json(folder.with_suffix(".json"))
    return {
        "detector": detector,
        "loss": loss,
        "scenes": config.data.train_options["length"],
        "batch": config.data.batch_size,
        "epochs": config.optim.epochs,
        "lr": config.optim.lr,
        "AP50_untrained": ap50(untrained),
        "AP50": figures["AP50"],
        "AP": figures["AP"],
        "processor_minutes": taken["processor_s"] / 60,
        "wall_minutes": taken["wall_s"] / 60,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row a detector."""
    losses = list(dict.fromkeys(r["loss"] for r in rows))
    settings = ("scenes", "batch", "epochs")
    head = ["detector", *settings, "lr", "AP50 untrained"]
    head += [f"{title}, {loss}" for loss in losses for title in ("AP50", "AP", "processor minutes")]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for detector in dict.fromkeys(r["detector"] for r in rows):
        own = {r["loss"]: r for r in rows if r["detector"] == detector}
        first = next(iter(own.values()))
        cells = [
            detector,
            str(first["scenes"]),
            str(first["epochs"]),
            f"{float(first['lr']):g}",
            f"{float(first['AP50_untrained']):.3f}",
        ]
        for loss in losses:
            r = own.get(loss)
            figures = [] if r is None else [float(r[key]) for key in ("AP50", "AP", "processor_minutes")]
            cells += [f"{figures[0]:.3f}", f"{figures[1]:.3f}", f"{figures[2]:.1f}"] if figures else ["–"] * 3
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parses, trains, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--detectors", nargs="+", default=[d for d in list_detectors() if d not in SLOW], choices=list_detectors()
    )
    parser.add_argument("--losses", nargs="+", default=["default", "rank_sort"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads a run")
    options = parser.parse_args()
    what = "`python studies/learning.py`: nano, digit scenes of 128 pixels, "
    what += f"evaluated on {DEMO.config.data.val_options['length']} others"
    order = list_detectors()
    for detector, loss in product(options.detectors, options.losses):
        rows = merge_rows(RESULTS, [row(detector, loss, options.threads)], ("detector", "loss"))
        rows.sort(key=lambda r: (order.index(r["detector"]), r["loss"]))
        write_table(RESULTS, rows, table(rows), what, options.threads)
    print(table(rows))


if __name__ == "__main__":
    main()
