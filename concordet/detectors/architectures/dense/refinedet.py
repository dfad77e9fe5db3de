"""RefineDet (Zhang et al. 2018): a first stage refines the anchors and drops empty ones, a second one classifies."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.vgg import cfgs, make_layers

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.dense.ssd import (
    DEFAULTS,
    POSTPROCESS,
    MultiBoxHead,
    NanoFeatures,
    multibox_detector,
    residual_block,
)
from concordet.detectors.dense import DenseDetector, Predictions
from concordet.detectors.networks.backbones import Size, features
from concordet.detectors.parts.anchors import GridAnchors
from concordet.detectors.parts.resize import Resize
from concordet.losses.criteria import Criterion, LossName, StagedCriterion, build_criterion
from concordet.losses.functional.reduction import at_least_float32

__all__ = ["ARCHITECTURE", "refinedet", "refinedet_criterion"]


class Preset(NamedTuple):
    """Settings that differ between full and nano size."""

    anchor_scale: int  # side of an anchor, in strides
    channels: int  # of the second stage


FULL, NANO = Preset(4, 256), Preset(2, 32)
STAGES = ("arm", "odm")
NEGATIVE_ANCHOR = 0.01


def refinedet_criterion(loss: str | Criterion | StagedCriterion) -> StagedCriterion:
    """Stages ``arm`` (objects or not, first boxes) and ``odm`` (classes, final boxes).

    The first stage has the same base loss without couplings: its scores rank no detections.

    Raises:
        ValueError: for an auxiliary head, or a criterion of other stages.
    """
    if isinstance(loss, StagedCriterion):
        if set(loss.stages) != set(STAGES):
            raise ValueError(f"stages of the criterion must be {list(STAGES)} for refinedet, got {list(loss.stages)}")
        return loss
    if isinstance(loss, str):
        odm, arm = build_criterion(loss, DEFAULTS), build_criterion(LossName.parse(loss).without_extras(), DEFAULTS)
    else:
        odm, arm = loss, Criterion(copy.deepcopy(loss.core), needs=loss.needs)
    if odm.needs.quality_head is not None:
        raise ValueError(f"loss must be without auxiliary head for refinedet, got {loss!r}; leave the head out")
    return StagedCriterion({"arm": arm, "odm": odm})


class Normalized(nn.Module):
    """Features of unit length at each location, times a learned scale per channel."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale_weight: nn.Parameter = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """``[b, channels, h, w]``."""
        return self.scale_weight.view(1, -1, 1, 1) * F.normalize(x)


class RefineVGG(nn.Module):
    """VGG-16's conv4_3 and conv5_3, normalized, fc7 as a convolution and one more level: strides 8, 16, 32, 64."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.features = make_layers(cfgs["D"])
        self.norms: nn.ModuleList = nn.ModuleList([Normalized(512, 10.0), Normalized(512, 8.0)])
        self.fc: nn.Sequential = nn.Sequential(
            nn.Conv2d(512, 1024, 3, padding=3, dilation=3), nn.ReLU(), nn.Conv2d(1024, 1024, 1)
        )
        self.extra: nn.Sequential = nn.Sequential(nn.Conv2d(1024, 256, 1), nn.ReLU(), nn.Conv2d(256, 512, 3, 2, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if pretrained:
            self.features[:4].requires_grad_(False)
        self.out_channels: list[int] = [512, 512, 1024, 512]

    @property
    def body(self) -> nn.Module:
        """The layers of torchvision's VGG-16 under their names, for a classifier's weights."""
        view = nn.Module()
        view.features = self.features
        return view

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features of four levels."""
        conv4 = self.features[:23](x)
        conv5 = self.features[23:30](conv4)
        fc7 = self.fc(self.features[30](conv5)).relu()
        levels = [self.norms[0](conv4), self.norms[1](conv5), fc7, self.extra(fc7).relu()]
        return OrderedDict((str(i), level) for i, level in enumerate(levels))


class RefineFeatures(nn.Module):
    """Three maps of another backbone and a residual block: strides 8, 16, 32, 64."""

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        maps = features("full", name, pretrained=pretrained)
        self.body: nn.Module = maps.body
        self.extra: Any = residual_block(maps.channels[-1], 512)
        self.out_channels: list[int] = [*maps.channels, 512]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features of four levels."""
        levels = self.body(x)
        return OrderedDict([*levels.items(), ("3", self.extra(levels["2"]))])


class TransferConnection(nn.Module):
    """A level of the first stage, and the coarser level of the second, to a level of the second (Fig. 2)."""

    def __init__(self, inputs: int, channels: int, coarsest: bool) -> None:
        super().__init__()
        self.scale: nn.Sequential = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.up: nn.ConvTranspose2d | None = None if coarsest else nn.ConvTranspose2d(channels, channels, 2, 2)
        self.predict: nn.Conv2d = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, coarse: Tensor | None) -> Tensor:
        """``[b, channels, h, w]``."""
        height, width = x.shape[-2:]
        scaled = self.scale(x)
        if self.up is not None:
            scaled = scaled + self.up(coarse)[..., :height, :width]
        return self.predict(scaled.relu()).relu()


class RefineHead(nn.Module):
    """Predictions of both stages.

    Args:
        in_channels: Channels of the levels.
        channels: Channels of the second stage.
        num_anchors: Anchors per location, for each level.
        num_classes: Foreground classes.
        softmax: Classes and background in one softmax, in both stages.
    """

    def __init__(
        self, in_channels: list[int], channels: int, num_anchors: list[int], num_classes: int, softmax: bool
    ) -> None:
        super().__init__()
        self.arm: MultiBoxHead = MultiBoxHead(in_channels, num_anchors, 1, softmax)
        last = len(in_channels) - 1
        self.transfer: nn.ModuleList = nn.ModuleList(
            TransferConnection(c, channels, i == last) for i, c in enumerate(in_channels)
        )
        self.odm: MultiBoxHead = MultiBoxHead([channels] * len(in_channels), num_anchors, num_classes, softmax)

    def forward(self, features: list[Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Logits and regressions of each stage."""
        levels: list[Tensor] = []
        for module, level in zip(reversed(self.transfer), reversed(features), strict=True):
            levels.insert(0, module(level, levels[0] if levels else None))
        return self.arm(features)[:2], self.odm(levels)[:2]


class RefineDet(DenseDetector):
    """A :class:`DenseDetector` whose second stage regresses from the boxes of the first."""

    def predict(self, batch: ImageList, features: list[Tensor]) -> list[Predictions]:
        (arm_logits, arm_deltas), (logits, deltas) = self.head(features)
        anchors, level_sizes = self.anchors(batch, features)
        softmax = self.criterion.needs.softmax
        sizes = batch.image_sizes
        first = Predictions(
            at_least_float32(arm_logits),
            at_least_float32(arm_deltas),
            None,
            anchors,
            level_sizes,
            sizes,
            softmax,
            "arm",
            class_agnostic=True,
        )
        # a diverging first stage must not make degenerate boxes: 20 is a factor of e^4 (the coder divides by 5)
        moves = first.regressions.detach().clamp(-20, 20)
        refined = self.codec.decode(moves.flatten(0, 1), anchors.flatten(0, 1)).view_as(moves)
        dropped = first.scores().squeeze(-1) < NEGATIVE_ANCHOR if softmax else None
        second = Predictions(
            at_least_float32(logits),
            at_least_float32(deltas),
            None,
            refined,
            level_sizes,
            sizes,
            softmax,
            "odm",
            dropped=dropped,
        )
        return [first, second]


def refinedet(
    criterion: StagedCriterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    resize: Resize,
    **settings: Any,
) -> DenseDetector:
    """RefineDet: three anchors of four strides per location on four levels, refined once, then classified.

    Follows the published Caffe model: 36.1 M parameters on VGG-16 at 80 classes, as its PyTorch port
    (``luuuyi/RefineDet.PyTorch``) has, 320 or 512 pixels. With a softmax in both stages (cross entropy, Harmonic loss)
    anchors that the first one gives an objectness below 0.01 are ruled out, and both learn from the hardest three
    negatives per positive; every other loss has sigmoids, all anchors and all negatives. ``backbone`` may be any that
    :func:`~concordet.detectors.networks.backbones.features` knows, ``resnet101`` as published (without batch norms in
    the transfer connections). Nano: levels of 32 channels, 0.5 M at 3 classes.
    """
    maps: RefineVGG | RefineFeatures | NanoFeatures
    if size == "nano":
        maps = NanoFeatures(NANO.channels, backbone)
    else:
        maps = RefineVGG(pretrained) if backbone in (None, "vgg16") else RefineFeatures(backbone, pretrained)
    scale, channels = NANO if size == "nano" else FULL
    anchors = GridAnchors([(scale * s,) for s in (8, 16, 32, 64)], [(0.5, 1.0, 2.0)] * 4)
    per_location, softmax = anchors.num_anchors_per_location(), criterion.needs.softmax
    head = RefineHead(maps.out_channels, channels, per_location, num_classes, softmax)
    settings |= {"num_classes": num_classes, "resize": resize}
    return multibox_detector(RefineDet, maps, head, anchors, criterion, **settings)


ARCHITECTURE = Architecture(refinedet, DEFAULTS, Resize.exactly(320, 320), POSTPROCESS, refinedet_criterion)
