"""Splits of a data set: names that mean training, validation and test, and holding out images for validation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from concordet.errors import UsageError

SPLITS: Final = ("train", "val", "test")


def split_of(path: str | Path) -> str | None:
    """ "train", "val" or "test", by the last word in a relative path that means one of them.

    Example:
        >>> names = ("Training/Annotations", "valid/_annotations.coco.json", "instances_val2017.json")
        >>> tuple(map(split_of, names))
        ('train', 'val', 'val')
        >>> split_of("images/street") is None
        True
    """
    for name in reversed(Path(path).parts):
        for word in reversed(re.findall(r"[a-z]+", name.lower())):
            if word in ("train", "training", "trainset", "trainval"):
                return "train"
            if word in ("val", "valid", "validation", "validate", "valset", "dev", "eval"):
                return "val"
            if word in ("test", "testing", "testset"):
                return "test"
    return None


@dataclass(frozen=True)
class HoldOut:
    """A seeded share of the images that is held out for validation.

    The choice depends on the seed and the names of the images only, not on their order or the data set's folder;
    adding or removing an image does not move others. Augmented copies of a photograph by Roboflow
    (``name.rf.<hash>.jpg``) stay together.

    Attributes:
        split: "train" or "val".
        fraction: Share of the images that are held out for "val".
        seed: Seed of the choice.
    """

    split: str
    fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in ("train", "val"):
            raise UsageError(f"split must be 'train' or 'val', got {self.split!r}; no images are held out for others")
        if not 0 < self.fraction < 1:
            raise UsageError(f"val_fraction must be above 0 and below 1, got {self.fraction}; 0.2 holds out a fifth")

    def indices(self, names: Sequence[str]) -> list[int]:
        """Ascending indices of the images of this split.

        Args:
            names: Names of all images.

        Raises:
            ValueError: There are fewer than two images.

        Example:
            >>> names = [f"{i}.jpg" for i in range(10)]
            >>> HoldOut("val", 0.2).indices(names), len(HoldOut("train", 0.2).indices(names))
            ([2, 6], 8)
        """
        groups: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            groups.setdefault(re.sub(r"\.rf\.[0-9a-zA-Z]+(?=\.\w+$)", "", name), []).append(index)
        if len(groups) < 2:
            raise ValueError(
                f"the data set must have at least 2 images to hold some out for validation, got {len(groups)}; add "
                "images, or give a validation split"
            )
        order = sorted(groups, key=lambda name: _digest(f"{self.seed}/{name}"))
        wanted = min(max(round(self.fraction * len(names)), 1), len(names) - 1)
        held: set[int] = set()
        for name in order[:-1]:
            if len(held) >= wanted:
                break
            held.update(groups[name])
        return [index for index in range(len(names)) if (index in held) == (self.split == "val")]


def _digest(name: str) -> bytes:
    """SHA-256 of a name, also of one that is not in UTF-8 on the disk."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).digest()
