"""One small data set written to disk in every form that people have data in.

Each function of :data:`FORMS` writes :data:`IMAGES` below a folder, and returns the path that a user would name.
"""

import json
from collections.abc import Callable
from pathlib import Path

from tests.data.conftest import picture, voc_xml

WIDTH, HEIGHT = 64, 48
CLASSES = ["cat", "dog"]
IMAGES: dict[str, list[tuple[str, int, int, int, int]]] = {
    "a": [("cat", 6, 5, 34, 40), ("dog", 30, 20, 60, 44)],
    "b": [("cat", 0, 0, 64, 48)],
    "c": [("dog", 2, 4, 18, 24)],
    "d": [("dog", 10, 10, 20, 30), ("dog", 40, 8, 56, 16)],
    "e": [("cat", 16, 12, 48, 36)],
}
"""Objects of each image as corners in pixels."""

DIVIDED = {"train": ("a", "b", "c"), "val": ("d", "e")}


def save(folder: Path, name: str, suffix: str = ".jpg") -> Path:
    """Writes an image."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{suffix}"
    picture(WIDTH, HEIGHT, ord(name[0])).save(path)
    return path


def write(path: Path, text: str) -> Path:
    """Writes a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# YOLO


def labels(name: str, polygons: bool = False) -> str:
    """An image's labels in YOLO's form."""
    lines = []
    for cls, x1, y1, x2, y2 in IMAGES[name]:
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        numbers = (
            [value / side for corner in corners for value, side in zip(corner, (WIDTH, HEIGHT), strict=True)]
            if polygons
            else [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
        )
        lines.append(" ".join([str(CLASSES.index(cls)), *(f"{number:.9f}" for number in numbers)]))
    return "\n".join(lines) + "\n"


def yolo_parts_outside(root: Path) -> Path:
    """train/images, train/labels."""
    for part, names in DIVIDED.items():
        for name in names:
            save(root / part / "images", name)
            write(root / part / "labels" / f"{name}.txt", labels(name))
    write(root / "data.yaml", "train: train/images\nval: val/images\nnc: 2\nnames: [cat, dog]\n")
    return root


def yolo_parts_inside(root: Path) -> Path:
    """images/train, labels/train, with a path that is right only on another machine."""
    for part, names in DIVIDED.items():
        for name in names:
            save(root / "images" / part, name, ".png")
            write(root / "labels" / part / f"{name}.txt", labels(name, polygons=True))
    text = "path: ../datasets/pets  # where it was\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"
    write(root / "pets.yaml", text)
    return root


def yolo_roboflow(root: Path) -> Path:
    """Roboflow's export: ../train/images, valid, and a test part that was not downloaded."""
    for part, names in {"train": DIVIDED["train"], "valid": DIVIDED["val"]}.items():
        for name in names:
            save(root / part / "images", name)
            write(root / part / "labels" / f"{name}.txt", labels(name))
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"
    return write(root / "data.yaml", text + "roboflow:\n  license: MIT\n")


def yolo_lists(root: Path) -> Path:
    """Lists of images, in Darknet's manner."""
    for part, names in DIVIDED.items():
        for name in names:
            save(root / "obj", name)
            write(root / "obj" / f"{name}.txt", labels(name))
        write(root / f"{part}.txt", "".join(f"./obj/{name}.jpg\n" for name in names))
    write(root / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    return root


def yolo_without_yaml(root: Path) -> Path:
    """Images and labels only, divided by folders."""
    for part, names in DIVIDED.items():
        for name in names:
            save(root / "images" / part, name)
            write(root / "labels" / part / f"{name}.txt", labels(name))
    write(root / "classes.txt", "cat\ndog\n")
    return root


# COCO


def coco_json(names, prefix: str = "", headings: bool = False) -> str:
    """An annotation file of these images."""
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    if headings:  # Roboflow's category 0 heads the others and has no objects
        categories = [{"id": 0, "name": "pets", "supercategory": "none"}, *categories]
        categories[1:] = [category | {"supercategory": "pets"} for category in categories[1:]]
    objects = [(i, *thing) for i, name in enumerate(names) for thing in IMAGES[name]]
    return json.dumps(
        {
            "images": [
                {"id": i, "file_name": f"{prefix}{name}.jpg", "width": WIDTH, "height": HEIGHT}
                for i, name in enumerate(names)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": i,
                    "category_id": CLASSES.index(cls) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
                for number, (i, cls, x1, y1, x2, y2) in enumerate(objects, start=1)
            ],
            "categories": categories,
        }
    )


def coco_published(root: Path) -> Path:
    """COCO 2017's layout, with files beside the instances."""
    for part, names in DIVIDED.items():
        for name in names:
            save(root / f"{part}2017", name)
        write(root / "annotations" / f"instances_{part}2017.json", coco_json(names))
        write(root / "annotations" / f"person_keypoints_{part}2017.json", coco_json(names))
        write(root / "annotations" / f"captions_{part}2017.json", '{"images": [], "annotations": []}')
    return root


def coco_roboflow(root: Path) -> Path:
    """Roboflow's export: an annotation file beside the images of each part."""
    for part, names in {"train": DIVIDED["train"], "valid": DIVIDED["val"]}.items():
        for name in names:
            save(root / part, name)
        write(root / part / "_annotations.coco.json", coco_json(names, headings=True))
    return root


def coco_images_anywhere(root: Path) -> Path:
    """Names of another machine's files, and images in folders that no file mentions."""
    for part, names in DIVIDED.items():
        for index, name in enumerate(names):
            save(root / "pictures" / f"batch{index}", name)
        write(root / f"{part}.json", coco_json(names, prefix="/home/somebody/pets/"))
    return root


# Pascal VOC


def voc_objects(name: str) -> str:
    """An image's annotation; coordinates count from 1."""
    objects = [(cls, x1 + 1, y1 + 1, x2, y2) for cls, x1, y1, x2, y2 in IMAGES[name]]
    return voc_xml(objects, (WIDTH, HEIGHT)).replace("<filename>x<", f"<filename>{name}.jpg<")


def voc_published(root: Path) -> Path:
    """VOC's own layout."""
    for part, names in DIVIDED.items():
        for name in names:
            save(root / "JPEGImages", name)
            write(root / "Annotations" / f"{name}.xml", voc_objects(name))
        write(root / "ImageSets" / "Main" / f"{part}.txt", "".join(f"{name}\n" for name in names))
    return root


def voc_nested(root: Path) -> Path:
    """Folders of parts, each with its own annotations and images."""
    for part, names in {"Training": DIVIDED["train"], "Validation": DIVIDED["val"]}.items():
        for name in names:
            save(root / "pets" / part / "Images", name, ".png")
            write(root / "pets" / part / "Annotations" / f"{name}.xml", voc_objects(name))
    return root


def voc_one_folder(root: Path) -> Path:
    """Images and annotations beside each other, not divided, with a table of the same annotations."""
    for name in IMAGES:
        save(root, name)
        write(root / f"{name}.xml", voc_objects(name))
    write(root / "all.csv", csv_corners(IMAGES))
    return root


def voc_two_folders(root: Path) -> Path:
    """images and annotations, not divided."""
    for name in IMAGES:
        save(root / "images", name)
        write(root / "annotations" / f"{name}.xml", voc_objects(name))
    return root


# tables


def csv_corners(names) -> str:
    """Rows as TensorFlow's tutorials have them."""
    rows = [f"{n}.jpg,{WIDTH},{HEIGHT},{','.join(map(str, thing))}" for n in names for thing in IMAGES[n]]
    return "\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *rows]) + "\n"


def csv_divided(root: Path) -> Path:
    """train_labels.csv and val_labels.csv, images beside them in folders."""
    for part, names in DIVIDED.items():
        for name in names:
            save(root / "images" / part, name)
        write(root / f"{part}_labels.csv", csv_corners(names))
    return root


def csv_column_of_splits(root: Path) -> Path:
    """One table of boxes as corner and size, semicolons, and a column that says the split."""
    lines = ["Image ID;x;y;w;h;Label;Split"]
    for part, names in {"TRAIN": DIVIDED["train"], "VALIDATION": DIVIDED["val"]}.items():
        for name in names:
            save(root / "photos", name)
            for cls, x1, y1, x2, y2 in IMAGES[name]:
                lines.append(f"{name};{x1};{y1};{x2 - x1};{y2 - y1};{cls};{part}")
    return write(root / "boxes.csv", "\n".join(lines))


def csv_without_head(root: Path) -> Path:
    """keras-retinanet's table: no names of columns."""
    lines = []
    for name in IMAGES:
        save(root, name)
        lines += [f"{name}.jpg,{x1},{y1},{x2},{y2},{cls}" for cls, x1, y1, x2, y2 in IMAGES[name]]
    write(root / "annotations.csv", "\n".join(lines))
    return root


def csv_fractions(root: Path) -> Path:
    """Fractions of the image's size, as Open Images has them."""
    lines = ["ImageID,LabelName,XMin,XMax,YMin,YMax"]
    for name in IMAGES:
        save(root / "data", name)
        lines += [
            f"{name},{cls},{x1 / WIDTH},{x2 / WIDTH},{y1 / HEIGHT},{y2 / HEIGHT}"
            for cls, x1, y1, x2, y2 in IMAGES[name]
        ]
    write(root / "boxes.csv", "\n".join(lines))
    return root


FORMS: dict[Callable[[Path], Path], str] = {
    yolo_parts_outside: "YOLO (data.yaml)",
    yolo_parts_inside: "YOLO (pets.yaml)",
    yolo_roboflow: "YOLO (data.yaml)",
    yolo_lists: "YOLO (data.yaml)",
    yolo_without_yaml: "YOLO, without data.yaml",
    coco_published: "COCO",
    coco_roboflow: "COCO",
    coco_images_anywhere: "COCO",
    voc_published: "Pascal VOC",
    voc_nested: "Pascal VOC, images and annotations in folders of their own",
    voc_one_folder: "Pascal VOC, images and annotations in one folder",
    voc_two_folders: "Pascal VOC, images and annotations in folders of their own",
    csv_divided: "CSV of boxes",
    csv_column_of_splits: "CSV of boxes",
    csv_without_head: "CSV of boxes",
    csv_fractions: "CSV of boxes",
}
"""Functions that write a form, and how it is described."""

UNDIVIDED = {voc_one_folder, voc_two_folders, csv_without_head, csv_fractions}
