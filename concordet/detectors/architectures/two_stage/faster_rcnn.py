"""Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017), on torchvision's parts."""

from __future__ import annotations

from typing import Any, NamedTuple

from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.networks.backbones import Size, pyramid
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.proposals import region_proposals, staged_criterion
from concordet.detectors.two_stage import BoxStage, TwoStageDetector
from concordet.losses.criteria import Criterion, LossDefaults, StagedCriterion
from concordet.losses.criteria.box import BoxTerm


class Preset(NamedTuple):
    """Settings that differ between full and nano size."""

    levels: int  # of the pyramid that boxes are pooled from
    side: int  # of the pooled features
    canonical: int  # pixels; a box of this side is pooled from the level of stride 16
    width: int  # of the fully connected layers


FULL, NANO = Preset(4, 7, 224, 1024), Preset(3, 5, 96, 128)
POSTPROCESS = PostProcess(nms_threshold=0.5, topk=5000)
DEFAULTS = LossDefaults("ce", BoxTerm("smooth_l1"), softmax=True)


def faster_rcnn_criterion(loss: str | Criterion | StagedCriterion) -> StagedCriterion:
    """Stages ``rpn`` and ``roi``."""
    return staged_criterion("faster_rcnn", loss, DEFAULTS, {"roi": 1.0})


def faster_rcnn(
    criterion: StagedCriterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    **settings: Any,
) -> TwoStageDetector:
    """Faster R-CNN: proposals from three anchors per location on P2..P6, two fully connected layers, one box per class.

    Follows torchvision's ``fasterrcnn_resnet50_fpn``, whose weights' names it keeps: smooth L1 with beta 1/9 (in
    mmdetection L1), and each object's best anchors are positive whatever their IoU (in mmdetection from 0.3 on). 41.8
    M parameters at ResNet-50 and 80 classes, as that one's and mmdetection's (which prints 41.5 M, without what it
    freezes). Nano: levels P3..P5, six anchors per location, features pooled to 5 x 5 and 128 wide, 0.7 M parameters at
    3 classes.
    """
    features, strides = pyramid(size, backbone, extra="pool", pretrained=pretrained)
    return TwoStageDetector(
        features,
        region_proposals(features.out_channels, strides, criterion, size=size),
        box_pool(size),
        [box_stage(criterion, num_classes, size, features.out_channels)],
        criterion,
        num_classes=num_classes,
        **settings,
    )


def box_stage(criterion: StagedCriterion, num_classes: int, size: Size, channels: int) -> BoxStage:
    """The RoI head on features of ``channels``, pooled by :func:`box_pool`."""
    softmax = criterion.stages["roi"].needs.softmax
    width = (NANO if size == "nano" else FULL).width
    return BoxStage(
        TwoMLPHead(channels * box_pool(size).output_size[0] ** 2, width),
        FastRCNNPredictor(width, num_classes + int(softmax)),
        BoxCoder((10.0, 10.0, 5.0, 5.0)),
        foreground=0.5,
        softmax=softmax,
    )


def box_pool(size: Size, side: int | None = None) -> MultiScaleRoIAlign:
    """RoIAlign to ``side`` (None: 7, nano 5); a box of 224 pixels (nano: 96) is pooled from the level of stride 16."""
    preset = NANO if size == "nano" else FULL
    levels = [str(i) for i in range(preset.levels)]
    return MultiScaleRoIAlign(levels, side or preset.side, 2, canonical_scale=preset.canonical)


ARCHITECTURE = Architecture(faster_rcnn, DEFAULTS, postprocess=POSTPROCESS, criterion=faster_rcnn_criterion)
