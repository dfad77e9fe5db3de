"""Statistics of a data set: counts by split and class, sizes of boxes and images, and faults with file names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from concordet.data.file_dataset import FileDataset
from concordet.images import read_rgb

DECODED: Final = 2000
"""Number of images that are decoded in full; of further ones only the headers are read."""

SMALL, LARGE = 32, 96
"""Sides in pixels of squares below and above which COCO calls an object small and large."""


def dataset_statistics(splits: Mapping[str, FileDataset], *, decode: int = DECODED) -> dict[str, Any]:
    """Counts, sizes and faults as plain JSON.

    Args:
        splits: Data sets by split, opened with ``skip_faulty=True``, so that faulty images are reported instead of
            raising an error.
        decode: Number of images that are decoded in full, to find truncated ones.

    Returns:
        ``splits`` by name with ``images``, ``objects``, ``images_without_objects``, ``classes`` (objects by name),
        ``image_sizes`` and ``box_sides`` (smallest, median and largest, in pixels), ``objects_by_size`` (COCO's small,
        medium, large) and ``counts`` of what the reader dropped or changed; ``classes``, the names in order; and
        ``faults``, a list of ``{"split", "file", "fault"}``.

    Example:
        >>> from concordet.data import detect_format
        >>> splits = detect_format("pets-coco").open_all(skip_faulty=True)
        >>> dataset_statistics(splits)["splits"]["train"]["objects"]
        4
    """
    faults = [fault for name, split in splits.items() for fault in _faults(name, split, decode // max(len(splits), 1))]
    faults += _shared_images(splits) + _missing_classes(splits)
    return {
        "splits": {name: _split(split) for name, split in splits.items()},
        "classes": next(iter(splits.values())).class_names if splits else [],
        "faults": faults,
    }


def _split(dataset: FileDataset) -> dict[str, Any]:
    truth = dataset.ground_truth()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    objects = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]
    per_class = dict.fromkeys(names.values(), 0)
    for annotation in objects:
        per_class[names[annotation["category_id"]]] += 1
    areas = np.array([annotation["area"] for annotation in objects], np.float64)
    sides = np.array([annotation["bbox"][2:] for annotation in objects], np.float64).reshape(-1, 2)
    images = np.array([(image["width"], image["height"]) for image in truth["images"]], np.float64).reshape(-1, 2)
    summary = dataset.summary()
    common = ("images", "objects", "classes", "images_without_objects", "image_headers_checked")
    return {
        "images": len(images),
        "objects": len(objects),
        "images_without_objects": summary["images_without_objects"],
        "classes": per_class,
        "image_sizes": _spread(images),
        "box_sides": _spread(np.sqrt(sides.prod(1))[:, None]),
        "objects_by_size": {
            "small": int((areas < SMALL**2).sum()),
            "medium": int(((areas >= SMALL**2) & (areas < LARGE**2)).sum()),
            "large": int((areas >= LARGE**2).sum()),
        },
        "counts": {name: count for name, count in summary.items() if count and name not in common},
    }


def _spread(values: NDArray[np.float64]) -> dict[str, Any] | None:
    """Smallest, median and largest row, by product; None without rows."""
    if not len(values):
        return None
    order = values[np.argsort(values.prod(1), kind="stable")]
    chosen = {"smallest": order[0], "median": order[(len(order) - 1) // 2], "largest": order[-1]}
    rounded = {name: [round(float(value), 1) for value in row] for name, row in chosen.items()}
    return {name: row if len(row) > 1 else row[0] for name, row in rounded.items()}


def _faults(name: str, dataset: FileDataset, decode: int) -> list[dict[str, str]]:
    faults = [{"split": name, "file": str(path), "fault": fault} for path, fault in dataset.faults.examples]
    for index in range(min(len(dataset), decode)):
        path = dataset.image_path(index)
        try:
            if path is not None:
                read_rgb(path)
        except (ValueError, FileNotFoundError) as error:
            faults.append({"split": name, "file": str(path), "fault": str(error).partition(": ")[2]})
    for image_id, number in _repeated_boxes(dataset).items():
        faults.append(
            {
                "split": name,
                "file": image_id,
                "fault": f"{number} object{'s' * (number > 1)} with the box and class of another",
            }
        )
    return faults


def _repeated_boxes(dataset: FileDataset) -> dict[str, int]:
    """Number of duplicate objects by image file."""
    seen: set[tuple[Any, ...]] = set()
    found: dict[str, int] = {}
    truth = dataset.ground_truth()
    index_of = {image["id"]: index for index, image in enumerate(truth["images"])}
    for annotation in truth["annotations"]:
        key = (annotation["image_id"], annotation["category_id"], *annotation["bbox"])
        if key in seen:
            path = str(dataset.image_path(index_of[annotation["image_id"]]))
            found[path] = found.get(path, 0) + 1
        seen.add(key)
    return found


def _shared_images(splits: Mapping[str, FileDataset]) -> list[dict[str, str]]:
    """Images that are in more than one split, where they leak from training into evaluation."""
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for name, split in splits.items():
        for index in range(len(split)):
            path = split.image_path(index)
            if path is not None:
                by_size.setdefault(path.stat().st_size, []).append((name, path))
    first: dict[bytes, tuple[str, Path]] = {}
    faults = []
    for group in by_size.values():
        if len({name for name, _ in group}) < 2:
            continue
        for name, path in group:
            known, other = first.setdefault(hashlib.sha256(path.read_bytes()).digest(), (name, path))
            if known != name:
                faults.append({"split": name, "file": str(path), "fault": f"the same image as {other} of {known}"})
    return faults


def _missing_classes(splits: Mapping[str, FileDataset]) -> list[dict[str, str]]:
    """Classes of other splits without an object in the training split."""
    if "train" not in splits:
        return []
    counts = {name: _split(split)["classes"] for name, split in splits.items()}
    return [
        {"split": "train", "file": "", "fault": f"no object of the class {cls}, which {name} has"}
        for name, split in counts.items()
        if name != "train"
        for cls, number in split.items()
        if number and not counts["train"].get(cls)
    ]
