"""Images and targets as data sets return them, and boxes in pixels of the original image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

if TYPE_CHECKING:
    from concordet.data.paths import Listing

Target = dict[str, Any]
Transforms = Callable[[Tensor, Target], tuple[Tensor, Target]]


@dataclass(frozen=True)
class Layout:
    """The recognized layout of a folder or file.

    Attributes:
        description: Description in words, such as "Pascal VOC, images and annotations in one folder".
        splits: Arguments of the data set's class for each split: "train", "val" and "test", or "all" if the images are
            not divided.

    Example:
        >>> layout = Layout("CSV of boxes", {"train": {"root": "photos"}, "val": {"root": "held_out"}})
        >>> list(layout.splits)
        ['train', 'val']
    """

    description: str
    splits: dict[str, dict[str, Any]]


class DetectionDataset(Dataset[tuple[Tensor, Target]], ABC):
    """A map-style data set of ``(image, target)``, with the classes and ground truth that training and evaluation need.

    Without ``transforms`` an image is float ``[3, H, W]`` in 0..1 and a target has plain tensors; transforms are called
    with the return values of :meth:`sample`. A target has

    - ``boxes`` ``[n, 4]`` float32 xyxy pixels of the returned image, ``labels`` ``[n]`` int64 1..C, ``image_id`` int;
    - ``ignored_boxes`` ``[k, 4]``: crowd regions and difficult objects, which are neither objects nor background;
    - ``masks`` ``[n, H, W]`` uint8, on request;
    - ``scale`` ``[2]``: width and height of the returned image over those of the original (see :func:`to_original`).

    Attributes:
        class_names: The class of label i + 1 is ``class_names[i]``.
        category_ids: The category id in :meth:`ground_truth` of label i + 1 is ``category_ids[i]``.
        default_flip: Flips that keep the class of an object: "none", "horizontal" or "both".
        origin: Description of the recognized layout; None for data that was opened by name.
        default_splits: Default ``split`` for training and for validation.
        looks_for: What :meth:`recognize` looks for, for the error when nothing is recognized.

    Example:
        >>> from concordet.data import DigitScenes
        >>> scenes = DigitScenes(split="val", length=2, size=64)  # one of its subclasses
        >>> image, target = scenes[0]
        >>> tuple(image.shape), sorted(target)
        ((3, 64, 64), ['boxes', 'ignored_boxes', 'image_id', 'labels', 'scale'])
    """

    default_splits: ClassVar[Mapping[str, str]] = {"train": "train", "val": "val"}
    looks_for: ClassVar[str] = ""

    class_names: list[str]
    category_ids: list[int]
    default_flip: str = "horizontal"
    transforms: Transforms | None = None
    origin: str | None = None

    @classmethod
    def recognize(cls, listing: Listing) -> Layout | None:
        """The layout of the files in a folder if they have the form of this data set, else None.

        ``concordet train PATH`` calls it for every registered data set.

        Args:
            listing: Files below the folder, or the one file that the user named.

        Raises:
            ValueError: The files have this form, but their splits are ambiguous.
        """
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} images")
        image, target = self.sample(index % len(self))
        return to_plain(image, target) if self.transforms is None else self.transforms(image, target)

    @abstractmethod
    def sample(self, index: int) -> tuple[Tensor, Target]:
        """``tv_tensors.Image`` uint8 ``[3, H, W]`` and a target whose boxes and masks are tv_tensors."""

    @abstractmethod
    def load_image(self, index: int) -> Image.Image:
        """The original image as 8-bit RGB."""

    @abstractmethod
    def image_path(self, index: int) -> Path | None:
        """The image's file, or None for an image without one."""

    @abstractmethod
    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO form, in pixels of the original images."""

    @abstractmethod
    def summary(self) -> dict[str, int]:
        """Counts of images, objects and faults; :func:`describe` renders them."""


def make_target(
    boxes: Tensor,
    labels: Tensor,
    ignored_boxes: Tensor,
    *,
    image_id: int,
    size: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
    masks: Tensor | None = None,
) -> Target:
    """A target with tv_tensors, for an image of ``size`` (height, width)."""
    target: Target = {
        "boxes": _boxes(boxes, size),
        "labels": labels.to(torch.int64),
        "image_id": image_id,
        "ignored_boxes": _boxes(ignored_boxes, size),
        "scale": torch.tensor(scale, dtype=torch.float32),
    }
    if masks is not None:
        target["masks"] = tv_tensors.Mask(masks)
    return target


def to_plain(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """The input of a detector: a float image in 0..1 and plain tensors."""
    image = image.as_subclass(Tensor)
    image = image.float().div_(255) if image.dtype == torch.uint8 else image
    return image, {k: v.as_subclass(Tensor) if isinstance(v, Tensor) else v for k, v in target.items()}


def to_original(boxes: Tensor, target: Target) -> Tensor:
    """Boxes of a returned image in pixels of the original one.

    This undoes the resizing of ``max_size``, but not random crops and flips: use it with evaluation transforms.

    Args:
        boxes: ``[n, 4]`` xyxy in pixels of the image that the data set returned.
        target: The image's target, which has ``scale``.

    Returns:
        ``[n, 4]`` xyxy in pixels of the original image.

    Example:
        >>> to_original(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), {"scale": torch.tensor([0.5, 0.25])})
        tensor([[ 2.,  8.,  6., 16.]])
    """
    return boxes / target["scale"].to(boxes).repeat(2)


def collate(batch: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Images and targets of a batch as two lists: ``DataLoader(dataset, collate_fn=collate)``.

    Args:
        batch: Images ``[3, h, w]`` with their targets.

    Returns:
        The images, whose sizes may differ, and their targets, as detectors take them.

    Example:
        >>> batch = [(torch.zeros(3, 4, 4), {"image_id": 7}), (torch.zeros(3, 5, 6), {"image_id": 8})]
        >>> images, targets = collate(batch)
        >>> [tuple(image.shape) for image in images], [target["image_id"] for target in targets]
        ([(3, 4, 4), (3, 5, 6)], [7, 8])
    """
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


def describe(summary: Mapping[str, int]) -> str:
    """One line from :meth:`DetectionDataset.summary`, without the counts that are 0.

    Args:
        summary: Counts by name.

    Returns:
        The counts in words, with thousands separated by commas.

    Example:
        >>> describe({"images": 1200, "objects": 5000, "classes": 1, "crowds": 0, "boxes_clipped": 1})
        '1,200 images, 5,000 objects, 1 class, 1 box clipped'
    """
    shown = {name: count for name, count in summary.items() if count or name in ("images", "objects")}
    return ", ".join(
        f"{count:,} {_singular(name) if count == 1 else name}".replace("_", " ") for name, count in shown.items()
    )


def _singular(name: str) -> str:
    """A count's name for 1: its first plural noun in the singular."""
    for plural, one in _SINGULARS.items():
        if plural in name.split("_"):
            words = name.split("_")
            words[words.index(plural)] = one
            return "_".join(words)
    return name


_SINGULARS: Final = {
    "boxes": "box",
    "classes": "class",
    "images": "image",
    "objects": "object",
    "regions": "region",
    "areas": "area",
    "segments": "segment",
    "orientations": "orientation",
    "headers": "header",
    "sizes": "size",
    "ids": "id",
    "supercategories": "supercategory",
}


def _boxes(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    data = boxes.reshape(-1, 4).to(torch.float32, copy=True)  # transforms must not change a cached target
    return tv_tensors.BoundingBoxes(data, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)
