"""Values and paths of data sets that are refused, each with its sentence; test_mutations.py draws others at random."""

import json
import os
import struct
import zlib
from pathlib import Path

import pytest

from concordet.data import detect_format, load_dataset

from ..data.forms import (
    coco_json,
    csv_corners,
    csv_divided,
    labels,
    save,
    voc_objects,
    voc_two_folders,
    write,
    yolo_without_yaml,
)

pytestmark = pytest.mark.filterwarnings("error")  # a warning is no sentence


def png(width, height):
    """A PNG file that claims a size and has no pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def one_image(root, **fields):
    """A COCO file of one image, and the function that loads it."""
    save(root, "a")
    content = json.loads(coco_json(["a"]))
    content["images"][0] |= fields.pop("image", {})
    content["annotations"][0] |= fields.pop("annotation", {})
    write(root / "boxes.json", json.dumps(content | fields))
    return lambda **options: load_dataset("coco", annotations=root / "boxes.json", **options)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image": {"id": [1]}}, "entry 1 of 'images' has no whole number 'id'"),
        ({"image": {"id": True}}, "entry 1 of 'images' has no whole number 'id'"),
        ({"image": {"id": 2**64}}, "entry 1 of 'images' has no whole number 'id'"),
        ({"image": {"file_name": 7}}, "image 0 has the file_name '7', which is not a name"),
        ({"image": {"file_name": {"a": 1}}}, "image 0 has the file_name .*, which is not a name"),
        ({"image": {"file_name": None, "coco_url": 5}}, "image 0 has the file_name '5', which is not a name"),
        ({"image": {"file_name": "a\0.jpg"}}, "image 0 has the file_name .*, which is not a name"),
        ({"image": {"width": float("inf")}}, "the width of image 0 must be a number of pixels, got 'inf'"),
        ({"image": {"height": "48"}}, "the height of image 0 must be a number of pixels, got '48'"),
        ({"image": {"width": -64}}, "the width of image 0 must be a number of pixels, got '-64'"),
        ({"annotation": {"bbox": [10**400, 0, 1, 1]}}, r"annotation 1 has the bbox \[1000.* instead of four numbers"),
        ({"annotation": {"bbox": [True, 0, 1, 1]}}, "annotation 1 has the bbox"),
        ({"annotation": {"bbox": "abcd"}}, "annotation 1 has the bbox"),
        ({"annotation": {"id": True}}, "annotation number 1 has the id True"),
        ({"annotation": {"id": [1]}}, r"annotation number 1 has the id \[1\]"),
        ({"annotation": {"id": 2**64}}, "annotation number 1 has the id 18446744073709551616"),
        ({"annotation": {"image_id": [1]}}, r"annotation 1 has image_id \[1\], which is not in 'images'"),
        ({"annotation": {"category_id": 2**70}}, "annotation 1 has category_id 1180.*, which is not in 'categories'"),
        ({"annotation": {"area": "large"}}, "annotation 1 has the area 'large', which is not a number"),
        ({"annotation": {"iscrowd": "0"}}, "annotation 1: iscrowd must be 0 or 1, got '0'"),
        ({"categories": [{"id": True, "name": "a"}]}, "entry 1 of 'categories' has no whole number 'id'"),
        ({"categories": [{"id": 1, "name": ["a"]}]}, "entry 1 of 'categories' has no"),
    ],
)
def test_values_that_evaluation_would_refuse(fields, sentence, tmp_path):
    with pytest.raises(ValueError, match=rf"boxes\.json: {sentence}"):
        one_image(tmp_path, **fields)()


@pytest.mark.parametrize("area", [None, float("nan"), float("inf"), -5])
def test_an_area_that_cannot_be_used_is_the_boxs(area, tmp_path):
    dataset = one_image(tmp_path, annotation={"area": area})()
    assert dataset.ground_truth()["annotations"][0]["area"] == 28 * 35
    assert dataset.summary()["areas_taken_from_the_box"] == 1


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        ({"size": [48, 64], "counts": [3072, -1, 1]}, "must be whole numbers from 0"),
        ({"size": [48, 64], "counts": [1.5, 3070.5]}, "must be whole numbers from 0"),
        ({"size": [48, 64], "counts": "abc"}, "cannot be read"),
        ({"size": 5, "counts": [3072]}, "size of a mask must be .* got 5"),
        ([["a", "b", "c", "d", "e", "f"]], "polygon must have finite coordinates, got a"),
        ([[float("nan"), 1, 5, 1, 5, 5]], "polygon must have finite coordinates, got nan"),
        ([[10**400, 1, 5, 1, 5, 5]], "polygon must have finite coordinates, got 1000"),
        (7, "segmentation must be a list of polygons or run lengths"),
    ],
)
def test_segmentations_are_checked_when_they_are_loaded(segmentation, sentence, tmp_path):
    load = one_image(tmp_path, annotation={"segmentation": segmentation})
    with pytest.raises(ValueError, match=rf"boxes\.json: annotation 1: .*{sentence}"):
        load(masks=True)
    assert len(load()) == 1


def test_deep_json(tmp_path):
    write(tmp_path / "boxes.json", "[" * 200_000 + "]" * 200_000)
    with pytest.raises(ValueError, match=r"boxes\.json must be valid JSON, got one that is nested too deeply"):
        load_dataset("coco", annotations=tmp_path / "boxes.json")


@pytest.mark.parametrize("content", ["", "[" * 200_000 + "]" * 200_000, '{"images": [', '{"a": ' + "9" * 5000 + "}"])
def test_a_damaged_file_in_a_folder_is_named(content, tmp_path):
    one_image(tmp_path)
    write(tmp_path / "boxes.json", content)
    with pytest.raises(
        ValueError, match=r"must hold a data set, got 2 files without one \(.*boxes\.json must be valid"
    ):
        detect_format(tmp_path)


def test_vocs_numbers_and_encodings(tmp_path):
    save(tmp_path, "a")
    save(tmp_path, "b")
    write(tmp_path / "b.xml", voc_objects("b"))
    text = voc_objects("a")
    for changed, sentence in (
        (text.replace("<width>64", "<width>inf"), r"a\.xml: the width must be a number of pixels, got inf"),
        ('<?xml version="1.0" encoding="klingon"?>' + text, r"a\.xml: not readable as XML .*encoding"),
        (text.replace("<xmax>34", "<xmax>ten"), r"a\.xml: object 1 \(cat\) has no bndbox of four numbers"),
    ):
        write(tmp_path / "a.xml", changed)
        with pytest.raises(ValueError, match=sentence):
            detect_format(tmp_path).open("train")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (png(60_000, 60_000), "exceeds limit"),
        (png(1, 20_000), "its sides are 1 and 20000 pixels, more than 100 to 1"),
        (b"", "no image format is recognized"),
    ],
)
def test_images_that_are_refused(content, sentence, tmp_path):
    load = one_image(tmp_path, image={"file_name": "a.png"})
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.png: the image cannot be decoded \(.*{sentence}"):
        load()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["a.jpg", "boxes.json"])
def test_pipes_are_refused_instead_of_read(name, tmp_path):
    load = one_image(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: .* must be a regular file, got a pipe or a device"):
        load()


# paths that lead outside


@pytest.fixture
def outside(tmp_path):
    """A data set in a folder, and an image outside of it."""
    secret = save(tmp_path / "private", "secret")
    return tmp_path / "data", secret


def leads_outside(source, name=""):
    return rf"{source}.*{name}.* leads outside .*data.*allow_outside"


@pytest.mark.parametrize("images", [None, "."])
@pytest.mark.parametrize("absolute", [False, True])
def test_coco_names_stay_inside(outside, images, absolute):
    root, secret = outside
    name = str(secret) if absolute else "../private/secret.jpg"
    one_image(root, image={"file_name": name})
    options = {"root": root, "annotations": "boxes.json", "images": images}
    with pytest.raises(ValueError, match=leads_outside(r"boxes\.json: image 0", "secret")):
        load_dataset("coco", **options)
    assert len(load_dataset("coco", **options, allow_outside=True)) == 1


def test_links_stay_inside(outside):
    root, secret = outside
    load = one_image(root)
    (root / "a.jpg").unlink()
    (root / "a.jpg").symlink_to(secret)
    with pytest.raises(ValueError, match=leads_outside(r"boxes\.json: image 0", r"a\.jpg")):
        load()
    assert len(load(allow_outside=True)) == 1
    (root / "a.jpg").unlink()
    (root / "a.jpg").symlink_to(save(root, "b"))
    assert len(load()) == 1


@pytest.mark.parametrize("form", [voc_two_folders, yolo_without_yaml, csv_divided])
def test_links_to_folders_stay_inside(form, tmp_path):
    root = form(tmp_path / "data")
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    (root / "images" / "loop").symlink_to(root)  # followed for ever, if at all
    with pytest.raises((ValueError, FileNotFoundError), match=r"is missing|images leads outside and was not followed"):
        detect_format(root).open("train")
    source = detect_format(root, allow_outside=True)
    assert sum(map(len, source.open_all(allow_outside=True).values())) == 5


def test_lists_stay_inside(outside):
    root, secret = outside
    write(secret.with_suffix(".xml"), voc_objects("a"))
    for name in "ab":
        save(root / "JPEGImages", name)
        write(root / "Annotations" / f"{name}.xml", voc_objects(name))
    write(root / "ImageSets" / "Main" / "train.txt", "a\n../../private/secret\n")
    with pytest.raises(ValueError, match=leads_outside(r"train\.txt", "secret")):
        load_dataset("voc", root=root, split="train")


@pytest.mark.parametrize("text", ["train: ../private\n", "path: ../private\ntrain: .\n", "train: list.txt\n"])
def test_yolo_stays_inside(outside, text):
    root, secret = outside
    write(secret.with_suffix(".txt"), labels("a"))
    write(root / "list.txt", f"{secret}\n")
    write(root / "data.yaml", f"{text}names: [cat, dog]\n")
    with pytest.raises((ValueError, FileNotFoundError), match=r"leads outside|no image of the split train"):
        load_dataset("yolo", root=root)
    if "path" not in text:
        assert len(load_dataset("yolo", root=root, allow_outside=True)) == 1


def test_tables_stay_inside(outside):
    root, secret = outside
    save(root, "a")
    write(root / "boxes.csv", csv_corners("a").replace("a.jpg", str(secret)))
    with pytest.raises(ValueError, match=leads_outside(r"boxes\.csv: row 2", "secret")):
        load_dataset("csv", root=root)
    assert len(load_dataset("csv", root=root, allow_outside=True)) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_size": "abc"}, "max_size must be at least 16 pixels, got 'abc'"),
        ({"max_size": True}, "max_size must be at least 16 pixels, got True"),
        ({"flip": "sideways"}, "flip must be 'none', 'horizontal' or 'both', got 'sideways'"),
        ({"held_out_split": "dev"}, "split must be 'train' or 'val', got 'dev'"),
        ({"num_classes": 3}, "has no option num_classes"),
    ],
)
def test_refused_options(options, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        one_image(tmp_path)(**options)


def test_missing_folders_are_no_unexpected_failure(tmp_path, capsys, monkeypatch):
    from concordet.cli import main

    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for words in (
        ["train", "nothing", "--out", "x"],
        ["train", "empty", "--out", "x"],
        ["train", "--data.name", "voc", "--data.root", "nothing", "--out", "x"],
        ["train", "--data.name", "coco", "--data.root", "empty", "--out", "x"],
    ):
        assert main(words) == 1
        said = capsys.readouterr().err
        assert "unexpected" not in said
        assert "nothing" in said or "empty" in said
