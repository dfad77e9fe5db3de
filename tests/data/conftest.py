"""Small data sets in their publishers' layouts, written to disk."""

import json

import numpy as np
import pytest
from PIL import Image


def picture(width, height, seed=0):
    """A smooth colored image, so that JPEG changes it little."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def voc_xml(objects, size=(64, 48)):
    """``objects``: (name, xmin, ymin, xmax, ymax[, difficult])."""
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    items = "".join(
        f"<object><name>{name}</name><part><name>hand</name></part><difficult>{int(bool(rest))}</difficult><bndbox>"
        f"<xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d, *rest in objects
    )
    return f"<annotation><filename>x</filename>{shape}{items}</annotation>"


@pytest.fixture(name="picture")
def picture_function():
    """The function :func:`picture`."""
    return picture


@pytest.fixture
def voc(tmp_path):
    """Writes a VOC folder: ``voc({"name": objects})`` and returns its path."""

    root = tmp_path / "voc"

    def write(annotations, split="trainval", size=(64, 48)):
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name, objects in annotations.items():
            (root / "Annotations" / f"{name}.xml").write_text(voc_xml(objects, size))
            picture(64, 48).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in annotations))
        return root

    return write


@pytest.fixture
def coco(tmp_path):
    """Writes a COCO folder from lists of annotations and images (64 x 48 where not given), and returns its path."""

    def write(annotations, images=None, categories=None, files=None):
        images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}] if images is None else images
        categories = categories or [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "tiny").mkdir(exist_ok=True)
        for entry in images:
            path = tmp_path / "tiny" / entry["file_name"]
            if not path.exists():
                picture(64, 48).save(path)
        for name, content in (files or {}).items():
            (tmp_path / "tiny" / name).write_bytes(content)
        data = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / "instances_tiny.json").write_text(json.dumps(data))
        return tmp_path

    return write
