"""Annotation files in COCO's form."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from concordet.data import CocoFolder, load_dataset, to_original
from concordet.data.formats import coco_annotations
from concordet.data.masks import decode_segmentation, encode_mask


def annotation(number, box, category=7, image=1, **fields):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], **fields}


def test_labels_follow_category_ids_and_ground_truth_leads_back(coco):
    root = coco([annotation(5, [1, 2, 10, 20]), annotation(9, [0.5, 0.5, 5, 5], category=3, area=12.5)])
    dataset = CocoFolder(root, "tiny")
    _, target = dataset[0]
    assert dataset.class_names == ["dog", "cat"]
    assert dataset.category_ids == [3, 7]
    assert target["labels"].tolist() == [2, 1]
    assert target["boxes"].tolist() == [[1, 2, 11, 22], [0.5, 0.5, 5.5, 5.5]]
    assert target["image_id"] == 1
    truth = dataset.ground_truth()
    assert [(a["id"], a["category_id"], a["area"]) for a in truth["annotations"]] == [(5, 7, 200), (9, 3, 12.5)]
    assert truth["annotations"][0]["bbox"] == [1, 2, 10, 20]
    assert truth["categories"] == [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]


def test_what_real_files_contain_is_handled_and_counted(coco):
    images = [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 4, "file_name": "b.jpg", "width": 64, "height": 48},
    ]
    root = coco(
        [
            annotation(1, [10, 10, 10, 10], segmentation=[[10, 10, 20, 10, 20, 20]]),
            annotation(1, [12, 10, 10, 10], segmentation=[]),
            annotation(3, [5, 5, 20, 20], iscrowd=1, segmentation={"size": [48, 64], "counts": [3072]}),
            annotation(4, [60, 40, 20, 20]),
            annotation(5, [60.3, 40, 4, 8]),
            annotation(6, [70, 10, 5, 5]),
            annotation(7, [10, 10, 0, 5]),
            annotation(8, [10, 10, -3, 5]),
        ],
        images,
    )
    dataset = CocoFolder(root, "tiny")
    summary = {name: count for name, count in dataset.summary().items() if count}
    assert summary == {
        "images": 2,
        "objects": 4,
        "classes": 2,
        "images_without_objects": 1,
        "duplicate_images_left_out": 1,
        "duplicate_annotation_ids": 1,
        "crowd_regions_ignored": 1,
        "segments_without_area": 1,
        "boxes_clipped": 1,
        "boxes_outside_image_dropped": 1,
        "degenerate_boxes_dropped": 2,
        "image_headers_checked": 2,
    }
    _, target = dataset[0]
    assert target["boxes"][2].tolist() == [60, 40, 64, 48]
    assert target["ignored_boxes"].tolist() == [[5, 5, 25, 25]]
    truth = dataset.ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4, 5]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 1, 0, 0]
    assert truth["annotations"][3]["bbox"] == [60, 40, 20, 20]


def test_classes_restrict_and_order_labels(coco):
    root = coco([annotation(1, [1, 2, 10, 20]), annotation(2, [1, 2, 10, 20], category=3)])
    dataset = CocoFolder(root, "tiny", classes=["cat"])
    assert dataset[0][1]["labels"].tolist() == [1]
    assert dataset.category_ids == [7]
    assert dataset.summary()["objects_of_other_classes_left_out"] == 1
    assert CocoFolder(root, "tiny", classes=["cat", "dog"])[0][1]["labels"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"classes must be among dog, cat, got cow"):
        CocoFolder(root, "tiny", classes=["cow"])


@pytest.mark.parametrize("max_size", [None, 32])
def test_masks_agree_with_pycocotools(coco, max_size):
    blob = np.zeros((48, 64), np.uint8)
    blob[5:20, 30:50] = 1
    root = coco(
        [
            annotation(1, [10, 10, 20, 20], segmentation=[[10, 10, 30, 10, 30, 30], [12, 25, 20, 25, 20, 30, 12, 30]]),
            annotation(2, [30, 5, 20, 15], segmentation=encode_mask(blob)),
            annotation(3, [1, 1, 9, 9], segmentation=[]),
        ]
    )
    dataset = CocoFolder(root, "tiny", masks=True, max_size=max_size)
    image, target = dataset[0]
    reference = COCO(str(root / "annotations" / "instances_tiny.json"))
    expected = [reference.annToMask(reference.anns[number]) for number in (1, 2)]
    assert target["masks"].dtype == torch.uint8
    assert target["masks"].shape == (2, *image.shape[1:])
    assert len(target["ignored_boxes"]) == 1
    if max_size is None:
        np.testing.assert_array_equal(target["masks"], expected)
    else:
        np.testing.assert_allclose(target["masks"].sum((1, 2)) * 4, [mask.sum() for mask in expected], rtol=0.1)
    assert dataset.ground_truth()["annotations"][1]["segmentation"] == encode_mask(blob)


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        ({"size": [4, 4], "counts": [16]}, r"size of a mask must be the image's, \[48, 64\], got \[4, 4\]"),
        ({"size": [48, 64], "counts": [16]}, "must add up to 3072 pixels, got 16"),
        ({"size": [48, 64]}, "counts of a mask must be a list or a string, got NoneType"),
        ([[1, 1, 5, 1, 5, 5, 7]], "even number of coordinates, got 7"),
        ("circle", "segmentation must be a list of polygons or run lengths"),
    ],
)
def test_broken_masks_name_their_annotation(coco, segmentation, sentence):
    root = coco([annotation(12, [1, 1, 5, 5], segmentation=segmentation)])
    with pytest.raises(ValueError, match=rf"instances_tiny\.json: annotation 12: .*{sentence}"):
        CocoFolder(root, "tiny", masks=True)
    assert len(CocoFolder(root, "tiny")) == 1


def test_masks_of_an_image_without_a_size_are_checked_when_they_are_read(coco):
    segmentation = {"size": [4, 4], "counts": [16]}
    root = coco([annotation(12, [1, 1, 5, 5], segmentation=segmentation)], [{"id": 1, "file_name": "a.jpg"}])
    dataset = CocoFolder(root, "tiny", masks=True)
    with pytest.raises(ValueError, match=r"annotation 12 of image .*a\.jpg: .*size of a mask must be .* got \[4, 4\]"):
        dataset[0]


def test_segments_of_too_few_points_have_no_area():
    assert decode_segmentation([[1, 1, 5, 5]], 4, 4).sum() == 0
    assert decode_segmentation(None, 2, 3).shape == (2, 3)


def test_boxes_of_reduced_images_lead_back_to_the_original(coco):
    images = [{"id": 1, "file_name": "odd.png", "width": 101, "height": 67}]
    Image.new("RGB", (101, 67)).save(coco([], files={}) / "tiny" / "odd.png")
    root = coco([annotation(1, [10, 20, 30, 40])], images)
    image, target = CocoFolder(root, "tiny", max_size=50)[0]
    assert image.shape == (3, 33, 50)
    torch.testing.assert_close(target["scale"], torch.tensor([50 / 101, 33 / 67]))
    torch.testing.assert_close(to_original(target["boxes"], target), torch.tensor([[10.0, 20.0, 40.0, 60.0]]))


def test_cache_gives_the_same_and_reads_once(coco):
    root = coco([annotation(1, [10, 10, 10, 10])])
    dataset = CocoFolder(root, "tiny", cache=True, max_size=32)
    first, target = dataset[0]
    (root / "tiny" / "a.jpg").unlink()
    target["boxes"].zero_()
    again, target = dataset[0]
    assert torch.equal(first, again)
    assert target["boxes"].tolist() == [[5, 5, 10, 10]]


def test_unchecked_images_are_checked_when_read(coco):
    root = coco([annotation(1, [10, 10, 30, 10])], [{"id": 1, "file_name": "a.jpg", "width": 90, "height": 48}])
    dataset = CocoFolder(root, "tiny", check_images=False)
    assert dataset.summary()["image_headers_checked"] == 0
    assert dataset.ground_truth()["images"][0]["width"] == 90
    assert dataset[0][1]["boxes"].tolist() == [[10, 10, 40, 20]]
    assert dataset.summary()["sizes_other_than_annotated"] == 1
    assert dataset.ground_truth()["images"][0]["width"] == 64


def change(root, **fields):
    path = root / "annotations" / "instances_tiny.json"
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"annotations": [annotation(3, [1, 1, 5, 5], category=99)]},
            "annotation 3 has category_id 99, which",
        ),
        ({"annotations": [annotation(3, [1, 1, 5, 5], image=2)]}, "annotation 3 has image_id 2, which is not in"),
        (
            {"annotations": [annotation(3, [1, 1, 5, 5]) | {"bbox": [1, 2, 3]}]},
            r"3 has the bbox \[1, 2, 3\]",
        ),
        ({"annotations": [annotation(3, [1, 1, 5, 5]) | {"bbox": None}]}, "annotation 3 has the bbox None"),
        ({"annotations": [{"id": 3, "image_id": 1}]}, "annotation 3 has no image_id or no category_id"),
        ({"annotations": [7]}, "annotation number 1 has no image_id"),
        ({"annotations": None}, "no list 'annotations'"),
        ({"images": []}, "the data set is empty"),
        ({"images": [{"id": "x", "file_name": "a.jpg"}]}, "entry 1 of 'images' has no whole number 'id'"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}, "the same id 1"),
        ({"categories": []}, "'categories' has no entries"),
        ({"categories": [{"id": 1}]}, "entry 1 of 'categories' has no"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "two entries of 'categories'"),
    ],
)
def test_broken_annotation_files(coco, fields, sentence):
    root = coco([annotation(1, [10, 10, 10, 10])])
    change(root, **fields)
    with pytest.raises(ValueError, match=rf"instances_tiny\.json: .*{sentence}"):
        CocoFolder(root, "tiny")


@pytest.mark.parametrize("content", [b'{"images": [', b"\xff\xfe\x00", b"[]", b""])
def test_unreadable_annotation_files(coco, content):
    root = coco([])
    (root / "annotations" / "instances_tiny.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"instances_tiny\.json(: no list 'images'| must be valid JSON| must be text)"):
        CocoFolder(root, "tiny")


def test_missing_files(coco):
    root = coco([])
    with pytest.raises(
        FileNotFoundError, match=r"instances_val\.json: the annotation file is missing; COCO's layout is"
    ):
        CocoFolder(root, "val")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        CocoFolder(root, "tiny", images="nowhere")
    (root / "tiny" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg: the image file is missing"):
        CocoFolder(root, "tiny", check_images=False)


@pytest.mark.parametrize("chunk", [1, 7, 40, 10**6])
def test_polygons_are_left_out_wherever_a_chunk_ends(monkeypatch, chunk):
    annotations = [
        {"id": 1, "segmentation": [[1, 2, 3, 4, 5, 6], [7.5, 8e1, 9, 1, 2, 3]], "note": '"segmentation": [[1]]'},
        {"id": 2, "segmentation": {"counts": [3, 4], "size": [7, 1]}},
        {"id": 3, "segmentation": [], "bbox": [1, 2, 3, 4]},
        {"id": 4, "note": "a name without"},
    ]
    monkeypatch.setattr(coco_annotations, "_CHUNK", chunk)
    for text in (json.dumps(annotations), json.dumps(annotations, indent=2), json.dumps(annotations[3:]), "[]"):
        read = json.loads(coco_annotations._without_polygons(io.BytesIO(text.encode())))
        expected = json.loads(text)
        for entry in expected:
            if entry["id"] == 1:
                entry["segmentation"] = True
        assert read == expected


def test_files_elsewhere(coco):
    root = coco([annotation(1, [10, 10, 10, 10])])
    file = root / "annotations" / "instances_tiny.json"
    dataset = load_dataset("coco", annotations=file, images=root / "tiny")
    assert len(dataset) == 1
    assert load_dataset("coco", annotations=file)[0][1]["boxes"].tolist() == [[10, 10, 20, 20]]
    with pytest.raises(ValueError, match=r"root must be the folder with .*, got none"):
        load_dataset("coco")


def test_load_dataset_refuses_what_it_does_not_know(coco):
    with pytest.raises(ValueError, match=r"name must be one of .*coco.*digits.*voc.*, got imagenet"):
        load_dataset("imagenet")
    with pytest.raises(ValueError, match=r"'digits' has no option root; it takes .*length"):
        load_dataset("digits", root="somewhere")
    with pytest.raises(ValueError, match="root of data set 'voc' must be its folder"):
        load_dataset("voc")
    with pytest.raises(ValueError, match=r"max_size.*at least 16"):
        load_dataset("coco", root=coco([]), split="tiny", max_size=4)
