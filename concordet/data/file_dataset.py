"""Data sets of image files: annotations checked once, images decoded on demand."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from concordet.data.classes import Classes, select_classes
from concordet.data.masks import decode_segmentation
from concordet.data.paths import image_faults
from concordet.data.records import Annotations, Faults, Record, clip_boxes, drop_degenerate, is_proper
from concordet.data.splits import HoldOut
from concordet.data.targets import DetectionDataset, Target, Transforms, make_target
from concordet.images import read_header, read_rgb

HEADERS_CHECKED_AT_START: Final = 5000
"""Number of images up to which a data set reads all headers when it is constructed (about 0.2 ms each)."""


class FileDataset(DetectionDataset):
    """Images in files with annotations from any source.

    Degenerate boxes (no width or height, or not finite) and boxes wholly outside their image are dropped; boxes that
    leave the image are clipped in targets and stay as published in the ground truth.

    Args:
        annotated: Images and annotations from a reader.
        classes: Classes to keep, or new names by name, where classes with the same new name are merged and those with
            None are left out; see :func:`~concordet.data.classes.select_classes`. None keeps all.
        masks: Whether targets have masks; an object without a mask then becomes an ignored region.
        max_size: Longest side of the images in pixels; larger ones are shrunk, and ``target["scale"]`` has the factors.
        cache: Whether to keep decoded images in memory (at ``max_size``; every worker process has its own cache).
        check_images: Whether to read all headers now, which finds files that are not images and counts image modes.
            None does so for up to 5000 images; otherwise each header is read with its image.
        flip: Overrides :attr:`DetectionDataset.default_flip`.
        allow_outside: Whether annotations may name image files outside the data set's folders.
        skip_faulty: Whether to leave out images whose file is missing or not an image, instead of raising an error.
        held_out_split: "train" or "val" for one of two splits of images that are not divided; "val" is the share that
            is held out.
        val_fraction: Share of the images to hold out.
        val_seed: Seed of the choice of held-out images.
        transforms: See :class:`DetectionDataset`.

    Attributes:
        faults: Boxes and images that were dropped or changed, with their files.
        held_out: The division into training and validation images, or None.

    Raises:
        FileNotFoundError: Image files are missing.
        ValueError: There are no images, a file is not an image, or an option is out of its range.

    Example:
        Annotations from your own source; :class:`~concordet.data.CocoFolder` and the others take the same options:

        >>> from concordet.data import Annotations, Record
        >>> record = Record(
        ...     path=Path("photos/0.png"), image_id=1, size=(64, 64),
        ...     boxes=np.array([[5.0, 5.0, 30.0, 40.0]]), labels=np.array([2]), ignored=np.array([False]),
        ...     areas=np.array([875.0]), ids=np.array([1]),
        ... )
        >>> photos = FileDataset(Annotations([record], ["cat", "dog"], Path("photos")), classes=["dog"])
        >>> image, target = photos[0]
        >>> target["boxes"].tolist(), target["labels"].tolist(), photos.class_names
        ([[5.0, 5.0, 30.0, 40.0]], [1], ['dog'])
    """

    def __init__(
        self,
        annotated: Annotations,
        *,
        classes: Classes | None = None,
        masks: bool = False,
        max_size: int | None = None,
        cache: bool = False,
        check_images: bool | None = None,
        flip: str | None = None,
        allow_outside: bool = False,
        skip_faulty: bool = False,
        held_out_split: str | None = None,
        val_fraction: float = 0.2,
        val_seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        if max_size is not None and (isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 16):
            raise ValueError(
                f"max_size must be at least 16 pixels, got {max_size!r}; it is the longest side of images, null leaves "
                "them as they are"
            )
        if flip not in (None, "none", "horizontal", "both"):
            raise ValueError(f"flip must be 'none', 'horizontal' or 'both', got {flip!r}")
        self.held_out: HoldOut | None = None
        if held_out_split is not None:
            self.held_out = HoldOut(held_out_split, val_fraction, val_seed)
            base = annotated.source if annotated.source.is_dir() else annotated.source.parent
            names = [_relative(record, base) for record in annotated.records]
            chosen = [annotated.records[index] for index in self.held_out.indices(names)]
            annotated = replace(annotated, records=chosen)
        annotated = select_classes(annotated, classes)
        self.class_names: list[str] = list(annotated.class_names)
        self.category_ids: list[int] = list(annotated.category_ids or range(1, len(annotated.class_names) + 1))
        self.masks: bool
        self.max_size: int | None
        self.transforms: Transforms | None
        self.masks, self.max_size, self.transforms = masks, max_size, transforms
        if flip is not None:
            self.default_flip = flip
        self.faults: Faults = Faults(Counter(annotated.counts))
        self._cache: dict[int, Image.Image] | None = {} if cache else None
        records = annotated.records
        if not records:
            raise ValueError(
                f"{annotated.source}: the data set has no images; name another split, folder or annotation file"
            )
        folders = () if allow_outside else annotated.folders
        records = self._without(image_faults(records, folders, annotated.source), records, skip_faulty)
        if check_images is None:
            check_images = len(records) <= HEADERS_CHECKED_AT_START
        sizes: list[tuple[int, int] | None] = []
        unreadable: dict[int, Exception] = {}
        for index, record in enumerate(records):
            needed = check_images or record.size is None
            try:
                sizes.append(_inspect(record, self.faults) if needed else None)
            except ValueError as error:
                sizes.append(None)
                unreadable[index] = error
        sizes = [size for index, size in enumerate(sizes) if index not in unreadable]
        records = self._without(unreadable, records, skip_faulty)
        known = [size or record.size or (0, 0) for record, size in zip(records, sizes, strict=True)]
        records = [_in_pixels(r, s) if r.normalized else r for r, s in zip(records, known, strict=True)]
        self._sizes = sizes
        self._records = drop_degenerate(records, known, self.faults)

    def _without(self, faulty: dict[int, Exception], records: list[Record], skip: bool) -> list[Record]:
        """The records without those whose image file is faulty, or the first fault as an error."""
        if not faulty:
            return records
        if not skip or len(faulty) == len(records):
            first = next(iter(faulty.values()))
            more = f" (and {len(faulty) - 1:,} more)" if len(faulty) > 1 else ""
            path, colon, fault = str(first).partition(": ")
            raise type(first)(f"{path}{more}{colon}{fault}") from first
        for index, error in faulty.items():
            self.faults.add("faulty_images_left_out", records[index].path, str(error).partition(": ")[2])
        return [record for index, record in enumerate(records) if index not in faulty]

    def __len__(self) -> int:
        return len(self._records)

    def sample(self, index: int) -> tuple[Tensor, Target]:
        record = self._records[index]
        width, height = self._size(index)
        image = self._decoded(index)
        scale = image.width / width, image.height / height
        boxes = clip_boxes(record.boxes, (width, height))
        objects = ~record.ignored & is_proper(boxes)
        masks = None
        if self.masks:
            masks = self._masks(record, objects, (width, height), image.size)
            shown = masks.flatten(1).bool().any(1).numpy()
            masks = masks[torch.from_numpy(shown)]
            objects[objects] = shown
        ignored = ~objects & is_proper(boxes)
        boxes = boxes * np.array([*scale, *scale])
        target = make_target(
            torch.from_numpy(boxes[objects]),
            torch.from_numpy(record.labels[objects]),
            torch.from_numpy(boxes[ignored]),
            image_id=record.image_id,
            size=(image.height, image.width),
            scale=scale,
            masks=masks,
        )
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return tv_tensors.Image(pixels), target

    def load_image(self, index: int) -> Image.Image:
        self._size(index)
        return read_rgb(self._records[index].path, turn=self._records[index].turn)

    def image_path(self, index: int) -> Path | None:
        return self._records[index].path

    def annotations_of(self, index: int) -> dict[str, NDArray[Any]]:
        """Boxes ``[n, 4]`` xyxy in pixels of the original image and labels ``[n]`` of an image's objects."""
        record = self._records[index]
        objects = ~record.ignored
        return {"boxes": clip_boxes(record.boxes, self._size(index))[objects], "labels": record.labels[objects]}

    def ground_truth(self) -> dict[str, Any]:
        images, annotations = [], []
        for record, size in zip(self._records, self._sizes, strict=True):
            width, height = size or record.size or (0, 0)
            name = record.path.name if record.name is None else record.name
            fields = {"id": record.image_id, "file_name": name, "width": width, "height": height}
            images.append(fields | (record.extra or {}))
            annotations += self._annotations(record)
        ids = [annotation["id"] for annotation in annotations]
        if len(set(ids)) < len(ids) or min(ids, default=1) < 1:  # pycocotools uses 0 for "unmatched"
            for number, annotation in enumerate(annotations, start=1):
                annotation["id"] = number
        names = zip(self.category_ids, self.class_names, strict=True)
        return {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": category, "name": name} for category, name in names],
        }

    def summary(self) -> dict[str, int]:
        objects = [int((~record.ignored).sum()) for record in self._records]
        return {
            "images": len(self._records),
            "objects": sum(objects),
            "classes": len(self.class_names),
            "images_without_objects": objects.count(0),
            **dict(sorted(self.faults.counts.items())),
            "image_headers_checked": len(self._sizes) - self._sizes.count(None),
        }

    def _annotations(self, record: Record) -> list[dict[str, Any]]:
        annotations = []
        columns = (record.boxes, record.labels, record.ignored, record.areas, record.ids)
        for index, (box, label, ignored, area, number) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            annotation = {
                "id": number,
                "image_id": record.image_id,
                "category_id": self.category_ids[label - 1],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": area,
                "iscrowd": int(ignored),
            }
            if record.segmentations is not None:
                annotation["segmentation"] = record.segmentations[index]
            annotations.append(annotation)
        return annotations

    def _size(self, index: int) -> tuple[int, int]:
        """(width, height) of the image that the annotations refer to, from its header."""
        size = self._sizes[index]
        if size is None:
            size = self._sizes[index] = _inspect(self._records[index], self.faults)
        return size

    def _decoded(self, index: int) -> Image.Image:
        """The image, shrunk to ``max_size``; call :meth:`_size` first, which sets ``record.turn``."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        record = self._records[index]
        image = read_rgb(record.path, turn=record.turn, max_size=self.max_size)
        if self._cache is not None:
            self._cache[index] = image
        return image

    def _masks(
        self, record: Record, objects: NDArray[np.bool_], original: tuple[int, int], resized: tuple[int, int]
    ) -> Tensor:
        """``[n, H, W]`` uint8 of the objects, at the size of the resized image."""
        masks = []
        for index in np.flatnonzero(objects):
            segmentation = record.segmentations[index] if record.segmentations is not None else None
            try:
                mask = decode_segmentation(segmentation, original[1], original[0])
            except ValueError as error:
                where = f"annotation {record.ids[index]} of image {record.path}"
                raise ValueError(f"{where}: {error}; correct or remove this annotation") from error
            if resized != original:
                mask = np.asarray(Image.fromarray(mask).resize(resized, Image.Resampling.NEAREST))
            masks.append(torch.from_numpy(np.array(mask)))
        return torch.stack(masks) if masks else torch.zeros((0, resized[1], resized[0]), dtype=torch.uint8)


def _relative(record: Record, folder: Path) -> str:
    """The image's path relative to the data set, which is the same in a copy of the data set."""
    path, base = os.path.abspath(record.path), os.path.join(os.path.abspath(folder), "")
    return path[len(base) :].replace(os.sep, "/") if path.startswith(base) else record.path.name


def _inspect(record: Record, faults: Faults) -> tuple[int, int]:
    """(width, height) of the image that the annotations refer to; sets ``record.turn``."""
    header = read_header(record.path)
    faults.counts.update(header.counts_as())
    record.turn = header.orientation != 1 if record.normalized else header.turned(record.size)
    turned = record.turn and header.is_quarter_turned()
    size = (header.height, header.width) if turned else (header.width, header.height)
    if header.orientation != 1:
        faults.counts["images_turned_by_exif" if record.turn else "exif_orientations_not_applied"] += 1
    if record.size not in (None, size):
        width, height = record.size or (0, 0)
        fault = f"the image is {size[0]} x {size[1]} pixels, its annotation says {width} x {height}"
        faults.add("sizes_other_than_annotated", record.path, fault)
    return size


def _in_pixels(record: Record, size: tuple[int, int]) -> Record:
    """The record with fractions converted to pixels of the image, in place."""
    record.boxes = record.boxes * np.array([*size, *size], np.float64)
    record.areas = record.areas * (size[0] * size[1])
    if record.segmentations is not None:
        scale = np.array(size, np.float64)
        record.segmentations = [
            [(np.reshape(polygon, (-1, 2)) * scale).ravel().tolist() for polygon in polygons]
            for polygons in record.segmentations
        ]
    record.normalized = False
    return record
