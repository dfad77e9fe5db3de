"""Cascade R-CNN (Cai and Vasconcelos 2018): three heads, each refining the boxes of the one before it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.two_stage.faster_rcnn import POSTPROCESS, box_pool
from concordet.detectors.networks.backbones import Size, pyramid
from concordet.detectors.parts.proposals import region_proposals, staged_criterion
from concordet.detectors.two_stage import BoxStage, TwoStageDetector
from concordet.losses.criteria import Criterion, LossDefaults, StagedCriterion
from concordet.losses.criteria.box import BoxTerm

FULL_WIDTH, NANO_WIDTH = 1024, 64  # of the fully connected layers
STAGES = {"roi1": 1.0, "roi2": 0.5, "roi3": 0.25}
FOREGROUND = (0.5, 0.6, 0.7)
CODER_STDS = ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
"""Standard deviations of each stage's box deltas: of center offsets and of log sizes."""
DEFAULTS = LossDefaults("ce", BoxTerm("smooth_l1", beta=1.0), softmax=True)


def cascade_rcnn_criterion(loss: str | Criterion | StagedCriterion) -> StagedCriterion:
    """Stages ``rpn``, ``roi1``, ``roi2`` and ``roi3``."""
    return staged_criterion("cascade_rcnn", loss, DEFAULTS, STAGES)


def cascade_rcnn(
    criterion: StagedCriterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    **settings: Any,
) -> TwoStageDetector:
    """Cascade R-CNN: positives at IoU 0.5, 0.6 and 0.7, class-agnostic boxes, logits averaged at inference.

    Follows mmdetection's ``cascade-rcnn_r50_fpn``: stages weigh 1, 0.5 and 0.25, learn boxes by smooth L1 with beta 1
    and encode them with standard deviations of (0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1) and (0.033, 0.033, 0.067,
    0.067). Departures: proposals are sampled once and all of them go through the three stages, as in Detectron2 (there:
    each stage samples its own 512); the region proposal network is torchvision's, which requires no IoU of 0.3 of an
    object's best anchors and rounds strides (there: 64 pixels on P6); features of boxes are pooled as in torchvision
    (there: half a pixel away). With ranking losses stages weigh 1 each, share one coder and see 2000 proposals (RS
    Loss; thesis Sec. 4.1). 69.4 M parameters at ResNet-50 and 80 classes, as there (mmdetection prints 69.2 M, without
    what it freezes). Nano: features pooled to 5 x 5, heads 64 wide, 0.8 M parameters at 3 classes.
    """
    features, strides = pyramid(size, backbone, extra="pool", pretrained=pretrained)
    width = NANO_WIDTH if size == "nano" else FULL_WIDTH
    pool = box_pool(size)
    stages = []
    for name, foreground, stds in zip(STAGES, FOREGROUND, CODER_STDS, strict=True):
        softmax = criterion.stages[name].needs.softmax
        predictor = FastRCNNPredictor(width, num_classes + int(softmax))
        predictor.bbox_pred = nn.Linear(width, 4)
        center, side = (1 / std for std in (CODER_STDS[0] if criterion.needs.ranks_only else stds))
        stages.append(
            BoxStage(
                TwoMLPHead(features.out_channels * pool.output_size[0] ** 2, width),
                predictor,
                BoxCoder((center, center, side, side)),
                foreground=foreground,
                softmax=softmax,
            )
        )
    return TwoStageDetector(
        features,
        region_proposals(features.out_channels, strides, criterion, size=size, train_post_nms_top_n=2000),
        pool,
        stages,
        criterion,
        num_classes=num_classes,
        **settings,
    )


ARCHITECTURE = Architecture(cascade_rcnn, DEFAULTS, postprocess=POSTPROCESS, criterion=cascade_rcnn_criterion)
