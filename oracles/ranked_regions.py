"""RoI heads with RS Loss: the authors' loss methods, run from a clone, on mmdetection's assignment."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models.losses import GIoULoss
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn

from concordet.detectors import build_detector
from concordet.detectors.parts.proposals import RoIOutput
from oracles.clones import definition
from oracles.comparison import Comparison, largest
from oracles.heads import TOLERANCE, Fixed
from oracles.published import module
from oracles.regions import MASK_SIDE, Stage, objects_of, proposals
from oracles.scenes import CLASSES, HEIGHT, WIDTH, Scene, batches

REPOSITORY = "RankSortLoss"
HEADS = "mmdet/models/roi_heads"
TARGETS = {
    "faster_rcnn": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "mask_rcnn": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "cascade_rcnn": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
}
"""mmdetection's configuration of each detector's assignment."""


def compare() -> Iterator[Comparison]:
    """Ranking, sorting and box terms of each stage, and the mask term."""
    losses = module(REPOSITORY)
    if losses is None:
        return
    vectorize = definition(REPOSITORY, "mmdet/core/utils/misc.py", "vectorize_labels")
    names = {"vectorize_labels": vectorize, "bbox_overlaps": bbox_overlaps}
    path = f"{HEADS}/bbox_heads/convfc_bbox_head.py"
    loss = definition(REPOSITORY, path, "loss", names, owner="RankBasedShared2FCBBoxHead")
    pairs = [b for b in batches(2) if min(len(s.boxes) for s in b)]
    for name in ("faster_rcnn", "cascade_rcnn"):
        yield from _stages(name, pairs, loss, losses)
    yield from _masks(pairs, loss, losses)


class PublishedStage:
    """What the published loss method reads of its head, and the targets of mmdetection's assignment."""

    def __init__(self, name: str, index: int, losses: types.ModuleType, loss: Any) -> None:
        self.stage = Stage(TARGETS[name], index)
        self.loss = loss
        self.head = types.SimpleNamespace(
            num_classes=CLASSES,
            rank_loss_type="RankSort",
            reg_decoded_bbox=True,
            reg_class_agnostic=name == "cascade_rcnn",
            bbox_coder=DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2)),
            loss_bbox=GIoULoss(reduction="none"),
            loss_rank=losses.RankSort,
        )

    def terms(
        self, boxes: list[Tensor], batch: list[Scene], logits: Tensor, deltas: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The published terms, and the weights of the positives, image by image."""
        chosen = self.stage.samples(boxes, batch)
        starts = torch.tensor([0, *(len(b) for b in boxes)]).cumsum(0).tolist()
        order = torch.cat(
            [start + torch.cat([s.pos_inds, s.neg_inds]) for start, s in zip(starts, chosen, strict=False)]
        )
        rois = torch.cat([torch.zeros(len(order), 1), torch.cat(boxes)[order]], 1)
        labels, targets = [], []
        for s in chosen:
            labels += [s.pos_gt_labels, s.pos_gt_labels.new_full((len(s.neg_inds),), CLASSES)]
            targets += [s.pos_gt_bboxes, s.pos_gt_bboxes.new_zeros(len(s.neg_inds), 4)]
        ones = torch.ones(len(order))
        return self.loss(
            self.head, logits[order], deltas[order].flatten(1), rois, torch.cat(labels), ones, torch.cat(targets), ones
        )


def detector(name: str) -> Any:
    """concordet's with RS Loss, on a small backbone."""
    return build_detector(name, num_classes=CLASSES, backbone="resnet18", image_size=(HEIGHT, WIDTH), loss="rank_sort")


def _inputs(seed: int, count: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, CLASSES, generator=generator)
    return logits.requires_grad_(), 0.3 * torch.randn(count, columns, 4, generator=generator)


def _stages(name: str, pairs: list[list[Scene]], loss: Any, losses: types.ModuleType) -> Iterator[Comparison]:
    model = detector(name)
    for index, stage in enumerate(model.stage_names):
        theirs = PublishedStage(name, index, losses, loss)
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for seed, batch in enumerate(pairs):
            boxes = [proposals(s, seed) for s in batch]
            logits, deltas = _inputs(seed, sum(map(len, boxes)), 1 if name == "cascade_rcnn" else CLASSES)
            outputs = [RoIOutput(boxes, logits, deltas)] * len(model.stage_names)
            record = model.roi_records(None, outputs, objects_of(batch))[index]
            weight = model.criterion.weights.get(stage, 1.0)
            ours = {k: weight * v for k, v in model.criterion.stages[stage](record).items()}
            expected, _ = theirs.terms(boxes, batch, logits, deltas)
            for term, other in (("ranking", "loss_roi_rank"), ("sorting", "loss_roi_sort"), ("box", "loss_roi_bbox")):
                found.setdefault(term, []).append((ours[term], expected[other]))
            (mine,) = torch.autograd.grad(ours["ranking"] + ours["sorting"], logits)
            (other,) = torch.autograd.grad(expected["loss_roi_rank"], logits)  # it has the gradient of both
            found.setdefault("gradient of ranking and sorting", []).append((mine, other))
        for what, values in found.items():
            deviation = max(largest([pair]) for pair in values)
            yield Comparison(
                f"{name} with RS Loss, stage {stage}: {what}", REPOSITORY, len(values), deviation, "relative", TOLERANCE
            )


def _masks(pairs: list[list[Scene]], loss: Any, losses: types.ModuleType) -> Iterator[Comparison]:
    path, owner = f"{HEADS}/mask_heads/rankbased_fcn_mask_head.py", "RankBasedFCNMaskHead"
    mask_loss, dice = (definition(REPOSITORY, path, name, owner=owner) for name in ("loss", "dice_coefficient"))
    model = detector("mask_rcnn")
    model.pool = lambda *given: torch.zeros(0)
    model.box_stages[0].mask_head = nn.Identity()
    theirs = PublishedStage("mask_rcnn", 0, losses, loss)
    head = types.SimpleNamespace(dice_coefficient=lambda x, target: dice(None, x, target))
    values = []
    for seed, batch in enumerate(pairs):
        boxes, objects = [proposals(s, seed) for s in batch], objects_of(batch)
        logits, deltas = _inputs(seed, sum(map(len, boxes)), CLASSES)
        labels = torch.cat([s.pos_gt_labels for s in theirs.stage.samples(boxes, batch)])
        generator = torch.Generator().manual_seed(seed)
        raw = torch.randn(len(labels), CLASSES + 1, MASK_SIDE, MASK_SIDE, generator=generator)
        model.box_stages[0].mask_predictor = Fixed(raw)
        (record,) = model.roi_records(None, [RoIOutput(boxes, logits, deltas)], objects)
        expected, weights = theirs.terms(boxes, batch, logits, deltas)
        ranked = expected["loss_roi_rank"] + expected["loss_roi_sort"]
        mine = model.criterion.stages["roi"](record)["mask"]
        values.append((mine, mask_loss(head, raw[:, 1:], record.masks.targets, labels, weights, ranked)["loss_mask"]))
    deviation = max(largest([pair]) for pair in values)
    yield Comparison(
        "mask_rcnn with RS Loss: mask term with the same targets",
        REPOSITORY,
        len(values),
        deviation,
        "relative",
        TOLERANCE,
    )
