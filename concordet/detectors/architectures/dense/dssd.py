"""DSSD (Fu et al. 2017): SSD on a ResNet, with a way back up by deconvolutions and residual prediction modules."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.dense.ssd import (
    DEFAULTS,
    POSTPROCESS,
    SCALES,
    MultiBoxHead,
    ResNetFeatures,
    group_norm,
    multibox_detector,
    multibox_features,
)
from concordet.detectors.dense import DenseDetector
from concordet.detectors.networks.backbones import Size
from concordet.detectors.parts.resize import Resize
from concordet.losses.criteria import Criterion

__all__ = ["ARCHITECTURE", "dssd"]


class Preset(NamedTuple):
    """Settings that differ between full and nano size."""

    channels: int  # of the deconvolution modules
    hidden: int  # inside the prediction modules
    outputs: int  # of the prediction modules
    ratios: list[float]  # aspect ratios of default boxes, beside 1


FULL, NANO = Preset(512, 256, 1024, [1.6, 2.0, 3.0]), Preset(32, 16, 32, [2.0])


def conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution without bias and group norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), group_norm(outputs))


class Deconvolution(nn.Module):
    """A coarser level, twice as large, times a level of SSD (Fig. 3)."""

    def __init__(self, coarse: int, skip: int, channels: int) -> None:
        super().__init__()
        self.up: nn.Sequential = nn.Sequential(
            nn.ConvTranspose2d(coarse, channels, 2, 2), conv_norm(channels, channels, 3)
        )
        self.skip: nn.Sequential = nn.Sequential(
            conv_norm(skip, channels, 3), nn.ReLU(), conv_norm(channels, channels, 3)
        )

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """``[b, channels, h, w]``, of the skip's height and width: a coarser level has half of it, rounded up."""
        height, width = skip.shape[-2:]
        return (self.up(coarse)[..., :height, :width] * self.skip(skip)).relu()


class Prediction(nn.Module):
    """A residual block of 1 x 1 convolutions before a level's predictions (Fig. 2 c)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.shortcut: nn.Sequential = conv_norm(inputs, outputs, 1)
        first, middle, last = conv_norm(inputs, hidden, 1), conv_norm(hidden, hidden, 1), conv_norm(hidden, outputs, 1)
        self.block: nn.Sequential = nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, outputs, h, w]``."""
        return (self.shortcut(x) + self.block(x)).relu()


class DeconvolutionHead(MultiBoxHead):
    """From SSD's levels to predictions: the coarsest level as it is, every other by a deconvolution module.

    Args:
        in_channels: Channels of SSD's levels.
        channels: Channels of the deconvolution modules.
        hidden: Channels inside the prediction modules.
        outputs: Channels of the prediction modules' outputs.
        num_anchors: Anchors per location, for each level.
        num_classes: Foreground classes.
        softmax: Classes and background in one softmax.
    """

    def __init__(
        self,
        in_channels: list[int],
        channels: int,
        hidden: int,
        outputs: int,
        num_anchors: list[int],
        num_classes: int,
        softmax: bool,
    ) -> None:
        super().__init__([outputs] * len(in_channels), num_anchors, num_classes, softmax)
        *finer, coarsest = in_channels
        coarse = [channels] * (len(finer) - 1) + [coarsest]  # input channels of the modules, finest level first
        self.deconvolutions: nn.ModuleList = nn.ModuleList(
            Deconvolution(c, s, channels) for c, s in zip(coarse, finer, strict=True)
        )
        widths = [channels] * len(finer) + [coarsest]
        self.predictions: nn.ModuleList = nn.ModuleList(Prediction(width, hidden, outputs) for width in widths)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, None]:
        """Logits, regressions and no third output, as :class:`MultiBoxHead` returns them."""
        levels = [features[-1]]
        for module, skip in zip(reversed(self.deconvolutions), reversed(features[:-1]), strict=True):
            levels.insert(0, module(levels[0], skip))
        return super().forward([module(level) for module, level in zip(self.predictions, levels, strict=True)])


def dssd(
    criterion: Criterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    resize: Resize,
    **settings: Any,
) -> DenseDetector:
    """DSSD: eight default boxes per location (aspect ratios 1, 1.6, 2, 3) on six levels, seven from 512 pixels on.

    Follows the paper's numbers (no parameter count of the published Caffe model is known): ResNet-101 with conv5_x at
    stride 16, levels of 1024 channels, deconvolution modules of 512, prediction modules of 256 and 1024. New layers
    have group norms where the paper has batch norms, which need more than one pixel of one image; both have the same
    number of parameters, 152.5 M at 80 classes. 320 and 512 pixels as HarmonicDet has them, not 321 and 513. Losses and
    sampling are SSD's. Nano: four levels of 32 channels, four boxes per location, 0.5 M at 3 classes.
    """
    maps = multibox_features(size, backbone, resize.size, pretrained, default_backbone="resnet101", width=NANO.channels)
    if size == "full" and not isinstance(maps, ResNetFeatures):
        raise ValueError(f"dssd is built on a ResNet; take another backbone than {backbone!r}, or detector 'ssd'")
    levels = len(maps.out_channels)
    preset = NANO if size == "nano" else FULL
    anchors = DefaultBoxGenerator([preset.ratios] * levels, scales=SCALES[levels])
    per_location = anchors.num_anchors_per_location()
    head = DeconvolutionHead(maps.out_channels, *preset[:3], per_location, num_classes, criterion.needs.softmax)
    settings |= {"num_classes": num_classes, "resize": resize}
    return multibox_detector(DenseDetector, maps, head, anchors, criterion, **settings)


ARCHITECTURE = Architecture(dssd, DEFAULTS, Resize.exactly(320, 320), POSTPROCESS)
