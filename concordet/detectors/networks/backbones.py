"""Backbones: torchvision's ResNets, plain or with deformable convolutions, timm's networks, and a small ``nano`` one.

:func:`features` builds networks with feature maps of several strides, :func:`pyramid` adds a feature pyramid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import Conv2dNormActivation, DeformConv2d, FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from concordet.errors import UsageError, missing_package

Size = Literal["full", "nano"]
STRIDES = (4, 8, 16, 32)
NANO_WIDTHS = {8: 48, 16: 80, 32: 112}
NANO_CHANNELS = 64
DEFORMABLE = "_dcn"
PLAIN = (
    "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
    "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
BOTTLENECKS = (*PLAIN, *(name + DEFORMABLE for name in PLAIN))
RESNETS = ("resnet18", "resnet34", *BOTTLENECKS)
TIMM = {"swin_t": "swin_tiny_patch4_window7_224", "swin_l": "swin_large_patch4_window12_384"}
"""Short names for networks of timm; the others are named ``timm/NAME``."""


class Features(nn.Module):
    """Feature maps of images, finest first.

    Args:
        body: Network that returns a dict of feature maps.
        channels: Number of channels of each map.
        strides: Stride of each map, pixels.
    """

    def __init__(self, body: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.channels: tuple[int, ...]
        self.strides: tuple[int, ...]
        self.channels, self.strides = tuple(channels), tuple(strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images ``[b, 3, h, w]`` to maps ``[b, channels[i], h / strides[i], w / strides[i]]``, sides rounded up."""
        return list(self.body(x).values())


class Pyramid(nn.Module):
    """A network under torchvision's feature pyramid; parameters are named as in its ``BackboneWithFPN``.

    Args:
        maps: Network whose feature maps the pyramid is built on.
        out_channels: Number of channels of every level.
        extra: Module that computes the levels above the coarsest map; None for none.
    """

    def __init__(self, maps: Features, out_channels: int, extra: ExtraFPNBlock | None) -> None:
        super().__init__()
        self.body: nn.Module = maps.body
        self.fpn = FeaturePyramidNetwork(list(maps.channels), out_channels, extra)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Levels with ``out_channels`` channels, from images ``[b, 3, h, w]``."""
        return self.fpn(self.body(x))


def features(
    size: Size, backbone: str | None = None, *, levels: Sequence[int] = (8, 16, 32), pretrained: bool = False
) -> Features:
    """Feature maps without a pyramid, for detectors that have none.

    Args:
        size: ``full``, or ``nano``, which has its own network.
        backbone: One of :data:`RESNETS` (with ``_dcn`` at the end for modulated deformable convolutions in the last
            three stages), ``swin_t``, ``swin_l``, or ``timm/NAME`` for any network of timm with these strides; None is
            ``resnet50``.
        levels: Strides of the maps, finest first, out of 4 (not nano), 8, 16 and 32.
        pretrained: Whether weights will be loaded; then batch norms and the first two stages of a ResNet are frozen, as
            in torchvision. From scratch everything is trained.

    Raises:
        ValueError: for an unknown backbone, any backbone with nano, one without these strides, or one of timm if timm
            is not installed.

    Example:
        >>> import torch
        >>> maps = features("nano")
        >>> [tuple(m.shape) for m in maps(torch.rand(1, 3, 64, 96))], maps.channels
        ([(1, 48, 8, 12), (1, 80, 4, 6), (1, 112, 2, 3)], (48, 80, 112))
    """
    available = tuple(NANO_WIDTHS) if size == "nano" else STRIDES
    if not levels or not set(levels) <= set(available) or list(levels) != sorted(set(levels)):
        raise ValueError(f"levels must be strides of {available} in ascending order, got {tuple(levels)}")
    if size == "nano":
        if backbone is not None:
            raise UsageError(
                f"backbone must be None for size 'nano', got {backbone!r}; "
                f"drop backbone={backbone!r} or use size='full'"
            )
        stages = {f"c{stride.bit_length() - 1}": str(i) for i, stride in enumerate(levels)}
        return Features(IntermediateLayerGetter(nano_body(), stages), [NANO_WIDTHS[s] for s in levels], levels)
    name = backbone or "resnet50"
    if name in TIMM or name.startswith("timm/"):
        return timm_features(TIMM.get(name, name.removeprefix("timm/")), levels, pretrained=pretrained)
    network = resnet(name, pretrained=pretrained)
    stages = {f"layer{stride.bit_length() - 2}": str(i) for i, stride in enumerate(levels)}
    channels = [network.inplanes * stride // STRIDES[-1] for stride in levels]
    return Features(IntermediateLayerGetter(network, stages), channels, levels)


def pyramid(
    size: Size, backbone: str | None, *, extra: Literal["c5", "p5", "pool"], pretrained: bool
) -> tuple[Pyramid, tuple[int, ...]]:
    """A backbone with a feature pyramid, and the strides of its levels.

    Full size has five levels of 256 channels: P3..P7 (strides 8 to 128) with P6 computed from C5 (``c5``, RetinaNet) or
    from P5 (``p5``, FCOS and ATSS), or P2..P6 (strides 4 to 64) with P6 pooled from P5 (``pool``, Faster R-CNN). Nano
    has P3..P5 (strides 8 to 32) of 64 channels, enough for small images.

    Args:
        size: See :func:`features`.
        backbone: See :func:`features`.
        extra: Source of the levels above P5, see above; nano has none.
        pretrained: See :func:`features`.

    Raises:
        ValueError: as in :func:`features`.
    """
    if size == "nano":
        return Pyramid(features(size, backbone), NANO_CHANNELS, None), (8, 16, 32)
    if extra == "pool":
        maps = features(size, backbone, levels=STRIDES, pretrained=pretrained)
        return Pyramid(maps, 256, LastLevelMaxPool()), (*STRIDES, 64)
    maps = features(size, backbone, pretrained=pretrained)
    coarser = LastLevelP6P7(maps.channels[-1] if extra == "c5" else 256, 256)
    return Pyramid(maps, 256, coarser), (8, 16, 32, 64, 128)


def resnet(name: str, *, pretrained: bool = False, **options: Any) -> ResNet:
    """A torchvision ResNet; if weights will be loaded, its batch norms and first two stages are frozen.

    Args:
        name: One of :data:`RESNETS`.
        pretrained: See :func:`features`.
        **options: Arguments of torchvision's builder.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in RESNETS:
        raise UsageError(f"backbone must be one of {', '.join((*RESNETS, *TIMM))} or timm/NAME, got {name!r}")
    norm = FrozenBatchNorm2d if pretrained else nn.BatchNorm2d
    network = getattr(torchvision.models, name.removesuffix(DEFORMABLE))(norm_layer=norm, **options)
    if name.endswith(DEFORMABLE):
        for block in (*network.layer2, *network.layer3, *network.layer4):
            block.conv2 = DeformableConv(block.conv2)
    if pretrained:
        for stage in (network.conv1, network.layer1):
            stage.requires_grad_(False)
    return network


class DeformableConv(DeformConv2d):
    """A modulated deformable convolution (Zhu et al. 2019, DCNv2) that replaces a plain one.

    A second convolution with the same kernel and stride predicts an offset and a weight ``2 sigmoid(m)`` in (0, 2) for
    each of the k * k samples. It is zero-initialized, so that the result first equals that of the plain convolution,
    whose weights are kept. (In the paper and in mmdetection the weight is ``sigmoid(m)``, which halves the output of
    the plain convolution.)  All groups share the offsets.

    Args:
        plain: Convolution to replace.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        shape: dict[str, Any] = {key: getattr(plain, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        super().__init__(plain.in_channels, plain.out_channels, **shape, groups=plain.groups, bias=False)
        self.weight: Tensor = plain.weight
        self.samples: int = plain.kernel_size[0] * plain.kernel_size[1]
        self.offset: nn.Conv2d = nn.Conv2d(plain.in_channels, 3 * self.samples, **shape)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, in, h, w]`` to ``[b, out, h / stride, w / stride]``."""
        offsets, weights = self.offset(x).split([2 * self.samples, self.samples], dim=1)
        wide = torch.promote_types(x.dtype, torch.float32)  # torchvision's operator has no bf16
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(wide), offsets.to(wide), 2 * weights.to(wide).sigmoid()).to(x.dtype)


class TimmBody(nn.Module):
    """Some of the feature maps of a network of timm.

    Args:
        model: Network.
        indices: Indices of the maps, as in timm.
        channels: Numbers of channels of the maps, to add a layer norm to each; empty for no norms. Networks with
            channels last (Swin) need them, as in their authors' detectors: without a norm, values have no fixed scale.
    """

    def __init__(self, model: Any, indices: Sequence[int], channels: Sequence[int] = ()) -> None:
        super().__init__()
        self.model: Any = model
        self.indices: list[int] = list(indices)
        self.norms: nn.ModuleList = nn.ModuleList(LayerNorm2d(c) for c in channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps ``[b, c, h, w]``, finest first."""
        maps = self.model.forward_intermediates(x, indices=self.indices, intermediates_only=True, output_fmt="NCHW")
        if self.norms:
            maps = [norm(m) for norm, m in zip(self.norms, maps, strict=True)]
        return OrderedDict((str(i), m) for i, m in enumerate(maps))


def timm_features(name: str, levels: Sequence[int], *, pretrained: bool = False) -> Features:
    """Feature maps of a network of timm; see :func:`features`.

    Raises:
        ValueError: if timm is not installed or has no such network, or if a detector cannot use it.
    """
    try:
        import timm
        from timm.layers import freeze_batch_norm_2d
    except ImportError as error:
        raise ValueError(missing_package(f"backbone {name!r}", "timm", "backbones")) from error
    options: dict[str, Any] = {"dynamic_img_size": True} if name.startswith("swin") else {}
    indices = [STRIDES.index(stride) - len(STRIDES) for stride in levels]
    try:
        maps: Any = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=indices, **options)
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UsageError(
            f"backbone must be a network of timm with feature maps, got {name!r} ({error}); see timm.list_models()"
        ) from error
    model, channels, strides = maps.model, maps.feature_info.channels(), maps.feature_info.reduction()
    dynamic = getattr(model, "dynamic_img_size", False)
    if strides != list(levels) or (model.pretrained_cfg.get("fixed_input_size") and not dynamic):
        raise UsageError(
            f"backbone must take images of any size and have maps with the strides {list(levels)}, got {name!r}; "
            "use another, such as 'swin_t' or 'timm/convnext_tiny'"
        )
    if dynamic:
        model.patch_embed.dynamic_img_pad = True  # for sides that are not a multiple of the patch
    if pretrained:
        model = freeze_batch_norm_2d(model)
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return Features(TimmBody(model, maps.out_indices, channels if channels_last else ()), channels, levels)


def nano_body(stem: int = 24) -> nn.Sequential:
    """A residual network of 0.3 M parameters whose layers c3, c4 and c5 have strides 8, 16 and 32."""

    def stage(inputs: int, outputs: int) -> BasicBlock:
        shortcut = Conv2dNormActivation(inputs, outputs, 1, stride=2, activation_layer=None)
        return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)

    body = nn.Sequential()
    body.add_module("stem", Conv2dNormActivation(3, stem, 3, stride=2))
    body.add_module("c2", Conv2dNormActivation(stem, stem, 3, stride=2))
    inputs = stem
    for stride, outputs in NANO_WIDTHS.items():
        body.add_module(f"c{stride.bit_length() - 1}", stage(inputs, outputs))
        inputs = outputs
    return body
