"""Ground truth and detections as plain text: a folder with one file per image.

Lines of detections are ``class score left top right bottom``, of ground truth ``class left top right bottom`` with an
optional ``difficult`` at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from concordet.measures.reading.records import MAX_COORDINATE, Columns

DETECTION_LINE: Final = "class score left top right bottom"
OBJECT_LINE: Final = "class left top right bottom [difficult]"


def read_text_truth(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Ground truth in COCO form from the ``*.txt`` files of a folder, and notes.

    Images are numbered by file name and classes by name. An object marked ``difficult`` becomes a crowd region:
    detections in it are neither true nor false.

    Raises:
        ValueError: there is no text file, or one cannot be read; the message names file and line.
    """
    files = _files(folder, OBJECT_LINE)
    rows = []
    for image_id, file in enumerate(files, 1):
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                words = line.split()
                difficult = words[-1] == "difficult"
                label, _, box = _parsed(words[:-1] if difficult else words, file, number, scored=False)
                rows.append((image_id, label, box, difficult))
    names = {name: i for i, name in enumerate(sorted({label for _, label, _, _ in rows}), 1)}
    n_difficult = sum(difficult for *_, difficult in rows)
    notes = []
    if n_difficult:
        count = "object counts as a crowd region" if n_difficult == 1 else "objects count as crowd regions"
        notes.append(f"{n_difficult} difficult {count}: detections there are ignored")
    truth = {
        "images": [{"id": i, "file_name": file.stem} for i, file in enumerate(files, 1)],
        "categories": [{"id": i, "name": name} for name, i in names.items()],
        "annotations": [
            {"id": i, "image_id": image_id, "category_id": names[label], "bbox": box, "iscrowd": int(difficult)}
            for i, (image_id, label, box, difficult) in enumerate(rows, 1)
        ],
    }
    return truth, notes


def read_text_folder(
    folder: Path, images: list[dict[str, Any]], classes: list[dict[str, Any]]
) -> tuple[Columns, list[str]]:
    """Detections from the ``*.txt`` files of a folder, and notes.

    A file has the name of its image's ``file_name`` (or id), a class is a name or id; class names may have spaces.
    Images and classes that are not in the ground truth get other ids, so that they are counted among those left out.

    Raises:
        ValueError: there is no text file, none of a known image, or one cannot be read; the message names file and
            line.
    """
    files = _files(folder, DETECTION_LINE)
    known = _image_ids(images)
    if not any(file.stem in known for file in files):
        raise ValueError(
            f"{folder.name}: no file is named as an image of the ground truth (the first is {files[0].name}); name each"
            " file as its image"
        )
    names = {str(c["id"]): c["id"] for c in classes}
    names |= {str(c.get("name", "")).replace(" ", "_"): c["id"] for c in classes}
    names |= {str(c.get("name", "")): c["id"] for c in classes}
    unknown = min([0, *(image["id"] for image in images)]) - 1
    unknown_class = min([0, *(c["id"] for c in classes)]) - 1
    image_ids, class_ids, boxes, scores = [], [], [], []
    for file in files:
        image_id = known.get(file.stem, unknown)
        if image_id is None:
            raise ValueError(f"{file.name}: several images of the ground truth are named {file.stem}; rename them")
        unknown -= image_id == unknown
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            label, score, box = _parsed(line.split(), file, number, scored=True)
            if label not in names:
                names[label] = unknown_class
                unknown_class -= 1
            image_ids.append(image_id)
            class_ids.append(names[label])
            boxes.append(box)
            scores.append(score)
    missing = len(images) - len({known[file.stem] for file in files if file.stem in known})
    notes = []
    if missing:
        verb = "image has" if missing == 1 else "images have"
        notes.append(f"{missing} of {len(images)} {verb} no text file in {folder.name} and no detections")
    columns = Columns(
        np.array(image_ids, np.int64),
        np.array(class_ids, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
        class_names={ident: name for name, ident in names.items() if ident < min([0, *(c["id"] for c in classes)])},
    )
    return columns, notes


def _files(folder: Path, line: str) -> list[Path]:
    files = sorted(file for file in folder.glob("*.txt") if not file.name.startswith("."))
    if not files:
        raise ValueError(f"{folder} must hold one .txt file per image with lines of '{line}', got none")
    return files


def _image_ids(images: list[dict[str, Any]]) -> dict[str, int | None]:
    # id by stem of the file name, None if several images share it; or by the id as text
    known: dict[str, int | None] = {}
    for image in images:
        name = image.get("file_name")
        if isinstance(name, str):
            stem = Path(name).stem
            known[stem] = None if stem in known else image["id"]
    for image in images:
        known.setdefault(Path(str(image.get("file_name"))).name, image["id"])  # names of text ground truth: no suffix
        known.setdefault(str(image["id"]), image["id"])
    return known


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()  # Windows programs write a byte order mark
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read ({error.strerror}); correct or remove it") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file.name} must be text in UTF-8, got other bytes; write it again") from None


def _parsed(words: list[str], file: Path, number: int, *, scored: bool) -> tuple[str, float, list[float]]:
    count = 5 if scored else 4
    try:
        values = [float(word) for word in words[-count:]]
    except ValueError:
        values = []
    if len(words) <= count or not values or not all(abs(v) <= MAX_COORDINATE for v in values):
        expected = DETECTION_LINE if scored else OBJECT_LINE
        raise ValueError(f"{file.name}: line {number} must be '{expected}', got {' '.join(words)[:60]!r}")
    left, top, right, bottom = values[-4:]
    if right < left or bottom < top:
        yolo = "; this looks like YOLO's normalized format" if all(0 <= v <= 1 for v in values) else ""
        raise ValueError(
            f"{file.name}: line {number} must have left <= right and top <= bottom, got a box from"
            f" ({left:g}, {top:g}) to ({right:g}, {bottom:g}){yolo}"
        )
    return " ".join(words[:-count]), values[0] if scored else 1.0, [left, top, right - left, bottom - top]
