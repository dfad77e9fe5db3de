"""Resizing of images to the network's input size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchvision.models.detection.transform import GeneralizedRCNNTransform

from concordet.setting_types import MAX_IMAGE_SIDE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Resize:
    """How images are resized; made by :meth:`within` or :meth:`exactly`.

    Attributes:
        size: Two sides in pixels: (shorter, longer) where images keep their shape, else (height, width).
        keeps_shape: Images keep their shape: they are scaled until the shorter side has ``size[0]`` pixels, or the
            longer side ``size[1]``, whichever comes first. If False, every image is stretched to ``size``.

    Example:
        >>> Resize.within(240, 320) == Resize((240, 320), keeps_shape=True)
        True
        >>> import torch
        >>> [image] = Resize.within(240, 320).transform()([torch.rand(3, 480, 960)])[0].tensors
        >>> tuple(image.shape)  # the longer side is 320; both are padded to a multiple of 32
        (3, 160, 320)
    """

    size: tuple[int, int]
    keeps_shape: bool

    def __post_init__(self) -> None:
        sides = "(shorter, longer)" if self.keeps_shape else "(height, width)"
        if not all(1 <= side <= MAX_IMAGE_SIDE for side in self.size):
            raise ValueError(
                f"image_size must be one side or {sides}, from 1 to {MAX_IMAGE_SIDE} pixels, got {self.size}; choose "
                "another"
            )
        if self.keeps_shape and self.size[0] > self.size[1]:
            raise ValueError(
                f"image_size must be (shorter, longer) for a detector that keeps the shape of images, got {self.size}; "
                f"did you mean {self.size[::-1]}?"
            )

    @classmethod
    def within(cls, shorter: int, longer: int) -> Resize:
        """Keeps the shape of images: the shorter side gets ``shorter`` pixels, unless the longer exceeds ``longer``.

        Example:
            >>> Resize.within(800, 1333).of(400)
            Resize(size=(400, 666), keeps_shape=True)
        """
        return cls((shorter, longer), True)

    @classmethod
    def exactly(cls, height: int, width: int) -> Resize:
        """Stretches every image to this size.

        Example:
            >>> Resize.exactly(300, 300).of(512)
            Resize(size=(512, 512), keeps_shape=False)
        """
        return cls((height, width), False)

    def of(self, size: int | Sequence[int]) -> Resize:
        """The same way of resizing with another size.

        Args:
            size: (shorter, longer) or (height, width). One number is the shorter side, with the longer one in the same
                proportion as here (800 to 1333), or both sides where images are stretched.
        """
        if isinstance(size, int):
            other = size * self.size[1] // self.size[0] if self.keeps_shape else size
            return replace(self, size=(size, other))
        if len(size) != 2:
            raise ValueError(f"image_size must be one side or two sides in pixels, got {tuple(size)}")
        return replace(self, size=(size[0], size[1]))

    def transform(self) -> GeneralizedRCNNTransform:
        """torchvision's transform: resizes, normalizes as for ImageNet, pads to one tensor per batch."""
        first, second = self.size
        fixed = {} if self.keeps_shape else {"fixed_size": (second, first), "size_divisible": 1}
        return GeneralizedRCNNTransform(first, second, list(IMAGENET_MEAN), list(IMAGENET_STD), **fixed)
