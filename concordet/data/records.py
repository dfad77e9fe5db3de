"""Data sets of image files: boxes checked once, images decoded on demand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from concordet.data.images import read_header, read_rgb
from concordet.data.masks import decode_segmentation
from concordet.data.targets import DetectionDataset, Target, Transforms, make_target

HEADERS_CHECKED_AT_START: Final = 5000
"""Up to so many images a data set reads all headers when it is made (about 0.2 ms each)."""

_THINNEST = 0.01  # pixels; a box of less is no box
_CLIPPED = 0.5  # pixels beyond the image that count as clipped; published boxes end up to half a pixel outside


@dataclass
class Record:
    """One image with its annotations as published; n objects and ignored regions together.

    Attributes:
        path: the image file.
        image_id: the id in targets and ground truth.
        size: (width, height) as the annotations have it, or None.
        boxes: ``[n, 4]`` float64 xyxy, before clipping.
        labels: ``[n]`` int64 1..C.
        ignored: ``[n]`` bool, crowd regions and difficult objects.
        areas: ``[n]`` float64 for the ground truth.
        ids: ``[n]`` int64 annotation ids.
        segmentations: n polygons or run lengths where masks are asked for, else None.
        extra: further fields of the image in the ground truth.
        turn: whether the annotations refer to the image turned upright by its EXIF orientation.
    """

    path: Path
    image_id: int
    size: tuple[int, int] | None
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    ids: NDArray[np.int64]
    segmentations: list[Any] | None = None
    extra: dict[str, Any] | None = None
    turn: bool = False


class FileDataset(DetectionDataset):
    """Images in files with annotations from any source.

    Degenerate boxes (no width or height, or not finite) and boxes wholly outside their image are dropped; boxes that
    leave the image are clipped in targets and stay as published in the ground truth.

    Args:
        records: images and annotations.
        class_names: names by label.
        category_ids: ids of the ground truth by label; None is 1..C.
        counts: what the reader of the annotations has counted so far.
        masks: whether targets carry masks; an object without a mask then becomes an ignored region.
        max_size: longest side of the images given; larger ones are made smaller, and ``target["scale"]``
            tells by how much.
        cache: keep decoded images in memory (at ``max_size``; every worker process has its own).
        check_images: read all headers now, which finds what is no image and counts kinds of images.  None does so for
            up to 5000 images; else each header is read with its image.
        flip: overrides :attr:`DetectionDataset.default_flip`.
        transforms: see :class:`DetectionDataset`.

    Raises:
        FileNotFoundError: image files are missing.
        ValueError: there are no images, or a file is no image.
    """

    def __init__(
        self,
        records: Sequence[Record],
        class_names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        counts: Counter[str] | None = None,
        masks: bool = False,
        max_size: int | None = None,
        cache: bool = False,
        check_images: bool | None = None,
        flip: str | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        if max_size is not None and max_size < 16:
            raise ValueError(f"max_size, the longest side of images in pixels, must be at least 16, not {max_size}")
        self.class_names = list(class_names)
        self.category_ids = list(category_ids or range(1, len(class_names) + 1))
        self.masks, self.max_size, self.transforms = masks, max_size, transforms
        if flip is not None:
            self.default_flip = flip
        self._counts = Counter(counts or {})
        self._cache: dict[int, Image.Image] | None = {} if cache else None
        if not records:
            raise ValueError("the data set has no images; name another split, folder or annotation file")
        _check_presence(record.path for record in records)
        if check_images is None:
            check_images = len(records) <= HEADERS_CHECKED_AT_START
        self._sizes: list[tuple[int, int] | None] = [
            _inspect(record, self._counts) if check_images or record.size is None else None for record in records
        ]
        self._records = [
            _tidy(record, size or record.size or (0, 0), self._counts)
            for record, size in zip(records, self._sizes, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._records)

    def sample(self, index: int) -> tuple[Tensor, Target]:
        record = self._records[index]
        width, height = self._size(index)
        image = self._decoded(index)
        scale = image.width / width, image.height / height
        boxes = _clip(record.boxes, (width, height))
        objects = ~record.ignored & _proper(boxes)
        masks = None
        if self.masks:
            masks = self._masks(record, objects, (width, height), image.size)
            shown = masks.flatten(1).bool().any(1).numpy()
            masks = masks[torch.from_numpy(shown)]
            objects[objects] = shown
        ignored = ~objects & _proper(boxes)
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

    def ground_truth(self) -> dict[str, Any]:
        images, annotations = [], []
        for record, size in zip(self._records, self._sizes, strict=True):
            width, height = size or record.size or (0, 0)
            fields = {"id": record.image_id, "file_name": record.path.name, "width": width, "height": height}
            images.append(fields | (record.extra or {}))
            annotations += self._annotations(record)
        ids = [annotation["id"] for annotation in annotations]
        if len(set(ids)) < len(ids) or min(ids, default=1) < 1:  # 0 is "unmatched" to pycocotools
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
            **dict(sorted(self._counts.items())),
            "image_headers_checked": len(self._sizes) - self._sizes.count(None),
        }

    def _annotations(self, record: Record) -> list[dict[str, Any]]:
        found = []
        for place, (box, label, ignored, area, number) in enumerate(
            zip(
                record.boxes.tolist(),
                record.labels.tolist(),
                record.ignored.tolist(),
                record.areas.tolist(),
                record.ids.tolist(),
                strict=True,
            )
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
                annotation["segmentation"] = record.segmentations[place]
            found.append(annotation)
        return found

    def _size(self, index: int) -> tuple[int, int]:
        """(width, height) of the image that the annotations refer to, from its header."""
        size = self._sizes[index]
        if size is None:
            size = self._sizes[index] = _inspect(self._records[index], self._counts)
        return size

    def _decoded(self, index: int) -> Image.Image:
        """The image at the size given; :meth:`_size` has been called."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        record = self._records[index]
        image = read_rgb(record.path, turn=record.turn, max_size=self.max_size)
        if self._cache is not None:
            self._cache[index] = image
        return image

    def _masks(
        self, record: Record, objects: NDArray[np.bool_], original: tuple[int, int], given: tuple[int, int]
    ) -> Tensor:
        """``[n, H, W]`` uint8 of the objects, at the size of the image given."""
        masks = []
        for place in np.flatnonzero(objects):
            segmentation = record.segmentations[place] if record.segmentations is not None else None
            try:
                mask = decode_segmentation(segmentation, original[1], original[0])
            except ValueError as error:
                where = f"annotation {record.ids[place]} of image {record.path}"
                raise ValueError(f"{where}: {error}; mend or remove this annotation") from error
            if given != original:
                mask = np.asarray(Image.fromarray(mask).resize(given, Image.Resampling.NEAREST))
            masks.append(torch.from_numpy(np.array(mask)))
        return torch.stack(masks) if masks else torch.zeros((0, given[1], given[0]), dtype=torch.uint8)


def _check_presence(paths: Iterable[Path]) -> None:
    """Compares with one listing per folder, which is faster than asking for each file."""
    folders: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in folders[path.parent]:
            missing.append(path)
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0]}{more}: the image file is missing; restore it or remove its annotations")


def _inspect(record: Record, counts: Counter[str]) -> tuple[int, int]:
    """(width, height) of the image as its annotations see it; sets ``record.turn``."""
    header = read_header(record.path)
    counts.update(header.kinds())
    record.turn = header.turned(record.size)
    size = (header.height, header.width) if record.turn else (header.width, header.height)
    if header.orientation != 1:
        counts["images_turned_by_exif" if record.turn else "exif_orientations_not_applied"] += 1
    if record.size not in (None, size):
        counts["sizes_other_than_annotated"] += 1
    return size


def _tidy(record: Record, size: tuple[int, int], counts: Counter[str]) -> Record:
    """The record without boxes that can be no object."""
    clipped = _clip(record.boxes, size)
    proper, visible = _proper(record.boxes), _proper(clipped)
    counts["degenerate_boxes_dropped"] += int((~proper).sum())
    counts["boxes_outside_image_dropped"] += int((proper & ~visible).sum())
    keep = proper & visible
    counts["boxes_clipped"] += int((abs(clipped - record.boxes)[keep] > _CLIPPED).any(1).sum())
    if keep.all():
        return record
    segmentations = record.segmentations
    return replace(
        record,
        boxes=record.boxes[keep],
        labels=record.labels[keep],
        ignored=record.ignored[keep],
        areas=record.areas[keep],
        ids=record.ids[keep],
        segmentations=None if segmentations is None else [segmentations[i] for i in np.flatnonzero(keep)],
    )


def _clip(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    return np.clip(boxes, 0, np.array([*size, *size], np.float64))


def _proper(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    extents = boxes[:, 2:] - boxes[:, :2]
    return np.logical_and(np.isfinite(boxes).all(1), (extents >= _THINNEST).all(1))
