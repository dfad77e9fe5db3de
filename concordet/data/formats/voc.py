"""Pascal VOC's form: one XML file per image, in VOC's own layout or in any folders."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from xml.etree import ElementTree

import numpy as np

from concordet.data.classes import Classes
from concordet.data.file_dataset import FileDataset
from concordet.data.paths import Listing, read_text
from concordet.data.records import Annotations, Record
from concordet.data.registry import register_dataset
from concordet.data.splits import split_of
from concordet.data.targets import Layout
from concordet.images import SUFFIXES
from concordet.paths import require_file, require_inside

VOC_CLASSES: Final = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

_MAX_SIDE: Final = 10**6


@register_dataset("voc")
class VocFolder(FileDataset):
    """XML files in Pascal VOC's form (Everingham et al. 2010) with their images.

    Coordinates count pixels from 1 and include the last one, as in VOC: the box is ``[xmin - 1, ymin - 1, xmax,
    ymax]``. Difficult objects become ignored regions in targets and crowds in the ground truth. Image ids are indices
    in the split's list.

    Args:
        root: Folder with ``Annotations``, ``JPEGImages`` and ``ImageSets`` (VOC's own: ``VOCdevkit/VOC2007``), or with
            XML files and images in any folders.
        split: Name of a list in ``ImageSets/Main``, without ``.txt``; None for all annotation files.
        annotations: Folders of XML files below ``root``, instead of ``Annotations`` and lists.
        all_annotations: Folders of XML files whose classes are collected, so that labels are the same in all splits;
            None for those of ``annotations``.
        classes: Names to keep in the order of their labels, or new names by name; None for VOC's 20 in a folder named
            VOC2007 or of another year, otherwise the sorted names in the annotation files.
        one_based: Whether coordinates count from 1, as in VOC.
        **options: Options of :class:`~concordet.data.file_dataset.FileDataset`.

    Raises:
        FileNotFoundError: The folder, the list, an annotation or an image file is missing.
        ValueError: An XML file cannot be read, an object has an unknown class, or there are no images.

    Example:
        >>> pets = VocFolder("pets-voc", "train")
        >>> len(pets), pets.class_names, pets[1][1]["labels"].tolist()
        (3, ['cat', 'dog'], [1])
    """

    default_splits: ClassVar[dict[str, str]] = {"train": "trainval", "val": "test"}
    looks_for = "XML files with the element annotation (Pascal VOC)"

    def __init__(
        self,
        root: str | Path,
        split: str | None = "trainval",
        *,
        annotations: str | Path | Sequence[str | Path] | None = None,
        all_annotations: Sequence[str | Path] | None = None,
        classes: Classes | None = None,
        one_based: bool = True,
        **options: Any,
    ) -> None:
        if options.get("masks"):
            raise ValueError(
                "Pascal VOC's layout has no instance masks; take a detector without masks, or a data set that has "
                "them (coco, cityscapes, lvis, digits, yolo)"
            )
        root, outside = Path(root), bool(options.get("allow_outside"))
        if annotations is None:
            files = _listed_files(root, split, outside)
            folders = [root / "Annotations"]
        else:
            folders = [root / f for f in ([annotations] if isinstance(annotations, str | Path) else annotations)]
            files = [path for folder in folders for path in _xml_files(folder)]
        trees = {path: _parse(path) for path in files}
        every = folders if all_annotations is None else [root / folder for folder in all_annotations]
        names, closed = _classes(root, every, trees)
        if not names:
            if not isinstance(classes, Sequence):
                raise ValueError(
                    f"{folders[0]}: no annotation has an object, so the classes are not known; name them as classes"
                )
            names = [str(name) for name in classes]
        finder = _VocImages(root, annotations is None, outside)
        labels = {name: label for label, name in enumerate(names, start=1)}
        counts: Counter[str] = Counter()
        records = [
            _record(tree, path, finder.path(tree, path), index, labels, one_based, counts)
            for index, (path, tree) in enumerate(trees.items())
        ]
        folders_of_images = (root,) if annotations is not None else (root, root / "JPEGImages")
        read = Annotations(records, names, root, folders_of_images, counts=counts, closed=closed)
        super().__init__(read, classes=classes, **options)

    @classmethod
    def recognize(cls, listing: Listing) -> Layout | None:
        files = [path for path in listing.with_suffix(".xml") if _is_voc(path)]
        if not files:
            return None
        lists = {path.parent.parent.parent for path in listing.with_suffix(".txt") if _is_list(path)}
        if len(lists) == 1:
            (root,) = lists
            splits = _own_splits(root)
            if splits and all(path.is_relative_to(root) for path in files):
                return Layout("Pascal VOC", {part: {"root": root, "split": s} for part, s in splits.items()})
        return _layout_without_lists(listing, sorted({path.parent for path in files}))


class _VocImages:
    """Finds the images of annotation files.

    Args:
        root: Folder of the data set.
        plain: Whether they are in ``JPEGImages``, as in VOC.
        allow_outside: Whether to follow links to folders outside.
    """

    def __init__(self, root: Path, plain: bool, allow_outside: bool) -> None:
        self.folder = root / "JPEGImages"
        self.listing = Listing.of(self.folder if plain and self.folder.is_dir() else root, allow_outside)
        self.plain = plain

    def path(self, tree: ElementTree.Element, source: Path) -> Path:
        """The image of an annotation file: the one with the same name, else the one that the file names."""
        if self.plain:
            matches = self.listing.images().get(source.stem.lower(), [])
            exact = [path for path in matches if path.stem == source.stem]
            return exact[-1] if exact else self.folder / f"{source.stem}.jpg"
        part = split_of(source.relative_to(self.listing.root))
        named = (tree.findtext("filename") or "").strip()
        path = self.listing.find_image(source.stem, source.parent, part)
        if path is None and named:
            path = self.listing.find_image(named, source.parent, part)
        return source.with_suffix(".jpg") if path is None else path


def _listed_files(root: Path, split: str | None, allow_outside: bool) -> list[Path]:
    """Annotation files in VOC's own layout."""
    folder = root / "Annotations"
    if not folder.is_dir():
        inner = sorted(path.parent for path in root.glob("**/Annotations") if path.is_dir())
        hint = f"name {inner[0]} instead" if len(inner) == 1 else "name the folder that has it"
        if len(inner) > 1:
            hint = f"name one of {', '.join(map(str, inner[:5]))} instead"
        raise FileNotFoundError(f"{root}: no folder Annotations, which Pascal VOC's layout has; {hint}")
    if split is None:
        return _xml_files(folder)
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        present = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
        known = f"the lists there are {', '.join(present)}" if present else "there are no lists"
        raise FileNotFoundError(f"{path}: no list of the split {split!r}; {known}")
    names = [line.split()[0] for line in read_text(path, "the list").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path}: the data set is empty, the list names no images; name another split")
    files = [folder / f"{name}.xml" for name in dict.fromkeys(names)]
    for file in files:
        if file.parent != folder or "\0" in file.name:
            require_inside(file, (folder,), str(path), allow_outside)
    return files


def _xml_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of annotations; correct annotations")
    files = _in_folder(folder)
    if not files:
        raise ValueError(f"{folder}: the data set is empty, there are no XML files; name another folder")
    return files


def _in_folder(folder: Path) -> list[Path]:
    """Its annotations by name, without hidden files, such as those that macOS adds to archives."""
    return sorted(file for file in folder.glob("*.xml") if not file.name.startswith("."))


def _parse(path: Path) -> ElementTree.Element:
    require_file(path, "the annotation", "restore it or remove its image from the list")
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: not readable as XML ({error}); repair the file or remove its image from the list"
        ) from error


def _classes(root: Path, folders: list[Path], trees: dict[Path, ElementTree.Element]) -> tuple[list[str], bool]:
    """Names in all annotations, not only the split's, so that labels are the same in all splits."""
    if re.fullmatch(r"VOC20\d\d", root.resolve().name):
        return list(VOC_CLASSES), True
    names = set()
    for folder in folders:
        for path in _in_folder(folder):
            tree = trees[path] if path in trees else _parse(path)
            names |= {(item.findtext("name") or "").strip() for item in tree.iterfind("object")}
    return sorted(names - {""}), False


def _record(
    tree: ElementTree.Element,
    source: Path,
    path: Path,
    image_id: int,
    labels: dict[str, int],
    one_based: bool,
    counts: Counter[str],
) -> Record:
    boxes, chosen, difficult = [], [], []
    for number, item in enumerate(tree.iterfind("object"), start=1):
        name = (item.findtext("name") or "").strip()
        if name not in labels:
            known = ", ".join(labels)
            raise ValueError(
                f"{source}: object {number} is of class {name!r}, which is not among the classes {known}; correct it"
            )
        try:
            box = [float(item.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            raise ValueError(
                f"{source}: object {number} ({name}) has no bndbox of four numbers; add or remove it"
            ) from None
        boxes.append(box)
        chosen.append(labels[name])
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    if one_based:
        corners[:, :2] -= 1
    counts["difficult_objects_ignored"] += sum(difficult)
    with np.errstate(invalid="ignore", over="ignore"):
        areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    return Record(
        path=path,
        image_id=image_id,
        size=_size(tree, source),
        boxes=corners,
        labels=np.array(chosen, np.int64),
        ignored=np.array(difficult, bool),
        areas=areas,
        ids=np.zeros(len(corners), np.int64),
    )


def _size(tree: ElementTree.Element, source: Path) -> tuple[int, int] | None:
    """(width, height), or None if they are missing or 0, as some tools write them."""
    values = []
    for key in ("width", "height"):
        text = (tree.findtext(f"size/{key}") or "").strip()
        try:
            values.append(float(text))
        except ValueError:
            return None
        if not math.isfinite(values[-1]) or values[-1] > _MAX_SIDE:
            raise ValueError(f"{source}: the {key} must be a number of pixels, got {text[:40]}; correct it")
    width, height = map(int, values)
    return (width, height) if width > 0 and height > 0 else None


def _is_voc(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return re.search(rb"<annotation[\s>]", file.read(4096)) is not None if path.is_file() else False
    except OSError:
        return False


def _is_list(path: Path) -> bool:
    return path.parent.name == "Main" and path.parent.parent.name == "ImageSets"


def _own_splits(root: Path) -> dict[str, str]:
    """Names of lists by split: train (or trainval), val, test."""
    present = {path.stem for path in (root / "ImageSets" / "Main").glob("*.txt")}
    train = "train" if {"train", "val"} <= present or "trainval" not in present else "trainval"
    return {part: split for part, split in (("train", train), ("val", "val"), ("test", "test")) if split in present}


def _layout_without_lists(listing: Listing, folders: list[Path]) -> Layout:
    relative = [folder.relative_to(listing.root) for folder in folders]
    parts: dict[str, list[Path]] = {}
    for folder in relative:
        parts.setdefault(split_of(folder) or "all", []).append(folder)
    if "all" in parts and len(parts) > 1:
        named = next(folder for part, group in parts.items() if part != "all" for folder in group)
        raise ValueError(
            f"{listing.root}: annotations are in {named} and in {parts['all'][0]}, and it is not clear to which split "
            "the second belongs; name the folder of one split, or move the files"
        )
    if "train" not in parts:
        parts = {"all": relative}
    together = all(any(p.suffix.lower() in SUFFIXES for p in listing.files if p.parent == f) for f in folders[:1])
    where = "images and annotations in one folder" if together else "images and annotations in folders of their own"
    options: dict[str, dict[str, Any]] = {
        part: {"root": listing.root, "split": None, "annotations": group, "all_annotations": relative}
        for part, group in parts.items()
    }
    return Layout(f"Pascal VOC, {where}", options)
