"""Can every full architecture learn four images by heart?

    python studies/overfit.py                                  # all detectors
    python studies/overfit.py --detectors fcos --losses default rank_sort

Everything is as published (levels, heads, anchors, assigners, losses) on a narrow backbone, so that a CPU can do it:
timm's ``test_resnet``, or ResNet-50 where a detector is built on that network's stages; Sparse R-CNN's heads, of which
one step takes six seconds, are narrow too.  Training stops as soon as AP50 on the four images, asked every ``EVERY``
steps, is above ``GOAL``.  Writes studies/results/overfit.csv and overfit.md, row by row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product, repeat
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from concordet.benchmark.results import merge_rows, write_table
from concordet.data import load_dataset
from concordet.data.targets import DetectionDataset
from concordet.detectors import build_detector, list_detectors
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
GOAL, EVERY, MOST = 0.9, 20, 600

SIZES = dict.fromkeys(("ssd", "dssd", "refinedet", "paa"), (256, 256))
"""Where 128 pixels are too few for the levels, or for anchors of 64 pixels to tell small digits apart (PAA)."""

BACKBONES = dict.fromkeys(("ssd", "dssd"), "resnet50")
RATES = {"ssd": 3e-4, "dssd": 3e-4, "refinedet": 3e-4, "cascade_rcnn": 3e-4}
SETS = ("detr", "deformable_detr", "co_detr")
"""Detection transformers have a benchmark of their own, ``detection_transformers.py``, at nano size."""


def ap50_while_training(
    model: nn.Module,
    scenes: DetectionDataset,
    *,
    lr: float,
    clip: float = 10.0,
    every: int = EVERY,
    batches: Iterable[Batch] | None = None,
) -> Iterator[tuple[int, float]]:
    """Trains, for as long as there are batches; after every so many steps, how many there were and AP50 on the scenes.

    Without batches it trains on all scenes at once, for ever.
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
                found = batch_results(model.eval()(images), targets, scenes.category_ids)
            yield steps, evaluate_detections(scenes.ground_truth(), found)["AP50"] or 0.0


def together(scenes: DetectionDataset, rows: Iterable[int]) -> Batch:
    """Images and targets of these scenes."""
    images, targets = zip(*(scenes[i] for i in rows), strict=True)
    return list(images), list(targets)


def narrow_sparse_rcnn(*, num_classes: int, loss: str, backbone: str, image_size: tuple[int, int]) -> nn.Module:
    """Sparse R-CNN's levels, pooling, boxes and six heads, a quarter as wide."""
    maps = Pyramid(features("full", backbone, levels=STRIDES), 64, LastLevelMaxPool())
    pool = box_pool("full")
    stages = [SparseStage(64, num_classes, side=pool.output_size[0], hidden=512, inner=16, heads=8) for _ in STAGES]
    return SparseRCNN(
        maps,
        pool,
        SparseHead(100, 64, stages),
        sparse_rcnn_criterion(loss),
        num_classes=num_classes,
        image_size=image_size,
        inference=POSTPROCESS,
    )


def overfit(detector: str, loss: str = "default", *, most: int = MOST) -> dict[str, Any]:
    """Trains on four digit scenes until AP50 is above :data:`GOAL` there, at most ``most`` steps; its figures."""
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
        if ap50 > GOAL or steps >= most:
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


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row a detector and loss."""
    lines = [
        "| detector | loss | parameters | lr | steps | AP50 | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        figures = f"{float(r['parameters_M']):.1f} M | {float(r['lr']):g} | {r['steps']} | {float(r['AP50']):.3f}"
        lines.append(f"| {r['detector']} | {r['loss']} | {figures} | {float(r['minutes']):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Parses, trains, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in list_detectors() if name not in SETS]
    parser.add_argument("--detectors", nargs="+", default=names, choices=names)
    parser.add_argument("--losses", nargs="+", default=["default"])
    options = parser.parse_args()
    what = "`python studies/overfit.py`: full architectures on a narrow backbone, four digit scenes, until AP50 is "
    what += f"above {GOAL} (asked every {EVERY} steps); Sparse R-CNN's heads are narrow too"
    for detector, loss in product(options.detectors, options.losses):
        rows = merge_rows(RESULTS, [overfit(detector, loss)], ("detector", "loss"))
        rows.sort(key=lambda r: (names.index(r["detector"]), r["loss"]))
        write_table(RESULTS, rows, table(rows), what, torch.get_num_threads())


if __name__ == "__main__":
    main()
