"""Anchors at the centres of cells."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList


class CenteredAnchors(AnchorGenerator):
    """torchvision's anchors, moved from the cells' corners to their centres.

    Example:
        >>> images = ImageList(torch.zeros(1, 3, 16, 16), [(16, 16)])
        >>> CenteredAnchors(((8,),), ((1.0,),))(images, [torch.zeros(1, 1, 2, 2)])[0][0]
        tensor([0., 0., 8., 8.])
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Each image's anchors ``[a, 4]`` over all levels."""
        anchors = super().forward(image_list, feature_maps)
        height, width = image_list.tensors.shape[-2:]
        shifts = []
        for features, count in zip(feature_maps, self.num_anchors_per_location(), strict=True):
            rows, columns = features.shape[-2:]
            half = anchors[0].new_tensor([width // columns / 2, height // rows / 2]).repeat(2)
            shifts.append(half.expand(rows * columns * count, 4))
        shift = torch.cat(shifts)
        return [boxes + shift for boxes in anchors]
