"""Annotation files in COCO's form: their images, checks of what they contain, and records made from them."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from concordet.data.masks import check_segmentation
from concordet.data.paths import Listing
from concordet.data.records import Annotations, Record
from concordet.data.splits import split_of
from concordet.files import no_garbage_collection, read_json
from concordet.paths import ALLOW, require_file

_KEY: Final = b'"segmentation"'
_CHUNK: Final = 2**24
_POLYGONS: Final = re.compile(_KEY + rb":\s*+\[(?:\s*+\[[0-9eE+\-.,\s]*+\]\s*+,?+)++\]")

_MAX_ID: Final = 2**63 - 1
_MAX_SIDE: Final = 10**6


class ImageFinder:
    """Finds the images of an annotation file.

    Args:
        root, split, annotations, images: Arguments of the data set.
        layout: Layout of ``root``, for errors.
        allow_outside: Whether image files may be outside of the data set.
        images_default: Default folder of the images, in ``root``.

    Attributes:
        file: The annotation file.
        folders: Folders that the images must be in.
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str,
        annotations: str | Path | None,
        images: str | Path | None,
        layout: str,
        allow_outside: bool,
        images_default: str = "{split}",
    ) -> None:
        if root is None and annotations is None:
            raise ValueError(
                f"root must be the folder with {layout}, got none; give it, or the annotation file as annotations"
            )
        base = Path(root) if root is not None else Path()
        layout = layout.format(split=split)
        form = "LVIS" if "lvis" in layout else "COCO"
        self.file: Path = base / (annotations if annotations is not None else layout.split()[0].rstrip(","))
        require_file(self.file, "the annotation file", f"{form}'s layout is {layout}")
        self.allow_outside = allow_outside
        self._part = split_of(self.file.name) or split_of(self.file.parent.name)
        self._listing: Listing | None = None
        if images is not None or annotations is None:
            folder = base / (images if images is not None else images_default.format(split=split))
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder; {form}'s layout is {layout}")
            self.folders: tuple[Path, ...] = (folder, *((base,) if root is not None else ()))
        else:
            self._listing = Listing.of(base if root is not None else self._top(), allow_outside)
            self.folders = (self._listing.root,)

    def _top(self) -> Path:
        """The folder of the data set that the annotation file belongs to."""
        parent = self.file.parent
        named = parent.name.lower() in ("annotations", "annotation", "labels", "json")
        return parent.parent if named else parent

    def path(self, name: str, where: str) -> Path:
        """The image file that the annotation file calls ``name``.

        Raises:
            ValueError: ``name`` leads outside of the data set.
        """
        if self._listing is None:
            return self.folders[0] / name
        direct = self.file.parent / name
        if self.allow_outside and direct.is_file():
            return direct
        path = self._listing.find_image(name, self.file.parent, self._part)
        if path is None and not self.allow_outside and (".." in Path(name).parts or Path(name).is_absolute()):
            raise ValueError(
                f"{where} names {name!r}, which leads outside {self.folders[0]}, and no file of that name is inside; "
                f"{ALLOW}"
            )
        return direct if path is None else path


def read_coco_json(file: Path, masks: bool = True) -> dict[str, Any]:
    """Content of an annotation file with its lists ``images``, ``annotations`` and ``categories``.

    Args:
        file: Annotation file.
        masks: Whether segmentations are needed, which take most of the memory.
    """
    data = read_json(file) if masks else read_json(file, read=_without_polygons)
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ValueError(f"{file}: no list {key!r}, which an annotation file in COCO format has; add it")
    if not data["images"]:
        raise ValueError(f"{file}: the data set is empty, its list 'images' has no entries; name another file")
    return data


def _without_polygons(file: BinaryIO) -> bytes:
    """The content of an annotation file with ``true`` in place of polygons, whose parsing takes most of the time.

    Only plain lists of polygons are replaced. Strings stay as they are, since quotes within them are escaped.

    Example:
        >>> import io
        >>> content = b'{"id": 1, "segmentation": [[1, 2.5, 3, 4, 5, 6], [7, 8]], "name": "[[1]]"}'
        >>> _without_polygons(io.BytesIO(content))
        b'{"id": 1, "segmentation": true, "name": "[[1]]"}'
    """
    parts, rest = [], b""
    while chunk := file.read(_CHUNK):
        rest += chunk
        cut = rest.rfind(_KEY)  # its polygons may continue in the next chunk
        cut = max(len(rest) - len(_KEY), 0) if cut < 0 else cut
        parts.append(_POLYGONS.sub(_KEY + b": true", rest[:cut]))
        rest = rest[cut:]
    return b"".join([*parts, _POLYGONS.sub(_KEY + b": true", rest)])


@no_garbage_collection()
def read_annotations(data: dict[str, Any], finder: ImageFinder, masks: bool) -> Annotations:
    """Records in the order of the file's images, and its categories in the order of their ids."""
    file = finder.file
    counts: Counter[str] = Counter()
    categories = _categories(data["categories"], file)
    images = _images(data["images"], file, counts)
    columns = _Columns(data["annotations"], file, images, set(categories), counts)
    _drop_headings(data["categories"], categories, columns.categories, counts)
    if not masks:
        data["annotations"] = columns.entries = []  # frees most of the memory: the columns have all that is needed
    labels = np.searchsorted(np.array(list(categories), np.int64), columns.categories) + 1
    index_of = {number: index for index, number in enumerate(images)}
    image_of = np.array([index_of[number] for number in columns.image_ids], np.int64)
    order = np.argsort(image_of, kind="stable")
    ends = np.searchsorted(image_of[order], np.arange(len(images)), side="right").tolist()
    labels, boxes, crowd = labels[order], columns.boxes[order], columns.crowd[order]
    areas, ids, rows = columns.areas[order], columns.ids[order], order.tolist()
    records = []
    start = 0
    for (number, entry), end in zip(images.items(), ends, strict=True):
        part = slice(start, end)
        name, size = image_name(entry), _size(entry, file)
        segmentations = None
        if masks:
            segmentations = [columns.segmentation(row, size) for row in rows[part]]
        records.append(
            Record(
                path=finder.path(name, f"{file}: image {number}"),
                image_id=number,
                size=size,
                boxes=boxes[part],
                labels=labels[part],
                ignored=crowd[part],
                areas=areas[part],
                ids=ids[part],
                segmentations=segmentations,
                name=name,
            )
        )
        start = end
    return Annotations(records, list(categories.values()), file, finder.folders, list(categories), counts)


def _categories(entries: list[Any], file: Path) -> dict[int, str]:
    """Category id to name, in the order of ids."""
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{file}: entry {index + 1} of 'categories'"
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not isinstance(entry.get("name"), str | int):
            raise ValueError(f"{where} has no whole number 'id' or no 'name'; correct or remove it")
        if entry["id"] in names:
            raise ValueError(f"{file}: two entries of 'categories' have the same id {entry['id']}; give each its own")
        names[entry["id"]] = str(entry["name"])
    if not names:
        raise ValueError(f"{file}: the list 'categories' has no entries, so there is no class to detect; add some")
    return dict(sorted(names.items()))


def _drop_headings(
    entries: list[dict[str, Any]], categories: dict[int, str], used: NDArray[np.int64], counts: Counter[str]
) -> None:
    """Removes categories without objects and without a supercategory that are the supercategory of others."""
    headings = {entry.get("supercategory") for entry in entries if isinstance(entry.get("supercategory"), str)}
    present = set(np.unique(used).tolist())
    for entry in entries:
        top = entry.get("supercategory") in (None, "", "none")
        if top and entry["name"] in headings and entry["id"] not in present and len(categories) > 1:
            del categories[entry["id"]]
            counts["empty_supercategories_left_out"] += 1


def _images(entries: list[Any], file: Path, counts: Counter[str]) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")):
            raise ValueError(f"{file}: entry {index + 1} of 'images' has no whole number 'id'; add or correct it")
        name = image_name(entry)
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(
                f"{file}: image {entry['id']} has the file_name {str(name)[:40]!r}, which is not a name; correct it"
            )
        other = images.setdefault(entry["id"], entry)
        if other is entry:
            continue
        if image_name(other) != name:
            names = f"{image_name(other)} and {name}"
            raise ValueError(f"{file}: images {names} have the same id {entry['id']}; give each its own")
        counts["duplicate_images_left_out"] += 1
    return images


def image_name(entry: dict[str, Any]) -> Any:
    """``file_name``, or in LVIS, which has none, the end of ``coco_url`` with the folder of its COCO split."""
    name, url = entry.get("file_name"), entry.get("coco_url")
    if name or not isinstance(url, str):
        return name or url
    return "/".join(url.split("/")[-2:])


def _size(entry: dict[str, Any], file: Path) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    if not width or not height:
        return None
    for name, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _MAX_SIDE:
            raise ValueError(
                f"{file}: the {name} of image {entry['id']} must be a number of pixels, got {str(value)[:40]!r}"
            )
    return int(width), int(height)


def is_id(value: Any) -> bool:
    """Whether a value can be an id: a 64-bit integer."""
    return type(value) is int and -_MAX_ID <= value <= _MAX_ID


class _Columns:
    """Annotations by column, after all of them have been checked.

    Files are checked column by column, which takes a tenth of the time; if a check fails, annotations are checked one
    by one, to name the first faulty one.
    """

    def __init__(
        self,
        entries: list[Any],
        file: Path,
        images: dict[int, dict[str, Any]],
        known: set[int],
        counts: Counter[str],
    ) -> None:
        self.entries, self.file = entries, file
        try:
            self._read(images, known, counts)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            for index in range(len(entries)):
                _check_annotation(entries[index], self._where(index), images, known)
            raise ValueError(f"{file}: the annotations cannot be read ({error}); correct them") from error

    def _read(self, images: dict[int, dict[str, Any]], known: set[int], counts: Counter[str]) -> None:
        entries = self.entries
        self.image_ids = [entry["image_id"] for entry in entries]
        categories = [entry["category_id"] for entry in entries]
        boxes = [entry["bbox"] for entry in entries]
        coordinates = list(chain.from_iterable(boxes))
        crowds = [entry.get("iscrowd") for entry in entries]
        ids = [entry.get("id") for entry in entries]
        areas = [entry.get("area") for entry in entries]
        for values, types in (
            (self.image_ids, {int}),
            (categories, {int}),
            (boxes, {list}),
            (coordinates, {int, float}),
            (crowds, {int, bool, float, type(None)}),
            (ids, {int, str, type(None)}),
            (areas, {int, float, type(None)}),
        ):
            if not set(map(type, values)) <= types:
                raise TypeError("a value of another type")
        if set(map(len, boxes)) - {4} or set(self.image_ids) - set(images) or set(categories) - known:
            raise ValueError("a bbox of another length, or an unknown id")
        if set(crowds) - {0, 1, None}:
            raise ValueError("an iscrowd that is neither 0 nor 1")
        self.boxes = np.array(coordinates, np.float64).reshape(-1, 4)
        self.categories = np.array(categories, np.int64)
        self.crowd = np.array([bool(value) for value in crowds], bool)
        self.ids = np.array([value if isinstance(value, int) else 0 for value in ids], np.int64)
        self.areas = np.array(areas, np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            self.boxes[:, 2:] += self.boxes[:, :2]
            sides = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1)
            unusable = ~(np.isfinite(self.areas) & (self.areas >= 0))
        counts["areas_taken_from_the_box"] += sum(
            "area" in entries[index] for index in np.flatnonzero(unusable & (sides > 0))
        )
        self.areas = np.where(unusable, sides, self.areas)
        named = [value for value in ids if value is not None]
        counts["duplicate_annotation_ids"] += len(named) - len(set(named))
        counts["crowd_regions_ignored"] += int(self.crowd.sum())
        counts["segments_without_area"] += sum(
            entry["segmentation"] is not None and (not entry["segmentation"] or entry.get("area") == 0)
            for entry in entries
            if "segmentation" in entry
        )

    def segmentation(self, row: int, size: tuple[int, int] | None) -> Any:
        """The checked segmentation of an annotation."""
        segmentation = self.entries[row].get("segmentation")
        try:
            if size is not None:
                check_segmentation(segmentation, size[1], size[0])
        except ValueError as error:
            raise ValueError(f"{self._where(row)}: {error}; correct or remove this annotation") from error
        return segmentation

    def _where(self, index: int) -> str:
        entry = self.entries[index]
        number = entry.get("id") if isinstance(entry, dict) else None
        return f"{self.file}: annotation {number if is_id(number) else f'number {index + 1}'}"


def _check_annotation(entry: Any, where: str, images: dict[int, dict[str, Any]], known: set[int]) -> None:
    """Raises a ValueError for the first fault of an annotation."""
    if not isinstance(entry, dict) or "image_id" not in entry or "category_id" not in entry:
        raise ValueError(f"{where} has no image_id or no category_id; add them or remove it")
    for key, listed, name in (("image_id", images, "images"), ("category_id", known, "categories")):
        if not is_id(entry[key]) or entry[key] not in listed:
            raise ValueError(f"{where} has {key} {str(entry[key])[:40]}, which is not in {name!r}; add or correct it")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_float(value) for value in box):
        raise ValueError(
            f"{where} has the bbox {str(box)[:60]} instead of four numbers [x, y, width, height]; correct or remove it"
        )
    if not (entry.get("id") is None or isinstance(entry["id"], str) or is_id(entry["id"])):
        raise ValueError(f"{where} has the id {str(entry['id'])[:40]}, which is not a 64-bit whole number; correct it")
    area = entry.get("area")
    if area is not None and not _is_float(area):
        raise ValueError(f"{where} has the area {str(area)[:40]!r}, which is not a number; correct or remove it")
    if type(entry.get("iscrowd")) not in (int, bool, float, type(None)) or entry.get("iscrowd") not in (0, 1, None):
        raise ValueError(f"{where}: iscrowd must be 0 or 1, got {str(entry['iscrowd'])[:40]!r}")


def _is_float(value: Any) -> bool:
    """Whether a value is a float (also NaN or infinite), or an integer in the range of floats."""
    return type(value) is float or (type(value) is int and abs(value) < 1e300)
