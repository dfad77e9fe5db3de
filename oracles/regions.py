"""Heads of two-stage detectors: the same boxes, logits and deltas, matched and weighed by both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.models.task_modules.samplers import PseudoSampler, RandomSampler
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from concordet.detectors import build_detector
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.proposals import RoIOutput, sample
from concordet.detectors.two_stage import TwoStageDetector
from oracles.comparison import Comparison, largest
from oracles.heads import CONFIGS, TOLERANCE, Fixed
from oracles.scenes import CLASSES, HEIGHT, WIDTH, Scene, batches, ellipses, scenes

MASK_SIDE = 28
SMOOTH = "as torchvision: smooth L1 with beta 1/9; mmdetection: L1, larger by 1/18 for errors above 1/9"
SOFT = "as torchvision: targets are not rounded, nor shifted by half a pixel; mmdetection: both"


def proposals(scene: Scene, seed: int, count: int = 60) -> Tensor:
    """The objects' own boxes, boxes around them, and others."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.float32)
    near = scene.boxes.repeat(6, 1)
    sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
    near = near + 0.12 * sides * torch.randn(near.shape, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * size[:2] * 0.7
    far = torch.cat([corners, corners + 8 + 60 * torch.rand(count, 2, generator=generator)], 1)
    boxes = torch.cat([scene.boxes, near, far]).clamp(min=0).minimum(size)
    return boxes[((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)]


def objects_of(batch: list[Scene]) -> Objects:
    """A batch's objects, with ellipses as masks."""
    objects = Objects.of([s.boxes for s in batch], [s.labels for s in batch])
    return Objects(objects.boxes, objects.classes, objects.ignored, [ellipses(s.boxes) for s in batch])


class Stage:
    """mmdetection's stage of a RoI head: its assigner, all boxes as the sample, and its loss."""

    def __init__(self, config: str, index: int, **changes: Any) -> None:
        roi = Config.fromfile(CONFIGS / config).model.roi_head
        rcnn = Config.fromfile(CONFIGS / config).model.train_cfg.rcnn
        settings, self.settings = (x[index] if isinstance(x, list | tuple) else x for x in (roi.bbox_head, rcnn))
        settings.update(num_classes=CLASSES, **changes)
        self.head = MODELS.build(settings)
        self.weight = roi.get("stage_loss_weights", [1.0])[index]
        assigner = dict(self.settings.assigner)
        self.assigner = MaxIoUAssigner(**{k: v for k, v in assigner.items() if k != "type"})

    def samples(self, boxes: list[Tensor], batch: list[Scene]) -> list[Any]:
        """All boxes, positives first."""
        found = []
        for own, scene in zip(boxes, batch, strict=True):
            priors, objects = InstanceData(priors=own), InstanceData(bboxes=scene.boxes, labels=scene.labels)
            found.append(PseudoSampler().sample(self.assigner.assign(priors, objects), priors, objects))
        return found

    def losses(self, boxes: list[Tensor], batch: list[Scene], logits: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        """Loss terms of a stage, with its weight."""
        chosen = self.samples(boxes, batch)
        starts = torch.tensor([0, *(len(b) for b in boxes)]).cumsum(0).tolist()
        order = torch.cat(
            [start + torch.cat([s.pos_inds, s.neg_inds]) for start, s in zip(starts, chosen, strict=False)]
        )
        rois = torch.cat([torch.zeros(len(order), 1), torch.cat(boxes)[order]], 1)
        terms = self.head.loss_and_target(logits[order], deltas[order].flatten(1), rois, chosen, self.settings)
        return {k: self.weight * v for k, v in terms["loss_bbox"].items()}


def compare() -> Iterator[Comparison]:
    """RoI losses of Faster and Cascade R-CNN, masks of Mask R-CNN, and how many boxes are sampled."""
    pairs = [b for b in batches(2) if min(len(s.boxes) for s in b)]
    yield from _boxes("faster_rcnn", pairs)
    yield from _boxes("cascade_rcnn", pairs)
    yield from _masks(pairs)
    yield from _sampling()


def detector(name: str) -> TwoStageDetector:
    """concordet's, on a small backbone."""
    return build_detector(name, num_classes=CLASSES, backbone="resnet18", image_size=(HEIGHT, WIDTH), loss="default")


def _boxes(name: str, pairs: list[list[Scene]]) -> Iterator[Comparison]:
    model = detector(name)
    config = f"{name}/{name.replace('_', '-')}_r50_fpn_1x_coco.py"
    smooth = {"type": "SmoothL1Loss", "beta": 1 / 9, "loss_weight": 1.0}
    agnostic = name == "cascade_rcnn"
    for index, stage in enumerate(model.stage_names):
        theirs = Stage(config, index)
        variants = {"": theirs} if agnostic else {"": theirs, " with smooth L1": Stage(config, index, loss_bbox=smooth)}
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for seed, batch in enumerate(pairs):
            boxes = [proposals(s, seed) for s in batch]
            generator = torch.Generator().manual_seed(seed)
            count = sum(map(len, boxes))
            logits = torch.randn(count, CLASSES + 1, generator=generator)
            deltas = torch.randn(count, 1 if agnostic else CLASSES, 4, generator=generator)
            outputs = [RoIOutput(boxes, logits, deltas)] * len(model.stage_names)
            record = model.roi_records(None, outputs, objects_of(batch))[index]
            terms = model.criterion.stages[stage](record)
            for variant, oracle in variants.items():
                expected = oracle.losses(boxes, batch, logits, deltas)
                for term, other in (("classification", "loss_cls"), ("box", "loss_bbox")):
                    if variant and term != "box":
                        continue
                    mine = model.criterion.weights[stage] * terms[term]
                    found.setdefault(f"{term} term{variant}", []).append((mine, expected[other]))
        for what, values in found.items():
            reason = SMOOTH if what == "box term" and not agnostic else ""
            deviation = max(largest([pair]) for pair in values)
            yield Comparison(
                f"{name}, stage {stage}: {what}", "mmdet 3.3.0", len(values), deviation, "relative", TOLERANCE, reason
            )


def _masks(pairs: list[list[Scene]]) -> Iterator[Comparison]:
    model = detector("mask_rcnn")
    stage = Stage("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", 0)
    settings = Config.fromfile(CONFIGS / "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py").model.roi_head.mask_head
    settings.num_classes = CLASSES
    head = MODELS.build(settings)
    model.pool = lambda *given: torch.zeros(0)
    model.box_stages[0].mask_head = nn.Identity()
    same, own = [], []
    for seed, batch in enumerate(pairs):
        boxes, objects = [proposals(s, seed) for s in batch], objects_of(batch)
        chosen = stage.samples(boxes, batch)
        labels = torch.cat([s.pos_gt_labels for s in chosen])
        generator = torch.Generator().manual_seed(seed)
        raw = torch.randn(len(labels), CLASSES + 1, MASK_SIDE, MASK_SIDE, generator=generator)
        model.box_stages[0].mask_predictor = Fixed(raw)
        count = sum(map(len, boxes))
        output = RoIOutput(boxes, torch.zeros(count, CLASSES + 1), torch.zeros(count, CLASSES, 4))
        (record,) = model.roi_records(None, [output], objects)
        mine = model.criterion.stages["roi"](record)["mask"]
        same.append((mine, head.loss_mask(raw[:, 1:], record.masks.targets, labels)))
        truth = [
            InstanceData(bboxes=s.boxes, labels=s.labels, masks=BitmapMasks(m.numpy(), HEIGHT, WIDTH))
            for s, m in zip(batch, objects.masks, strict=True)
        ]
        terms = head.loss_and_target(raw[:, 1:], chosen, truth, ConfigDict(mask_size=MASK_SIDE))
        own.append((mine, terms["loss_mask"]["loss_mask"]))
    for what, values, reason in (("mask term with the same targets", same, ""), ("mask term", own, SOFT)):
        deviation = max(largest([pair]) for pair in values)
        yield Comparison(f"mask_rcnn: {what}", "mmdet 3.3.0", len(values), deviation, "relative", TOLERANCE, reason)


def _sampling() -> Iterator[Comparison]:
    model = detector("faster_rcnn")
    settings = {"RPN": (model.rpn.fg_bg_sampler, 256, 0.5), "RoI head": (model.roi_sampler, 512, 0.25)}
    for name, (sampler, count, share) in settings.items():
        theirs = RandomSampler(num=count, pos_fraction=share, neg_pos_ub=-1, add_gt_as_proposals=False)
        assigner = MaxIoUAssigner(0.5, 0.5, min_pos_iou=0.5, match_low_quality=False)
        differing, chosen = 0, scenes(3)
        for seed, scene in enumerate(chosen):
            boxes = proposals(scene, seed, count=40 if seed % 2 else 700)
            differing += counts(sampler, boxes, scene, model) != expected(theirs, assigner, boxes, scene)
        yield Comparison(
            f"{name}: how many positives and negatives are sampled", "mmdet 3.3.0", len(chosen), differing, "of scenes"
        )


def counts(
    sampler: BalancedPositiveNegativeSampler, boxes: Tensor, scene: Scene, model: TwoStageDetector
) -> tuple[int, int]:
    """Numbers of positives and negatives in concordet's sample of an image's boxes."""
    (matches,) = model.match_boxes([boxes], objects_of([scene]), 0.5)
    (rows,) = sample([matches], sampler)
    positive = int((matches[rows] >= 0).sum())
    return positive, len(rows) - positive


def expected(sampler: RandomSampler, assigner: MaxIoUAssigner, boxes: Tensor, scene: Scene) -> tuple[int, int]:
    """Numbers of positives and negatives in mmdetection's sample."""
    priors, objects = InstanceData(priors=boxes), InstanceData(bboxes=scene.boxes, labels=scene.labels)
    found = sampler.sample(assigner.assign(priors, objects), priors, objects)
    return len(found.pos_inds), len(found.neg_inds)
