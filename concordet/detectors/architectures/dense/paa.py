"""PAA (Kim and Lee 2020): a mixture model of the predictions' losses decides which anchors are positive."""

from __future__ import annotations

from functools import partial
from typing import Any

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.dense.atss import atss_parts
from concordet.detectors.dense import DenseDetector
from concordet.detectors.networks.backbones import Size
from concordet.detectors.parts.assigners import iou_matches
from concordet.detectors.parts.coders import delta_codec
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.reassignment import mixture_matches
from concordet.losses.criteria import Criterion, LossDefaults
from concordet.losses.criteria.box import BoxTerm

DEFAULTS = LossDefaults(
    "focal",
    BoxTerm("giou", weight=1.3, weighting="iou"),
    quality="iou",
    quality_weight=0.5,
    ap_delta=0.5,
    ap_box_weight=1.0,
)


def paa(
    criterion: Criterion, *, num_classes: int, size: Size, backbone: str | None, pretrained: bool, **settings: Any
) -> DenseDetector:
    """PAA: ATSS's architecture with a predicted IoU for centerness; candidates overlap objects by 0.1 or most.

    Follows mmdetection's ``paa_r50_fpn``: a Gaussian mixture (scikit-learn's) of two components keeps the better ones
    of each object's nine best candidates per level, by focal loss plus 1.3 times GIoU loss, whatever loss the detector
    is trained with (the published configurations with ranking losses: 1 times); the IoU branch's loss has weight 0.5,
    scores are geometric means of class probability and predicted IoU, and detections are refined by score voting
    (``score_voting=False`` turns it off). Departures: an object with one candidate keeps it (there it is lost); losses
    are normalized by the batch's positives (there: at least the number of images). 32.3 M parameters at ResNet-50 and
    80 classes with the IoU branch, as there; nano: levels P3..P5 and anchors 4 times the stride, 0.6 M at 3 classes.
    """
    features, head, anchors = atss_parts(criterion, num_classes, size, backbone, pretrained)
    return DenseDetector(
        features,
        head,
        anchors,
        delta_codec((10.0, 10.0, 5.0, 5.0)),
        partial(iou_matches, foreground=0.1, background=0.1, own_best=True),
        criterion,
        num_classes=num_classes,
        reassign=mixture_matches,
        **settings,
    )


ARCHITECTURE = Architecture(paa, DEFAULTS, postprocess=PostProcess(score_voting=True), quality_head=True)
