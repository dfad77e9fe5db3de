"""Seeded scenes of the kinds on which implementations part: empty, crowded, tiny, huge, thin, tied, duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

HEIGHT, WIDTH, CLASSES = 256, 320, 5
KINDS = ("empty", "one", "some", "crowd", "tiny", "huge", "thin", "grid", "duplicates")


@dataclass(frozen=True)
class Scene:
    """Objects of one image.

    Attributes:
        kind: one of :data:`KINDS`.
        boxes: ``[m, 4]`` xyxy pixels.
        labels: ``[m]`` 0..CLASSES-1.
    """

    kind: str
    boxes: Tensor
    labels: Tensor


def make(kind: str, seed: int, dtype: torch.dtype = torch.float32) -> Scene:
    """The scene of this kind and seed, the same everywhere."""
    generator = torch.Generator().manual_seed(1000 * KINDS.index(kind) + seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    size = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)
    count = {"empty": 0, "one": 1, "crowd": 40 + seed % 40, "duplicates": 6}.get(kind, 4 + seed % 8)
    sides = {
        "tiny": uniform(2, 6, count, 2),
        "huge": uniform(0.7, 0.95, count, 2) * size,
        "thin": torch.stack([uniform(3, 8, count), uniform(80, 200, count)], 1),
    }.get(kind, uniform(10, 120, count, 2))
    corners = uniform(0, 1, count, 2) * (size - sides)
    boxes = torch.cat([corners, corners + sides], 1)
    if kind == "grid":
        boxes = (boxes / 8).round() * 8
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 8)
    if kind == "duplicates":
        boxes[3:] = boxes[:3] + uniform(-1, 1, 3, 4)
    return Scene(kind, boxes.to(dtype), torch.randint(0, CLASSES, (count,), generator=generator))


def scenes(per_kind: int, dtype: torch.dtype = torch.float32) -> list[Scene]:
    """``per_kind`` scenes of every kind."""
    return [make(kind, seed, dtype) for kind, seed in product(KINDS, range(per_kind))]


def batches(per_kind: int) -> list[list[Scene]]:
    """Batches of two: a scene of each kind with one of another."""
    return [
        [make(kind, seed), make(KINDS[(KINDS.index(kind) + 2) % len(KINDS)], seed)]
        for kind, seed in product(KINDS, range(per_kind))
    ]


def ellipses(boxes: Tensor, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Tensor:
    """``[m, h, w]`` masks that touch the sides of boxes."""
    y, x = torch.arange(size[0])[None, :, None] + 0.5, torch.arange(size[1])[None, None, :] + 0.5
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    u, v = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
    return (u**2 + v**2 <= 1).to(torch.uint8)
