"""The files of a run folder, checked record by record, so that they can be measured, drawn and printed."""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from concordet.files import read_json, read_text
from concordet.measures.metrics import BY_KEY
from concordet.measures.reading.arrays import is_integer, is_number

AGAIN: Final = "write it again with `concordet evaluate`"

MAX_POSITIVES: Final = 100_000_000
"""Largest number of entries in an array of positives; COCO's validation images have about a million."""


def read_evaluation(path: Path) -> dict[str, Any]:
    """The content of ``evaluation.json``; optional entries that are missing are empty.

    Raises:
        ValueError: it cannot be read, has no metrics, or a value has another type.
    """
    content = _read(path, dict)
    if not isinstance(content.get("metrics"), dict):
        raise ValueError(f"{path} must hold metrics, got {content.get('metrics')!r:.60}; {AGAIN}")
    for key, empty in (("class_names", []), ("per_class", []), ("reasons", {}), ("environment", {})):
        content[key] = empty if content.get(key) is None else content[key]
        _require(path, key, content[key], isinstance(content[key], type(empty)), _json_name(type(empty)))
    for key in ("loss", "detector"):
        _require(path, key, content.get(key), isinstance(content.get(key, ""), str), "a text")
    for index, name in enumerate(content["class_names"]):
        _require(path, f"class_names[{index}]", name, isinstance(name, str), "a text")
    _require_metrics(path, "", content["metrics"])
    for index, row in enumerate(content["per_class"]):
        _require(path, f"per_class[{index}]", row, isinstance(row, dict), "an object")
        _require_metrics(path, f"per_class[{index}].", row)
    return content


def read_ground_truth(path: Path) -> dict[str, Any]:
    """The content of ``ground_truth.json``.

    Raises:
        ValueError: it cannot be read, or a record of it has another form.
    """
    content = _read(path, dict)
    for key in ("images", "annotations", "categories"):
        _require(path, key, content.get(key), isinstance(content.get(key), list), "a list")
        for index, record in enumerate(content[key]):
            _require(path, f"{key}[{index}]", record, isinstance(record, dict), "an object")
            _require_value(path, f"{key}[{index}]", record, "id", is_integer, "a whole number")
    for index, image in enumerate(content["images"]):
        for side in ("width", "height"):
            if side in image:
                _require_value(path, f"images[{index}]", image, side, _is_side, "a number of pixels")
        if image.get("file_name") is not None:
            _require_value(path, f"images[{index}]", image, "file_name", _is_text, "a text")
    for index, category in enumerate(content["categories"]):
        _require_value(path, f"categories[{index}]", category, "name", _is_text, "a text")
    for index, annotation in enumerate(content["annotations"]):
        _require_box(path, f"annotations[{index}]", annotation)
    return content


def read_detections(path: Path) -> list[dict[str, Any]]:
    """The content of ``detections.json``.

    Raises:
        ValueError: it cannot be read, or a record of it has another form.
    """
    content = _read(path, list)
    for index, record in enumerate(content):
        _require(path, f"detection {index} (from 0)", record, isinstance(record, dict), "an object")
        _require_box(path, f"detection {index} (from 0)", record)
        _require_value(path, f"detection {index} (from 0)", record, "score", is_number, "a number")
        if record.get("raw_score") is not None:
            _require_value(path, f"detection {index} (from 0)", record, "raw_score", _is_fraction, "between 0 and 1")
    return content


def read_rows(path: Path) -> Iterator[dict[str | None, Any]]:
    """The rows of ``metrics.csv``.

    Raises:
        ValueError: it cannot be read as a table.
    """
    try:
        yield from csv.DictReader(io.StringIO(read_text(path), newline=""))
    except csv.Error as error:
        raise ValueError(f"{path} must be a table, got a fault ({error}); remove it") from error


def read_positives(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of ``positives.npz``, each one-dimensional and with as many numbers as the others.

    An array is read only if the size in its header matches the archive's.

    Raises:
        ValueError: it cannot be read, or has other content.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}
    except (*_FAULTS, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} must be an archive of arrays, got a fault ({error}); {AGAIN}") from error
    scores, ious = arrays.get("scores"), arrays.get("ious")
    if scores is None or ious is None or len({len(array) for array in arrays.values()}) != 1:
        raise ValueError(f"{path} must hold as many scores as ious, got {sorted(arrays)}; {AGAIN}")
    if not (np.abs(scores) <= 1).all() or not ((ious >= 0) & (ious <= 1 + 1e-6)).all():
        raise ValueError(f"{path} must hold scores and IoUs between 0 and 1, got others; {AGAIN}")
    return arrays


_FAULTS = (OSError, ValueError, SyntaxError, EOFError, NotImplementedError, RuntimeError)
"""Errors that Python's and NumPy's readers raise for damaged archives, besides their own classes."""


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize + file.tell()
        if len(shape) != 1 or dtype.kind not in "fiu" or shape[0] > MAX_POSITIVES or claimed != info.file_size:
            raise ValueError(f"{info.filename} must hold one column of numbers, got the claim of {list(shape)} {dtype}")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read(path: Path, expected: type) -> Any:
    content = read_json(path)
    if not isinstance(content, expected):
        raise ValueError(f"{path} must hold {_json_name(expected)}, got a {type(content).__name__}; {AGAIN}")
    return content


def _json_name(cls: type) -> str:
    return "an object" if cls is dict else "a list"


def _require(path: Path, name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{path}: {name} must be {expected}, got {value!r:.60}; {AGAIN}")


def _require_value(
    path: Path, record: str, values: dict[str, Any], key: str, valid: Callable[[Any], bool], expected: str
) -> None:
    if not valid(values.get(key)):
        _require(path, f"{key} of {record}", values.get(key), False, expected)


def _require_metrics(path: Path, prefix: str, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if key in BY_KEY:
            _require(path, prefix + key, value, value is None or _is_value(value), "a number or null")


def _require_box(path: Path, record: str, values: dict[str, Any]) -> None:
    for key in ("image_id", "category_id"):
        _require_value(path, record, values, key, is_integer, "a whole number")
    _require_value(path, record, values, "bbox", _is_box, "[x, y, width, height] in pixels")


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(is_number(v) and abs(v) < 1e9 for v in value)


def _is_value(value: Any) -> bool:
    return is_number(value) and abs(value) < 1e15  # printable in pages, which scale it


def _is_fraction(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_side(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
