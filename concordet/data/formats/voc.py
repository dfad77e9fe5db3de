"""Pascal VOC's layout: Annotations/<id>.xml, JPEGImages/<id>.jpg, ImageSets/Main/<split>.txt."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import numpy as np

from concordet.data.images import SUFFIXES
from concordet.data.records import FileDataset, Record

VOC_CLASSES: Final = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class VocFolder(FileDataset):
    """A folder in Pascal VOC's layout (Everingham et al. 2010).

    Coordinates count pixels from 1 and include the last one, as VOC publishes them: the box is
    ``[xmin - 1, ymin - 1, xmax, ymax]``.  Objects marked difficult become ignored regions, and crowds in the ground
    truth.  Image ids are the places in the split's list.

    Args:
        root: the folder with ``Annotations`` (VOC's own: ``VOCdevkit/VOC2007``).
        split: a list in ``ImageSets/Main`` without ``.txt``; None is all annotation files.
        classes: names in the order of their labels, all that the annotations use; None is VOC's 20 for a folder named
            VOC2007 or of another year, else the names in ``Annotations``, sorted.
        one_based: False for annotations whose coordinates count from 0.
        **options: as :class:`~concordet.data.records.FileDataset`.

    Raises:
        FileNotFoundError: the folder, the list, an annotation or an image file is missing.
        ValueError: XML that cannot be read, an object of an unknown class, or no image at all.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = "trainval",
        *,
        classes: Sequence[str] | None = None,
        one_based: bool = True,
        **options: Any,
    ) -> None:
        if options.get("masks"):
            raise ValueError(
                "Pascal VOC's layout has no instance masks; take a detector without masks, or a data set that has "
                "them (coco, cityscapes, lvis, digits)"
            )
        root = Path(root)
        folder, images = root / "Annotations", _image_files(root)
        if not folder.is_dir():
            inner = sorted(path.parent for path in root.glob("**/Annotations") if path.is_dir())
            hint = f"; name {inner[0]} instead" if inner else ""
            raise FileNotFoundError(f"{root}: no folder Annotations, which Pascal VOC's layout has{hint}")
        names = _image_names(root, split)
        trees = {name: _parse(folder / f"{name}.xml") for name in names}
        if classes is None:
            classes = _discover(root, folder, trees)
        labels = {name: label for label, name in enumerate(classes, start=1)}
        counts: Counter[str] = Counter()
        records = []
        for place, (name, tree) in enumerate(trees.items()):
            path = images.get(name, root / "JPEGImages" / f"{name}.jpg")
            records.append(_record(tree, folder / f"{name}.xml", path, place, labels, one_based, counts))
        super().__init__(records, classes, counts=counts, **options)


def _image_names(root: Path, split: str | None) -> list[str]:
    if split is None:
        names = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
        if not names:
            raise ValueError(f"{root / 'Annotations'}: the data set is empty, there are no XML files")
        return names
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        present = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
        known = f"the lists there are {', '.join(present)}" if present else "there are no lists"
        raise FileNotFoundError(f"{path}: no list of the split {split!r}; {known}")
    names = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path}: the data set is empty, the list names no images")
    return list(dict.fromkeys(names))


def _image_files(root: Path) -> dict[str, Path]:
    folder = root / "JPEGImages"
    if not folder.is_dir():
        return {}
    paths = (folder / name for name in sorted(os.listdir(folder)))
    return {path.stem: path for path in paths if path.suffix.lower() in SUFFIXES}


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: the annotation is missing; restore it or take its image off the list"
        ) from None
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(
            f"{path}: not readable as XML ({error}); repair the file or take its image off the list"
        ) from error


def _discover(root: Path, folder: Path, trees: dict[str, ElementTree.Element]) -> list[str]:
    """Names in all annotations, not the split's alone, so that all splits number their classes alike."""
    if re.fullmatch(r"VOC20\d\d", root.resolve().name):
        return list(VOC_CLASSES)
    found = set()
    for path in folder.glob("*.xml"):
        tree = trees[path.stem] if path.stem in trees else _parse(path)
        found |= {(item.findtext("name") or "").strip() for item in tree.iterfind("object")}
    found.discard("")
    if not found:
        raise ValueError(
            f"{folder}: no annotation has an object, so the classes are not known; give them with classes="
        )
    return sorted(found)


def _record(
    tree: ElementTree.Element,
    source: Path,
    path: Path,
    image_id: int,
    labels: dict[str, int],
    one_based: bool,
    counts: Counter[str],
) -> Record:
    boxes, found, difficult = [], [], []
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
        found.append(labels[name])
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    if one_based:
        corners[:, :2] -= 1
    counts["difficult_objects_ignored"] += sum(difficult)
    return Record(
        path=path,
        image_id=image_id,
        size=_size(tree),
        boxes=corners,
        labels=np.array(found, np.int64),
        ignored=np.array(difficult, bool),
        areas=(corners[:, 2:] - corners[:, :2]).prod(1),
        ids=np.zeros(len(corners), np.int64),
    )


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """(width, height), or None where they are missing or 0, as some tools write them."""
    try:
        width, height = (int(float(tree.findtext(f"size/{key}") or "")) for key in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None
