"""Anchors on the cells of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList


class GridAnchors(AnchorGenerator):
    """torchvision's anchor shapes at a fixed point of every cell, with strides that do not depend on the image.

    torchvision's own generator divides the padded image by the number of cells and rounds down, which gives 61 and 114
    instead of 64 and 128 on P6 and P7 of an image of 800 x 1344 pixels: the last anchors are 36 and 84 pixels off.

    Args:
        sizes: One tuple per level: anchor sides in pixels, as for torchvision's generator.
        aspect_ratios: One tuple per level: height divided by width.
        strides: Distance of neighboring cells in pixels, one per level. None divides the image's side by the number
            of cells without rounding (YOLACT, whose images of 550 pixels have 69 cells).
        offset: Position of an anchor's center in its cell: 0.5 for the cell's center, 0 for its top left corner.

    Example:
        >>> images = ImageList(torch.zeros(1, 3, 16, 16), [(16, 16)])
        >>> GridAnchors(((8,),), ((1.0,),), strides=(8,))(images, [torch.zeros(1, 1, 2, 2)])[0][1]
        tensor([ 8.,  0., 16.,  8.])
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, ...]],
        aspect_ratios: Sequence[tuple[float, ...]],
        *,
        strides: Sequence[int] | None = None,
        offset: float = 0.5,
    ) -> None:
        super().__init__(tuple(sizes), tuple(aspect_ratios))
        if strides is not None and len(strides) != len(sizes):
            raise ValueError(f"strides must be one per level, {len(sizes)} of them, got {len(strides)}")
        self.strides = strides
        self.offset = offset

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Each image's anchors ``[a, 4]`` over all levels, xyxy pixels, row by row within a level."""
        like = feature_maps[0]
        self.set_cell_anchors(like.dtype, like.device)
        height, width = image_list.tensors.shape[-2:]
        levels = []
        for level, (features, cell) in enumerate(zip(feature_maps, self.cell_anchors, strict=True)):
            rows, columns = features.shape[-2:]
            down, right = (height / rows, width / columns) if self.strides is None else (self.strides[level],) * 2
            y = (torch.arange(rows, device=like.device, dtype=like.dtype) + self.offset) * down
            x = (torch.arange(columns, device=like.device, dtype=like.dtype) + self.offset) * right
            centers = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).repeat(1, 1, 2)  # [rows, columns, 4]
            levels.append((centers.view(-1, 1, 4) + cell).flatten(0, 1))
        return [torch.cat(levels)] * len(image_list.image_sizes)
