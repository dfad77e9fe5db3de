"""COCO's layout: an annotation file in JSON and a folder of images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from concordet.data.records import FileDataset, Record

COCO_LAYOUT = "annotations/instances_{split}.json and {split}/"


class CocoFolder(FileDataset):
    """An annotation file in COCO's form (Lin et al. 2014) with its folder of images.

    Labels 1..C stand for the file's categories in the order of their ids; ``category_ids`` leads back to them, and
    :meth:`ground_truth` uses them.  Crowds become ignored regions.  Objects without area in their segmentation are
    counted and keep their box.

    Args:
        root: the folder with ``annotations/instances_<split>.json`` and ``<split>/``.
        split: "train2017", "val2017", or what else the two are called.
        annotations: the annotation file, where it does not lie there; relative to ``root`` if given.
        images: the folder of images, likewise.
        classes: names to keep, in the order of their labels; annotations of others are left out. None keeps all.
        **options: as :class:`~concordet.data.records.FileDataset`.

    Raises:
        FileNotFoundError: the annotation file, the folder or an image file is missing.
        ValueError: no readable JSON of this form, a reference to an unknown image or category, or no image at all.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train2017",
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        **options: Any,
    ) -> None:
        file, folder = locate(root, split, annotations, images)
        data = read_json(file)
        categories = choose_categories(data, file, classes)
        counts: Counter[str] = Counter()
        records = read_records(data, file, folder, categories, masks, counts)
        super().__init__(
            records, list(categories.values()), category_ids=list(categories), counts=counts, masks=masks, **options
        )


def locate(
    root: str | Path | None, split: str, annotations: str | Path | None, images: str | Path | None
) -> tuple[Path, Path]:
    """The annotation file and the folder of images."""
    if root is None and (annotations is None or images is None):
        raise ValueError(f"a data set in COCO's form needs root (with {COCO_LAYOUT}), or annotations and images")
    base = Path(root) if root is not None else Path()
    file = base / (annotations if annotations is not None else f"annotations/instances_{split}.json")
    folder = base / (images if images is not None else split)
    for path, kind, present in ((file, "annotation file", file.is_file()), (folder, "folder", folder.is_dir())):
        if not present:
            raise FileNotFoundError(f"{path}: no such {kind}; COCO's layout is {COCO_LAYOUT.format(split=split)}")
    return file, folder


def read_json(file: Path) -> dict[str, Any]:
    """An annotation file with its lists ``images``, ``annotations`` and ``categories``."""
    try:
        data = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not readable as JSON ({error}); fetch or export the file again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ValueError(f"{file}: no list {key!r}, which an annotation file in COCO's form has")
    if not data["images"]:
        raise ValueError(f"{file}: the data set is empty, its list 'images' has no entries")
    return data


def choose_categories(data: dict[str, Any], file: Path, classes: Sequence[str] | None) -> dict[int, str]:
    """Category id to name, in the order of labels."""
    try:
        names = {int(entry["id"]): str(entry["name"]) for entry in data["categories"]}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: an entry of 'categories' is without a whole number 'id' or without 'name'") from None
    if not names:
        raise ValueError(f"{file}: the list 'categories' has no entries, so there is no class to detect")
    if len(names) < len(data["categories"]):
        raise ValueError(f"{file}: two entries of 'categories' have the same id; give each its own")
    if classes is None:
        return dict(sorted(names.items()))
    ids = {name: number for number, name in names.items()}
    unknown = [name for name in classes if name not in ids]
    if unknown or not classes:
        raise ValueError(f"{file}: classes {unknown} are not among its categories {', '.join(ids)}")
    return {ids[name]: name for name in classes}


def read_records(
    data: dict[str, Any],
    file: Path,
    folder: Path,
    categories: dict[int, str],
    masks: bool,
    counts: Counter[str],
) -> list[Record]:
    """One record per image, in the file's order."""
    images = _images(data, file, counts)
    known = {int(entry["id"]) for entry in data["categories"]}
    grouped: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
    ids: set[Any] = set()
    for place, entry in enumerate(data["annotations"]):
        where = f"{file}: annotation {entry.get('id', f'number {place + 1}') if isinstance(entry, dict) else place + 1}"
        if not isinstance(entry, dict) or "image_id" not in entry or "category_id" not in entry:
            raise ValueError(f"{where} has no image_id or no category_id; add them or remove it")
        if entry["image_id"] not in grouped:
            raise ValueError(f"{where} names image {entry['image_id']}, which is not in 'images'; add or remove it")
        category = entry["category_id"]
        if category not in known:
            raise ValueError(f"{where} has category_id {category}, which is not in 'categories'; add or correct it")
        counts["duplicate_annotation_ids"] += entry.get("id") in ids
        ids.add(entry.get("id"))
        if category not in categories:
            counts["objects_of_other_classes_left_out"] += 1
            continue
        _check_box(entry, where)
        segmentation = entry.get("segmentation")
        counts["segments_without_area"] += segmentation is not None and (not segmentation or entry.get("area") == 0)
        counts["crowd_regions_ignored"] += bool(entry.get("iscrowd"))
        grouped[entry["image_id"]].append(entry)
    labels = {category: label for label, category in enumerate(categories, start=1)}
    return [_record(images[number], folder, entries, labels, masks) for number, entries in grouped.items()]


def _images(data: dict[str, Any], file: Path, counts: Counter[str]) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(data["images"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or not image_name(entry):
            raise ValueError(f"{file}: entry {place + 1} of 'images' has no whole number 'id' or no 'file_name'")
        other = images.setdefault(entry["id"], entry)
        if other is entry:
            continue
        if image_name(other) != image_name(entry):
            names = f"{image_name(other)} and {image_name(entry)}"
            raise ValueError(f"{file}: images {names} have the same id {entry['id']}; give each its own")
        counts["duplicate_images_left_out"] += 1
    return images


def image_name(entry: dict[str, Any]) -> str:
    """``file_name``, or for LVIS, which has none, the end of ``coco_url`` with the folder of its COCO split."""
    return entry.get("file_name") or "/".join(entry.get("coco_url", "").split("/")[-2:])


def _check_box(entry: dict[str, Any], where: str) -> None:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise ValueError(
            f"{where} has the bbox {box} instead of four numbers [x, y, width, height]; correct or remove it"
        )


def _record(
    image: dict[str, Any], folder: Path, entries: list[dict[str, Any]], labels: dict[int, int], masks: bool
) -> Record:
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).tolist()
    width, height = image.get("width"), image.get("height")
    return Record(
        path=folder / image_name(image),
        image_id=image["id"],
        size=(int(width), int(height)) if width and height else None,
        boxes=boxes,
        labels=np.array([labels[entry["category_id"]] for entry in entries], np.int64),
        ignored=np.array([bool(entry.get("iscrowd")) for entry in entries], bool),
        areas=np.array([entry.get("area", side) for entry, side in zip(entries, sides, strict=True)], np.float64),
        ids=np.array([entry["id"] if isinstance(entry.get("id"), int) else 0 for entry in entries], np.int64),
        segmentations=[entry.get("segmentation") for entry in entries] if masks else None,
        extra={"file_name": image_name(image)},
    )
