"""FoveaBox (Kong et al. 2020): points in the shrunk center of an object predict it, without anchors and centerness."""

from __future__ import annotations

from typing import Any

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.dense import DenseDetector
from concordet.detectors.networks.backbones import Size, pyramid
from concordet.detectors.networks.heads import RetinaHead, set_depth
from concordet.detectors.parts.anchors import GridAnchors
from concordet.detectors.parts.assigners import fovea_matches
from concordet.detectors.parts.coders import log_distance_codec
from concordet.detectors.parts.postprocess import PostProcess
from concordet.losses.criteria import Criterion, LossDefaults
from concordet.losses.criteria.box import BoxTerm

FULL_CONVS, NANO_CONVS = 4, 2  # layers of each tower
DEFAULTS = LossDefaults("focal", BoxTerm("smooth_l1", beta=0.11), focal=(0.4, 1.5))


def foveabox(
    criterion: Criterion, *, num_classes: int, size: Size, backbone: str | None, pretrained: bool, **settings: Any
) -> DenseDetector:
    """FoveaBox: RetinaNet's towers with one prediction per location, levels that share objects of neighboring scales.

    Follows mmdetection's ``fovea_r50_fpn``: distances to the sides in logarithms of two strides, smooth L1 with beta
    0.11, focal loss with alpha 0.4 and gamma 1.5. Departure: losses are normalized by the batch's positives (there:
    positives plus the number of images). 36.4 M parameters at ResNet-50 and 80 classes, as there; nano: levels P3..P5,
    0.6 M at 3 classes.
    """
    features, strides = pyramid(size, backbone, extra="c5", pretrained=pretrained)
    points = GridAnchors([(2 * stride,) for stride in strides], [(1.0,)] * len(strides), strides=strides)
    head = RetinaHead(features.out_channels, 1, num_classes)
    return DenseDetector(
        features,
        set_depth(head, NANO_CONVS if size == "nano" else FULL_CONVS),
        points,
        log_distance_codec(),
        fovea_matches,
        criterion,
        num_classes=num_classes,
        **settings,
    )


ARCHITECTURE = Architecture(foveabox, DEFAULTS, postprocess=PostProcess(nms_threshold=0.5))
