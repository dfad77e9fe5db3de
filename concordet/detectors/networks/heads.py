"""Heads of dense detectors, on torchvision's classification towers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead
from torchvision.models.detection.retinanet import RetinaNetHead


def flatten_level(x: Tensor, channels: int) -> Tensor:
    """``[b, anchors * channels, h, w]`` to ``[b, h * w * anchors, channels]``, torchvision's order of anchors."""
    batch, _, height, width = x.shape
    return x.view(batch, -1, channels, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, channels)


def init_prior_bias(classifier: nn.Conv2d | nn.Linear) -> None:
    """Initializes a sigmoid classifier to scores of 0.01, as in RetinaNet: nearly everything is background."""
    if classifier.bias is not None:
        nn.init.constant_(classifier.bias, -math.log(99))


class RegressionHead(nn.Module):
    """Box regression with an optional quality branch (centerness or IoU) on the same tower.

    Parameters have the names of torchvision's ``FCOSRegressionHead``, so that its weights load. That class always has
    the branch; here it is optional, because a detector must not have parameters without gradient.

    Args:
        channels: Number of channels of the features.
        num_anchors: Number of anchors per location.
        num_convs: Depth of the tower.
        quality: Whether to build the quality branch.
        levels: Number of levels, each of which gets a learned scale of its outputs (ATSS); None for no scales
            (torchvision's FCOS).
        positive: Whether to apply ReLU to the regression (distances to sides).
        bias: Initial bias of the regression.
        outputs: Number of values per box: 4, or more if a box side is a distribution.
    """

    def __init__(
        self,
        channels: int,
        num_anchors: int,
        *,
        num_convs: int = 4,
        quality: bool = False,
        levels: int | None = None,
        positive: bool = False,
        bias: float = 0.0,
        outputs: int = 4,
    ) -> None:
        super().__init__()
        tower: list[nn.Module] = []
        for _ in range(num_convs):
            tower += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(32, channels), nn.ReLU()]
        self.conv: nn.Sequential = nn.Sequential(*tower)
        self.bbox_reg: nn.Conv2d = nn.Conv2d(channels, num_anchors * outputs, 3, padding=1)
        self.outputs = outputs
        self.bbox_ctrness: nn.Conv2d | None = nn.Conv2d(channels, num_anchors, 3, padding=1) if quality else None
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.constant_(layer.bias, bias if layer is self.bbox_reg else 0.0)
        self.scales: nn.Parameter | None = nn.Parameter(torch.ones(levels)) if levels else None
        self.positive = positive

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """``[b, a, outputs]`` regressions and ``[b, a]`` quality logits or None, over all levels."""
        regressions, qualities = [], []
        for level, x in enumerate(features):
            x = self.conv(x)
            regression = self.bbox_reg(x)
            if self.scales is not None:
                regression = regression * self.scales[level]
            regressions.append(flatten_level(regression.relu() if self.positive else regression, self.outputs))
            if self.bbox_ctrness is not None:
                qualities.append(flatten_level(self.bbox_ctrness(x), 1).squeeze(-1))
        return torch.cat(regressions, dim=1), torch.cat(qualities, dim=1) if qualities else None


class DenseHead(nn.Module):
    """Classification and regression towers shared by all levels (FCOS, ATSS)."""

    def __init__(self, classification_head: FCOSClassificationHead, regression_head: RegressionHead) -> None:
        super().__init__()
        self.classification_head = classification_head
        self.regression_head = regression_head

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """``[b, a, c]`` logits, ``[b, a, 4]`` regressions, ``[b, a]`` quality logits or None."""
        return self.classification_head(features), *self.regression_head(features)


class RetinaHead(RetinaNetHead):
    """torchvision's RetinaNet head with the outputs of :class:`DenseHead`."""

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, None]:
        """``[b, a, c]`` logits, ``[b, a, 4]`` regressions, no quality."""
        return self.classification_head(features), self.regression_head(features), None


def set_depth(head: RetinaHead, num_convs: int) -> RetinaHead:
    """Keeps the first ``num_convs`` layers of both towers (torchvision builds four)."""
    for tower in (head.classification_head, head.regression_head):
        tower.conv = tower.conv[:num_convs]
    return head
