"""ATSS (Zhang et al. 2020): one square anchor per location, assigned by the statistics of its neighborhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torchvision.models.detection.fcos import FCOSClassificationHead

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.dense import DenseDetector
from concordet.detectors.networks.backbones import Pyramid, Size, pyramid
from concordet.detectors.networks.heads import DenseHead, RegressionHead
from concordet.detectors.parts.anchors import GridAnchors
from concordet.detectors.parts.assigners import atss_matches
from concordet.detectors.parts.coders import delta_codec
from concordet.losses.criteria import Criterion, LossDefaults
from concordet.losses.criteria.box import BoxTerm


class Preset(NamedTuple):
    """Settings that differ between full and nano size."""

    anchor_scale: int  # side of an anchor, in strides
    convs: int  # layers of each tower


FULL, NANO = Preset(8, 4), Preset(4, 2)
DEFAULTS = LossDefaults("focal", BoxTerm("giou", weight=2.0, weighting="quality"), quality="centerness")
CODEC = delta_codec((10.0, 10.0, 5.0, 5.0))


def atss_parts(
    criterion: Criterion, num_classes: int, size: Size, backbone: str | None, pretrained: bool
) -> tuple[Pyramid, DenseHead, GridAnchors]:
    """Features, head and anchors of ATSS and PAA."""
    features, strides = pyramid(size, backbone, extra="p5", pretrained=pretrained)
    return features, *atss_head(criterion, num_classes, size, features.out_channels, strides)


def atss_head(
    criterion: Criterion, num_classes: int, size: Size, channels: int, strides: Sequence[int]
) -> tuple[DenseHead, GridAnchors]:
    """Head and anchors for levels of these strides."""
    preset = NANO if size == "nano" else FULL
    anchors = GridAnchors(
        [(preset.anchor_scale * s,) for s in strides], [(1.0,)] * len(strides), strides=strides, offset=0.0
    )
    quality = criterion.needs.quality_head is not None
    head = DenseHead(
        FCOSClassificationHead(channels, 1, num_classes, preset.convs),
        RegressionHead(channels, 1, num_convs=preset.convs, quality=quality, levels=len(strides)),
    )
    return head, anchors


def atss(
    criterion: Criterion, *, num_classes: int, size: Size, backbone: str | None, pretrained: bool, **settings: Any
) -> DenseDetector:
    """ATSS: FCOS's towers with a scale per level, R-CNN's box coder, anchors 8 times the stride.

    Follows mmdetection's ``atss_r50_fpn``: the GIoU term weighs 2, positives in it by centerness; box deltas are scaled
    by (10, 10, 5, 5). Departure: losses are normalized by the batch's positives (there: each image counts at least 1).
    32.3 M parameters at ResNet-50 and 80 classes with the centerness branch; nano: 0.6 M, levels P3..P5 and anchors 4
    times the stride.
    """
    features, head, anchors = atss_parts(criterion, num_classes, size, backbone, pretrained)
    return DenseDetector(
        features,
        head,
        anchors,
        CODEC,
        atss_matches,
        criterion,
        num_classes=num_classes,
        **settings,
    )


ARCHITECTURE = Architecture(atss, DEFAULTS, quality_head=True)
