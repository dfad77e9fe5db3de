"""FCOS (Tian et al. 2019) on torchvision's classification tower, box coder and anchors."""

from __future__ import annotations

from typing import Any, NamedTuple

from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.dense import DenseDetector
from concordet.detectors.networks.backbones import Size, pyramid
from concordet.detectors.networks.heads import DenseHead, RegressionHead
from concordet.detectors.parts.assigners import fcos_matches
from concordet.detectors.parts.coders import distance_codec
from concordet.losses.criteria import Criterion, LossDefaults
from concordet.losses.criteria.box import BoxTerm


class Preset(NamedTuple):
    """Settings that differ between full and nano size."""

    convs: int  # layers of each tower
    bias: float  # initial, of the regression in strides


FULL, NANO = Preset(4, 0.0), Preset(2, 1.0)
DEFAULTS = LossDefaults("focal", BoxTerm("giou"), quality="centerness")


def fcos(
    criterion: Criterion, *, num_classes: int, size: Size, backbone: str | None, pretrained: bool, **settings: Any
) -> DenseDetector:
    """FCOS: one point per location, distances to the four sides, center sampling.

    Follows torchvision's ``fcos_resnet50_fpn``, whose weights' names it keeps; the centerness branch exists only where
    the loss trains it. As in torchvision, a level's range of object sides is open at both ends (in mmdetection it is
    closed), points are at the corners of cells (in mmdetection at their centers), and the box loss is the mean over
    positives (in mmdetection it is weighted by centerness). 32.3 M parameters at ResNet-50 and 80 classes with it;
    nano: 0.6 M, levels P3..P5.
    """
    features, strides = pyramid(size, backbone, extra="p5", pretrained=pretrained)
    channels, preset = features.out_channels, NANO if size == "nano" else FULL
    anchors = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
    head = DenseHead(
        FCOSClassificationHead(channels, 1, num_classes, preset.convs),
        RegressionHead(
            channels,
            1,
            num_convs=preset.convs,
            quality=criterion.needs.quality_head is not None,
            positive=True,
            bias=preset.bias,
        ),
    )
    return DenseDetector(
        features,
        head,
        anchors,
        distance_codec(),
        fcos_matches,
        criterion,
        num_classes=num_classes,
        **settings,
    )


ARCHITECTURE = Architecture(fcos, DEFAULTS, quality_head=True)
