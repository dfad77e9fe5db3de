"""COCO files from any data set."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from concordet.data.targets import DetectionDataset
from concordet.files import new_folder, write_json


def merge_splits(splits: Mapping[str, DetectionDataset], root: Path | None = None) -> dict[str, Any]:
    """All splits as the content of one COCO file, with new ids.

    Args:
        splits: Data sets by split.
        root: Folder that names of images become relative to, for images inside it; None keeps the names.

    Raises:
        ValueError: The splits have different classes.

    Example:
        >>> from concordet.data import DigitScenes
        >>> merged = merge_splits({"train": DigitScenes("train", 2), "val": DigitScenes("val", 1)})
        >>> [image["id"] for image in merged["images"]]
        [1, 2, 3]
    """
    merged: dict[str, Any] = {"images": [], "annotations": [], "categories": None}
    for split_name, split in splits.items():
        truth = split.ground_truth()
        if merged["categories"] not in (None, truth["categories"]):
            raise ValueError(
                f"the splits must have the same classes, got others in {split_name}; convert them one by one"
            )
        merged["categories"] = truth["categories"]
        number = len(merged["images"])
        ids = {image["id"]: number + index for index, image in enumerate(truth["images"], start=1)}
        for index, image in enumerate(truth["images"]):
            path = split.image_path(index)
            name = image["file_name"]
            if root is not None and path is not None and path.is_relative_to(root):
                name = path.relative_to(root).as_posix()
            merged["images"].append(image | {"id": ids[image["id"]], "file_name": name})
        number = len(merged["annotations"])
        merged["annotations"] += [
            annotation | {"id": number + index, "image_id": ids[annotation["image_id"]]}
            for index, annotation in enumerate(truth["annotations"], start=1)
        ]
    return merged


def write_folder(splits: Mapping[str, DetectionDataset], out: Path) -> None:
    """Writes COCO's layout: ``annotations/instances_<split>.json``, and copies of the images in ``<split>``.

    Images of the same name from different folders get numbers; names that differ only in case are the same, as on many
    systems.

    Args:
        splits: Data sets by split.
        out: Folder, which must be new or empty.

    Raises:
        ValueError: The folder is not empty, or cannot be written to.
    """
    new_folder(out, "name another folder")
    (out / "annotations").mkdir()
    for name, split in splits.items():
        truth = split.ground_truth()
        folder = out / name
        folder.mkdir()
        taken: set[str] = set()
        for index, image in enumerate(truth["images"]):
            path = split.image_path(index)
            file = Path(image["file_name"]).name if path is None else path.name
            stem, suffix, number = Path(file).stem, Path(file).suffix, index
            while file.casefold() in taken:
                file = f"{stem}-{number}{suffix}"
                number += 1
            taken.add(file.casefold())
            if path is None:
                split.load_image(index).save(folder / file)
            else:
                shutil.copyfile(path, folder / file)
            image["file_name"] = file
        write_json(out / "annotations" / f"instances_{name}.json", truth, indent=None)
