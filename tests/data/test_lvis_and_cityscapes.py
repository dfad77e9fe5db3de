"""LVIS's federated annotations and Cityscapes' instance masks, on trees written here."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from concordet.data import CityscapesFolder, LvisFolder, eval_transforms, load_dataset, train_transforms
from concordet.data.formats.cityscapes import INSTANCE_CLASSES
from concordet.data.masks import decode_segmentation


@pytest.fixture
def lvis(tmp_path, picture):
    (tmp_path / "annotations").mkdir()
    images = []
    for number, split in ((139, "val2017"), (285, "train2017")):
        (tmp_path / split).mkdir()
        picture(64, 48).save(tmp_path / split / f"{number:012d}.jpg")
        images.append(
            {
                "id": number,
                "width": 64,
                "height": 48,
                "coco_url": f"http://images.cocodataset.org/{split}/{number:012d}.jpg",
                "neg_category_ids": [4, 2] if number == 139 else [],
                "not_exhaustive_category_ids": [9] if number == 139 else [],
            }
        )
    data = {
        "images": images,
        "annotations": [{"id": 1, "image_id": 139, "category_id": 9, "bbox": [4, 5, 20, 20], "area": 300.0}],
        "categories": [
            {"id": i, "name": n, "frequency": f} for i, n, f in ((2, "ant", "r"), (9, "bus", "f"), (4, "cup", "c"))
        ],
    }
    (tmp_path / "annotations" / "lvis_v1_val.json").write_text(json.dumps(data))
    return tmp_path


def test_lvis_tells_what_is_known_to_be_absent(lvis):
    dataset = load_dataset("lvis", root=lvis, split="val")
    assert dataset.class_names == ["ant", "cup", "bus"]
    for transforms in (None, eval_transforms(), train_transforms(iou_crop=True)):
        dataset.transforms = transforms
        _, target = dataset[0]
        assert target["negative_labels"].tolist() == [2, 1]
        assert target["not_exhaustive_labels"].tolist() == [3]
        assert target["labels"].tolist() == [3]
        assert dataset[1][1]["negative_labels"].dtype == torch.int64
    assert dataset.image_path(0) == lvis / "val2017" / "000000000139.jpg"
    truth = dataset.ground_truth()
    assert truth["images"][0]["neg_category_ids"] == [4, 2]
    assert truth["images"][0]["not_exhaustive_category_ids"] == [9]
    assert {c["name"]: c["frequency"] for c in truth["categories"]} == {"ant": "r", "cup": "c", "bus": "f"}


def test_lvis_classes_restrict_the_lists(lvis):
    dataset = LvisFolder(lvis, "val", classes=["ant"])
    _, target = dataset[0]
    assert target["negative_labels"].tolist() == [1]
    assert target["not_exhaustive_labels"].tolist() == []
    assert len(target["labels"]) == 0


def test_lvis_ground_truth_is_evaluated_as_lvis(lvis):
    from hotcoco import COCO as HotCoco
    from hotcoco import LVISeval

    truth = LvisFolder(lvis, "val").ground_truth()
    found = [
        {"image_id": 139, "category_id": 9, "bbox": [4, 5, 20, 20], "score": 0.9},
        {"image_id": 285, "category_id": 2, "bbox": [4, 5, 20, 20], "score": 0.9},
    ]
    reference = HotCoco(truth)
    evaluation = LVISeval(reference, reference.load_res(found), "bbox")
    evaluation.run()
    assert evaluation.get_results()["AP"] == pytest.approx(1.0)


def test_broken_lvis(lvis):
    with pytest.raises(FileNotFoundError, match=r"lvis_v1_train\.json: the annotation file is missing; LVIS's layout"):
        LvisFolder(lvis, "train")
    with pytest.raises(ValueError, match="root must be the folder with"):
        LvisFolder()
    path = lvis / "annotations" / "lvis_v1_val.json"
    text = path.read_text()
    path.write_text(text.replace('"frequency": "r"', '"frequency": NaN'))
    with pytest.raises(
        ValueError, match=r"lvis_v1_val\.json: frequency of category 2 must be 'r', 'c' or 'f', got 'nan'"
    ):
        LvisFolder(lvis, "val")
    path.write_text(text.replace("neg_category_ids", "other"))
    with pytest.raises(ValueError, match=r"000000000139\.jpg has no list 'neg_category_ids'; read the file as 'coco'"):
        LvisFolder(lvis, "val")


@pytest.fixture
def street():
    """Instance ids: a car that hides part of another, a group of persons in two places, a trailer, a bicycle, road."""
    ids = np.full((48, 64), 7, np.uint16)
    ids[10:20, 5:25] = 26001
    ids[12:18, 20:30] = 26000
    ids[30:35, 2:6] = 24
    ids[30:35, 50:60] = 24
    ids[40:44, 10:20] = 30000
    ids[2:4, 60:64] = 33000
    return ids


@pytest.fixture
def cityscapes(tmp_path, picture, street):
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / kind / "val" / "ulm").mkdir(parents=True)
    for place, ids in enumerate((street, np.full((48, 64), 7, np.uint16))):
        name = f"ulm_{place:06d}_000019"
        picture(64, 48).save(tmp_path / "leftImg8bit" / "val" / "ulm" / f"{name}_leftImg8bit.png")
        Image.fromarray(ids).save(tmp_path / "gtFine" / "val" / "ulm" / f"{name}_gtFine_instanceIds.png")
    return tmp_path


def test_cityscapes_boxes_enclose_visible_pixels(cityscapes, street):
    dataset = load_dataset("cityscapes", root=cityscapes, split="val", masks=True)
    image, target = dataset[0]
    names = [dataset.class_names[label - 1] for label in target["labels"]]
    assert image.shape == (3, 48, 64)
    assert names == ["car", "car", "bicycle"]
    for value, box, mask in zip((26000, 26001, 33000), target["boxes"], target["masks"], strict=True):
        np.testing.assert_array_equal(mask, street == value)
        ys, xs = np.nonzero(street == value)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert sorted(target["ignored_boxes"].tolist()) == [[2, 30, 6, 35], [50, 30, 60, 35]]
    assert dataset[1][1]["boxes"].shape == (0, 4)
    summary = dataset.summary()
    assert summary["group_regions_ignored"] == 2
    assert summary["objects_of_other_classes_left_out"] == 1
    assert summary["images_without_objects"] == 1


def test_cityscapes_ground_truth(cityscapes, street):
    truth = CityscapesFolder(cityscapes, "val", masks=True).ground_truth()
    assert [c["name"] for c in truth["categories"]] == list(INSTANCE_CLASSES.values())
    assert truth["images"][1]["file_name"] == "ulm/ulm_000001_000019_leftImg8bit.png"
    crowds = [a for a in truth["annotations"] if a["iscrowd"]]
    covered = sum(decode_segmentation(a["segmentation"], 48, 64) for a in crowds)
    np.testing.assert_array_equal(covered, street == 24)
    assert [a["area"] for a in crowds] == [20, 50]


def test_broken_cityscapes(cityscapes):
    with pytest.raises(FileNotFoundError, match="no such folder; Cityscapes' layout is"):
        CityscapesFolder(cityscapes, "train")
    path = cityscapes / "gtFine" / "val" / "ulm" / "ulm_000000_000019_gtFine_instanceIds.png"
    content = path.read_bytes()
    path.write_bytes(content[:60])
    with pytest.raises(ValueError, match=r"instanceIds\.png: the annotation cannot be decoded"):
        CityscapesFolder(cityscapes, "val")
    Image.fromarray(np.full((48, 64), 7001, np.uint16)).save(path)
    with pytest.raises(ValueError, match="instance 7001 must be of a label with instances, got label id 7"):
        CityscapesFolder(cityscapes, "val")
    Image.new("RGB", (64, 48)).save(path)
    with pytest.raises(ValueError, match="it must have one channel of instance ids, got RGB"):
        CityscapesFolder(cityscapes, "val")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"instanceIds\.png: the annotation is missing"):
        CityscapesFolder(cityscapes, "val")
    for image in (cityscapes / "leftImg8bit" / "val" / "ulm").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match="the data set is empty"):
        CityscapesFolder(cityscapes, "val")
