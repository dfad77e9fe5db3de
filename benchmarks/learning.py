"""Does every detector learn?  Trains each at nano size on digit scenes, with its usual loss and with Rank & Sort.

    python benchmarks/learning.py                                  # all detectors, both losses
    python benchmarks/learning.py --detectors fcos --losses default

Writes benchmarks/results/learning.csv and learning.md.  Runs lie in runs/learning; one that is finished is not trained
again.  The demonstration's data and settings are used for all, but for what SETTINGS says.  Time is the processor's
(user and system, summed over threads), which other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from concordet.detectors import list_detectors
from concordet.engine.config import TrainConfig, save_config
from concordet.engine.demo import DEMO
from concordet.engine.files import replacing
from concordet.version import __version__

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs") / "learning"

SETTINGS: dict[str, dict[str, float]] = {
    "ssd": {"epochs": 15},
    "dssd": {"epochs": 28},
    "refinedet": {"epochs": 15},
    "faster_rcnn": {"epochs": 3},
    "cascade_rcnn": {"epochs": 2},
    "mask_rcnn": {"epochs": 3},
    "sparse_rcnn": {"epochs": 5, "lr": 5e-4},
}
"""What differs from the demonstration: more epochs where learning is slow, fewer where a step takes long."""

SLOW = ("detr", "deformable_detr", "co_detr")
"""Not among the defaults: DETR needs hundreds of epochs, a step of the others seconds; ``detection_transformers.py``
shows that they learn.
"""


def config_of(detector: str, loss: str) -> TrainConfig:
    """The run of this detector and loss."""
    settings = SETTINGS.get(detector, {})
    optim = replace(DEMO.config.optim, **settings)
    return replace(DEMO.config, detector=detector, loss=loss, optim=optim)


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
    with replacing(folder.with_suffix(".json")) as path:
        path.write_text(json.dumps({"processor_s": used, "wall_s": wall}))


def ap50(folder: Path) -> float:
    """AP50 of a finished run."""
    return json.loads((folder / "evaluation.json").read_text())["metrics"]["AP50"] or 0.0


def row(detector: str, loss: str, threads: int) -> dict:
    """Trains a detector with a loss, and once for a single update without learning; their figures."""
    config = config_of(detector, loss)
    folder = RUNS / f"{detector}-{loss}"
    untrained = RUNS / f"{detector}-untrained"
    train(replace(config, loss="default", optim=replace(config.optim, steps=1, lr=1e-12, ema=0.0)), untrained, threads)
    train(config, folder, threads)
    figures = json.loads((folder / "evaluation.json").read_text())["metrics"]
    taken = json.loads(folder.with_suffix(".json").read_text())
    return {
        "detector": detector,
        "loss": loss,
        "epochs": config.optim.epochs,
        "lr": config.optim.lr,
        "AP50_untrained": ap50(untrained),
        "AP50": figures["AP50"],
        "AP": figures["AP"],
        "processor_minutes": taken["processor_s"] / 60,
        "wall_minutes": taken["wall_s"] / 60,
    }


def table(rows: list[dict], losses: list[str]) -> str:
    """Markdown, a row a detector."""
    head = ["detector", "epochs", "lr", "AP50 untrained"]
    head += [f"{title}, {loss}" for loss in losses for title in ("AP50", "AP", "processor minutes")]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for detector in dict.fromkeys(r["detector"] for r in rows):
        own = {r["loss"]: r for r in rows if r["detector"] == detector}
        first = next(iter(own.values()))
        cells = [detector, str(first["epochs"]), f"{first['lr']:g}", f"{first['AP50_untrained']:.3f}"]
        for loss in losses:
            r = own.get(loss)
            cells += ["–"] * 3 if r is None else [f"{r['AP50']:.3f}", f"{r['AP']:.3f}", f"{r['processor_minutes']:.1f}"]
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
    rows = [row(d, loss, options.threads) for d in options.detectors for loss in options.losses]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    data = DEMO.config.data
    header = (
        f"`python benchmarks/learning.py`: nano, {data.train_options['length']} digit scenes of 128 pixels, batch "
        f"{data.batch_size}, evaluated on {data.val_options['length']} others; concordet {__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}, {platform.machine()}, {options.threads} of "
        f"{os.cpu_count()} threads a run.\n\n"
    )
    RESULTS.mkdir(exist_ok=True)
    with replacing(RESULTS / "learning.csv") as path:
        path.write_text(text.getvalue())
    with replacing(RESULTS / "learning.md") as path:
        path.write_text(header + table(rows, options.losses) + "\n")
    print(table(rows, options.losses))


if __name__ == "__main__":
    main()
