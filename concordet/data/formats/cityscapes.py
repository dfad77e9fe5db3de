"""Cityscapes' layout: boxes around the instance masks of the fine annotations."""

from __future__ import annotations

import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from concordet.data.file_dataset import FileDataset
from concordet.data.masks import encode_mask
from concordet.data.paths import Listing
from concordet.data.records import Annotations, Record
from concordet.data.registry import register_dataset
from concordet.data.targets import Layout
from concordet.paths import require_file

INSTANCE_CLASSES: Final = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Cityscapes' label ids of the eight classes that its instance benchmark evaluates."""

_NOT_EVALUATED: Final = (29, 30)  # caravan, trailer
_IMAGE, _MASK = "_leftImg8bit.png", "_gtFine_instanceIds.png"


@register_dataset("cityscapes")
class CityscapesFolder(FileDataset):
    """Cityscapes (Cordts et al. 2016) with a box around each instance's visible pixels.

    In ``*_gtFine_instanceIds.png`` a value of 1000 * label id + n is instance n, and a bare label id is stuff or a
    group of objects. Each connected component of a group becomes an ignored region. Caravans and trailers, which the
    benchmark does not evaluate, are left out. Image ids are indices in the sorted list of images.

    Args:
        root: Folder with ``leftImg8bit`` and ``gtFine``.
        split: "train" or "val".
        masks: Whether targets and ground truth have masks.
        **options: Options of :class:`~concordet.data.file_dataset.FileDataset`.

    Raises:
        FileNotFoundError: A folder or an annotation is missing.
        ValueError: An annotation cannot be read, or there is no image.

    Example:
        >>> dataset = CityscapesFolder("cityscapes", "val")  # doctest: +SKIP
    """

    looks_for = "leftImg8bit and gtFine with *_gtFine_instanceIds.png (Cityscapes)"

    def __init__(self, root: str | Path, split: str = "train", *, masks: bool = False, **options: Any) -> None:
        root = Path(root)
        folder = root / "leftImg8bit" / split
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; Cityscapes' layout is leftImg8bit/{split}/<city>/*.png")
        paths = sorted(folder.glob(f"*/*{_IMAGE}"))
        if not paths:
            raise ValueError(
                f"{folder}: the data set is empty, there is no <city>/*{_IMAGE}; name another split or folder"
            )
        labels = {number: label for label, number in enumerate(INSTANCE_CLASSES, start=1)}
        counts: Counter[str] = Counter()

        def read(item: tuple[int, Path]) -> tuple[Record, Counter[str]]:
            index, path = item
            name = path.name.removesuffix(_IMAGE) + _MASK
            return _record(path, root / "gtFine" / split / path.parent.name / name, index, labels, masks)

        with ThreadPoolExecutor(max_workers=8) as pool:  # decoding and counting release the interpreter lock
            results = list(pool.map(read, enumerate(paths)))
        for _, counted in results:
            counts.update(counted)
        records = [record for record, _ in results]
        names = list(INSTANCE_CLASSES.values())
        super().__init__(Annotations(records, names, folder, (root, folder), counts=counts), masks=masks, **options)

    @classmethod
    def recognize(cls, listing: Listing) -> Layout | None:
        parts: dict[str, dict[str, Any]] = {}
        for path in listing.files:
            folders = path.relative_to(listing.root).parts
            if path.name.endswith(_MASK) and len(folders) >= 4 and folders[-4] == "gtFine":
                parts[folders[-3]] = {"root": path.parents[3], "split": folders[-3]}
        return Layout("Cityscapes", {p: o for p, o in parts.items() if p != "test"}) if "train" in parts else None


def _record(
    path: Path, source: Path, image_id: int, labels: dict[int, int], masks: bool
) -> tuple[Record, Counter[str]]:
    from scipy import ndimage

    counts: Counter[str] = Counter()
    values = _read_ids(source)
    boxes: list[tuple[int, int, int, int]] = []
    chosen, ignored, areas, segmentations = [], [], [], []
    present = np.flatnonzero(np.bincount(values.ravel()))
    compact = np.zeros(int(present[-1]) + 1, np.int32)
    compact[present] = np.arange(1, len(present) + 1)
    for value, window in zip(present.tolist(), ndimage.find_objects(compact[values]), strict=True):
        label_id = value // 1000 if value >= 1000 else value
        if value >= 1000 and label_id in _NOT_EVALUATED:
            counts["objects_of_other_classes_left_out"] += 1
            continue
        if label_id not in labels:
            if value >= 1000:
                raise ValueError(
                    f"{source}: instance {value} must be of a label with instances, got label id {label_id}; correct it"
                )
            continue
        region = values[window] == value
        group = value < 1000
        parts, number = ndimage.label(region) if group else (region.astype(np.int32), 1)
        counts["group_regions_ignored"] += number if group else 0
        top, left = window[0].start, window[1].start
        for part, inner in enumerate(ndimage.find_objects(parts), start=1):
            y, x = inner
            boxes.append((left + x.start, top + y.start, left + x.stop, top + y.stop))
            shape = parts[inner] == part
            chosen.append(labels[label_id])
            ignored.append(group)
            areas.append(int(shape.sum()))
            if masks:
                segmentations.append(_encode_within(shape, boxes[-1], values.shape))
    record = Record(
        path=path,
        image_id=image_id,
        size=(values.shape[1], values.shape[0]),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(chosen, np.int64),
        ignored=np.array(ignored, bool),
        areas=np.array(areas, np.float64),
        ids=np.zeros(len(boxes), np.int64),
        segmentations=segmentations if masks else None,
        name=f"{path.parent.name}/{path.name}",
    )
    return record, counts


def _read_ids(source: Path) -> NDArray[np.int32]:
    require_file(source, "the annotation", "restore it or remove its image")
    try:
        with Image.open(source) as image:
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{source}: the annotation cannot be decoded ({error}); download the file again") from error
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise ValueError(
            f"{source}: it must have one channel of instance ids, got {image.mode}; download the file again"
        )
    if values.size and not 0 <= values.min() <= values.max() < 2**16:
        raise ValueError(f"{source}: instance ids must be from 0 to 65535, got {values.max()}; download the file again")
    return values.astype(np.int32)


def _encode_within(shape: NDArray[np.bool_], box: tuple[int, int, int, int], size: tuple[int, ...]) -> dict[str, Any]:
    """Run lengths of a component's mask within the whole image."""
    whole = np.zeros(size, np.uint8)
    whole[box[1] : box[3], box[0] : box[2]] = shape
    return encode_mask(whole)
