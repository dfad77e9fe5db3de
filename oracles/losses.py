"""Loss functions, box coders and anchors: values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from mmdet.models.losses import CIoULoss, DIoULoss, FocalLoss, GIoULoss, QualityFocalLoss, VarifocalLoss
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor

from concordet.assigned import Assigned
from concordet.detectors.parts.anchors import GridAnchors
from concordet.losses import functional as F
from concordet.losses.criteria.box import box_losses
from oracles.comparison import Comparison, largest

N, C = 4000, 8
SIZE = (800, 1344)
STRIDES = (8, 16, 32, 64, 128)


def value_and_gradient(function: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The value, and the gradient by the inputs."""
    leaf = inputs.clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def _deviation(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    pairs = zip(value_and_gradient(ours, inputs), value_and_gradient(theirs, inputs), strict=True)
    return max(largest([pair]) for pair in pairs)


def compare() -> Iterator[Comparison]:
    """Classification losses, box losses, the coder and anchors."""
    yield from _classification()
    yield from _boxes()
    yield from _coder()
    yield from _anchors()


def _classification() -> Iterator[Comparison]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(N, C, generator=generator)
    labels = torch.randint(0, 2 * C, (N,), generator=generator).clamp(max=C)  # C is background
    targets = torch.nn.functional.one_hot(labels, C + 1)[:, :C].float()
    quality = torch.rand(N, generator=generator)
    soft = targets * quality[:, None]
    pairs: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "Focal Loss": (
            lambda x: F.focal_loss(x, targets, reduction="sum"),
            lambda x: FocalLoss(use_sigmoid=True)(x, labels, avg_factor=1.0),
        ),
        "Quality Focal Loss": (
            lambda x: F.quality_focal_loss(x, soft, reduction="sum"),
            lambda x: QualityFocalLoss(use_sigmoid=True)(x, (labels, quality), avg_factor=1.0),
        ),
        "Varifocal Loss": (
            lambda x: F.varifocal_loss(x, soft, reduction="sum"),
            lambda x: VarifocalLoss(use_sigmoid=True)(x, soft, avg_factor=1.0),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        yield Comparison(
            f"{name}, value and gradient", "mmdet 3.3.0", 1, _deviation(ours, theirs, logits), "relative", 1e-5
        )


def random_boxes(count: int, seed: int) -> Tensor:
    """``[count, 4]`` xyxy pixels."""
    generator = torch.Generator().manual_seed(seed)
    corner = 100 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    sides = 2 + 80 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corner, corner + sides], 1)


def record_of(boxes: Tensor, targets: Tensor) -> Assigned:
    """A record in which every prediction is positive."""
    index = torch.arange(len(boxes))
    return Assigned(
        logits=boxes.new_zeros(len(boxes), 1),
        labels=torch.zeros_like(index),
        positive=index,
        boxes=boxes,
        gt_boxes=targets,
        gt_ids=index,
        image_ids=torch.zeros_like(index),
        normalizer=boxes.new_tensor(float(len(boxes))),
    )


def _boxes() -> Iterator[Comparison]:
    predicted, targets = random_boxes(20_000, 1), random_boxes(20_000, 2)
    gate = "the paper's formula, as torchvision; mmdetection has no aspect term at IoU 0.5 and below"
    for name, loss, reason in (("giou", GIoULoss, ""), ("diou", DIoULoss, ""), ("ciou", CIoULoss, gate)):
        deviation = _deviation(
            lambda x, name=name: box_losses(name, record_of(x, targets)).sum(),
            lambda x, loss=loss: loss(reduction="sum")(x, targets),
            predicted,
        )
        what = f"{name.upper().replace('IOU', 'IoU')} loss of 20,000 pairs, value and gradient"
        yield Comparison(what, "mmdet 3.3.0", 1, deviation, "relative", 1e-6, reason)


def _coder() -> Iterator[Comparison]:
    from torchvision.models.detection._utils import BoxCoder

    anchors, objects = random_boxes(3000, 3), random_boxes(3000, 4)
    ours = BoxCoder((10.0, 10.0, 5.0, 5.0))
    theirs = DeltaXYWHBBoxCoder(target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
    deltas = ours.encode_single(objects, anchors)
    pairs = [
        (deltas, theirs.encode(anchors, objects)),
        (ours.decode_single(deltas, anchors), theirs.decode(anchors, deltas)),
    ]
    yield Comparison("delta coder, both ways", "mmdet 3.3.0", 1, largest(pairs), "relative", 1e-5)


def _anchors() -> Iterator[Comparison]:
    from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
    from torchvision.models.detection.image_list import ImageList

    height, width = (-(-side // 128) * 128 for side in SIZE)
    maps = [torch.zeros(1, 1, height // s, width // s) for s in STRIDES]
    images = ImageList(torch.zeros(1, 3, height, width), [SIZE])
    shapes = tuple((8 * s,) for s in STRIDES), ((1.0,),) * len(STRIDES)
    theirs = torch.cat(
        AnchorGenerator(strides=STRIDES, ratios=[1.0], scales=[8], center_offset=0.0).grid_priors(
            [m.shape[-2:] for m in maps], device="cpu"
        )
    )
    what = f"anchors at {height} x {width}"
    ours = GridAnchors(*shapes, strides=STRIDES, offset=0.0)(images, maps)[0]
    yield Comparison(f"{what}: ATSS, PAA", "mmdet 3.3.0", 1, float((ours - theirs).abs().max()), "pixels")
    odd = [torch.zeros(1, 1, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in STRIDES]
    theirs = torch.cat(
        AnchorGenerator(strides=STRIDES, ratios=[1.0], scales=[8], center_offset=0.0).grid_priors(
            [m.shape[-2:] for m in odd], device="cpu"
        )
    )
    images = ImageList(torch.zeros(1, 3, *SIZE), [SIZE])
    ours = GridAnchors(*shapes, strides=STRIDES, offset=0.0)(images, odd)[0]
    what = f"anchors at {SIZE[0]} x {SIZE[1]}"
    yield Comparison(f"{what}: ATSS, PAA", "mmdet 3.3.0", 1, float((ours - theirs).abs().max()), "pixels")
    reason = "as torchvision: strides are the padded image over the number of cells, 61 and 114 for 64 and 128"
    ours = TorchvisionAnchors(*shapes)(images, odd)[0]
    deviation = float((ours - theirs).abs().max())
    yield Comparison(f"{what}: RetinaNet, FCOS, R-CNNs", "mmdet 3.3.0", 1, deviation, "pixels", reason=reason)
