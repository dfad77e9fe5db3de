"""RetinaNet (Lin et al. 2017) on torchvision's head, matcher and box coder."""

from __future__ import annotations

from typing import Any, NamedTuple

from torchvision.models.detection.anchor_utils import AnchorGenerator

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.dense import DenseDetector
from concordet.detectors.networks.backbones import Size, pyramid
from concordet.detectors.networks.heads import RetinaHead, set_depth
from concordet.detectors.parts.assigners import iou_matches
from concordet.detectors.parts.coders import delta_codec
from concordet.detectors.parts.postprocess import PostProcess
from concordet.losses.criteria import Criterion, LossDefaults
from concordet.losses.criteria.box import BoxTerm


class Preset(NamedTuple):
    """Settings that differ between full and nano size."""

    anchor_scale: float  # side of the smallest anchor, in strides
    octaves: int  # anchor sides per level
    convs: int  # layers of each tower


FULL, NANO = Preset(4.0, 3, 4), Preset(2.5, 2, 2)
DEFAULTS = LossDefaults("focal", BoxTerm("l1"))


def retinanet(
    criterion: Criterion, *, num_classes: int, size: Size, backbone: str | None, pretrained: bool, **settings: Any
) -> DenseDetector:
    """RetinaNet: anchors of 3 scales and 3 aspect ratios, matched by IoU.

    Follows torchvision's ``retinanet_resnet50_fpn``, whose weights' names it keeps; losses are normalized by the
    batch's positives, as in Detectron2, not image by image. As in torchvision, strides are the padded image's sides
    over the number of cells, rounded down: 61 and 114 pixels instead of 64 and 128 on P6 and P7 at 800 x 1344. 38.0 M
    parameters at ResNet-50 and 80 classes, as Detectron2's and mmdetection's. Nano: levels P3..P5, 2 scales from 2.5
    strides on, 0.6 M parameters at 3 classes.
    """
    features, strides = pyramid(size, backbone, extra="c5", pretrained=pretrained)
    scale, octaves, convs = NANO if size == "nano" else FULL
    sizes = tuple(tuple(int(scale * stride * 2 ** (k / octaves)) for k in range(octaves)) for stride in strides)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RetinaHead(features.out_channels, anchors.num_anchors_per_location()[0], num_classes)
    return DenseDetector(
        features,
        set_depth(head, convs),
        anchors,
        delta_codec(),
        iou_matches,
        criterion,
        num_classes=num_classes,
        **settings,
    )


ARCHITECTURE = Architecture(retinanet, DEFAULTS, postprocess=PostProcess(nms_threshold=0.5))
