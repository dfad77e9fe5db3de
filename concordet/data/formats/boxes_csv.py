"""Tables of boxes: a CSV file with one row per object, whose columns may have any of many common names."""

from __future__ import annotations

import ast
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from concordet.data.file_dataset import FileDataset
from concordet.data.paths import Listing, read_text
from concordet.data.records import Annotations, Record
from concordet.data.registry import register_dataset
from concordet.data.splits import SPLITS, split_of
from concordet.data.targets import Layout
from concordet.images import SUFFIXES
from concordet.paths import ALLOW

_SPELLINGS: Final[dict[str, tuple[str, ...]]] = {
    "image": (
        *("filename", "file", "image", "imagepath", "path", "filepath", "imageid", "imagename", "imagefile", "img"),
        *("imgname", "imgpath", "imgid", "imagefilename", "frame"),
    ),
    "label": (
        *("class", "label", "name", "category", "classname", "labelname", "categoryname", "object", "objectname"),
        *("classid", "categoryid", "labels", "target"),
    ),
    "x1": ("xmin", "x1", "left", "minx", "bboxxmin", "xtl", "x0", "boxxmin", "bboxleft", "bboxx1"),
    "y1": ("ymin", "y1", "top", "miny", "bboxymin", "ytl", "y0", "boxymin", "bboxtop", "bboxy1"),
    "x2": ("xmax", "x2", "right", "maxx", "bboxxmax", "xbr", "boxxmax", "bboxright", "bboxx2"),
    "y2": ("ymax", "y2", "bottom", "maxy", "bboxymax", "ybr", "boxymax", "bboxbottom", "bboxy2"),
    "x": ("x", "bboxx", "boxx"),
    "y": ("y", "bboxy", "boxy"),
    "w": ("w", "boxwidth", "bboxwidth", "bboxw", "width"),
    "h": ("h", "boxheight", "bboxheight", "bboxh", "height"),
    "xc": ("xcenter", "centerx", "cx", "xc"),
    "yc": ("ycenter", "centery", "cy", "yc"),
    "box": ("bbox", "box", "boundingbox"),
    "split": ("split", "set", "subset", "part", "partition", "mlusage", "phase"),
}
"""Names of columns by their content, in lower case and with letters and digits only."""

_BOXES: Final = (
    ("x1", "y1", "x2", "y2"),
    ("x1", "y1", "w", "h"),
    ("x", "y", "w", "h"),
    ("xc", "yc", "w", "h"),
    ("box",),
)
"""Columns that make up a box, in the order in which they are tried."""

_ONLY_CLASS: Final = "object"


@register_dataset("csv")
class CsvFolder(FileDataset):
    """Boxes in a CSV file, one row per object, with the images anywhere below its folder.

    Columns are recognized by their names, in many spellings: an image (``filename``, ``image_id``, ``path``, ...), a
    class (``class``, ``label``, ``LabelName``, ...; none makes all objects one class), and a box as corners (``xmin
    ymin xmax ymax``, ``x1 y1 x2 y2``, ``left top right bottom``, ...), as corner and size (``x y w h``), as center and
    size (``x_center y_center width height``) or in one column (``bbox``: ``[x, y, width, height]``). A file without a
    header has path, x1, y1, x2, y2, class. If the values of all boxes are in 0..1, they are fractions of the image's
    size. A row without a box is an image without objects.

    Args:
        root: Folder of the data set.
        split: Value of the file's column ``split``, if it has one, or None for all rows.
        annotations: CSV file, relative to ``root`` if that is given; None for the only one in ``root``.
        images: Folder of the images, relative to ``root`` if that is given; None searches below ``root``.
        all_annotations: CSV files whose classes are collected, so that labels are the same in all splits.
        **options: Options of :class:`~concordet.data.file_dataset.FileDataset`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A column is missing, or a row cannot be read.

    Example:
        >>> digits = CsvFolder("photos", annotations="boxes.csv")
        >>> digits.class_names, digits.summary()["images"]
        (['digit'], 3)
    """

    looks_for = "a CSV file with columns for the image and the box (CSV)"

    def __init__(
        self,
        root: str | Path | None = None,
        split: str | None = None,
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        all_annotations: Sequence[str | Path] = (),
        **options: Any,
    ) -> None:
        if options.get("masks"):
            raise ValueError("a table of boxes has no instance masks; take a detector without masks")
        if root is None and annotations is None:
            raise ValueError("root must be the folder of the CSV file, got none; give it, or annotations")
        base = Path(root) if root is not None else Path()
        file = base / annotations if annotations is not None else _only_table(base)
        table = _read_table(file)
        others = [_read_table(base / other) for other in all_annotations if base / other != file]
        names = sorted({row.label for t in (table, *others) for row in t.rows if row.label is not None})
        outside = bool(options.get("allow_outside"))
        folder = base / images if images is not None else base if root is not None else file.parent
        listing = Listing.of(folder, outside)
        read = _annotations(table, split, names, listing, outside)
        super().__init__(read, **options)

    @classmethod
    def recognize(cls, listing: Listing) -> Layout | None:
        files = [path for path in listing.with_suffix(".csv", ".tsv") if _is_table(path)]
        if not files:
            return None
        base: dict[str, Any] = {} if listing.named else {"root": listing.root}
        relative = [path if listing.named else path.relative_to(listing.root) for path in files]
        if len(files) == 1:
            splits = {row.split for row in _read_table(files[0]).rows if row.split is not None}
            parts = {part: split for split in sorted(splits) if (part := split_of(split)) is not None}
            if "train" in parts and len(parts) == len(splits):
                found: dict[str, dict[str, Any]] = {
                    p: base | {"annotations": relative[0], "split": parts[p]} for p in SPLITS if p in parts
                }
                return Layout("CSV of boxes", found)
            return Layout("CSV of boxes", {"all": base | {"annotations": relative[0]}})
        named: dict[str, Path] = {}
        for path in relative:
            part = split_of(path)
            if part is None or part in named:
                names = ", ".join(map(str, relative[:5]))
                raise ValueError(
                    f"{listing.root}: the names of {len(files)} CSV files of boxes ({names}) do not show which are "
                    "for training and validation; name one of them"
                )
            named[part] = path
        every = list(named.values())
        return Layout(
            "CSV of boxes",
            {part: base | {"annotations": path, "all_annotations": every} for part, path in named.items()},
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """One row: an object of an image, or an image without objects where ``box`` is None."""

    number: int
    image: str
    label: str | None
    box: tuple[float, float, float, float] | None
    split: str | None


@dataclass(frozen=True)
class _Table:
    """Rows of a file, and whether boxes are fractions of the image's size."""

    file: Path
    rows: list[_Row] = field(repr=False)
    normalized: bool


def _only_table(root: Path) -> Path:
    files = [path for path in Listing.of(root).with_suffix(".csv", ".tsv") if _is_table(path)]
    if len(files) != 1:
        raise ValueError(f"{root}: annotations must name one of {len(files)} CSV files of boxes; name the file")
    return files[0]


def _is_table(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(65536).decode("utf-8-sig", errors="replace") if path.is_file() else ""
    except OSError:
        return False
    rows = [row for row in _rows(start.splitlines()[:2], path) if row]
    return bool(rows) and _columns(rows[0]) is not None


def _rows(lines: list[str], path: Path) -> Any:
    head = lines[0] if lines else ""
    delimiter = max(",;\t|", key=head.count)
    try:
        yield from csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
    except csv.Error as error:
        raise ValueError(f"{path}: not readable as CSV ({error}); write the file again") from error


def _columns(head: list[str]) -> dict[str, int] | None:
    """Index of each column by its content; None without columns of an image and a box."""
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in head]
    columns = {}
    for what, spellings in _SPELLINGS.items():
        index = next((plain.index(spelling) for spelling in spellings if spelling in plain), None)
        if index is not None:
            columns[what] = index
    if "image" in columns and _box_columns(columns):
        return columns
    numbers = all(re.fullmatch(r"-?[0-9.]+|", value.strip()) for value in head[1:5])
    if len(head) >= 6 and numbers and Path(head[0]).suffix.lower() in SUFFIXES:
        return {"image": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "label": 5, "no_head": 1}
    return None


def _box_columns(columns: dict[str, int]) -> tuple[str, ...] | None:
    return next((names for names in _BOXES if all(name in columns for name in names)), None)


def _read_table(file: Path) -> _Table:
    lines = read_text(file, "the CSV file").splitlines()
    rows = [(number, row) for number, row in enumerate(_rows(lines, file), start=1) if any(map(str.strip, row))]
    columns = _columns(rows[0][1]) if rows else None
    if columns is None:
        raise ValueError(
            f"{file}: the CSV file must have a column for the image (such as filename) and for the box (such as "
            f"xmin, ymin, xmax, ymax), got {', '.join(rows[0][1])[:200] if rows else 'no rows'}; rename the columns"
        )
    names = _box_columns(columns) or ()
    found = []
    for number, row in rows[0 if "no_head" in columns else 1 :]:
        where = f"{file}: row {number}"

        def cell(what: str, row: list[str] = row) -> str:
            index = columns.get(what, len(row))
            return row[index].strip() if index < len(row) else ""

        if not cell("image") or "\0" in cell("image"):
            raise ValueError(f"{where} has no image; name one or remove the row")
        box = _box([cell(name) for name in names], names, where)
        label = (cell("label") if "label" in columns else _ONLY_CLASS) if box is not None else None
        if label == "":
            raise ValueError(f"{where} has a box without a class; name its class or remove the row")
        split = cell("split") or None if "split" in columns else None
        found.append(_Row(number, cell("image"), label, box, split))
    if not found:
        raise ValueError(f"{file}: the data set is empty, there are no rows; add some or name another file")
    values = [value for row in found if row.box is not None for value in row.box]
    return _Table(file, found, normalized=bool(values) and all(0 <= value <= 1 for value in values))


def _box(cells: list[str], names: tuple[str, ...], where: str) -> tuple[float, float, float, float] | None:
    """Corners of a box; None if all cells are empty."""
    if not any(cells):
        return None
    try:
        if names == ("box",):
            values = [float(value) for value in ast.literal_eval(f"[{cells[0].strip('[]() ')}]")]
        else:
            values = [float(value) for value in cells]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError):
        values = []
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ValueError(
            f"{where} has the box {', '.join(cells)[:60]!r} instead of four numbers; correct or remove the row"
        )
    a, b, c, d = values
    if names[:1] in (("xc",),):
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return (a, b, c, d) if names[-1] == "y2" else (a, b, a + c, b + d)


def _annotations(
    table: _Table, split: str | None, names: list[str], listing: Listing, allow_outside: bool
) -> Annotations:
    rows = [row for row in table.rows if split is None or row.split == split]
    if not rows:
        present = sorted({row.split for row in table.rows if row.split})
        raise ValueError(f"{table.file}: split must be one of {', '.join(present) or 'none'}, got {split!r}")
    if not names:
        raise ValueError(f"{table.file}: no row has a box, so there is no class to detect; add boxes")
    grouped: dict[str, list[_Row]] = {}
    for row in rows:
        grouped.setdefault(row.image, []).append(row)
    labels = {name: label for label, name in enumerate(names, start=1)}
    part = split_of(split) if split else split_of(table.file.name)
    records = []
    for index, (image, group) in enumerate(grouped.items()):
        objects = [(row.box, labels[row.label]) for row in group if row.box is not None and row.label is not None]
        boxes = np.array([box for box, _ in objects], np.float64).reshape(-1, 4)
        records.append(
            Record(
                path=_image_path(image, table.file, group[0].number, listing, part, allow_outside),
                image_id=index,
                size=None,
                boxes=boxes,
                labels=np.array([label for _, label in objects], np.int64),
                ignored=np.zeros(len(objects), bool),
                areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
                ids=np.zeros(len(objects), np.int64),
                normalized=table.normalized,
            )
        )
    folders = (listing.root,)
    return Annotations(records, names, table.file, folders, counts=Counter(), closed=False)


def _image_path(name: str, file: Path, number: int, listing: Listing, part: str | None, allow_outside: bool) -> Path:
    direct = file.parent / name
    if allow_outside and direct.is_file():
        return direct
    path = listing.find_image(name, file.parent, part)
    if path is not None:
        return path
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(
            f"{file}: row {number} names {name[:80]!r}, which leads outside {listing.root}, and no file of that name "
            f"is inside; {ALLOW}"
        )
    return direct
