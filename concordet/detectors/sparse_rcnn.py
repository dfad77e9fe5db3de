"""Sparse R-CNN (Sun et al. 2021): a few learned boxes, refined six times, matched one to one; no anchors and no NMS."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from concordet.detectors.backbones import Size, pyramid
from concordet.detectors.dense import Inference, checked_targets, mean_count
from concordet.detectors.detector import Detections, Detector, Target
from concordet.detectors.faster_rcnn import box_pool
from concordet.detectors.hungarian import set_matches
from concordet.detectors.matching import ignore_inside
from concordet.detectors.proposals import Objects, objects_of, select_refined
from concordet.losses.box import BoxTerm
from concordet.losses.criteria import Criterion, StagedCriterion, Usual, build_criterion
from concordet.losses.set_core import SetCore
from concordet.types import BACKGROUND, Assigned

USUAL = Usual("focal", BoxTerm("giou", weight=2.0))
STAGES = tuple(f"stage{k}" for k in range(1, 7))
CODER = BoxCoder((2.0, 2.0, 1.0, 1.0))  # which bounds growth, so that areas stay finite after six stages


def sparse_rcnn_criterion(loss: str | Criterion | StagedCriterion) -> StagedCriterion:
    """A criterion for each of ``stage1`` to ``stage6``; a loss by name gets L1 of normalised boxes beside it.

    Raises:
        ValueError: for an auxiliary head, or a criterion of other stages.
    """
    if isinstance(loss, StagedCriterion):
        if list(loss.stages) != list(STAGES):
            raise ValueError(f"sparse_rcnn has the stages {list(STAGES)}, the criterion has {list(loss.stages)}")
        return loss
    stages = {name: build_criterion(loss, USUAL) if isinstance(loss, str) else copy.deepcopy(loss) for name in STAGES}
    for criterion in stages.values():
        if criterion.quality is not None:
            raise ValueError(f"sparse_rcnn has no auxiliary head, which loss {loss!r} would train; leave it away")
        if isinstance(loss, str):
            criterion.core = SetCore(criterion.core, balanced=criterion.mask.balanced)
    return StagedCriterion(stages)


def sparse_rcnn(
    criterion: StagedCriterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    **settings: Any,
) -> SparseRCNN:
    """Sparse R-CNN: 100 learned boxes and features, six heads of self-attention and dynamic convolution.

    Follows the authors' code: focal loss weighs 2, L1 5, GIoU 2, in each head alike; 106 M parameters at ResNet-50 and
    80 classes, as theirs and mmdetection's.  Nano: 50 boxes, 64 channels, 2.3 M parameters at 3 classes.
    """
    features, _ = pyramid(size, backbone, extra="pool", pretrained=pretrained)
    pool = box_pool(size)
    width, boxes, hidden, inner, heads = (64, 50, 256, 16, 4) if size == "nano" else (256, 100, 2048, 64, 8)
    stages = [
        SparseStage(width, num_classes, side=pool.output_size[0], hidden=hidden, inner=inner, heads=heads)
        for _ in STAGES
    ]
    head = SparseHead(boxes, width, stages)
    return SparseRCNN(features, pool, head, criterion, num_classes=num_classes, **settings)


class DynamicConv(nn.Module):
    """A box's own feature makes two 1 x 1 convolutions, which its pooled features go through (Sec. 3.4)."""

    def __init__(self, width: int, inner: int, side: int) -> None:
        super().__init__()
        self.inner = inner
        self.dynamic_layer = nn.Linear(width, 2 * width * inner)
        self.norm1 = nn.LayerNorm(inner)
        self.norm2 = nn.LayerNorm(width)
        self.out_layer = nn.Linear(width * side**2, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, own: Tensor, pooled: Tensor) -> Tensor:
        """``[n, width]`` from own features ``[n, width]`` and pooled ones ``[n, side * side, width]``."""
        width = own.shape[1]
        first, second = self.dynamic_layer(own).chunk(2, dim=1)
        x = F.relu(self.norm1(pooled @ first.view(-1, width, self.inner)))
        x = F.relu(self.norm2(x @ second.view(-1, self.inner, width)))
        return F.relu(self.norm3(self.out_layer(x.flatten(1))))


class SparseStage(nn.Module):
    """One head: boxes look at one another, then at the image, and are classified and moved."""

    def __init__(self, width: int, num_classes: int, *, side: int, hidden: int, inner: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.inst_interact = DynamicConv(width, inner, side)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.cls_module = _tower(width, 1)
        self.reg_module = _tower(width, 3)
        self.class_logits = nn.Linear(width, num_classes)
        self.bboxes_delta = nn.Linear(width, 4)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.class_logits.bias, -math.log(99))

    def forward(self, own: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``[b, k, width]``, logits ``[b, k, c]`` and deltas ``[b, k, 4]``.

        Args:
            own: ``[b, k, width]`` features of the boxes.
            pooled: ``[b * k, width, side, side]`` the image's.
        """
        shape = own.shape
        own = self.norm1(own + self.self_attn(own, own, own, need_weights=False)[0]).flatten(0, 1)
        own = self.norm2(own + self.inst_interact(own, pooled.flatten(2).transpose(1, 2)))
        own = self.norm3(own + self.linear2(F.relu(self.linear1(own)))).view(shape)
        logits, deltas = self.class_logits(self.cls_module(own)), self.bboxes_delta(self.reg_module(own))
        return own, logits.float(), deltas.float()


def _tower(width: int, depth: int) -> nn.Sequential:
    layers = [(nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(*(module for layer in layers for module in layer))


class SparseHead(nn.Module):
    """The learned boxes (centre and size in units of the image; at first the whole of it), features, and the stages."""

    def __init__(self, count: int, width: int, stages: list[SparseStage]) -> None:
        super().__init__()
        self.init_proposal_boxes = nn.Parameter(torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(count, 1))
        self.init_proposal_features = nn.Parameter(torch.randn(count, width))
        self.head_series = nn.ModuleList(stages)

    def proposals(self, image_size: tuple[int, int]) -> Tensor:
        """``[k, 4]`` the learned boxes, xyxy pixels of an image."""
        centre, extent = self.init_proposal_boxes.chunk(2, dim=1)
        height, width = image_size
        return torch.cat([centre - extent / 2, centre + extent / 2], 1) * centre.new_tensor([width, height] * 2)


@dataclass(frozen=True)
class Stage:
    """What one stage predicts for b images of k boxes."""

    logits: Tensor  # [b, k, c]
    boxes: Tensor  # [b, k, 4], with gradient


class SparseRCNN(Detector):
    """Sparse R-CNN in torchvision's convention, as :class:`~concordet.detectors.two_stage.TwoStageDetector` is.

    Records are named ``stage1`` to ``stage6``; encoded regressions are boxes in units of the image.

    Args:
        backbone: features; has ``out_channels``.
        pool: features and boxes to ``[n, channels, h, w]``.
        head: learned boxes and stages.
        criterion: loss.
        num_classes: foreground classes; labels outside are 1..num_classes.
        image_size: (least shorter side, greatest longer side) that images are resized to, pixels.
        inference: thresholds; an NMS threshold of 1 drops nothing.
        ignore_regions: boxes inside ``target["ignored_boxes"]`` are no background.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pool: MultiScaleRoIAlign,
        head: SparseHead,
        criterion: StagedCriterion,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        inference: Inference,
        ignore_regions: bool = True,
    ) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(*image_size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.backbone = backbone
        self.pool = pool
        self.head = head
        self.criterion = criterion
        self.num_classes = num_classes
        self.inference = inference
        self.ignore_regions = ignore_regions

    def _train(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        return self.criterion(self.assigned(images, targets))

    def _detect(self, images: list[Tensor]) -> Detections:
        stages, sizes, _ = self._predict(images, None)
        return self._detections(stages[-1], sizes, images)

    def losses_and_detections(
        self, images: list[Tensor], targets: list[Target]
    ) -> tuple[dict[str, Tensor], Detections]:
        """Losses and detections of the same batch from one forward pass, in either mode."""
        detections, records = self.detections_and_assigned(images, targets)
        return self.criterion(records), detections

    def assigned(self, images: list[Tensor], targets: list[Target]) -> list[Assigned]:
        """Predictions with the objects assigned to them, one record a stage, the final one last."""
        return self._records(*self._predict(images, targets))

    def detections_and_assigned(self, images: list[Tensor], targets: list[Target]) -> tuple[Detections, list[Assigned]]:
        """What an evaluation needs, from one forward pass."""
        stages, sizes, objects = self._predict(images, targets)
        return self._detections(stages[-1], sizes, images), self._records(stages, sizes, objects)

    def _predict(
        self, images: list[Tensor], targets: list[Target] | None
    ) -> tuple[list[Stage], list[tuple[int, int]], list[Objects]]:
        if targets is not None:
            targets = checked_targets(images, targets, self.num_classes)
        batch, resized = self.transform(images, targets)
        features = self.backbone(batch.tensors)
        padded = [tuple(batch.tensors.shape[-2:])] * len(images)
        own = self.head.init_proposal_features.expand(len(images), -1, -1)
        boxes = torch.stack([self.head.proposals(size) for size in batch.image_sizes])
        stages = []
        for stage in self.head.head_series:
            pooled = self.pool(features, list(boxes.detach()), padded)
            own, logits, deltas = stage(own, pooled)
            decoded = CODER.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1)).view_as(boxes)
            stages.append(Stage(logits, decoded))
            boxes = decoded.detach()
        return stages, batch.image_sizes, [objects_of(t) for t in resized or []]

    def _records(self, stages: list[Stage], sizes: list[tuple[int, int]], objects: list[Objects]) -> list[Assigned]:
        return [self._record(s, sizes, objects, name) for name, s in zip(STAGES, stages, strict=True)]

    @torch.no_grad()
    def _match(self, stage: Stage, sizes: list[tuple[int, int]], objects: list[Objects]) -> Tensor:
        """``[b, k]`` each box's object in its image, or a label without object."""
        matches = []
        for logits, boxes, size, image in zip(stage.logits, stage.boxes, sizes, objects, strict=True):
            match = set_matches(logits, boxes, image.boxes, image.classes, size)
            matches.append(ignore_inside(match, boxes, image.ignored) if self.ignore_regions else match)
        return torch.stack(matches)

    def _record(self, stage: Stage, sizes: list[tuple[int, int]], objects: list[Objects], name: str) -> Assigned:
        match = self._match(stage, sizes, objects)
        per_image, match = match.shape[1], match.flatten()
        positive = torch.nonzero(match >= 0).squeeze(1)
        image_ids = positive // per_image
        offsets = torch.tensor([0, *(len(o.classes) for o in objects[:-1])], device=match.device).cumsum(0)
        gt_ids = match[positive] + offsets[image_ids]
        labels = match.clamp(max=BACKGROUND)
        labels[positive] = torch.cat([o.classes for o in objects])[gt_ids]
        boxes, gt_boxes = stage.boxes.flatten(0, 1)[positive], torch.cat([o.boxes for o in objects])[gt_ids]
        units = boxes.new_tensor([[width, height, width, height] for height, width in sizes])[image_ids]
        return Assigned(
            logits=stage.logits.flatten(0, 1),
            labels=labels,
            positive=positive,
            boxes=boxes,
            gt_boxes=gt_boxes,
            gt_ids=gt_ids,
            image_ids=image_ids,
            normalizer=mean_count(len(positive), match.device),
            deltas=boxes / units,
            gt_deltas=gt_boxes / units,
            stage=name,
        )

    @torch.no_grad()
    def _detections(self, stage: Stage, sizes: list[tuple[int, int]], images: list[Tensor]) -> Detections:
        each = zip(stage.logits.sigmoid(), stage.boxes, sizes, strict=True)
        results = [select_refined(scores, boxes[:, None], self.inference, size) for scores, boxes, size in each]
        for result, image, size in zip(results, images, sizes, strict=True):
            result["boxes"] = resize_boxes(result["boxes"], list(size), list(image.shape[-2:]))
        return results
