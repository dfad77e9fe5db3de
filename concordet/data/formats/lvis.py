"""LVIS's layout: COCO's images, each annotated for some of the categories only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from concordet.data.file_dataset import FileDataset
from concordet.data.formats.coco import recognize_json
from concordet.data.formats.coco_annotations import (
    ImageFinder,
    image_name,
    is_id,
    read_annotations,
    read_coco_json,
)
from concordet.data.paths import Listing
from concordet.data.registry import register_dataset
from concordet.data.targets import Layout, Target

LAYOUT: Final = "annotations/lvis_v1_{split}.json, with train2017/ and val2017/ beside it"

_LISTS: Final = {"neg_category_ids": "negative_labels", "not_exhaustive_category_ids": "not_exhaustive_labels"}


@register_dataset("lvis")
class LvisFolder(FileDataset):
    """LVIS v1 (Gupta et al. 2019), whose annotations are federated: each image is annotated for some categories only.

    Targets also have ``negative_labels`` int64 (categories verified to be absent from the image) and
    ``not_exhaustive_labels`` int64 (categories of which not every object is annotated); of all other categories nothing
    is known. :meth:`ground_truth` has both lists and the categories' frequencies, which evaluation needs.

    Args:
        root: Folder with ``annotations/lvis_v1_<split>.json`` and COCO's folders ``train2017`` and ``val2017``.
        split: "train" or "val".
        annotations: Annotation file, if it is elsewhere; relative to ``root`` if that is given.
        images: Folder with COCO's folders, if it is elsewhere; None for ``root``.
        classes: Names to keep, in the order of their labels; classes cannot be merged, since an image may be annotated
            for one of them and not for the other. None keeps all.
        masks: Whether targets have masks.
        **options: Options of :class:`~concordet.data.file_dataset.FileDataset`.

    Raises:
        FileNotFoundError, ValueError: As :class:`~concordet.data.formats.coco.CocoFolder`, or an image does not have
            LVIS's lists.

    Example:
        >>> import json, tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "val2017").mkdir()
        >>> Image.new("RGB", (64, 48)).save(root / "val2017" / "000000000001.jpg")
        >>> content = {
        ...     "images": [
        ...         {"id": 1, "width": 64, "height": 48, "coco_url": "http://images.cocodataset.org/val2017/000000000001.jpg",
        ...          "neg_category_ids": [2], "not_exhaustive_category_ids": []},
        ...     ],
        ...     "categories": [
        ...         {"id": 1, "name": "cup", "frequency": "f"},
        ...         {"id": 2, "name": "puffin", "frequency": "r"},
        ...     ],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400,
        ...          "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]},
        ...     ],
        ... }
        >>> _ = (root / "lvis.json").write_text(json.dumps(content))
        >>> val = LvisFolder(root, "val", annotations=root / "lvis.json")
        >>> image, target = val[0]
        >>> target["labels"].tolist(), target["negative_labels"].tolist()  # there is no puffin in the image
        ([1], [2])
    """

    looks_for = "one with neg_category_ids too (LVIS)"

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        classes: Any = None,
        masks: bool = False,
        **options: Any,
    ) -> None:
        if isinstance(classes, Mapping) and any(classes.values()):
            raise ValueError(
                f"classes must be a list of names for LVIS, got {dict(classes)}; its classes cannot be merged"
            )
        outside = bool(options.get("allow_outside"))
        finder = ImageFinder(root, split, annotations, images, LAYOUT, outside, images_default="")
        data = read_coco_json(finder.file, masks)
        read = read_annotations(data, finder, masks)
        known = {entry["id"] for entry in data["categories"]}
        lists = {entry["id"]: _lists(entry, finder.file, known) for entry in data["images"]}
        self._frequencies = {entry["id"]: _frequency(entry, finder.file) for entry in data["categories"]}
        super().__init__(read, classes=classes, masks=masks, **options)
        self._label_of = {category: label for label, category in enumerate(self.category_ids, start=1)}
        for record in self._records:
            kept = {key: [i for i in ids if i in self._label_of] for key, ids in lists[record.image_id].items()}
            record.extra = (record.extra or {}) | kept

    @classmethod
    def recognize(cls, listing: Listing) -> Layout | None:
        return recognize_json(listing, "LVIS", lvis=True)

    def sample(self, index: int) -> tuple[Tensor, Target]:
        image, target = super().sample(index)
        extra = self._records[index].extra or {}
        for key, name in _LISTS.items():
            target[name] = torch.tensor([self._label_of[number] for number in extra[key]], dtype=torch.int64)
        return image, target

    def ground_truth(self) -> dict[str, Any]:
        truth = super().ground_truth()
        for category in truth["categories"]:
            category["frequency"] = self._frequencies[category["id"]]
        return truth


def _frequency(category: dict[str, Any], file: Path) -> str | None:
    """Frequency of a category ("r", "c" or "f"); None if the file has none."""
    value = category.get("frequency")
    if value is not None and (not isinstance(value, str) or value not in ("r", "c", "f")):
        raise ValueError(
            f"{file}: frequency of category {category['id']} must be 'r', 'c' or 'f', got {str(value)[:40]!r}"
        )
    return value


def _lists(entry: dict[str, Any], file: Path, known: set[int]) -> dict[str, list[int]]:
    """The image's two lists of categories."""
    for key in _LISTS:
        if not isinstance(entry.get(key), list):
            raise ValueError(f"{file}: image {image_name(entry)} has no list {key!r}; read the file as 'coco' instead")
        for number in entry[key]:
            if not is_id(number) or number not in known:
                raise ValueError(
                    f"{file}: image {image_name(entry)} has {key} {str(number)[:40]}, which is not in 'categories'; "
                    "correct or remove it"
                )
    return {key: entry[key] for key in _LISTS}
