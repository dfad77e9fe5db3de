"""Anchors on the cells of feature maps."""

import torch
from torchvision.models.detection.image_list import ImageList

from concordet.detectors.parts.anchors import GridAnchors


def test_centered_anchors_lie_at_the_centers_of_cells():
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    generator = GridAnchors(((16,), (32,)), ((0.5, 1.0),) * 2)
    (anchors,) = generator(images, [torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6)])
    expected = []
    for stride, rows, columns in ((8, 8, 12), (16, 4, 6)):
        expected += [
            ((c + 0.5) * stride, (r + 0.5) * stride) for r in range(rows) for c in range(columns) for _ in (0, 1)
        ]
    torch.testing.assert_close((anchors[:, :2] + anchors[:, 2:]) / 2, torch.tensor(expected))
