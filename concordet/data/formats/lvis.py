"""LVIS's layout: COCO's images with annotations of which each image has only some categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concordet.data.formats.coco import choose_categories, image_name, read_json, read_records
from concordet.data.records import FileDataset
from concordet.data.targets import Target

_LAYOUT = "annotations/lvis_v1_{split}.json, with train2017/ and val2017/ beside it"


class LvisFolder(FileDataset):
    """LVIS v1 (Gupta et al. 2019), whose annotations are federated: of an image only some categories are known.

    Targets also have ``negative_labels`` int64 (categories verified to be absent from the image) and
    ``not_exhaustive_labels`` int64 (present, but not every object of theirs is annotated); of all other categories
    nothing is known.  :meth:`ground_truth` keeps both lists and the categories' frequencies, which evaluation needs.

    Args:
        root: the folder with ``annotations/lvis_v1_<split>.json`` and COCO's folders ``train2017`` and ``val2017``.
        split: "train" or "val".
        annotations: the annotation file, where it does not lie there; relative to ``root`` if given.
        images: the folder that holds COCO's folders, likewise; None is ``root``.
        classes: names to keep, in the order of their labels; None is all.
        masks: whether targets carry masks.
        **options: as :class:`~concordet.data.records.FileDataset`.

    Raises:
        FileNotFoundError, ValueError: as :class:`~concordet.data.formats.coco.CocoFolder`; and an image without
        LVIS's lists.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        **options: Any,
    ) -> None:
        file, folder = _locate(root, split, annotations, images)
        data = read_json(file)
        categories = choose_categories(data, file, classes)
        counts: Counter[str] = Counter()
        records = read_records(data, file, folder, categories, masks, counts)
        lists = {entry["id"]: _lists(entry, file, set(categories)) for entry in data["images"]}
        for record in records:
            record.extra = (record.extra or {}) | lists[record.image_id]
        self._frequencies = {entry["id"]: entry.get("frequency") for entry in data["categories"]}
        super().__init__(
            records, list(categories.values()), category_ids=list(categories), counts=counts, masks=masks, **options
        )

    def sample(self, index: int) -> tuple[Tensor, Target]:
        image, target = super().sample(index)
        extra = self._records[index].extra or {}
        for name, ids in (
            ("negative_labels", extra["neg_category_ids"]),
            ("not_exhaustive_labels", extra["not_exhaustive_category_ids"]),
        ):
            target[name] = torch.tensor([self.category_ids.index(number) + 1 for number in ids], dtype=torch.int64)
        return image, target

    def ground_truth(self) -> dict[str, Any]:
        truth = super().ground_truth()
        for category in truth["categories"]:
            category["frequency"] = self._frequencies[category["id"]]
        return truth


def _locate(
    root: str | Path | None, split: str, annotations: str | Path | None, images: str | Path | None
) -> tuple[Path, Path]:
    if root is None and (annotations is None or images is None):
        raise ValueError(f"a data set in LVIS's form needs root (with {_LAYOUT}), or annotations and images")
    base = Path(root) if root is not None else Path()
    file = base / (annotations if annotations is not None else f"annotations/lvis_v1_{split}.json")
    folder = base / (images if images is not None else "")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such annotation file; LVIS's layout is {_LAYOUT.format(split=split)}")
    return file, folder


def _lists(entry: dict[str, Any], file: Path, kept: set[int]) -> dict[str, list[int]]:
    """The image's two lists, without categories that are left out."""
    found = {}
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        if not isinstance(entry.get(key), list):
            raise ValueError(f"{file}: image {image_name(entry)} has no list {key!r}; read the file as 'coco' instead")
        found[key] = [number for number in entry[key] if number in kept]
    return found
