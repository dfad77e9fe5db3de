"""Random scenes and nano detectors that tests of detectors share."""

import torch

from concordet.detectors import build_detector


def scene(count, height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - 30.0, height - 30.0])
    extent = 6 + 24 * torch.rand(count, 2, generator=generator)
    target = {
        "boxes": torch.cat([corner, corner + extent], 1),
        "labels": torch.randint(1, 4, (count,), generator=generator),
    }
    target["masks"] = ellipses(target["boxes"], height, width)
    return torch.rand(3, height, width, generator=generator), target


def ellipses(boxes, height, width):
    """``[n, height, width]`` uint8: the ellipse in each box, for detectors that learn from masks."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    across = (x - center[:, 0, None, None]) / half[:, 0, None, None]
    down = (y - center[:, 1, None, None]) / half[:, 1, None, None]
    return (across**2 + down**2 <= 1).to(torch.uint8)


def batch(*counts, **size):
    images, targets = zip(*(scene(n, seed=i, **size) for i, n in enumerate(counts)), strict=True)
    return list(images), list(targets)


def build(name, loss="default", **options):
    torch.manual_seed(0)
    return build_detector(name, num_classes=3, size="nano", loss=loss, image_size=(64, 96), **options)
