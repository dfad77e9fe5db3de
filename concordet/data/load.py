"""One call that makes any data set by name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final

from concordet.data.coco import CocoFolder
from concordet.data.digits import DigitScenes
from concordet.data.records import FileDataset
from concordet.data.targets import DetectionDataset, Transforms
from concordet.data.transforms import train_transforms
from concordet.data.voc import VocFolder

DATASETS: Final[dict[str, type[DetectionDataset]]] = {
    "coco": CocoFolder,
    "digits": DigitScenes,
    "voc": VocFolder,
}


def list_datasets() -> list[str]:
    """Names that :func:`load_dataset` takes."""
    return sorted(DATASETS)


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    split: str | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    augment: str = "none",
    transforms: Transforms | None = None,
    **options: Any,
) -> DetectionDataset:
    """The data set ``name``; arguments left at None take its own default.

    Args:
        name: one of :func:`list_datasets`.
        root: the folder of the data set, as its publisher lays it out.
        split: which part ("train", "val"; COCO "train2017"; VOC "trainval").
        annotations, images: annotation file and folder of images, for COCO's form.
        augment: a recipe of :func:`~concordet.data.train_transforms`, with the flips that the data set allows; "none"
            leaves images as they are.
        transforms: instead of a recipe.
        **options: further arguments of the data set's class.

    Raises:
        ValueError: an unknown name or option, or a broken data set.
        FileNotFoundError: a missing file.

    Example:
        >>> len(load_dataset("digits", split="val", length=12))
        12
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(list_datasets())}")
    given = {"root": root, "split": split, "annotations": annotations, "images": images}
    options |= {key: value for key, value in given.items() if value is not None}
    allowed = _options(DATASETS[name])
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ValueError(f"data set {name!r} has no option {', '.join(unknown)}; it takes {', '.join(sorted(allowed))}")
    if name == "voc" and root is None:
        raise ValueError("data set 'voc' needs root, the folder with Annotations, JPEGImages and ImageSets")
    if augment != "none" and transforms is not None:
        raise ValueError("augment names a recipe and transforms replaces it; give one of them")
    dataset = DATASETS[name](**options)
    dataset.transforms = train_transforms(augment, flip=dataset.default_flip) if augment != "none" else transforms
    return dataset


def _options(cls: type[DetectionDataset]) -> set[str]:
    names = set(inspect.signature(cls).parameters)
    if issubclass(cls, FileDataset):
        names |= set(inspect.signature(FileDataset).parameters) - {"records", "class_names", "category_ids", "counts"}
    return names - {"options", "transforms"}
