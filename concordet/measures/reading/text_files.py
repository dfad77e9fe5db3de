"""Detections as plain text: a folder with one file an image, of lines ``class score left top right bottom``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from concordet.measures.reading.records import Columns


def read_text_folder(folder: Path, images: list[dict[str, Any]], classes: list[dict[str, Any]]) -> Columns:
    """Read every ``*.txt`` of a folder; a file is named as its image's ``file_name`` (or id), a class by name or id.

    Class names may hold spaces. Files of images that the ground truth does not list get ids outside it, so that their
    detections are counted among those left out.

    Raises:
        ValueError: no text file, an unreadable one, or a line that is not of this form, named by file and line.
    """
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise ValueError(f"{folder} holds no .txt file; expected one an image of 'class score left top right bottom'.")
    known = _image_ids(images)
    names = {str(c["id"]): c["id"] for c in classes}
    names |= {str(c.get("name", "")).replace(" ", "_"): c["id"] for c in classes}
    names |= {str(c.get("name", "")): c["id"] for c in classes}
    unknown = min([0, *(image["id"] for image in images)]) - 1
    image_ids, class_ids, boxes, scores = [], [], [], []
    for file in files:
        image_id = known.get(file.stem, unknown)
        if image_id is None:
            raise ValueError(f"{file.name}: several images of the ground truth are named {file.stem}; rename them.")
        unknown -= image_id == unknown
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            label, score, box = _parsed(line, file, number)
            if label not in names:
                raise ValueError(f"{file.name}: line {number} names class {label!r}, not one of the ground truth's.")
            image_ids.append(image_id)
            class_ids.append(names[label])
            boxes.append(box)
            scores.append(score)
    return Columns(
        np.array(image_ids, np.int64),
        np.array(class_ids, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
    )


def _image_ids(images: list[dict[str, Any]]) -> dict[str, int | None]:
    # stem of the file name to id, None where several share it; the id itself where no name does
    known: dict[str, int | None] = {}
    for image in images:
        name = image.get("file_name")
        if isinstance(name, str):
            stem = Path(name).stem
            known[stem] = None if stem in known else image["id"]
    for image in images:
        known.setdefault(str(image["id"]), image["id"])
    return known


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file.name} is not text in UTF-8.") from None


def _parsed(line: str, file: Path, number: int) -> tuple[str, float, list[float]]:
    words = line.split()
    try:
        score, left, top, right, bottom = values = [float(word) for word in words[-5:]]
    except ValueError:
        values = []
    if len(words) < 6 or not values or not all(math.isfinite(v) for v in values):
        raise ValueError(
            f"{file.name}: line {number} is {line.strip()[:60]!r}; expected 'class score left top right bottom'."
        )
    if right < left or bottom < top:
        raise ValueError(
            f"{file.name}: line {number} has a box from ({left:g}, {top:g}) to ({right:g}, {bottom:g});"
            " expected left <= right and top <= bottom."
        )
    return " ".join(words[:-5]), score, [left, top, right - left, bottom - top]
