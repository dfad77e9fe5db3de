"""SSD (Liu et al. 2016) on torchvision's VGG-16, heads, default boxes and matcher, or on a ResNet."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG, SSDHead
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import cfgs, make_layers

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.dense import DenseDetector
from concordet.detectors.networks.backbones import BOTTLENECKS, Size, features, resnet
from concordet.detectors.networks.heads import init_prior_bias
from concordet.detectors.parts.assigners import ssd_matches
from concordet.detectors.parts.coders import delta_codec
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.reassignment import hard_negatives
from concordet.detectors.parts.resize import Resize
from concordet.losses.criteria import Criterion, LossDefaults, StagedCriterion
from concordet.losses.criteria.box import BoxTerm

DEFAULTS = LossDefaults("ce", BoxTerm("smooth_l1", beta=1.0), softmax=True)
POSTPROCESS = PostProcess(score_threshold=0.01, nms_threshold=0.45, topk=400, detections_per_image=200)
SCALES = {
    4: [0.08, 0.16, 0.32, 0.55, 0.9],
    6: [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
    7: [0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06],
}
"""Sides of default boxes, as shares of the image, by number of levels: nano, 300 and 512 pixels (COCO's)."""
RATIOS = {4: [[2]] * 4, 6: [[2], [2, 3], [2, 3], [2, 3], [2], [2]], 7: [[2], *[[2, 3]] * 4, [2], [2]]}
STEPS = {(300, 300): [8, 16, 32, 64, 100, 300], (512, 512): [8, 16, 32, 64, 128, 256, 512]}
NANO_WIDTH = 40  # channels of the nano levels
CAFFE_MEAN = (0.48235, 0.45882, 0.40784)


class VGGFeatures(SSDFeatureExtractorVGG):
    """torchvision's VGG-16 with SSD's extra layers: strides 8, 16, 32, ..., the first level normalized.

    torchvision's SSD weights expect pixels of 0..255 minus their mean, while this project's detectors use ImageNet's
    normalization. The buffer ``caffe_input`` says which one the weights were trained with: loading weights without it,
    which are torchvision's, sets it, and the input is then converted.

    Args:
        highres: Seven levels for 512 pixels, with the paper's strides (torchvision's extra layers give 6, 4, 1).
        pretrained: Freezes the first two convolutions, as torchvision does.
    """

    caffe_input: Tensor
    rescale: Tensor
    shift: Tensor

    def __init__(self, highres: bool, pretrained: bool = False) -> None:
        layers = make_layers(cfgs["D"])
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if pretrained:
            layers[:4].requires_grad_(False)
        super().__init__(layers, highres)
        if highres:
            for block in self.extra[3:5]:
                block[2].stride, block[2].padding = (2, 2), (1, 1)
            self.extra[5][2].padding = (1, 1)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("caffe_input", torch.tensor(False))
        self.register_buffer("rescale", (255 * std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (255 * (mean - torch.tensor(CAFFE_MEAN))).view(3, 1, 1), persistent=False)
        self.register_load_state_dict_pre_hook(_note_normalization)
        self.out_channels: list[int] = [512, 1024, 512, 256, 256, 256, 256][: 7 if highres else 6]

    @property
    def body(self) -> nn.Module:
        """The same layers under the names of torchvision's VGG-16, for a classifier's weights."""
        view = nn.Module()
        view.features = nn.Sequential(*self.features, *list(self.extra[0])[:-1])
        return view

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features of all levels."""
        return super().forward(torch.where(self.caffe_input, x * self.rescale + self.shift, x))


def _note_normalization(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.setdefault(f"{prefix}caffe_input", torch.tensor(True))


class ResNetFeatures(nn.Module):
    """conv3_x and conv5_x of a ResNet, conv5_x at stride 16, then residual blocks of stride 2 (Fu et al. 2017).

    New layers have group norms, because the last level may be a single pixel, of which a batch norm needs several.

    Args:
        name: One of :data:`~concordet.detectors.networks.backbones.BOTTLENECKS`.
        highres: Seven levels instead of six.
        pretrained: Batch norms and the first two stages are frozen, as torchvision does.
    """

    def __init__(self, name: str, highres: bool, pretrained: bool = False) -> None:
        super().__init__()
        if name not in BOTTLENECKS:
            raise ValueError(f"backbone must be vgg16 or one of {', '.join(BOTTLENECKS)}, got {name!r}")
        network = resnet(name, pretrained=pretrained, replace_stride_with_dilation=[False, False, True])
        self.body = IntermediateLayerGetter(network, {"layer2": "0", "layer4": "1"})
        self.out_channels: list[int] = [512, 2048, *[1024] * (5 if highres else 4)]
        self.extra: nn.ModuleList = nn.ModuleList(residual_block(c, 1024) for c in self.out_channels[1:-1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features of all levels."""
        levels = list(self.body(x).values())
        for block in self.extra:
            levels.append(block(levels[-1]))
        return OrderedDict((str(i), level) for i, level in enumerate(levels))


class NanoFeatures(nn.Module):
    """The nano residual network's c3..c5 and one more level, strides 8, 16, 32, 64, all of ``width`` channels.

    Raises:
        ValueError: If a ``backbone`` is given: nano has its own.
    """

    def __init__(self, width: int, backbone: str | None = None) -> None:
        super().__init__()
        maps = features("nano", backbone)
        self.body: nn.Module = maps.body
        self.narrow: nn.ModuleList = nn.ModuleList(nn.Conv2d(c, width, 1) for c in maps.channels)
        self.extra: nn.Sequential = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1))
        self.out_channels: list[int] = [width] * 4

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features of all levels."""
        levels = [layer(f) for layer, f in zip(self.narrow, self.body(x).values(), strict=True)]
        levels.append(self.extra(levels[-1]))
        return OrderedDict((str(i), level.relu()) for i, level in enumerate(levels))


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups, or with 16 channels per group if there are fewer than 512."""
    return nn.GroupNorm(min(32, channels // 16), channels)


def residual_block(inputs: int, outputs: int, stride: int = 2) -> Bottleneck:
    """A ResNet's bottleneck with group norms."""
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), group_norm(outputs))
    return Bottleneck(inputs, outputs // 4, stride, shortcut, norm_layer=group_norm)


class MultiBoxHead(SSDHead):
    """torchvision's SSD head, one 3 x 3 convolution per level, with the interface of the other dense heads.

    torchvision's classifiers have the background first, and so have the weights; it comes out last.
    """

    def __init__(self, in_channels: list[int], num_anchors: list[int], num_classes: int, softmax: bool) -> None:
        super().__init__(in_channels, num_anchors, num_classes + softmax)
        self.softmax = softmax
        if not softmax:
            for layer in self.classification_head.module_list:
                init_prior_bias(layer)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, None]:
        """``[b, a, c]`` logits, with softmax ``[b, a, c + 1]``; ``[b, a, 4]`` regressions; no quality."""
        logits = self.classification_head(features)
        return logits.roll(-1, -1) if self.softmax else logits, self.regression_head(features), None


def multibox_features(
    size: Size,
    backbone: str | None,
    image_size: tuple[int, int],
    pretrained: bool,
    *,
    default_backbone: str,
    width: int,
) -> VGGFeatures | ResNetFeatures | NanoFeatures:
    """SSD's levels for this image size.

    Args:
        backbone: ``vgg16`` or one of :data:`~concordet.detectors.networks.backbones.BOTTLENECKS`; None is
            ``default_backbone``.
        width: Channels of the nano levels.

    Raises:
        ValueError: for another backbone, one beside nano, or images that are too small for the levels.
    """
    if size == "nano":
        return NanoFeatures(width, backbone)
    backbone = backbone or default_backbone
    highres = min(image_size) >= 512
    if backbone != "vgg16":
        return ResNetFeatures(backbone, highres, pretrained)
    if min(image_size) < 272:
        raise ValueError(f"image_size must be at least 272 pixels a side for SSD on VGG-16, got {image_size}")
    return VGGFeatures(highres, pretrained)


def multibox_detector(
    cls: type[DenseDetector],
    levels: nn.Module,
    head: nn.Module,
    anchors: AnchorGenerator | DefaultBoxGenerator,
    criterion: Criterion | StagedCriterion,
    **settings: Any,
) -> DenseDetector:
    """A detector with SSD's box coder, matching, and hard negative mining for a softmax."""
    return cls(
        levels,
        head,
        anchors,
        delta_codec((10.0, 10.0, 5.0, 5.0)),
        ssd_matches,
        criterion,
        reassign=hard_negatives if criterion.needs.samples else None,
        **settings,
    )


def ssd(
    criterion: Criterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    resize: Resize,
    **settings: Any,
) -> DenseDetector:
    """SSD: default boxes on six levels (seven from 512 pixels on), each object's best box and those of IoU 0.5.

    Follows torchvision's ``ssd300_vgg16``, whose weights load: 34.3 M parameters at 80 classes with the softmax, as
    there; 512 pixels: 36.0 M, as mmdetection's ``ssd512``. With cross entropy or Harmonic loss a softmax learns from
    the hardest three negatives per positive; every other loss has one sigmoid per class and all negatives.
    ``backbone`` may be a ResNet with bottlenecks, as DSSD has it. Nano: four levels, 0.4 M at 3 classes. Departures
    from mmdetection: default boxes of the last level are cut off at the image, as in torchvision, and losses are
    normalized by the batch's positives (there: each image counts at least 1).
    """
    maps = multibox_features(size, backbone, resize.size, pretrained, default_backbone="vgg16", width=NANO_WIDTH)
    levels = len(maps.out_channels)
    steps = STEPS.get(resize.size) if isinstance(maps, VGGFeatures) else None
    anchors = DefaultBoxGenerator(RATIOS[levels], scales=SCALES[levels], steps=steps)
    head = MultiBoxHead(maps.out_channels, anchors.num_anchors_per_location(), num_classes, criterion.needs.softmax)
    settings |= {"num_classes": num_classes, "resize": resize}
    return multibox_detector(DenseDetector, maps, head, anchors, criterion, **settings)


ARCHITECTURE = Architecture(ssd, DEFAULTS, Resize.exactly(300, 300), POSTPROCESS)
