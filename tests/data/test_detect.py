"""Every form of data is recognized and holds the same objects."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from concordet.data import detect_format, load_dataset
from concordet.data.splits import HoldOut, split_of

from .forms import (
    CLASSES,
    DIVIDED,
    FORMS,
    IMAGES,
    UNDIVIDED,
    coco_json,
    coco_published,
    coco_roboflow,
    csv_corners,
    csv_divided,
    save,
    voc_nested,
    voc_objects,
    voc_one_folder,
    write,
    yolo_parts_inside,
    yolo_parts_outside,
    yolo_without_yaml,
)

BCCD = Path(__file__).parents[2] / ".." / "shared" / "data" / "bccd"


def objects(dataset):
    """Objects of each image by its stem: class and corners."""
    found = {}
    for index in range(len(dataset)):
        _, target = dataset[index]
        names = [dataset.class_names[label - 1] for label in target["labels"]]
        corners = target["boxes"].numpy().round(3).tolist()
        found[dataset.image_path(index).stem] = sorted((n, *c) for n, c in zip(names, corners, strict=True))
    return found


def expected(names):
    return {name: sorted((cls, *map(float, box)) for cls, *box in IMAGES[name]) for name in names}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_form_is_recognized_and_read(form, tmp_path):
    source = detect_format(form(tmp_path))
    assert source.sentence() == f"{FORMS[form]}: 5 images, 2 classes"
    splits = {split: source.open(split) for split in ("train", "val")}
    assert all(split.class_names == CLASSES for split in splits.values())
    if form in UNDIVIDED:
        assert objects(splits["train"]) | objects(splits["val"]) == expected(IMAGES)
        assert len(splits["val"]) == 1
        assert not set(objects(splits["train"])) & set(objects(splits["val"]))
    else:
        for split, names in DIVIDED.items():
            assert objects(splits[split]) == expected(names)


def test_polygons_are_masks(tmp_path):
    dataset = load_dataset("yolo", root=yolo_parts_inside(tmp_path), masks=True)
    _, target = dataset[0]
    for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        drawn = np.zeros((48, 64), np.uint8)
        drawn[y1:y2, x1:x2] = 1
        np.testing.assert_array_equal(mask, drawn)
    polygon = dataset.ground_truth()["annotations"][0]["segmentation"][0]
    assert polygon == pytest.approx([6, 5, 34, 5, 34, 40, 6, 40], abs=1e-6)
    boxes_only = load_dataset("yolo", root=yolo_parts_outside(tmp_path / "b"), masks=True)
    assert len(boxes_only[0][1]["masks"]) == 0
    assert len(boxes_only[0][1]["ignored_boxes"]) == 2


def test_yolo_reads_images_upright(tmp_path):
    """A photograph that is stored lying, as cameras do, with labels of the upright image."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(save(tmp_path, "a"), exif=exif)
    write(tmp_path / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    save(tmp_path, "b")
    write(tmp_path / "b.txt", "0 0.5 0.5 0.5 0.5\n")
    dataset = load_dataset("yolo", root=tmp_path, split="all")
    image, target = dataset[0]
    assert image.shape == (3, 48, 64)
    assert target["boxes"].tolist() == [[16, 12, 48, 36]]


def test_key_points_follow_the_box(tmp_path):
    root = yolo_parts_outside(tmp_path)
    write(root / "data.yaml", (root / "data.yaml").read_text() + "kpt_shape: [1, 2]\n")
    write(root / "train" / "labels" / "a.txt", "1 0.5 0.5 0.25 0.5 0.1 0.1\n")
    assert objects(detect_format(root).open("train"))["a"] == [("dog", 24, 12, 40, 36)]


def test_an_image_without_labels_has_no_objects(tmp_path):
    root = yolo_parts_outside(tmp_path)
    (root / "train" / "labels" / "b.txt").unlink()
    dataset = detect_format(root).open("train")
    assert dataset.summary()["images_without_label_file"] == dataset.summary()["images_without_objects"] == 1
    shutil.rmtree(root / "train" / "labels")
    with pytest.raises(ValueError, match=r"data\.yaml: no image of the split train has a label file; looked for"):
        detect_format(root).open("train")


def test_an_empty_supercategory_is_left_out_with_a_count(tmp_path):
    train = detect_format(coco_roboflow(tmp_path)).open("train")
    assert train.class_names == CLASSES
    assert train.category_ids == [1, 2]
    assert train.summary()["empty_supercategories_left_out"] == 1
    # with an object of its own it is a class
    path = tmp_path / "train" / "_annotations.coco.json"
    path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 0', 1))
    assert detect_format(tmp_path).open("train").class_names == ["pets", *CLASSES]


@pytest.mark.parametrize(
    ("classes", "names", "counts"),
    [
        (["dog"], ["dog"], [4]),
        (["dog", "cat"], ["dog", "cat"], [4, 3]),
        ({"cat": "pet", "dog": "pet"}, ["pet"], [7]),
        ({"dog": None}, ["cat"], [3]),
        ({"cat": "kitten"}, ["kitten", "dog"], [3, 4]),
    ],
)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_classes_are_left_out_and_merged(form, classes, names, counts, tmp_path):
    splits = detect_format(form(tmp_path)).open_all(classes=classes)
    labels = np.concatenate([p[i][1]["labels"] for p in splits.values() for i in range(len(p))])
    for split in splits.values():
        assert split.class_names == names
        known = {category["id"] for category in split.ground_truth()["categories"]}
        assert {annotation["category_id"] for annotation in split.ground_truth()["annotations"]} <= known
    assert np.bincount(labels, minlength=len(names) + 1)[1:].tolist() == counts
    left_out = sum(split.summary().get("objects_of_other_classes_left_out", 0) for split in splits.values())
    assert left_out == 7 - sum(counts)


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["cow"], "classes must be among cat, dog, got cow"),
        ({"cow": "cat"}, "classes must be among cat, dog, got cow"),
        ({"cat": None, "dog": None}, "classes must keep a class"),
        ("cat", "classes must be a list of names or a mapping"),
        (["cat", "cat"], "classes must be different names"),
        ([1], "classes must be names, got 1"),
        ([], "classes must keep a class"),
    ],
)
def test_refused_classes(classes, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        detect_format(voc_one_folder(tmp_path)).open("train", classes=classes)


def test_images_are_held_out_by_name():
    names = [f"{i:04d}.jpg" for i in range(100)]
    held = {names[i] for i in HoldOut("val", 0.2, seed=3).indices(names)}
    assert len(held) == 20
    kept = {names[i] for i in HoldOut("train", 0.2, seed=3).indices(names)}
    assert held | kept == set(names)
    assert held != {names[i] for i in HoldOut("val", 0.2, seed=4).indices(names)}
    shuffled = names[::-1]
    assert held == {shuffled[i] for i in HoldOut("val", 0.2, seed=3).indices(shuffled)}
    fewer = [name for name in names if name not in sorted(held)[:3]]
    again = {fewer[i] for i in HoldOut("val", 0.2, seed=3).indices(fewer)}
    assert len(again & held) >= 16


def test_augmented_copies_are_held_out_together():
    names = [f"{i}_jpg.rf.{copy}a7f.jpg" for i in range(20) for copy in range(3)]
    held = [names[i].split("_")[0] for i in HoldOut("val", 0.2).indices(names)]
    assert len(held) == 12
    assert all(held.count(photograph) == 3 for photograph in held)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_refused_fractions(fraction, tmp_path):
    with pytest.raises(ValueError, match="val_fraction must be above 0 and below 1"):
        detect_format(voc_one_folder(tmp_path)).open("val", val_fraction=fraction)


def test_one_image_cannot_be_divided(tmp_path):
    save(tmp_path, "a")
    write(tmp_path / "a.xml", voc_objects("a"))
    with pytest.raises(ValueError, match="must have at least 2 images to hold some out for validation, got 1"):
        detect_format(tmp_path).open("val")


def test_a_test_part_is_not_used_for_validation(tmp_path):
    root = yolo_parts_outside(tmp_path)
    (root / "val").rename(root / "test")
    write(root / "data.yaml", "train: train/images\ntest: test/images\nnames: [cat, dog]\n")
    source = detect_format(root)
    assert source.splits == ["train", "val", "test"]
    assert objects(source.open("test")) == expected(DIVIDED["val"])
    assert len(source.open("val")) == 1
    with pytest.raises(ValueError, match="the split must be one of train, val, test, got dev"):
        source.open("dev")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("images/train2017/a.jpg", "train"),
        ("trainval.txt", "train"),
        ("Testing/Images", "test"),
        ("val_set", "val"),
        ("valid/images", "val"),
        ("trains/a.jpg", None),
        ("latest.json", None),
    ],
)
def test_splits_by_name(path, split):
    assert split_of(path) == split


def test_files_may_be_named(tmp_path):
    root = coco_published(tmp_path / "coco")
    source = detect_format(root / "annotations" / "instances_train2017.json")
    assert objects(source.open_all()["train"]) == expected(DIVIDED["train"])
    assert len(source.open("val")) == 1
    source = detect_format(yolo_parts_outside(tmp_path / "yolo") / "data.yaml")
    assert objects(source.open("val")) == expected(DIVIDED["val"])


def test_the_same_names_in_two_splits(tmp_path):
    """Training/Images/a.png and Validation/Images/a.png are two photographs."""
    root = voc_nested(tmp_path) / "pets"
    for folder, suffix in (("Images", "png"), ("Annotations", "xml")):
        shutil.copy(root / "Training" / folder / f"b.{suffix}", root / "Validation" / folder / f"a.{suffix}")
    source = detect_format(root)
    assert objects(source.open("train"))["a"] == expected("a")["a"]
    assert objects(source.open("val"))["a"] == expected("b")["b"]
    val = source.open("val")
    paths = {val.image_path(i).stem: val.image_path(i) for i in range(len(val))}
    assert paths["a"] == root / "Validation" / "Images" / "a.png"


def unknown(root):
    save(root, "a")
    return root


def two_forms(root):
    voc_one_folder(root)
    write(root / "all.json", coco_json(IMAGES))
    return root


def two_yamls(root):
    yolo_parts_outside(root)
    return write(root / "other.yaml", (root / "data.yaml").read_text()).parent


def coco_without_splits(root):
    write(root / "one.json", coco_json("ab"))
    return write(root / "two.json", coco_json("cd")).parent


def tables_without_splits(root):
    write(root / "one.csv", csv_corners("ab"))
    return write(root / "two.csv", csv_corners("cd")).parent


def unclear_split(root):
    voc_nested(root)
    return write(root / "more" / "a.xml", voc_objects("a")).parents[1]


def unclear_yolo(root):
    yolo_without_yaml(root)
    save(root / "images", "e")
    return write(root / "labels" / "e.txt", "0 0.5 0.5 0.2 0.2\n").parents[1]


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        (
            unknown,
            r"must hold a data set, got 1 file without one; needed is one of: .*\(COCO\).*\(Pascal VOC\).*\(YOLO\)",
        ),
        (two_forms, r"must hold one data set, got COCO \(coco\) and Pascal VOC.* \(voc\); choose one by its name"),
        (coco_without_splits, r"the names of 2 annotation files .*one\.json, two\.json.* do not show"),
        (tables_without_splits, r"the names of 2 CSV files .*one\.csv, two\.csv.* do not show"),
        (unclear_split, "it is not clear to which split the second belongs"),
        (unclear_yolo, "it is not clear to which split .* belongs"),
        (lambda root: write(root / "data.zip", ""), "got an archive; unpack it first"),
        (lambda root: root / "nothing", "path must be a folder or an annotation file, got .*, which does not exist"),
    ],
)
def test_what_is_not_recognized(form, sentence, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        detect_format(form(tmp_path))


def test_one_of_two_forms_is_chosen_by_name(tmp_path):
    assert detect_format(two_forms(tmp_path), "coco").name == "coco"
    assert detect_format(two_yamls(tmp_path / "yolo")).layout.description == "YOLO (data.yaml)"


def test_a_folder_for_data_that_is_drawn_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got 0 files without one; leave out the path, or the name digits$"):
        detect_format(tmp_path, "digits")


def test_images_of_the_same_name_are_not_guessed(tmp_path):
    root = csv_divided(tmp_path)
    shutil.copytree(root / "images" / "train", root / "copies")
    shutil.copytree(root / "images" / "train", root / "more")
    (root / "images" / "train" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"image 'a\.jpg' may be .*copies.* or .*more.*; name the folder"):
        detect_format(root).open("train")


@pytest.mark.skipif(not BCCD.is_dir(), reason="the BCCD photographs are not beside the checkout")
def test_bccd_in_one_folder(tmp_path):
    for name in (BCCD / "ImageSets" / "Main" / "test.txt").read_text().split()[:20]:
        shutil.copy(BCCD / "Annotations" / f"{name}.xml", tmp_path)
        shutil.copy(BCCD / "JPEGImages" / f"{name}.jpg", tmp_path)
    source = detect_format(tmp_path)
    assert source.sentence() == "Pascal VOC, images and annotations in one folder: 20 images, 3 classes"
    train, val = source.open("train"), source.open("val")
    assert (len(train), len(val)) == (16, 4)
    assert train.class_names == val.class_names == ["Platelets", "RBC", "WBC"]
    published = detect_format(BCCD)
    assert published.splits == ["train", "val", "test"]
    assert len(published.open("train")) == 205
