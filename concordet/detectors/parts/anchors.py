"""Anchors at the centres of cells."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList


class CenteredAnchors(AnchorGenerator):
    """torchvision's anchors at the centres of cells, not at their corners; cells need not be whole pixels wide.

    Example:
        >>> images = ImageList(torch.zeros(1, 3, 16, 16), [(16, 16)])
        >>> CenteredAnchors(((8,),), ((1.0,),))(images, [torch.zeros(1, 1, 2, 2)])[0][0]
        tensor([0., 0., 8., 8.])
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Each image's anchors ``[a, 4]`` over all levels."""
        like = feature_maps[0]
        self.set_cell_anchors(like.dtype, like.device)
        height, width = image_list.tensors.shape[-2:]
        levels = []
        for features, cell in zip(feature_maps, self.cell_anchors, strict=True):
            rows, columns = features.shape[-2:]
            y = (torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5) * (height / rows)
            x = (torch.arange(columns, device=like.device, dtype=like.dtype) + 0.5) * (width / columns)
            centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).repeat(1, 1, 2)  # [rows, columns, 4]
            levels.append((centres.view(-1, 1, 4) + cell).flatten(0, 1))
        return [torch.cat(levels)] * len(image_list.image_sizes)
