"""One call that makes any data set by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from concordet.data.digits.dataset import DigitScenes
from concordet.data.formats.cityscapes import CityscapesFolder
from concordet.data.formats.coco import CocoFolder
from concordet.data.formats.lvis import LvisFolder
from concordet.data.formats.voc import VocFolder
from concordet.data.records import FileDataset
from concordet.data.targets import DetectionDataset, Transforms

DATASETS: Final[dict[str, Callable[..., DetectionDataset]]] = {
    "cityscapes": CityscapesFolder,
    "coco": CocoFolder,
    "digits": DigitScenes,
    "lvis": LvisFolder,
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
    transforms: Transforms | None = None,
    **options: Any,
) -> DetectionDataset:
    """The data set ``name``; arguments left at None take its own default.

    Args:
        name: one of :func:`list_datasets`.
        root: the folder of the data set, as its publisher lays it out.
        split: which part ("train", "val"; COCO "train2017"; VOC "trainval").
        annotations, images: annotation file and folder of images, for COCO's form.
        transforms: see :class:`DetectionDataset`; ``dataset.transforms`` can also be set later, when
            ``dataset.default_flip`` is known.
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
    parameter = inspect.signature(DATASETS[name]).parameters.get("root")
    if root is None and parameter is not None and parameter.default is inspect.Parameter.empty:
        raise ValueError(f"data set {name!r} needs root, the folder of the data set as its publisher lays it out")
    return DATASETS[name](transforms=transforms, **options)


def _options(cls: Callable[..., DetectionDataset]) -> set[str]:
    names = set(inspect.signature(cls).parameters)
    if isinstance(cls, type) and issubclass(cls, FileDataset):
        names |= set(inspect.signature(FileDataset).parameters) - {"records", "class_names", "category_ids", "counts"}
    return names - {"options", "transforms"}
