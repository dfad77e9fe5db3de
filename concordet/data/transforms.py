"""Augmentations of torchvision v2 for detection targets; ignored regions and masks are transformed with the boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from concordet.data.targets import Target, Transforms, to_plain

_FILL = [124, 116, 104]  # ImageNet's mean color, with which SSD fills the canvas around an image
_IGNORED_LABEL = 0


def train_transforms(
    *,
    flip: str = "horizontal",
    photometric: bool = False,
    zoom_out: float = 0.0,
    iou_crop: bool = False,
    scale_jitter: tuple[float, float] | None = None,
    min_size: float = 1.0,
) -> Transforms:
    """Augmentations for training, in the order of SSD (Liu et al. 2016, section 2.2): colors, zoom out, crop, flip.

    Boxes are clipped to the image, and dropped (with their masks) if a side has less than ``min_size`` pixels.

    Args:
        flip: "none", "horizontal" or "both"; each direction has probability 1/2. ``dataset.default_flip`` says what the
            classes allow (a mirrored digit is not a digit).
        photometric: Whether to apply SSD's random brightness, contrast, saturation, hue and channel order.
        zoom_out: Probability of putting the image on a canvas of up to 4 times its width and height (SSD: 0.5).
        iou_crop: Whether to apply SSD's random crop with a minimum overlap with an object.
        scale_jitter: Range of a random factor by which the image is scaled, then cropped or padded to its own size.
        min_size: Smallest width and height of a box, in pixels.

    Returns:
        A function that maps a uint8 image and a target with tv_tensors, as data sets pass them, to a float image in
        0..1 and a target with plain tensors.

    Raises:
        ValueError: An option is out of its range.

    Example:
        >>> ssd = train_transforms(photometric=True, zoom_out=0.5, iou_crop=True)
        >>> light = train_transforms(flip="none", scale_jitter=(0.8, 1.25))
    """
    if flip not in ("none", "horizontal", "both"):
        raise ValueError(f"flip must be 'none', 'horizontal' or 'both', got {flip!r}")
    if not 0 <= zoom_out <= 1:
        raise ValueError(f"zoom_out must be a probability in 0..1, got {zoom_out}")
    if scale_jitter is not None and not 0 < scale_jitter[0] <= scale_jitter[1]:
        raise ValueError(f"scale_jitter must be two factors 0 < low <= high, got {scale_jitter}")
    if min_size < 1:
        raise ValueError(f"min_size must be at least 1 pixel, got {min_size}")
    steps: list[nn.Module] = []
    if photometric:
        steps.append(v2.RandomPhotometricDistort())
    if zoom_out:
        steps.append(v2.RandomZoomOut(fill={tv_tensors.Image: _FILL, "others": 0}, p=zoom_out))
    if iou_crop:
        steps.append(v2.RandomIoUCrop())
    if scale_jitter is not None:
        steps.append(RescaleInPlace(*scale_jitter))
    if flip != "none":
        steps.append(v2.RandomHorizontalFlip())
    if flip == "both":
        steps.append(v2.RandomVerticalFlip())
    if zoom_out or iou_crop or scale_jitter is not None:
        steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=min_size)]
    return DetectionTransforms(steps)


def eval_transforms() -> Transforms:
    """No augmentation: a float image in 0..1 and plain tensors.

    Returns:
        A function of (image, target), as :func:`train_transforms` returns.

    Example:
        >>> from concordet.data import load_dataset
        >>> scenes = load_dataset("digits", split="val", length=1, size=64, transforms=eval_transforms())
        >>> image, target = scenes[0]
        >>> image.dtype, tuple(image.shape)
        (torch.float32, (3, 64, 64))
    """
    return DetectionTransforms([])


class DetectionTransforms(nn.Module):
    """Applies ``steps`` to image and target, and converts them to the input of a detector.

    In the steps ignored regions are boxes with label 0, so that they are transformed like the other boxes.
    """

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        self.steps: nn.ModuleList = nn.ModuleList(steps)

    def forward(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        if len(self.steps):
            target = _join(target)
            for step in self.steps:
                image, target = step(image, target)
            target = _split(target)
        return to_plain(image, target)


class RescaleInPlace(nn.Module):
    """Scales the image by a random factor and crops or pads it to its own size at a random position.

    Args:
        low, high: Range of the factor, which is drawn uniformly.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low: float
        self.high: float
        self.low, self.high = low, high

    def forward(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        factor, across, down = torch.rand(3).tolist()
        factor = self.low + (self.high - self.low) * factor
        height, width = image.shape[-2:]
        size = [max(round(height * factor), 1), max(round(width * factor), 1)]
        spare_y, spare_x = max(height - size[0], 0), max(width - size[1], 0)
        pad = [int(across * (spare_x + 1)), int(down * (spare_y + 1))]
        pad += [spare_x - pad[0], spare_y - pad[1]]
        top = int(down * (max(size[0] - height, 0) + 1))
        left = int(across * (max(size[1] - width, 0) + 1))

        def apply(item: Tensor) -> Tensor:
            if isinstance(item, tv_tensors.Mask) and len(item) == 0:
                return item
            item = F.resize(item, size)
            item = F.pad(item, pad, fill=_FILL if isinstance(item, tv_tensors.Image) else 0)
            return F.crop(item, top, left, height, width)

        spatial = (tv_tensors.BoundingBoxes, tv_tensors.Mask)
        return apply(image), {k: apply(v) if isinstance(v, spatial) else v for k, v in target.items()}


def _join(target: Target) -> Target:
    """Ignored regions appended to the boxes, with label 0 and empty masks."""
    target = dict(target)
    ignored = target.pop("ignored_boxes")
    boxes = target["boxes"]
    target["boxes"] = tv_tensors.wrap(torch.cat([boxes, ignored]), like=boxes)
    target["labels"] = torch.cat([target["labels"], target["labels"].new_full((len(ignored),), _IGNORED_LABEL)])
    if "masks" in target:
        masks = target["masks"]
        empty = masks.new_zeros((len(ignored), *masks.shape[1:]))
        target["masks"] = tv_tensors.wrap(torch.cat([masks, empty]), like=masks)
    return target


def _split(target: Target) -> Target:
    """Undoes :func:`_join`."""
    target = {k: v.as_subclass(Tensor) if isinstance(v, Tensor) else v for k, v in target.items()}
    kept = target["labels"] != _IGNORED_LABEL
    target["ignored_boxes"] = target["boxes"][~kept]
    for name in ("boxes", "labels", "masks"):
        if name in target:
            target[name] = target[name][kept]
    return target
