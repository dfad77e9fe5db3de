"""Small data sets in their publishers' layouts, with the parts that recipes train and evaluate on."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.conftest import picture, voc_xml

WIDTH, HEIGHT = 64, 48
CORNERS = [[(6, 5), (34, 5), (34, 40)], [(30, 20), (60, 20), (60, 44), (30, 44)]]  # two objects as polygons


def _annotations(image: int) -> list[dict]:
    found = []
    for number, (corners, category) in enumerate(zip(CORNERS, (3, 7), strict=True)):
        x, y = zip(*corners, strict=True)
        box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
        found.append(
            {
                "id": 10 * image + number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": [[value for corner in corners for value in corner]],
            }
        )
    return found


def _write_coco(root: Path, file: str, folder: str, **extra) -> None:
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT, **extra} for i in (1, 2)]
    (root / folder).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for entry in images:
        picture(WIDTH, HEIGHT, entry["id"]).save(root / folder / entry["file_name"])
        if extra:  # LVIS finds images by COCO's address
            entry["coco_url"] = f"http://images.cocodataset.org/{folder}/{entry.pop('file_name')}"
    categories = [{"id": 3, "name": "cat", "frequency": "f"}, {"id": 7, "name": "dog", "frequency": "r"}]
    data = {"images": images, "annotations": _annotations(1) + _annotations(2), "categories": categories}
    (root / "annotations" / file).write_text(json.dumps(data))


def coco_tree(root: Path) -> Path:
    """COCO 2017's two parts."""
    for part in ("train2017", "val2017"):
        _write_coco(root, f"instances_{part}.json", part)
    return root


def lvis_tree(root: Path) -> Path:
    """LVIS v1's two parts."""
    for part in ("train", "val"):
        lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        _write_coco(root, f"lvis_v1_{part}.json", f"{part}2017", **lists)
    return root


VOC_LISTS = {"trainval0712": ["000001", "2008_000002"], "test": ["000003", "000004"]}


def voc_tree(root: Path, lists: dict[str, list[str]] = VOC_LISTS) -> Path:
    """VOC 2007 and 2012 in one folder, as the documentation of recipes makes it, or a folder of other lists."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, images in lists.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
        for name in images:
            (root / "Annotations" / f"{name}.xml").write_text(
                voc_xml([("cat", 7, 6, 34, 40), ("dog", 31, 21, 60, 44)], (WIDTH, HEIGHT))
            )
            picture(WIDTH, HEIGHT).save(root / "JPEGImages" / f"{name}.jpg")
    return root


def cityscapes_tree(root: Path) -> Path:
    """Two parts of one town each."""
    ids = np.full((HEIGHT, WIDTH), 7, np.uint16)
    ids[5:40, 6:34] = 26001  # a car
    ids[20:44, 36:60] = 24000  # a person
    for part in ("train", "val"):
        for kind in ("leftImg8bit", "gtFine"):
            (root / kind / part / "ulm").mkdir(parents=True)
        for place in range(2):
            name = f"ulm_{place:06d}_000019"
            picture(WIDTH, HEIGHT).save(root / "leftImg8bit" / part / "ulm" / f"{name}_leftImg8bit.png")
            Image.fromarray(ids).save(root / "gtFine" / part / "ulm" / f"{name}_gtFine_instanceIds.png")
    return root


TREES = {"coco": coco_tree, "voc": voc_tree, "lvis": lvis_tree, "cityscapes": cityscapes_tree}
