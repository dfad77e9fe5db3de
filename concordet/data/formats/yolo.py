"""YOLO's form: one text file of fractions per image, with or without data.yaml."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np

from concordet.data.file_dataset import FileDataset
from concordet.data.paths import Listing, read_text
from concordet.data.records import Annotations, Record
from concordet.data.registry import register_dataset
from concordet.data.splits import SPLITS, split_of
from concordet.data.targets import Layout
from concordet.files import parse_yaml
from concordet.images import SUFFIXES
from concordet.paths import ALLOW, is_inside, require_inside

_NAME_FILES: Final = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt", "names.txt")
_KEYS: Final = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_MAX_YAML: Final = 2**20


@register_dataset("yolo")
class YoloFolder(FileDataset):
    """Images with labels in YOLO's form, as Ultralytics and Roboflow write them.

    A label file has one line per object: ``class x_center y_center width height``, or ``class x1 y1 x2 y2 ...`` for a
    polygon, all as fractions of the image's width and height. It has the image's name with ``.txt``, in the folder
    ``labels`` beside ``images`` (``images/train`` or ``train/images``) or in the image's own folder. An image without a
    label file has no objects. Sizes come from the images, turned upright by their EXIF orientation, as Ultralytics
    reads them.

    Args:
        root: Folder of the data set, with ``data.yaml`` or with images and labels only.
        split: "train", "val", "test", or "all" if the images are not divided.
        annotations: The YAML file that names the splits and classes, if it has another name; relative to ``root``.
        masks: Whether targets have masks, from polygons; an object with only a box is then an ignored region.
        **options: Options of :class:`~concordet.data.file_dataset.FileDataset`.

    Raises:
        FileNotFoundError: A folder that ``data.yaml`` names is missing.
        ValueError: A label cannot be read, a class has no name, or there are no images.

    Example:
        >>> pets = YoloFolder("pets-yolo", "val")
        >>> len(pets), pets.class_names, pets[0][1]["labels"].tolist()
        (2, ['cat', 'dog'], [2, 2])
    """

    looks_for = "data.yaml, or images with label files of five numbers per line (YOLO)"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        annotations: str | Path | None = None,
        masks: bool = False,
        **options: Any,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; YOLO's layout has data.yaml, images and labels in it")
        outside = bool(options.get("allow_outside"))
        listing = Listing.of(root, outside)
        file = root / annotations if annotations is not None else _find_yaml(listing)
        tree = _with_yaml(file, outside) if file is not None else _without_yaml(listing)
        if split not in tree.parts:
            raise ValueError(f"{root}: split must be one of {', '.join(tree.parts)}, got {split!r}")
        read = _read(tree, split, root, masks, outside)
        super().__init__(read, masks=masks, **options)

    @classmethod
    def recognize(cls, listing: Listing) -> Layout | None:
        file = _find_yaml(listing)
        if file is not None:
            given = _read_yaml(file)
            parts = [part for part, keys in _KEYS.items() if any(given.get(key) for key in keys)]
            parts = [part for part in parts if part != "test" or _exists(given, "test", file)]
            options: dict[str, Any] = {"root": file.parent, "annotations": file.name}
            description = f"YOLO ({file.name})"
        else:
            if listing.named:
                return None
            tree = _without_yaml(listing, required=False)
            parts, options, description = list(tree.parts), {"root": listing.root}, "YOLO, without data.yaml"
        return Layout(description, {part: options | {"split": part} for part in parts}) if parts else None


@dataclass(frozen=True)
class _Tree:
    """Images by split, and names of classes.

    Attributes:
        parts: Image files, or folders and lists of them.
        names: Names of the classes; None if no file has them.
        source: File or folder that errors name.
        keypoints: Whether lines end with key points.
    """

    parts: dict[str, list[Path]]
    names: list[str] | None
    source: Path
    keypoints: bool = False


def _find_yaml(listing: Listing) -> Path | None:
    """The YAML file that describes the data set: it names classes and a folder of training images.

    Raises:
        ValueError: There is more than one.
    """
    files = [path for path in listing.with_suffix(".yaml", ".yml") if listing.named or _depth(path, listing.root) <= 2]
    found = []
    for path in files:
        try:
            given = _read_yaml(path)
        except ValueError:
            if listing.named or path.stem.lower() in ("data", "dataset"):
                raise
            continue
        if "names" in given and any(key in given for keys in _KEYS.values() for key in keys):
            found.append(path)
    named = [path for path in found if path.stem.lower() in ("data", "dataset")]
    found = named if len(named) == 1 else found
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(listing.root)) for path in found[:5])
        raise ValueError(f"{listing.root}: several YAML files describe a data set for YOLO ({names}); name one of them")
    return found[0] if found else None


def _depth(path: Path, root: Path) -> int:
    return len(path.relative_to(root).parts)


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, "the data set's YAML file")
    if len(text) > _MAX_YAML:
        raise ValueError(f"{path}: a YAML file of a data set must be below 1 MB, got {len(text):,} characters")
    content = parse_yaml(text, path)
    return content if isinstance(content, dict) else {}


def _with_yaml(file: Path, allow_outside: bool) -> _Tree:
    content = _read_yaml(file)
    names = _class_names(content.get("names"), content.get("nc"), file)
    parts = {}
    for part, keys in _KEYS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if part == "test" and not _exists(content, part, file):
            continue
        parts[part] = [_locate(content, entry, part, file, allow_outside) for entry in values]
    if not parts:
        raise ValueError(f"{file}: no key train, val or test names a folder of images; add train")
    return _Tree(parts, names, file, keypoints="kpt_shape" in content)


def _class_names(names: Any, number: Any, file: Path) -> list[str]:
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    scalar = isinstance(names, list) and all(isinstance(name, str | int | float) for name in names)
    if not names or not scalar:
        raise ValueError(f"{file}: names must be a list of class names, or names by number from 0; correct it")
    if isinstance(number, int) and number != len(names):
        raise ValueError(f"{file}: nc must be the number of names, {len(names)}, got {number}; correct one of them")
    return [str(name) for name in names]


def _candidates(content: dict[str, Any], entry: Any, file: Path) -> list[Path]:
    """Paths that a folder or list in the YAML file may stand for."""
    if not isinstance(entry, str) or not entry.strip() or "\0" in entry:
        return []
    base = content.get("path")
    found = [file.parent / base / entry] if isinstance(base, str) and "\0" not in base else []
    found.append(file.parent / entry)
    # Roboflow writes ../train/images for the folder train/images beside the file
    found.append(file.parent / PurePath(*[part for part in PurePath(entry).parts if part != ".."]))
    return found


def _exists(content: dict[str, Any], part: str, file: Path) -> bool:
    value = content.get(part)
    entry = value[0] if isinstance(value, list) and value else value
    return any(_is_there(path) for path in _candidates(content, entry, file))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _locate(content: dict[str, Any], entry: Any, part: str, file: Path, allow_outside: bool) -> Path:
    present = [path for path in _candidates(content, entry, file) if _is_there(path)]
    root = os.path.realpath(file.parent)
    for path in present:
        if allow_outside or is_inside(os.path.realpath(path), root):
            return path
    if present:
        raise ValueError(f"{file}: {part} names {present[0]}, which leads outside {file.parent}; {ALLOW}")
    shown = str(entry)[:80] if isinstance(entry, str) else type(entry).__name__
    raise FileNotFoundError(
        f"{file}: {part} names {shown!r}, and there is no such folder or list; correct {part} or path"
    )


def _without_yaml(listing: Listing, required: bool = True) -> _Tree:
    """Images that have labels, by split, from the names of folders."""
    parts: dict[str, list[Path]] = {}
    labels = {path for path in listing.with_suffix(".txt") if path.name not in _NAME_FILES}
    n_labeled = 0
    for path in listing.with_suffix(*SUFFIXES):
        n_labeled += any(label in labels and _looks_like_labels(label) for label in _label_files(path))
        parts.setdefault(split_of(path.relative_to(listing.root).parent) or "all", []).append(path)
    if not n_labeled:
        if required:
            raise ValueError(
                f"{listing.root}: no image has a label file in YOLO format, and there is no data.yaml; add one"
            )
        return _Tree({}, None, listing.root)
    if "all" in parts and len(parts) > 1:
        unlabeled = not any(label in labels for path in parts["all"] for label in _label_files(path))
        if not unlabeled:
            raise ValueError(
                f"{listing.root}: it is not clear to which split {parts['all'][0]} belongs; move it to the folder of "
                "one, or write a data.yaml"
            )
        del parts["all"]  # pictures beside the data set, such as a README's
    if "train" not in parts:
        parts = {"all": [path for group in parts.values() for path in group]}
    files = [path for path in listing.files if path.name in _NAME_FILES or path.suffix == ".names"]
    names = None
    if files:
        names = [line.strip() for line in read_text(files[0], "the list of classes").splitlines() if line.strip()]
    return _Tree({part: parts[part] for part in (*SPLITS, "all") if part in parts}, names, listing.root)


def _looks_like_labels(path: Path) -> bool:
    """Whether the first line of a file is an object in YOLO's form; an empty file may be an image without objects."""
    try:
        with path.open("rb") as file:
            words = file.readline(10_000).split()
        return len(words) >= 5 and float(words[0]) >= 0 and all(-0.5 <= float(word) <= 1.5 for word in words[1:5])
    except (OSError, ValueError):
        return False


def _label_files(image: Path) -> list[Path]:
    """Paths that the labels of an image may have: in ``labels`` instead of ``images``, or beside the image."""
    parts = image.parts
    found = []
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() == "images":
            found.append(Path(*parts[:index], "labels", *parts[index + 1 :]).with_suffix(".txt"))
            break
    return [*found, image.with_suffix(".txt")]


def _images(sources: Sequence[Path], root: Path, allow_outside: bool) -> list[Path]:
    """Image files of a split, from folders, lists of files and files."""
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            found += Listing.of(source, allow_outside).with_suffix(*SUFFIXES)
        elif source.suffix.lower() in SUFFIXES:
            found.append(source)
        else:
            for line in read_text(source, "the list of images").splitlines():
                name = line.strip()
                if name:
                    local = source.parent / name
                    found.append(local if local.exists() or not (root / name).exists() else root / name)
    return list(dict.fromkeys(found))


def _read(tree: _Tree, split: str, root: Path, masks: bool, allow_outside: bool) -> Annotations:
    images = _images(tree.parts[split], root, allow_outside)
    if not images:
        raise ValueError(
            f"{tree.parts[split][0]}: the data set is empty, there is no image of the split {split}; name another split"
        )
    counts: Counter[str] = Counter()
    n_classes = len(tree.names) if tree.names is not None else 10_000
    records, largest = [], -1
    folders = (root, *(path for path in tree.parts[split] if path.is_dir()))
    for index, image in enumerate(images):
        label = next((path for path in _label_files(image) if path.is_file()), None)
        if label is None:
            counts["images_without_label_file"] += 1
            lines: list[_Line] = []
        else:
            require_inside(label, folders, str(image), allow_outside)
            lines = _read_labels(label, n_classes, tree.keypoints)
        largest = max([largest, *(line.label for line in lines)])
        records.append(_record(image, index, lines, masks))
    if counts["images_without_label_file"] == len(images):
        looked = " or ".join(map(str, _label_files(images[0])))
        raise ValueError(f"{tree.source}: no image of the split {split} has a label file; looked for {looked}")
    names = tree.names
    if names is None:
        largest = max([largest, _largest_class(tree, split, root, n_classes, allow_outside)])
        names = [str(index) for index in range(largest + 1)]
    return Annotations(records, names, tree.source, folders, counts=counts, closed=tree.names is not None)


def _largest_class(tree: _Tree, split: str, root: Path, n_classes: int, allow_outside: bool) -> int:
    """The largest class index of the other splits, so that all splits have the same classes."""
    largest = -1
    for part, sources in tree.parts.items():
        for image in _images(sources, root, allow_outside) if part != split else ():
            label = next((path for path in _label_files(image) if path.is_file()), None)
            if label is not None:
                largest = max([largest, *(line.label for line in _read_labels(label, n_classes, tree.keypoints))])
    return largest


@dataclass(frozen=True, slots=True)
class _Line:
    """One object: class from 0, corners as fractions, and its polygon if it has one."""

    label: int
    box: tuple[float, float, float, float]
    polygon: list[float] | None


def _read_labels(path: Path, n_classes: int, keypoints: bool) -> list[_Line]:
    found = []
    for number, line in enumerate(read_text(path, "the label file").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}: line {number}"
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise ValueError(f"{where} must be numbers, got {line.strip()[:60]!r}; correct or remove it") from None
        label = values[0]
        if not (label.is_integer() and 0 <= label < n_classes):
            raise ValueError(
                f"{where} has the class {words[0][:20]}, which is none of the {n_classes} classes from 0; correct it"
            )
        coordinates = values[1:5] if keypoints else values[1:]
        if len(coordinates) != 4 and (len(coordinates) < 6 or len(coordinates) % 2):
            raise ValueError(
                f"{where} must have a class and a box of 4 numbers, or a class and a polygon, got {len(words)} numbers"
            )
        if not all(math.isfinite(value) and -1 <= value <= 2 for value in coordinates):
            raise ValueError(f"{where} must have fractions of the image's size, got {line.strip()[:60]!r}; correct it")
        if len(coordinates) == 4:
            x, y, width, height = coordinates
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            found.append(_Line(int(label), box, None))
        else:
            xs, ys = coordinates[::2], coordinates[1::2]
            found.append(_Line(int(label), (min(xs), min(ys), max(xs), max(ys)), coordinates))
    return found


def _record(image: Path, index: int, lines: list[_Line], masks: bool) -> Record:
    boxes = np.array([line.box for line in lines], np.float64).reshape(-1, 4)
    return Record(
        path=image,
        image_id=index,
        size=None,
        boxes=boxes,
        labels=np.array([line.label + 1 for line in lines], np.int64),
        ignored=np.zeros(len(lines), bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
        ids=np.zeros(len(lines), np.int64),
        segmentations=[[line.polygon] if line.polygon else [] for line in lines] if masks else None,
        normalized=True,
    )
