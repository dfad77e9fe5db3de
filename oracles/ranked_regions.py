"""Two-stage heads with RS Loss: the authors' loss methods, run from a clone."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmdet.models.losses import GIoULoss
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from concordet.boxes import paired_iou
from concordet.detectors import build_detector
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.proposals import RoIOutput, RPNOutput
from oracles.clones import definition
from oracles.comparison import Comparison, largest
from oracles.dense import Case, maps, use_ours
from oracles.heads import CONFIGS, TOLERANCE, AuthorsHead, Fixed, flat
from oracles.published import float64_buffers, module
from oracles.ranked_heads import APART
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
    yield from _proposals(pairs, names, losses)


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


def _proposals(pairs: list[list[Scene]], names: dict[str, Any], losses: types.ModuleType) -> Iterator[Comparison]:
    """The region proposal network, in float64, with concordet's anchors and matching."""
    model, strides, size = detector("faster_rcnn"), (4, 8, 16, 32, 64), (HEIGHT, WIDTH)
    levels = [(-(-HEIGHT // s), -(-WIDTH // s)) for s in strides]
    count = model.rpn.anchor_generator.num_anchors_per_location()[0]
    case = Case("faster_rcnn", TARGETS["faster_rcnn"], size, levels, [count] * len(levels))
    config = Config.fromfile(CONFIGS / case.config).model
    settings, training = config.rpn_head, config.train_cfg.rpn
    settings.bbox_coder.target_stds = (0.1, 0.1, 0.2, 0.2)  # as in the published configuration
    training.sampler = {"type": "PseudoSampler"}
    settings.update(train_cfg=training, test_cfg=config.test_cfg.rpn)
    path, scope = "mmdet/models/dense_heads/rank_based_rpn_head.py", {**names, "np": np}
    head = AuthorsHead(
        REPOSITORY, path, "RankBasedRPNHead", MODELS.build(settings), ("loss", "delta2bbox"), scope
    )  # fmt: skip
    head.rank_loss_type, head.loss_rank, head.head_weight = "RankSort", losses.RankSort, 0.2
    head.loss_bbox = GIoULoss(reduction="none")
    head.head.bbox_coder.encode = lambda anchors, boxes: model.rpn.box_coder.encode_single(boxes, anchors)
    like = [torch.zeros(len(pairs[0]), 1, *level, dtype=torch.float64) for level in levels]
    images = ImageList(torch.zeros(len(pairs[0]), 3, *size, dtype=torch.float64), [size] * len(pairs[0]))
    anchors = model.rpn.anchor_generator(images, like)
    sizes = [count * rows * columns for rows, columns in levels]
    use_ours(head.head, case, anchors[0], lambda priors, boxes, given: _matching(model, priors, boxes, sizes))
    head.anchor_generator = head.head.prior_generator
    found: dict[tuple[bool, str], list[tuple[Tensor, Tensor]]] = {}
    for seed, scenes in enumerate(pairs):
        batch = [Scene(s.kind, s.boxes.double(), torch.zeros_like(s.labels)) for s in scenes]
        logits = [m.double().requires_grad_() for m in maps(case, seed, 1, shift=-2.0)]
        deltas = [m.double() for m in maps(case, 100 + seed, 4)]
        objects = Objects.of([s.boxes for s in batch], [s.labels for s in batch])
        outputs = RPNOutput(
            {}, [size] * len(batch), size, flat(logits, 1).squeeze(-1), flat(deltas, 4), anchors, [], sizes
        )
        record = model.rpn_record(outputs, objects, model.match_anchors(outputs, objects))
        apart = bool((paired_iou(record.boxes, record.gt_boxes) == 0).any())
        weight = model.criterion.weights.get("rpn", 1.0)
        ours = {k: weight * v for k, v in model.criterion.stages["rpn"](record).items()}
        head.batch = [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch]
        metas = [{"img_shape": size, "pad_shape": size}] * len(batch)
        with float64_buffers():
            expected = head.loss(logits, deltas, [s.boxes for s in batch], metas)
        for term, other in (("ranking", "loss_rpn_rank"), ("sorting", "loss_rpn_sort"), ("box", "loss_rpn_bbox")):
            found.setdefault((apart, term), []).append((ours[term], expected[other]))
        each = (ours["ranking"] + ours["sorting"], expected["loss_rpn_rank"])  # it has the gradient of both
        mine, other = (torch.cat([g.flatten() for g in torch.autograd.grad(x, logits)]) for x in each)
        found.setdefault((apart, "gradient of ranking and sorting"), []).append((mine, other))
    for (apart, what), values in found.items():
        deviation = max(largest([pair]) for pair in values)
        kind = ", a positive of IoU 0" if apart else ""
        yield Comparison(
            f"faster_rcnn with RS Loss, stage rpn{kind}: {what}", REPOSITORY, len(values), deviation, "relative",
            TOLERANCE, APART if apart else "",
        )  # fmt: skip


def _matching(model: Any, anchors: Tensor, boxes: Tensor, sizes: list[int]) -> Tensor:
    objects = Objects.of([boxes], [torch.zeros(len(boxes), dtype=torch.int64)])
    return model.match_anchors(types.SimpleNamespace(anchors=[anchors], level_sizes=sizes), objects)[0]
