"""Can every full architecture overfit four images?

    python -m studies.overfit                                  # all detectors
    python -m studies.overfit --detectors fcos --losses default rank_sort

Levels, heads, anchors, assigners and losses are as published. The backbone is narrow, so that a CPU is enough: timm's
``test_resnet``, or ResNet-50 where a detector builds on that network's stages. Sparse R-CNN's heads, of which one step
takes six seconds, are narrow too. Training stops as soon as AP50 on the four images, evaluated every ``EVERY`` steps,
is above ``GOAL``. Writes studies/results/overfit.csv, row by row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product, repeat
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from concordet.benchmark.results import environment, merge_rows, write_rows
from concordet.benchmark.results import table as markdown_table
from concordet.data import load_dataset
from concordet.data.targets import DetectionDataset
from concordet.detectors import Detector, Resize, build_detector, list_detectors
from concordet.detectors.architectures.set_prediction.sparse_rcnn import (
    STAGES,
    SparseHead,
    SparseRCNN,
    SparseStage,
    sparse_rcnn_criterion,
)
from concordet.detectors.architectures.two_stage.faster_rcnn import box_pool
from concordet.detectors.networks.backbones import STRIDES, Pyramid, features
from concordet.detectors.set_prediction import POSTPROCESS
from concordet.engine.detections import batch_results
from concordet.measures import evaluate_detections

Batch = tuple[list[torch.Tensor], list[dict[str, Any]]]
RESULTS = Path(__file__).parent / "results" / "overfit.csv"
GOAL, EVERY, MAX_STEPS = 0.9, 20, 600

SIZES = dict.fromkeys(("ssd", "dssd", "refinedet", "paa"), (256, 256))
"""Image sizes where 128 pixels are too few for the levels, or for anchors of 64 pixels on small digits (PAA)."""

BACKBONES = dict.fromkeys(("ssd", "dssd"), "resnet50")
RATES = {"ssd": 3e-4, "dssd": 3e-4, "refinedet": 3e-4, "cascade_rcnn": 3e-4}
SETS = ("detr", "deformable_detr", "co_detr")
"""Detectors that ``detection_transformers.py`` covers, at nano size."""

WHAT = (
    "`python -m studies.overfit`: full architectures on a narrow backbone, four digit scenes, trained until AP50 is "
    f"above {100 * GOAL:.0f} (evaluated every {EVERY} steps); Sparse R-CNN also has narrow heads"
)


def ap50_while_training(
    model: nn.Module,
    scenes: DetectionDataset,
    *,
    lr: float,
    clip: float = 10.0,
    every: int = EVERY,
    batches: Iterable[Batch] | None = None,
) -> Iterator[tuple[int, float]]:
    """Trains and yields, every so many steps, the number of steps so far and AP50 on the scenes.

    It ends with the batches. Without batches it trains on all scenes at once and does not end.
    """
    images, targets = together(scenes, range(len(scenes)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    for steps, batch in enumerate(repeat((images, targets)) if batches is None else batches, 1):
        optimizer.zero_grad()
        sum(model.train()(*batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        if steps % every == 0:
            with torch.no_grad():
                results = batch_results(model.eval()(images), targets, scenes.category_ids)
            yield steps, evaluate_detections(scenes.ground_truth(), results)["AP50"] or 0.0


def together(scenes: DetectionDataset, rows: Iterable[int]) -> Batch:
    """Images and targets of these scenes."""
    images, targets = zip(*(scenes[i] for i in rows), strict=True)
    return list(images), list(targets)


def narrow_sparse_rcnn(*, num_classes: int, loss: str, backbone: str, image_size: tuple[int, int]) -> Detector:
    """Sparse R-CNN with its levels, pooling, boxes and six heads, at a quarter of the width."""
    maps = Pyramid(features("full", backbone, levels=STRIDES), 64, LastLevelMaxPool())
    pool = box_pool("full")
    stages = [SparseStage(64, num_classes, side=pool.output_size[0], hidden=512, inner=16, heads=8) for _ in STAGES]
    return SparseRCNN(
        maps,
        pool,
        SparseHead(100, 64, stages),
        sparse_rcnn_criterion(loss),
        num_classes=num_classes,
        resize=Resize.within(*image_size),
        postprocess=POSTPROCESS,
    )


def overfit(detector: str, loss: str = "default", *, max_steps: int = MAX_STEPS) -> dict[str, Any]:
    """Row of a detector: trains on four digit scenes until AP50 is above :data:`GOAL`, at most ``max_steps`` steps."""
    torch.manual_seed(0)
    scenes = load_dataset("digits", split="train", length=4, size=128, masks=True)
    build = narrow_sparse_rcnn if detector == "sparse_rcnn" else partial(build_detector, detector)
    model = build(
        num_classes=len(scenes.class_names),
        loss=loss,
        backbone=BACKBONES.get(detector, "timm/test_resnet"),
        image_size=SIZES.get(detector, (128, 128)),
    )
    start, rate, ap50, steps = time.perf_counter(), RATES.get(detector, 5e-4), 0.0, 0
    for steps, ap50 in ap50_while_training(model, scenes, lr=rate):
        print(f"{detector} {loss}: {steps} steps, AP50 {ap50:.3f}", flush=True)
        if ap50 > GOAL or steps >= max_steps:
            break
    return {
        "detector": detector,
        "loss": loss,
        "parameters_M": sum(p.numel() for p in model.parameters()) / 1e6,
        "lr": rate,
        "steps": steps,
        "AP50": ap50,
        "minutes": (time.perf_counter() - start) / 60,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row per detector and loss."""
    head = ["detector", "loss", "parameters", "lr", "steps", "AP50"]
    lines = [
        [r["detector"], r["loss"], f"{float(r['parameters_M']):.1f} M", f"{float(r['lr']):g}", r["steps"],
         f"{100 * float(r['AP50']):.1f}"]
        for r in rows
    ]  # fmt: skip
    return markdown_table(head, lines, text_columns=2)


def main() -> None:
    """Parses the command line, trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in list_detectors() if name not in SETS]
    parser.add_argument("--detectors", nargs="+", default=names, choices=names)
    parser.add_argument("--losses", nargs="+", default=["default"])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for detector, loss in product(options.detectors, options.losses):
        measured_in = {**environment(), "threads": str(torch.get_num_threads())}
        rows = merge_rows(RESULTS, [overfit(detector, loss)], ("detector", "loss"))
        rows.sort(key=lambda r: (names.index(r["detector"]), r["loss"]))
        write_rows(RESULTS, rows, measured_in)
    print(table(rows))


if __name__ == "__main__":
    main()
