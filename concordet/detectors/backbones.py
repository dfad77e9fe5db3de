"""Backbones with a feature pyramid: torchvision's ResNets at full size, a small residual network as ``nano``."""

from __future__ import annotations

from typing import Literal

import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

Size = Literal["full", "nano"]
NANO_CHANNELS = 64
RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip


def pyramid(
    size: Size, backbone: str | None, *, extra: Literal["c5", "p5", "pool"], pretrained: bool
) -> tuple[BackboneWithFPN, tuple[int, ...]]:
    """The backbone of a detector of this size (None: ResNet-50) and the strides of its levels."""
    if size == "nano":
        if backbone is not None:
            raise ValueError(f"size 'nano' has a backbone of its own; drop backbone={backbone!r} or take size='full'")
        return nano_fpn(), (8, 16, 32)
    strides = (4, 8, 16, 32, 64) if extra == "pool" else (8, 16, 32, 64, 128)
    return resnet_fpn(backbone or "resnet50", extra=extra, pretrained=pretrained), strides


def resnet_fpn(name: str, *, extra: Literal["c5", "p5", "pool"], pretrained: bool = False) -> BackboneWithFPN:
    """A torchvision ResNet with a pyramid of five levels of 256 channels.

    Args:
        name: one of :data:`RESNETS`.
        extra: P3..P7 (strides 8..128), with P6 computed from C5 (RetinaNet) or P5 (FCOS, ATSS), or ``pool``: P2..P6
            (strides 4..64), with P6 pooled from P5 (Faster R-CNN).
        pretrained: weights will be loaded: batch norms and the first two stages are frozen, as torchvision does; from
            scratch everything trains.

    Raises:
        ValueError: for another name.
    """
    if name not in RESNETS:
        raise ValueError(f"backbone must be one of {', '.join(RESNETS)}, got {name!r}")
    body = getattr(torchvision.models, name)(
        weights=None, norm_layer=FrozenBatchNorm2d if pretrained else nn.BatchNorm2d
    )
    trained = 3 if pretrained else 5
    if extra == "pool":
        return _resnet_fpn_extractor(body, trained)
    channels = body.inplanes if extra == "c5" else 256
    return _resnet_fpn_extractor(body, trained, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(channels, 256))


def nano_fpn(widths: tuple[int, int, int, int] = (24, 48, 80, 112)) -> BackboneWithFPN:
    """A residual network of 0.5 M parameters with pyramid levels P3..P5 of 64 channels, strides 8, 16, 32."""
    stem, *stages = widths

    def stage(inputs: int, outputs: int) -> BasicBlock:
        shortcut = Conv2dNormActivation(inputs, outputs, 1, stride=2, activation_layer=None)
        return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)

    body = nn.Sequential()
    body.add_module("stem", Conv2dNormActivation(3, stem, 3, stride=2))
    body.add_module("c2", Conv2dNormActivation(stem, stem, 3, stride=2))
    for name, inputs, outputs in zip(("c3", "c4", "c5"), widths, stages, strict=False):
        body.add_module(name, stage(inputs, outputs))
    backbone = BackboneWithFPN(body, {"c3": "0", "c4": "1", "c5": "2"}, stages, NANO_CHANNELS)
    backbone.fpn.extra_blocks = None  # three levels are enough for small images
    return backbone
