"""mmdetection on today's PyTorch: `mmcv.ops`, which is compiled code, is replaced by torchvision's operators.

Import this module before anything of mmdet.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import mmcv
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms as torchvision_batched_nms
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align as torchvision_roi_align

MMCV_VERSION = "2.1.0"  # mmdet 3.3.0 refuses mmcv-lite's 2.2.0 by its number


class _Missing(nn.Module):
    """Placeholder of an operator that no comparison calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("this operator of mmcv has no stand-in")


class _Operators(types.ModuleType):
    """A module with every name: the operators below, and :class:`_Missing` for all others."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Missing,), {})


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """mmcv's hard NMS."""
    kept = torchvision_nms(boxes, scores, iou_threshold)
    return torch.cat([boxes[kept], scores[kept, None]], 1), kept


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict[str, Any], **kw: Any
) -> tuple[Tensor, Tensor]:
    """mmcv's NMS by class."""
    kept = torchvision_batched_nms(boxes, scores, idxs, nms_cfg["iou_threshold"])
    return torch.cat([boxes[kept], scores[kept, None]], 1), kept


def roi_align(features: Tensor, rois: Tensor, size: Any, scale: float, ratio: int, mode: str, aligned: bool) -> Tensor:
    """mmcv's RoIAlign."""
    return torchvision_roi_align(features, rois, size, scale, ratio, aligned)


class RoIAlign(nn.Module):
    """mmcv's RoIAlign as a layer."""

    def __init__(self, output_size: int, spatial_scale: float, sampling_ratio: int = 0) -> None:
        super().__init__()
        self.output_size = (output_size, output_size)
        self.settings = (self.output_size, spatial_scale, sampling_ratio, True)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """``[n, c, size, size]`` of ``[n, 5]`` boxes with the index of their image."""
        return torchvision_roi_align(features, rois, *self.settings)


def install() -> None:
    """Installs the placeholders in the modules that mmdet imports them from."""
    mmcv.__version__ = MMCV_VERSION
    names = (
        "nms", "roi_align", "roi_pool", "multi_scale_deform_attn", "merge_cells", "carafe", "masked_conv",
        "point_sample", "deform_conv", "modulated_deform_conv", "corner_pool", "focal_loss",
    )  # fmt: skip
    package = _Operators("mmcv.ops")
    package.__path__ = []
    for operator in (nms, batched_nms, roi_align, RoIAlign):
        setattr(package, operator.__name__, operator)
    sys.modules["mmcv.ops"] = package
    for name in names:
        module = _Operators(f"mmcv.ops.{name}")
        sys.modules[module.__name__] = module
    sys.modules["mmcv.ops.nms"].__dict__.update(nms=nms, batched_nms=batched_nms)
    sys.modules["mmcv.ops.roi_align"].__dict__["roi_align"] = roi_align


np.__dict__["float"] = float  # lvis 0.5.3 was written for NumPy before 1.20
install()
