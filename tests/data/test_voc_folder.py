"""Pascal VOC folders, written here and as published."""

from pathlib import Path

import pytest
import torch

from concordet.data import VocFolder, describe, load_dataset
from concordet.data.formats.voc import VOC_CLASSES

BCCD = Path(__file__).parents[2] / ".." / "shared" / "data" / "bccd"


def test_boxes_count_pixels_from_one(voc):
    root = voc({"a": [("cell", 1, 1, 64, 48), ("blob", 11, 21, 20, 30)]})
    dataset = VocFolder(root)
    _, target = dataset[0]
    assert dataset.class_names == ["blob", "cell"]
    assert target["boxes"].tolist() == [[0, 0, 64, 48], [10, 20, 20, 30]]
    assert target["labels"].tolist() == [2, 1]
    assert dataset.summary().get("boxes_clipped", 0) == 0
    assert VocFolder(root, one_based=False)[0][1]["boxes"].tolist() == [[1, 1, 64, 48], [11, 21, 20, 30]]


def test_what_real_files_contain_is_handled_and_counted(voc):
    root = voc(
        {
            "a": [
                ("cell", 11, 11, 20, 20),
                ("cell", 31, 11, 40, 20, True),
                ("cell", 50, 40, 80, 60),
                ("cell", 70, 10, 90, 20),
                ("cell", 30, 20, 20, 30),
                ("cell", "nan", 20, 20, 30),
            ],
            "b": [],
        }
    )
    dataset = VocFolder(root)
    _, target = dataset[0]
    assert target["boxes"].tolist() == [[10, 10, 20, 20], [49, 39, 64, 48]]
    assert target["ignored_boxes"].tolist() == [[30, 10, 40, 20]]
    _, empty = dataset[1]
    assert empty["boxes"].shape == empty["ignored_boxes"].shape == (0, 4)
    assert empty["labels"].shape == (0,)
    summary = {name: count for name, count in dataset.summary().items() if count}
    assert summary == {
        "images": 2,
        "objects": 2,
        "classes": 1,
        "images_without_objects": 1,
        "difficult_objects_ignored": 1,
        "boxes_clipped": 1,
        "boxes_outside_image_dropped": 1,
        "degenerate_boxes_dropped": 2,
        "image_headers_checked": 2,
    }
    assert "2 degenerate boxes dropped" in describe(summary)
    truth = dataset.ground_truth()
    assert [(a["iscrowd"], a["id"]) for a in truth["annotations"]] == [(0, 1), (1, 2), (0, 3)]
    assert truth["annotations"][2]["bbox"] == [49, 39, 31, 21]
    assert truth["images"][1] == {"id": 1, "file_name": "b.jpg", "width": 64, "height": 48}


def test_classes_are_those_of_all_annotations_in_every_split(voc):
    voc({"a": [("zebra", 1, 1, 9, 9)]}, split="train")
    root = voc({"b": [("ant", 1, 1, 9, 9)]}, split="val")
    assert VocFolder(root, "train").class_names == VocFolder(root, "val").class_names == ["ant", "zebra"]
    assert VocFolder(root, None).summary()["images"] == 2


def test_vocs_own_folder_has_vocs_classes(voc):
    root = voc({"a": [("person", 1, 1, 9, 9)]})
    renamed = root.rename(root.parent / "VOC2007")
    dataset = VocFolder(renamed)
    assert dataset.class_names == list(VOC_CLASSES)
    assert len(VOC_CLASSES) == 20
    assert dataset[0][1]["labels"].tolist() == [15]


def test_a_size_that_is_missing_or_wrong(voc):
    root = voc({"a": [("cell", 1, 1, 64, 48)]}, size=None)
    assert VocFolder(root).ground_truth()["images"][0]["width"] == 64
    root = voc({"a": [("cell", 1, 1, 64, 48)]}, size=(0, 0))
    assert VocFolder(root).ground_truth()["images"][0]["height"] == 48
    root = voc({"a": [("cell", 1, 1, 99, 48)]}, size=(100, 48))
    dataset = VocFolder(root)
    assert dataset.summary()["sizes_other_than_annotated"] == 1
    assert dataset[0][1]["boxes"].tolist() == [[0, 0, 64, 48]]


def test_lists_with_a_second_column_and_other_image_formats(voc):
    root = voc({"a": [("cell", 1, 1, 9, 9)]})
    (root / "ImageSets" / "Main" / "cell_val.txt").write_text("a  1\n\na -1\n")
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "a.JPG")
    dataset = VocFolder(root, "cell_val")
    assert len(dataset) == 1
    assert dataset.image_path(0) == root / "JPEGImages" / "a.JPG"


@pytest.mark.parametrize(
    ("break_it", "error", "sentence"),
    [
        (lambda r: (r / "JPEGImages/a.jpg").unlink(), FileNotFoundError, r"a\.jpg: the image file is missing"),
        (lambda r: (r / "Annotations/a.xml").unlink(), FileNotFoundError, r"a\.xml: the annotation is missing"),
        (lambda r: (r / "Annotations/a.xml").write_text("<annotation>"), ValueError, r"a\.xml: not readable as XML"),
        (lambda r: (r / "JPEGImages/a.jpg").write_bytes(b"no"), ValueError, r"a\.jpg: .*no image format is recognized"),
        (lambda r: (r / "JPEGImages/a.jpg").write_bytes(b""), ValueError, r"a\.jpg: .*cannot be decoded"),
        (lambda r: (r / "ImageSets/Main/trainval.txt").write_text(" \n"), ValueError, r"trainval\.txt: .*empty"),
        (
            lambda r: (r / "ImageSets/Main/trainval.txt").rename(r / "ImageSets/Main/mine.txt"),
            FileNotFoundError,
            r"no list of the split 'trainval'; the lists there are mine",
        ),
        (lambda r: (r / "Annotations").rename(r / "sub_Annotations"), FileNotFoundError, "no folder Annotations"),
    ],
)
def test_broken_folders(voc, break_it, error, sentence):
    root = voc({"a": [("cell", 1, 1, 9, 9)]})
    break_it(root)
    with pytest.raises(error, match=sentence):
        VocFolder(root)


def test_the_folder_above_is_named(voc):
    root = voc({"a": [("cell", 1, 1, 9, 9)]})
    with pytest.raises(FileNotFoundError, match=f"name {root} instead"):
        VocFolder(root.parent)


def test_unknown_class_and_missing_numbers(voc):
    root = voc({"a": [("cell", 1, 1, 9, 9)]})
    with pytest.raises(ValueError, match=r"voc: classes must be among cell, got dog"):
        VocFolder(root, classes=["dog"])
    path = root / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<xmax>9</xmax>", ""))
    with pytest.raises(ValueError, match=r"a\.xml: object 1 \(cell\) has no bndbox of four numbers"):
        VocFolder(root)
    with pytest.raises(ValueError, match="no annotation has an object"):
        VocFolder(voc({"a": []}))


def test_truncated_image_is_named_when_it_is_read(voc):
    root = voc({"a": [("cell", 1, 1, 9, 9)]})
    path = root / "JPEGImages" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    dataset = VocFolder(root)
    for read in (dataset.__getitem__, dataset.load_image):
        with pytest.raises(ValueError, match=r"a\.jpg: the image cannot be decoded \(.*truncated.*; replace the file"):
            read(0)


@pytest.mark.skipif(not BCCD.is_dir(), reason="the BCCD photographs are not beside the checkout")
def test_bccd():
    dataset = load_dataset("voc", root=BCCD, split="trainval", max_size=320)
    assert dataset.class_names == ["Platelets", "RBC", "WBC"]
    assert len(dataset) == 292
    truth = dataset.ground_truth()
    assert len(truth["annotations"]) == dataset.summary()["objects"] == 3943
    image, target = dataset[7]
    assert image.shape == (3, 240, 320)
    own = torch.tensor([a["bbox"] for a in truth["annotations"] if a["image_id"] == target["image_id"]])
    sizes = (target["boxes"][:, 2:] - target["boxes"][:, :2]) * 2
    torch.testing.assert_close(sizes, own[:, 2:])


def test_files_that_macos_hides_in_archives_are_left_out(voc):
    root = voc({"a": [("cell", 1, 1, 64, 48)]})
    (root / "Annotations" / "._a.xml").write_bytes(b"\x00\x05\x16\x07")
    assert VocFolder(root).class_names == ["cell"]
    (root / "ImageSets" / "Main" / "trainval.txt").unlink()
    assert len(VocFolder(root, split="all", annotations=root / "Annotations")) == 1
