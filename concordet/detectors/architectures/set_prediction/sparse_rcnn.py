"""Sparse R-CNN (Sun et al. 2021): learned boxes, refined six times, one-to-one matching, no anchors, no NMS."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import MultiScaleRoIAlign

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.two_stage.faster_rcnn import box_pool
from concordet.detectors.networks.backbones import Size, pyramid
from concordet.detectors.networks.heads import init_prior_bias
from concordet.detectors.parts.hungarian import Costs
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.targets import Target
from concordet.detectors.set_prediction import POSTPROCESS, Outcome, SetPredictor, Stage, per_layer_criterion
from concordet.losses.criteria import Criterion, LossDefaults, StagedCriterion
from concordet.losses.criteria.box import BoxTerm
from concordet.losses.functional.reduction import at_least_float32

DEFAULTS = LossDefaults("focal", BoxTerm("giou", weight=2.0))
STAGES = tuple(f"stage{k}" for k in range(1, 7))
CODER = BoxCoder((2.0, 2.0, 1.0, 1.0))  # clamps log sizes, so that areas stay finite after six stages


def sparse_rcnn_criterion(loss: str | Criterion | StagedCriterion) -> StagedCriterion:
    """One criterion per stage, ``stage1`` to ``stage6``; a loss by name gets L1 of normalized boxes in addition."""
    return per_layer_criterion("sparse_rcnn", loss, DEFAULTS, STAGES)


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

    Follows the authors' code: weights are 2 for focal loss, 5 for L1 and 2 for GIoU in each head; 106.3 M parameters at
    ResNet-50 and 80 classes, as theirs and mmdetection's. Departure: features of boxes are pooled as in torchvision
    (there: half a pixel away). Nano: 50 boxes, 64 channels, 2.3 M parameters at 3 classes.
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
    """Two 1 x 1 convolutions of a box's pooled features, whose weights its proposal feature predicts (Sec. 3.4)."""

    def __init__(self, width: int, inner: int, side: int) -> None:
        super().__init__()
        self.inner = inner
        self.dynamic_layer: nn.Linear = nn.Linear(width, 2 * width * inner)
        self.norm1: nn.LayerNorm = nn.LayerNorm(inner)
        self.norm2: nn.LayerNorm = nn.LayerNorm(width)
        self.out_layer: nn.Linear = nn.Linear(width * side**2, width)
        self.norm3: nn.LayerNorm = nn.LayerNorm(width)

    def forward(self, proposals: Tensor, pooled: Tensor) -> Tensor:
        """``[n, width]`` from proposal features ``[n, width]`` and pooled ones ``[n, side * side, width]``."""
        width = proposals.shape[1]
        first, second = self.dynamic_layer(proposals).chunk(2, dim=1)
        x = F.relu(self.norm1(pooled @ first.view(-1, width, self.inner)))
        x = F.relu(self.norm2(x @ second.view(-1, self.inner, width)))
        return F.relu(self.norm3(self.out_layer(x.flatten(1))))


class SparseStage(nn.Module):
    """One head: self-attention among boxes, dynamic convolution of the image's features, classification, regression."""

    def __init__(self, width: int, num_classes: int, *, side: int, hidden: int, inner: int, heads: int) -> None:
        super().__init__()
        self.self_attn: nn.MultiheadAttention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.inst_interact: DynamicConv = DynamicConv(width, inner, side)
        self.linear1: nn.Linear = nn.Linear(width, hidden)
        self.linear2: nn.Linear = nn.Linear(hidden, width)
        self.norm1: nn.LayerNorm
        self.norm2: nn.LayerNorm
        self.norm3: nn.LayerNorm
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.cls_module: nn.Sequential = _tower(width, 1)
        self.reg_module: nn.Sequential = _tower(width, 3)
        self.class_logits: nn.Linear = nn.Linear(width, num_classes)
        self.bboxes_delta: nn.Linear = nn.Linear(width, 4)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        init_prior_bias(self.class_logits)

    def forward(self, proposals: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Proposal features ``[b, k, width]``, logits ``[b, k, c]`` and deltas ``[b, k, 4]``.

        Args:
            proposals: ``[b, k, width]`` proposal features of the boxes.
            pooled: ``[b * k, width, side, side]`` features of the image, pooled from the boxes.
        """
        x = proposals
        x = self.norm1(x + self.self_attn(x, x, x, need_weights=False)[0]).flatten(0, 1)
        x = self.norm2(x + self.inst_interact(x, pooled.flatten(2).transpose(1, 2)))
        x = self.norm3(x + self.linear2(F.relu(self.linear1(x)))).view(proposals.shape)
        logits, deltas = self.class_logits(self.cls_module(x)), self.bboxes_delta(self.reg_module(x))
        return x, at_least_float32(logits), at_least_float32(deltas)


def _tower(width: int, depth: int) -> nn.Sequential:
    layers = [(nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(*(module for layer in layers for module in layer))


class SparseHead(nn.Module):
    """Learned boxes (center and size in units of the image, initially the whole image), features and stages."""

    def __init__(self, count: int, width: int, stages: list[SparseStage]) -> None:
        super().__init__()
        self.init_proposal_boxes: nn.Parameter = nn.Parameter(torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(count, 1))
        self.init_proposal_features: nn.Parameter = nn.Parameter(torch.randn(count, width))
        self.head_series: nn.ModuleList = nn.ModuleList(stages)

    def proposals(self, image_size: tuple[int, int]) -> Tensor:
        """``[k, 4]`` learned boxes, xyxy pixels of an image."""
        center, extent = self.init_proposal_boxes.chunk(2, dim=1)
        height, width = image_size
        return torch.cat([center - extent / 2, center + extent / 2], 1) * center.new_tensor([width, height] * 2)


class SparseRCNN(SetPredictor):
    """Sparse R-CNN in torchvision's convention; records are named ``stage1`` to ``stage6``.

    Args:
        backbone: Feature pyramid.
        pool: Pooling of features and boxes to ``[n, channels, h, w]``.
        head: Learned boxes and stages.
        criterion: Loss.
        **settings: Arguments of :class:`SetPredictor`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pool: MultiScaleRoIAlign,
        head: SparseHead,
        criterion: StagedCriterion,
        **settings: Any,
    ) -> None:
        super().__init__(criterion, costs=Costs(), **settings)
        self.backbone = backbone
        self.pool = pool
        self.head = head

    def _predict(self, images: list[Tensor], targets: list[Target] | None) -> Outcome:
        batch, resized = self.transform(images, targets)
        features = self.backbone(batch.tensors)
        padded = [tuple(batch.tensors.shape[-2:])] * len(images)
        proposals = self.head.init_proposal_features.expand(len(images), -1, -1)
        boxes = torch.stack([self.head.proposals(size) for size in batch.image_sizes])
        stages = []
        for name, stage in zip(STAGES, self.head.head_series, strict=True):
            pooled = self.pool(features, list(boxes.detach()), padded)
            proposals, logits, deltas = stage(proposals, pooled)
            decoded = CODER.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1)).view_as(boxes)
            stages.append(Stage(name, logits, decoded))
            boxes = decoded.detach()
        return Outcome(
            stages, batch.image_sizes, Objects.from_targets(resized or [], ignore_regions=self.ignore_regions)
        )


ARCHITECTURE = Architecture(sparse_rcnn, DEFAULTS, postprocess=POSTPROCESS, criterion=sparse_rcnn_criterion)
