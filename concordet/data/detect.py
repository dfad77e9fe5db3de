"""Recognizes the format of a folder or file of images and annotations, and opens its splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from concordet.data.paths import Listing
from concordet.data.registry import dataset_class, list_datasets
from concordet.data.targets import DetectionDataset, Layout
from concordet.errors import UsageError, counted, unknown
from concordet.files import read_json
from concordet.paths import require_file

_ARCHIVES: Final = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")

_LAST_RESORT: Final = "csv"
"""Format that is used only if no other is recognized: many data sets come with tables besides their annotations."""


@dataclass(frozen=True)
class DataSource:
    """A data set that was recognized.

    Attributes:
        path: The folder or file that the user named.
        name: Data set, one of :func:`~concordet.data.list_datasets`.
        layout: Recognized layout, with its splits.

    Example:
        >>> from concordet.data import detect_format
        >>> source = detect_format("photos")
        >>> source.name, source.splits, len(source.open("val", val_fraction=0.25))
        ('csv', ['train', 'val'], 1)
    """

    path: Path
    name: str
    layout: Layout

    @property
    def splits(self) -> list[str]:
        """Splits that can be opened; "train" and "val" are always among them if there are training images."""
        present = self.layout.splits
        if "val" in present or not {"train", "all"} & set(present):
            return list(present)
        return ["train", "val", *(split for split in present if split == "test")]

    def open(
        self, split: str = "train", *, val_fraction: float = 0.2, val_seed: int = 0, **options: Any
    ) -> DetectionDataset:
        """One split as a data set.

        Args:
            split: "train", "val" or "test". If the data has no images for "val", a seeded share of the training images
                is held out.
            val_fraction: Share of the images to hold out.
            val_seed: Seed of which images are held out.
            **options: Further options of the data set's class, such as ``classes``, ``masks`` and ``max_size``.

        Raises:
            ValueError: There is no such split, or the data is invalid.
        """
        if split not in self.splits:
            raise UsageError(unknown(f"{self.path}: the split", split, self.splits))
        present = self.layout.splits
        if split in present and ("val" in present or split == "test"):
            return dataset_class(self.name)(**present[split], **options)
        base = present["train"] if "train" in present else present["all"]
        held = {"held_out_split": split, "val_fraction": val_fraction, "val_seed": val_seed}
        return dataset_class(self.name)(**base, **held, **options)

    def open_all(self, **options: Any) -> dict[str, DetectionDataset]:
        """All images as they are divided on the disk: by "train", "val" and "test", or as "all"."""
        return {split: dataset_class(self.name)(**o, **options) for split, o in self.layout.splits.items()}

    def sentence(self, **options: Any) -> str:
        """The description of the data with numbers of images and classes.

        For example "Pascal VOC, images and annotations in one folder: 296 images, 6 classes".
        """
        return count_sentence(self.layout.description, self.open_all(check_images=False, **options))


def count_sentence(description: str, splits: dict[str, DetectionDataset]) -> str:
    """A description with the numbers of images and classes of the splits."""
    images = sum(map(len, splits.values()))
    classes = len({name for split in splits.values() for name in split.class_names})
    return f"{description}: {images:,} image{'s' * (images != 1)}, {classes} class{'es' * (classes != 1)}"


def detect_format(path: str | Path, name: str | None = None, *, allow_outside: bool = False) -> DataSource:
    """Recognizes the format of a folder or file of images and annotations.

    YOLO, COCO (also as Roboflow exports both), LVIS, Pascal VOC in any folders, Cityscapes and tables of boxes are
    recognized, with the splits for training, validation and test that names of folders and files tell.

    Args:
        path: Folder of a data set, or an annotation file (``data.yaml``, JSON, CSV).
        name: Data set to recognize it as, one of :func:`~concordet.data.list_datasets`; None tries all of them.
        allow_outside: Whether to follow links to folders outside; pass it to :meth:`DataSource.open` as well.

    Returns:
        The data set, whose :meth:`~DataSource.open` reads a split.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: No format is recognized, or more than one.

    Example:
        >>> source = detect_format("photos")
        >>> print(source.sentence())
        CSV of boxes: 3 images, 1 class
        >>> train, val = source.open("train"), source.open("val")
    """
    path = Path(path)
    if path.is_dir():
        listing = Listing.of(path, allow_outside)
    elif path.is_file():
        if path.suffix.lower() in _ARCHIVES:
            raise ValueError(f"{path} must be a folder or an annotation file, got an archive; unpack it first")
        listing = Listing(path.parent, [path], named=True)
    else:
        raise FileNotFoundError(
            f"path must be a folder or an annotation file, got {path}, which does not exist; correct it"
        )
    names = list_datasets() if name is None else [name]
    layouts: dict[str, Layout] = {}
    for candidate in names:
        if candidate == _LAST_RESORT and layouts:
            continue
        layout = dataset_class(candidate).recognize(listing)
        if layout is not None and layout.splits:
            layouts[candidate] = layout
    if len(layouts) > 1:
        layouts.pop(_LAST_RESORT, None)
    if len(layouts) > 1:
        forms = " and ".join(f"{layout.description} ({name})" for name, layout in layouts.items())
        raise ValueError(
            f"{path} must hold one data set, got {forms}; choose one by its name (--data.name or --name), or name its "
            "folder or file"
        )
    if not layouts:
        looked = "; ".join(text for candidate in names if (text := dataset_class(candidate).looks_for))
        fix = f"needed is one of: {looked}" if looked else f"leave out the path, or the name {name}"
        links = ""
        if listing.skipped:
            option = "--data.allow_outside true or --allow_outside"
            links = f" ({listing.skipped[0]} leads outside and was not followed; {option} follows it)"
        raise ValueError(
            f"{path} must hold a data set, got {counted(len(listing.files), 'file')} without one{links}"
            f"{_damaged(listing)}; {fix}"
        )
    ((recognized, layout),) = layouts.items()
    return DataSource(path, recognized, layout)


def _damaged(listing: Listing) -> str:
    """What is wrong with the first JSON file that cannot be read, in parentheses; "" if there is none."""
    for path in listing.with_suffix(".json")[:10]:
        try:
            read_json(require_file(path, "the annotation file"))
        except (OSError, ValueError) as error:
            return f" ({error})"
    return ""
