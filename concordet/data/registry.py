"""Data sets by name: each class registers itself, and one function constructs any of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from concordet.data.targets import DetectionDataset, Transforms
from concordet.errors import UsageError, unknown

_Class = TypeVar("_Class", bound=type[DetectionDataset])

_DATASETS: Final[dict[str, type[DetectionDataset]]] = {}


def register_dataset(name: str) -> Callable[[_Class], _Class]:
    """Class decorator that registers a data set under a name for :func:`load_dataset` and ``--data.name``.

    Args:
        name: Name for :func:`load_dataset`; must not be taken.

    Returns:
        The decorator, which returns the class unchanged.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> from concordet.data import DigitScenes
        >>> dataset_class("digits") is DigitScenes
        True
    """

    def register(cls: _Class) -> _Class:
        if name in _DATASETS:
            raise ValueError(f"name must be new, got {name!r}, which is {_DATASETS[name].__name__}; choose another")
        _DATASETS[name] = cls
        return cls

    return register


def list_datasets() -> list[str]:
    """Names that :func:`load_dataset` takes.

    Returns:
        The names in alphabetical order.

    Example:
        >>> list_datasets()
        ['cityscapes', 'coco', 'csv', 'digits', 'lvis', 'voc', 'yolo']
    """
    return sorted(_DATASETS)


def dataset_class(name: str) -> type[DetectionDataset]:
    """The class registered under ``name``.

    Raises:
        ValueError: No class is registered under this name.

    Example:
        >>> dataset_class("voc").default_splits
        {'train': 'trainval', 'val': 'test'}
    """
    if name not in _DATASETS:
        raise UsageError(unknown("name", name, list_datasets()))
    return _DATASETS[name]


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
    """Constructs a data set; for arguments that are None, its own defaults apply.

    Args:
        name: One of :func:`list_datasets`.
        root: Folder of the data set, as its publisher lays it out.
        split: Part of the data set ("train", "val"; COCO "train2017"; VOC "trainval").
        annotations: Annotation file, for formats that have one.
        images: Folder of the images.
        transforms: See :class:`DetectionDataset`; ``dataset.transforms`` can also be set later, when
            ``dataset.default_flip`` is known.
        **options: Further arguments of the data set's class.

    Returns:
        The data set.

    Raises:
        ValueError: The name or an option is unknown, or the data is invalid.
        FileNotFoundError: A file is missing.

    Example:
        >>> len(load_dataset("digits", split="val", length=12))
        12
    """
    cls = dataset_class(name)
    named = {"root": root, "split": split, "annotations": annotations, "images": images}
    options |= {key: value for key, value in named.items() if value is not None}
    allowed = options_of(cls)
    others = sorted(set(options) - allowed)
    if others:
        raise UsageError(f"data set {name!r} has no option {', '.join(others)}; it takes {', '.join(sorted(allowed))}")
    parameter = inspect.signature(cls).parameters.get("root")
    if root is None and parameter is not None and parameter.default is inspect.Parameter.empty:
        raise UsageError(
            f"root of data set {name!r} must be its folder as the publisher lays it out, got none; name it"
        )
    make: Callable[..., DetectionDataset] = cls
    return make(transforms=transforms, **options)


def options_of(cls: type[DetectionDataset]) -> set[str]:
    """Names of the options of a data set's class: its parameters, and those of base classes that it passes options to.

    Example:
        >>> sorted(options_of(dataset_class("digits")))
        ['cache', 'classes', 'length', 'masks', 'seed', 'size', 'split']
    """
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base).parameters.values())
        names |= {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names - {"annotated", "transforms"}
