"""Cascade R-CNN (Cai and Vasconcelos 2018): three heads, each refining the boxes of the one before it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from concordet.detectors.architectures.two_stage.faster_rcnn import DEFAULTS, box_pool
from concordet.detectors.networks.backbones import Size, pyramid
from concordet.detectors.parts.proposals import region_proposals, staged_criterion
from concordet.detectors.two_stage import BoxStage, TwoStageDetector
from concordet.losses.criteria import Criterion, StagedCriterion

STAGES = {"roi1": 1.0, "roi2": 0.5, "roi3": 0.25}
FOREGROUND = (0.5, 0.6, 0.7)
CODER_SCALES = (1.0, 2.0, 3.0)


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

    Follows mmdetection's ``cascade-rcnn_r50_fpn``: stages weigh 1, 0.5 and 0.25 and code boxes ever more finely, with
    weights of (10, 10, 5, 5) times 1, 2 and 3.  As in Detectron2, proposals are sampled once and all of them go through
    the three stages.  With ranking losses stages weigh 1 each, share one coder and see 2000 proposals (RS Loss; thesis
    Sec. 4.1).  69.4 M parameters at ResNet-50 and 80 classes, as there (mmdetection prints 69.2 M, without what
    it freezes).  Nano: features pooled to 5 x 5, heads 64 wide, 0.8 M parameters at 3 classes.
    """
    features, strides = pyramid(size, backbone, extra="pool", pretrained=pretrained)
    width = 64 if size == "nano" else 1024
    pool = box_pool(size)
    stages = []
    for name, foreground, scale in zip(STAGES, FOREGROUND, CODER_SCALES, strict=True):
        softmax = bool(criterion.stages[name].softmax)
        predictor = FastRCNNPredictor(width, num_classes + int(softmax))
        predictor.bbox_pred = nn.Linear(width, 4)
        factor = scale if criterion.calibrated else 1.0
        stages.append(
            BoxStage(
                TwoMLPHead(features.out_channels * pool.output_size[0] ** 2, width),
                predictor,
                BoxCoder((10.0 * factor, 10.0 * factor, 5.0 * factor, 5.0 * factor)),
                foreground=foreground,
                softmax=softmax,
            )
        )
    return TwoStageDetector(
        features,
        region_proposals(features.out_channels, strides, criterion, size=size, unsampled=2000),
        pool,
        stages,
        criterion,
        num_classes=num_classes,
        **settings,
    )
