"""Time of a training step of every detector, with coupled and ranking losses beside its usual one.

``concordet benchmark detectors --out studies/results/detectors.csv``; ``--size nano --detectors fcos`` is quick.

A step is forward, backward and an update by plain gradient descent, on digit scenes.  Losses take turns, round by
round, and a loss's time is compared with the usual loss's of the same round, so that a drift of the machine's speed
meets all of them alike.  On a CPU times are the processor's, summed over threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from concordet.assigned import IGNORED
from concordet.benchmark.results import environment, read_rows, write_rows
from concordet.files import free_name

LOSSES: Final = ("rank_sort", "ap", "alrp", "harmonic", "focal+concordance(0.3)")
SQUARE: Final = {"ssd": 300, "dssd": 320, "refinedet": 320}
"""Side of the images of detectors that have images of one size, at full size."""


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        side: of the images, pixels; None: 256 at full size (SSD and its kin their own), 128 for nano.
        classes: 80, as COCO has.
    """

    detectors: tuple[str, ...]
    losses: tuple[str, ...] = LOSSES
    size: Literal["full", "nano"] = "full"
    side: int | None = None
    batch: int = 2
    classes: int = 80
    rounds: int = 7
    threads: int = 2
    device: str = "cpu"
    out: Path = Path("detectors.csv")


def side_of(detector: str, options: Options) -> int:
    """Side of a detector's images."""
    if options.side is not None:
        return options.side
    return 128 if options.size == "nano" else SQUARE.get(detector, 256)


def step(model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]], device: torch.device) -> float:
    """Seconds of one training step: of a CPU's processor, which other work changes least, or of a GPU's clock."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    sum(model(images, targets).values()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-6)
                parameter.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def measure(detector: str, options: Options) -> list[dict[str, Any]]:
    """Rows of one detector, in this process."""
    from concordet.data import load_dataset
    from concordet.detectors import build_detector

    torch.set_num_threads(options.threads)
    device, side = torch.device(options.device), side_of(detector, options)
    scenes = load_dataset("digits", split="train", length=options.batch, size=side, masks=True)
    pairs = [scenes[i] for i in range(options.batch)]
    images = [image.to(device) for image, _ in pairs]
    targets = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()} for _, target in pairs]
    models = {}
    for loss in ("default", *options.losses):
        torch.manual_seed(0)
        built = build_detector(
            detector, num_classes=options.classes, size=options.size, loss=loss, image_size=(side, side)
        )
        models[loss] = built.to(device).train()
    used = {loss: classified(model, images, targets) for loss, model in models.items()}
    compared = in_turns(models, images, targets, device, options.rounds, usual="default")
    return [
        {"detector": detector, "loss": loss, "side": side, "rounds": options.rounds, "predictions": used[loss], **times}
        for loss, times in compared.items()
    ]


def in_turns(
    models: Mapping[str, nn.Module],
    images: list[Tensor],
    targets: list[dict[str, Any]],
    device: torch.device,
    rounds: int,
    *,
    usual: str,
) -> dict[str, dict[str, float]]:
    """Each model's median step, and quartiles of its time over that of the usual one's in the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            taken = step(model, images, targets, device)
            if number:  # the first round warms up
                seconds[name].append(taken)
    reference = torch.tensor(seconds[usual], dtype=torch.float64)
    compared = {}
    for name, times in seconds.items():
        own = torch.tensor(times, dtype=torch.float64)
        ratios = own / reference
        compared[name] = {
            "median_ms": round(float(own.quantile(0.5)) * 1e3, 1),
            "times_usual": round(float(ratios.quantile(0.5)), 3),
            "q25": round(float(ratios.quantile(0.25)), 3),
            "q75": round(float(ratios.quantile(0.75)), 3),
        }
    return compared


@torch.no_grad()
def classified(model: Any, images: list[Tensor], targets: list[dict[str, Any]]) -> int:
    """Predictions that the classification losses of all stages see: samples, where the detector samples."""
    return sum(int((record.labels != IGNORED).sum()) for record in model.assigned(images, targets))


def in_own_process(detector: str, options: Options) -> Any:
    """The rows of a detector from a process that starts with no memory in use."""
    code = (
        "import json,sys;from concordet.benchmark.detectors import Options,measure;"
        "print(json.dumps(measure(sys.argv[1],Options(**json.loads(sys.argv[2])))))"
    )
    values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
    done = subprocess.run([sys.executable, "-c", code, detector, json.dumps(values)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the measurement of {detector} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def markdown(rows: list[dict[str, str]]) -> str:
    """Times the usual loss's step, with quartiles; last, times the predictions that a loss without samples sees.

    Example:
        >>> row = {"detector": "fcos", "median_ms": "50.0", "predictions": "84", "q25": "0.99", "q75": "1.04"}
        >>> usual = row | {"loss": "default", "times_usual": "1.0"}
        >>> print(markdown([usual, row | {"loss": "ap", "times_usual": "1.01"}]))
        | detector | usual loss, ms | ap | predictions |
        |---|---:|---:|---:|
        | fcos | 50.0 | 1.01 (0.99–1.04) | 1.0 × |
    """
    losses = [loss for loss in dict.fromkeys(row["loss"] for row in rows) if loss != "default"]
    lines = [
        "| " + " | ".join(["detector", "usual loss, ms", *losses, "predictions"]) + " |",
        "|---" + "|---:" * (len(losses) + 2) + "|",
    ]
    for detector in dict.fromkeys(row["detector"] for row in rows):
        own = {row["loss"]: row for row in rows if row["detector"] == detector}
        cells = []
        for loss in losses:
            row = own[loss]
            cells.append(f"{float(row['times_usual']):.2f} ({float(row['q25']):.2f}–{float(row['q75']):.2f})")
        seen = max(int(own[loss]["predictions"]) for loss in losses) / int(own["default"]["predictions"])
        cells.append(f"{seen:.1f} ×")
        lines.append("| " + " | ".join([detector, own["default"]["median_ms"], *cells]) + " |")
    return "\n".join(lines)


def main(options: Options) -> list[dict[str, Any]]:
    """Measure every detector, write the rows to ``options.out`` after each, and return them."""
    header = {
        "size": options.size,
        "batch": str(options.batch),
        "classes": str(options.classes),
        **environment(options.device),
        "clock": "processor" if options.device == "cpu" else "wall",
    }
    rows: list[dict[str, Any]] = []
    for detector in options.detectors:
        found = in_own_process(detector, options)
        rows += found
        write_rows(options.out, rows, {**header, "threads": str(options.threads)})
        times = ", ".join(f"{r['loss']} {r['median_ms']:.0f} ms ({r['times_usual']:.2f})" for r in found)
        print(f"{detector}: {times}", flush=True)
    return rows


def run(words: list[str]) -> None:
    """``concordet benchmark detectors``."""
    from concordet.detectors import list_detectors

    default = Options(tuple(list_detectors()))
    parser = argparse.ArgumentParser(
        prog="concordet benchmark detectors",
        description=__doc__,
        epilog="example: concordet benchmark detectors --size nano --detectors fcos atss",
    )
    parser.add_argument("--detectors", nargs="+", choices=default.detectors, default=default.detectors)
    parser.add_argument("--losses", nargs="+", default=default.losses, help="compared with the usual one")
    parser.add_argument("--size", choices=("full", "nano"), default=default.size)
    parser.add_argument("--side", type=int, help="of the images, pixels (default: 256, nano 128)")
    parser.add_argument("--batch", type=int, default=default.batch, help="images a step (default: 2)")
    parser.add_argument("--classes", type=int, default=default.classes, help="default: 80")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="steps of each loss (default: 7)")
    parser.add_argument("--threads", type=int, default=default.threads, help="PyTorch's threads (default: 2)")
    parser.add_argument("--device", default=default.device, help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="CSV file (default: detectors.csv, or the next free name)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing: print this file as a table")
    values = vars(parser.parse_args(words))
    if table := values.pop("table"):
        print(markdown(read_rows(table, "detector", "concordet benchmark detectors")))
        return
    out = values["out"] = values["out"] or free_name(default.out)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    main(Options(**values))
    print(markdown(read_rows(out)))
    print(f"written to {out}")
