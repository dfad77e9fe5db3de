"""COCO's form: an annotation file in JSON, and images in a folder or anywhere below the data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final

from concordet.data.file_dataset import FileDataset
from concordet.data.formats.coco_annotations import ImageFinder, read_annotations, read_coco_json
from concordet.data.paths import Listing
from concordet.data.registry import register_dataset
from concordet.data.splits import split_of
from concordet.data.targets import Layout

LAYOUT: Final = "annotations/instances_{split}.json and {split}/"


@register_dataset("coco")
class CocoFolder(FileDataset):
    """An annotation file in COCO's form (Lin et al. 2014) with its images.

    Labels 1..C are the file's categories in the order of their ids, which ``category_ids`` and :meth:`ground_truth`
    have. Crowds become ignored regions. Objects whose segmentation has no area are counted and keep their box. A
    category without objects that is only the supercategory of others, as in Roboflow's exports, is left out.

    Args:
        root: Folder with ``annotations/instances_<split>.json`` and ``<split>/``.
        split: "train2017", "val2017", or another name of a split.
        annotations: Annotation file, if it is elsewhere; relative to ``root`` if that is given.
        images: Folder of the images, if it is elsewhere; relative to ``root`` if that is given. Without it and without
            ``root``, images are searched below the folder of the annotation file.
        **options: Options of :class:`~concordet.data.file_dataset.FileDataset`.

    Raises:
        FileNotFoundError: The annotation file, the folder or an image file is missing.
        ValueError: The file is not JSON of this form, refers to an unknown image or category, or has no images.

    Example:
        >>> dogs = CocoFolder("pets-coco", "val2017", classes=["dog"])
        >>> image, target = dogs[0]
        >>> len(dogs), tuple(image.shape), target["boxes"].tolist()
        (2, (3, 48, 64), [[10.0, 10.0, 20.0, 30.0], [40.0, 8.0, 56.0, 16.0]])
    """

    default_splits: ClassVar[dict[str, str]] = {"train": "train2017", "val": "val2017"}
    looks_for = "a JSON file with the lists images, annotations and categories (COCO)"

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train2017",
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        masks: bool = False,
        **options: Any,
    ) -> None:
        finder = ImageFinder(root, split, annotations, images, LAYOUT, bool(options.get("allow_outside")))
        data = read_coco_json(finder.file, masks)
        super().__init__(read_annotations(data, finder, masks), masks=masks, **options)

    @classmethod
    def recognize(cls, listing: Listing) -> Layout | None:
        return recognize_json(listing, "COCO", lvis=False)


def recognize_json(listing: Listing, form: str, *, lvis: bool) -> Layout | None:
    """The annotation files in COCO's form below a folder, by split.

    Raises:
        ValueError: Their names do not show which split each of them is.
    """
    files = [path for path in listing.with_suffix(".json") if _is_annotation_file(path, lvis)]
    instances = [path for path in files if path.name.startswith(("instances_", "lvis_v1_"))]
    files = instances or files
    if not files:
        return None
    parts: dict[str, Path] = {}
    for path in files:
        name = split_of(path.relative_to(listing.root))
        if len(files) == 1:
            name = "train" if name == "train" else "all"
        if name is None or name in parts:
            names = ", ".join(str(path.relative_to(listing.root)) for path in files[:5])
            raise ValueError(
                f"{listing.root}: the names of {len(files)} annotation files in {form} format ({names}) do not show "
                "which are for training and validation; name one of them, or give --data.name coco with "
                "--data.train_annotations and --data.val_annotations"
            )
        parts[name] = path
    options: dict[str, dict[str, Any]] = {
        name: {"annotations": path}
        if listing.named
        else {"root": listing.root, "annotations": path.relative_to(listing.root)}
        for name, path in parts.items()
    }
    return Layout(form, options)


def _is_annotation_file(path: Path, lvis: bool) -> bool:
    """Whether the names of COCO's lists are in a JSON file, without parsing it."""
    missing = {b'"images"', b'"annotations"', b'"categories"'}
    is_lvis, tail = False, b""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            while chunk := file.read(2**24):
                content = tail + chunk
                missing = {key for key in missing if key not in content}
                is_lvis = is_lvis or b'"neg_category_ids"' in content
                tail = chunk[-32:]
    except OSError:
        return False
    return not missing and lvis == is_lvis
