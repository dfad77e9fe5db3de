"""Digit scenes: an object detection data set that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from concordet.data.digits.scenes import Draws, Scene, draw_scene, split_digits
from concordet.data.masks import encode_mask
from concordet.data.registry import register_dataset
from concordet.data.targets import DetectionDataset, Target, Transforms, make_target
from concordet.errors import UsageError

NUMERALS: Final = tuple("0123456789")
DEFAULT_LENGTH: Final = {"train": 4000, "val": 500}
SIZES: Final = (48, 4096)
LENGTHS: Final = (1, 10_000_000)


@register_dataset("digits")
class DigitScenes(DetectionDataset):
    """Scenes of handwritten digits among clutter, drawn on the fly from the 1797 digits of scikit-learn.

    Light digits from 18 pixels to half the image's height, with random aspects, slants, rotations, stroke widths and
    contrasts, overlap and are partly hidden. Strokes, blobs and fragments of digits are clutter, not objects; about 2 %
    of the scenes have no object. A box is tight around the digit's ink within the image, hidden or not.

    A scene depends on (seed, split, index) only: it is the same on every machine, in any order, in any worker.
    Training and validation scenes share no digit image: a fixed quarter of each numeral's images is for validation.

    Args:
        split: "train" or "val".
        length: Number of scenes; None is 4000 for training and 500 for validation.
        seed: Seed of the scenes.
        size: Width and height in pixels, 48 to 4096.
        classes: Numerals to use, in the order of their labels; None is all ten.
        masks: Whether targets and ground truth carry the ink's masks.
        cache: Whether to keep drawn scenes in memory (about 3 * size^2 bytes each; every worker process has its own
            cache).
        transforms: See :class:`DetectionDataset`.

    Raises:
        ValueError: An option out of its range.

    Example:
        >>> image, target = DigitScenes("val", length=10)[0]
        >>> image.shape, target["boxes"].shape[1], target["image_id"]
        (torch.Size([3, 128, 128]), 4, 0)
    """

    default_flip = "none"

    def __init__(
        self,
        split: Literal["train", "val"] = "train",
        length: int | None = None,
        seed: int = 0,
        size: int = 128,
        classes: Sequence[str] | None = None,
        *,
        masks: bool = False,
        cache: bool = False,
        transforms: Transforms | None = None,
    ) -> None:
        if split not in DEFAULT_LENGTH:
            raise UsageError(f"split must be 'train' or 'val' for digit scenes, got {split!r}; choose one of them")
        classes = NUMERALS if classes is None else classes
        names = [str(name) for name in classes] if isinstance(classes, Sequence) else []
        if not names or len(set(names)) < len(names) or not set(names) <= set(NUMERALS):
            raise UsageError(
                f"classes must be different numerals out of '0'..'9' for digit scenes, got {classes!r:.60}"
            )
        length = DEFAULT_LENGTH[split] if length is None else length
        for name, value, (low, high), what in (
            ("size", size, SIZES, " pixels, so that digits are legible"),
            ("length", length, LENGTHS, ", the number of scenes"),
            ("seed", seed, (0, 2**63 - 1), ""),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UsageError(f"{name} must be from {low} to {high}{what}, got {value!r:.60}; choose another")
        self.length: int
        self.seed: int
        self.size: int
        self.split, self.length, self.seed, self.size = split, length, seed, size
        self.masks: bool
        self.transforms: Transforms | None
        self.masks, self.transforms = masks, transforms
        self.class_names = names
        self.category_ids: list[int] = list(range(1, len(names) + 1))
        self._sources = [split_digits()[split][int(name)] for name in names]
        self._label_of = {int(name): label for label, name in enumerate(names, 1)}
        self._all: list[dict[str, Any]] | None = None
        self._cache: dict[int, Scene] | None = {} if cache else None

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> Scene:
        """The scene with masks and the indices of its digit images."""
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} of a data set of {self.length} scenes")
        draws = Draws(self.seed, ("train", "val").index(self.split), index)
        return draw_scene(draws, self._sources, self.size)

    def sample(self, index: int) -> tuple[Tensor, Target]:
        scene = self._kept(index)
        target = make_target(
            torch.from_numpy(scene.boxes),
            torch.tensor([self._label_of[int(digit)] for digit in scene.digits], dtype=torch.int64),
            torch.zeros(0, 4),
            image_id=index,
            size=(self.size, self.size),
            masks=torch.from_numpy(scene.ink.astype(np.uint8)) if self.masks else None,
        )
        return tv_tensors.Image(torch.from_numpy(scene.image.copy())), target

    def load_image(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self._kept(index).image.transpose(1, 2, 0)))

    def image_path(self, index: int) -> Path | None:
        return None

    def ground_truth(self) -> dict[str, Any]:
        return {
            "images": [
                {"id": index, "file_name": f"{index}.png", "width": self.size, "height": self.size}
                for index in range(self.length)
            ],
            "annotations": [
                {"id": number, **annotation} for number, annotation in enumerate(self._annotations(), start=1)
            ],
            "categories": [
                {"id": i, "name": name} for i, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }

    def summary(self) -> dict[str, int]:
        annotations = self._annotations()
        with_objects = len({annotation["image_id"] for annotation in annotations})
        return {
            "images": self.length,
            "objects": len(annotations),
            "images_without_objects": self.length - with_objects,
            "classes": len(self.class_names),
        }

    def _kept(self, index: int) -> Scene:
        """The scene, from the cache if there is one; a cached scene has ink only with ``masks``."""
        if self._cache is None:
            return self.scene(index)
        if index not in self._cache:
            scene = self.scene(index)
            self._cache[index] = scene if self.masks else replace(scene, ink=scene.ink[:0].copy())
        return self._cache[index]

    def _annotations(self) -> list[dict[str, Any]]:
        """All objects, without ids; draws every scene once, about 3 s for a thousand."""
        if self._all is not None:
            return self._all
        annotations = []
        for index in range(self.length):
            scene = self._kept(index)
            for number, (box, digit) in enumerate(zip(scene.boxes.tolist(), scene.digits.tolist(), strict=True)):
                width, height = box[2] - box[0], box[3] - box[1]
                annotation: dict[str, Any] = {
                    "image_id": index,
                    "category_id": self._label_of[digit],
                    "bbox": [box[0], box[1], width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
                if self.masks:
                    ink = scene.ink[number]
                    annotation |= {"segmentation": encode_mask(ink), "area": float(ink.sum())}
                annotations.append(annotation)
        self._all = annotations
        return annotations
