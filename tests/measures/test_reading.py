from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest

from concordet.measures import analyze, evaluate_detections
from concordet.measures.reading.records import is_federated
from tests.measures.reference import coco_figures, run_pycocotools
from tests.measures.scenes import make_scene, write_scene


def changed(records, place, **values):
    records = copy.deepcopy(records)
    for key, value in values.items():
        if value is KeyError:
            del records[place][key]
        else:
            records[place][key] = value
    return records


DETECTION_FAULTS = {
    "score_text": ({"score": "0.9"}, r"found.json: detection 3 \(from 0\): score must be a finite number, got '0.9'"),
    "score_nan": ({"score": math.nan}, r"detection 3 \(from 0\): score must be a finite number, got nan"),
    "score_infinite": ({"score": math.inf}, r"detection 3 \(from 0\): score must be a finite number, got inf"),
    "score_null": ({"score": None}, r"detection 3 \(from 0\): score must be a finite number, got None"),
    "no_score": ({"score": KeyError}, r"detection 3 \(from 0\): score must be a finite number, got none"),
    "image_text": ({"image_id": "a.jpg"}, r"detection 3 \(from 0\): image_id must be an integer, got 'a.jpg'"),
    "image_fraction": ({"image_id": 1.5}, r"detection 3 \(from 0\): image_id must be an integer, got 1.5"),
    "image_huge": ({"image_id": 10**30}, r"detection 3 \(from 0\): image_id must be an integer, got 1000"),
    "class_null": ({"category_id": None}, r"detection 3 \(from 0\): category_id must be an integer, got None"),
    "no_box": ({"bbox": KeyError}, r"detection 3 \(from 0\): bbox must be \[x, y, width, height\], got none"),
    "box_short": ({"bbox": [1, 2, 3]}, r"detection 3 \(from 0\): bbox must be four finite numbers .*, got \[1, 2, 3\]"),
    "box_text": ({"bbox": [1, "2", 3, 4]}, r"detection 3 \(from 0\): bbox must be four .*, got \[1, '2', 3, 4\]"),
    "box_nan": ({"bbox": [1, math.nan, 3, 4]}, r"detection 3 \(from 0\): bbox must be four .*, got \[1, nan, 3, 4\]"),
    "box_number": ({"bbox": 5}, r"detection 3 \(from 0\): bbox must be four finite numbers .*, got 5"),
    "box_corners": (
        {"bbox": [50, 50, -10, 5]},
        r"detection 3 \(from 0\): bbox must be .*not two corners, got the negative size in \[50.0",
    ),
}


@pytest.mark.parametrize("fault", DETECTION_FAULTS)
def test_a_faulty_detection_is_named(fault, tmp_path):
    values, sentence = DETECTION_FAULTS[fault]
    truth, found = make_scene(0)
    with pytest.raises(ValueError, match=sentence):
        analyze(*write_scene(tmp_path, truth, changed(found, 3, **values)))


ANNOTATION_FAULTS = {
    "unknown_image": ({"image_id": 999}, r"annotation 2 \(from 0\): image_id must be among the images, got 999"),
    "unknown_class": (
        {"category_id": 999},
        r"annotation 2 \(from 0\): category_id must be among the categories, got 999",
    ),
    "area_text": ({"area": "12"}, r"annotation 2 \(from 0\): area must be a finite number, got '12'"),
    "crowd_text": ({"iscrowd": "no"}, r"annotation 2 \(from 0\): iscrowd must be a finite number, got 'no'"),
    "negative": ({"bbox": [1, 1, 5, -5]}, r"annotation 2 \(from 0\): bbox must be .* negative size"),
}


@pytest.mark.parametrize("fault", ANNOTATION_FAULTS)
def test_a_faulty_annotation_is_named(fault, tmp_path):
    values, sentence = ANNOTATION_FAULTS[fault]
    truth, found = make_scene(0)
    truth["annotations"] = changed(truth["annotations"], 2, **values)
    with pytest.raises(ValueError, match="truth.json: " + sentence):
        analyze(*write_scene(tmp_path, truth, found))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'[{"image_id": 1, "sco', r"found.json must be valid JSON, got a fault \(.* line 1 column 18 .*\)"),
        (b"", r"found.json must be valid JSON"),
        (b"\xff\xfe\x00\x01\x02", r"found.json must be text in UTF-8, got other bytes at 0"),
        (b"3", r"found.json must hold a list or an object in COCO format, got one int"),
        (b"[1, 2]", r"found.json: detection 0 \(from 0\) must be an object with .*, got 1"),
        (b'{"results": []}', r"found.json must be a list of results in COCO format, got an object without annotations"),
    ],
)
def test_a_file_that_is_no_results_file(content, sentence, tmp_path):
    gt, dt = write_scene(tmp_path, *make_scene(0))
    dt.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        analyze(gt, dt)


def test_a_file_that_is_no_ground_truth(tmp_path):
    gt, dt = write_scene(tmp_path, *make_scene(0))
    with pytest.raises(ValueError, match=r"nowhere\.json must be a readable file, got: No such file or directory"):
        analyze(tmp_path / "nowhere.json", dt)
    with pytest.raises(ValueError, match=rf"{tmp_path} must hold one \.txt file per image"):
        analyze(tmp_path, dt)
    for content, sentence in (
        ({"images": []}, "truth.json must be an object with images, annotations and categories"),
        ({"images": 3, "annotations": []}, "truth.json: images must be a list of objects"),
        (
            {"images": [{"id": "a"}], "annotations": []},
            r"truth.json: images\[0\] must be an object with an integer id, got id 'a'",
        ),
        (
            {"images": [], "annotations": [], "categories": [{"name": "x"}]},
            r"categories\[0\] must be an object with an integer id, got id None",
        ),
    ):
        gt.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=sentence):
            analyze(gt, dt)


def test_category_id_with_two_names():
    truth, found = make_scene(0)
    truth["categories"].append({"id": 1, "name": "another"})
    with pytest.raises(ValueError, match="category id 1 must have one name, got 'class 0' and 'another'"):
        analyze(truth, found)


def test_unknown_iou_type_and_missing_masks():
    truth, found = make_scene(0)
    with pytest.raises(ValueError, match="iou_type must be 'bbox' or 'segm', got 'keypoints'"):
        analyze(truth, found, iou_type="keypoints")
    with pytest.raises(ValueError, match=r"annotation 0 \(from 0\) must have a segmentation, got none"):
        analyze(truth, found, iou_type="segm")


def test_arrays_are_checked_too():
    truth, _ = make_scene(0)
    row = [1.0, 0, 0, 5, 5, 0.5, 1]
    for faulty, sentence in (
        (np.array([row[:6]]), r"must be numbers \[n, 7\] .*, got an array of shape \[1, 6\]"),
        (np.array([[*row[:5], math.nan, 1]]), "detection 0 .* must be finite, got"),
        (np.array([[1.5, *row[1:]]]), "image_id must be an integer, got 1.5"),
        (np.array([[1, 0, 0, -5, *row[4:]]]), "negative size"),
    ):
        with pytest.raises(ValueError, match=sentence):
            analyze(truth, faulty)


def test_images_that_only_one_file_has():
    truth, found = make_scene(0)
    extra = [{**found[0], "image_id": 5000}, {**found[1], "image_id": 5001}]
    report = analyze(truth, found + extra).to_dict()
    expected = analyze(truth, found).to_dict()
    assert report["AP"] == expected["AP"]
    assert report["n_detections"] == len(found)
    assert "2 detections on 2 images that the ground truth lacks were left out" in report["notes"]
    with pytest.raises(ValueError, match="no detection is on an image of ground truth"):
        analyze(truth, extra)
    truth["images"].append({"id": 6000})
    assert analyze(truth, found).to_dict()["n_images"] == expected["n_images"] + 1


def test_box_only_files_without_area_crowd_or_ids():
    truth, found = make_scene(0)
    for a in truth["annotations"]:
        a["area"] = a["bbox"][2] * a["bbox"][3]
    expected = coco_figures(run_pycocotools(truth, found))
    bare = {
        **truth,
        "annotations": [{k: a[k] for k in ("image_id", "category_id", "bbox")} for a in truth["annotations"]],
    }
    report = evaluate_detections(bare, found)
    for name, value in expected.items():
        assert report[name] == pytest.approx(value, abs=1e-9)


def test_duplicate_ids_lose_no_object():
    truth, found = make_scene(0)
    expected = evaluate_detections(truth, found)
    truth["annotations"] = [{**a, "id": 1} for a in truth["annotations"]]
    truth["images"].append(truth["images"][0])
    truth["categories"].append(truth["categories"][0])
    found = [{**d, "id": 4} for d in found]
    report = evaluate_detections(truth, found)
    assert report["AP"] == expected["AP"]
    assert report["n_objects"] == expected["n_objects"]
    assert [note.split(" repeat")[0] for note in report["notes"]] == ["1 image", "1 category", "79 annotations"]


def test_ids_of_zero_are_as_good_as_any():
    truth, found = make_scene(0)
    expected = evaluate_detections(truth, found)
    down = {"image_id": lambda v: v - 1, "category_id": lambda v: v - 1, "id": lambda v: v - 1}
    shift = [
        [{k: down.get(k, lambda v: v)(v) for k, v in r.items()} for r in rows] for rows in (*truth.values(), found)
    ]
    report = evaluate_detections(dict(zip(truth, shift[:3], strict=True)), shift[3])
    for name in ("AP", "APs", "AR100", "beta_cls", "oLRP"):
        assert report[name] == expected[name]


def test_lists_of_annotations_need_no_images_or_categories():
    truth, found = make_scene(0)
    report = evaluate_detections(truth["annotations"], found)
    assert report["AP"] == pytest.approx(evaluate_detections(truth, found)["AP"])
    assert any("lists no images" in note for note in report["notes"])


def test_ignore_without_crowd_is_noted():
    truth, found = make_scene(0, ignore=0.3)
    notes = evaluate_detections(truth, found)["notes"]
    assert any("have ignore without iscrowd and count as objects, as in pycocotools" in note for note in notes)


def test_class_without_objects_or_without_detections():
    truth, found = make_scene(0)
    truth["categories"] += [{"id": 100, "name": "never seen"}, {"id": 101, "name": "missed"}]
    truth["annotations"].append({"id": 999, "image_id": 1, "category_id": 101, "bbox": [0, 0, 9, 9]})
    found.append({**found[0], "category_id": 100})
    never, missed = analyze(truth, found).to_dict()["per_class"][-2:]
    assert (never["AP"], never["oLRP"], never["n_detections"]) == (None, None, 1)
    assert never["reasons"]["AP"] == "the class has no object"
    assert (missed["AP"], missed["oLRP"], missed["lrp_threshold"]) == (0.0, 1.0, None)


def write_text(folder, truth, found):
    folder.mkdir()
    for image in truth["images"]:
        image["file_name"] = f"photos/scene {image['id']:03}.jpg"
    names = {c["id"]: c["name"] for c in truth["categories"]}
    for image in truth["images"]:
        rows = [d for d in found if d["image_id"] == image["id"]]
        lines = []
        for d in rows:
            x, y, w, h = d["bbox"]
            lines.append(f"{names[d['category_id']]} {d['score']!r} {x!r} {y!r} {x + w!r} {y + h!r}")
        (folder / f"scene {image['id']:03}.txt").write_text("\n".join(lines) + "\n\n")


def test_text_folder_equals_json(tmp_path):
    truth, found = make_scene(0)
    write_text(tmp_path / "results", truth, found)
    report, expected = evaluate_detections(truth, tmp_path / "results"), evaluate_detections(truth, found)
    for name in ("AP", "AP50", "AP75", "beta_cls", "oLRP", "AIC", "n_detections"):
        assert report[name] == pytest.approx(expected[name], abs=1e-9)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("0.5 1 2 3 4", r"scene 001.txt: line 1 must be 'class score left top right bottom', got '0.5 1 2 3 4'"),
        ("class 0 high 1 2 3 4", r"line 1 must be 'class score .*', got 'class 0 high 1 2 3 4'"),
        ("class 0 nan 1 2 3 4", r"line 1 must be 'class score .*', got 'class 0 nan 1 2 3 4'"),
        ("class 0 0.5 10 2 3 4", r"line 1 must have left <= right .*, got a box from \(10, 2\) to \(3, 4\)$"),
        ("0 .5 .5 .2 .2 .9", r"got a box from .*; this looks like YOLO's normalized format"),
    ],
)
def test_faulty_text_lines_are_named(line, sentence, tmp_path):
    truth, found = make_scene(0)
    write_text(tmp_path / "results", truth, found)
    (tmp_path / "results" / "scene 001.txt").write_text(line)
    with pytest.raises(ValueError, match=sentence):
        evaluate_detections(truth, tmp_path / "results")


def test_text_folder_without_files_or_with_files_of_other_images(tmp_path):
    truth, found = make_scene(0)
    with pytest.raises(ValueError, match=r"must hold one \.txt file per image"):
        evaluate_detections(truth, tmp_path)
    write_text(tmp_path / "results", truth, found)
    (tmp_path / "results" / "other.txt").write_text("class_0 0.5 1 2 3 4\n1 0.5 1 2 3 4")
    notes = evaluate_detections(truth, tmp_path / "results")["notes"]
    assert notes == ["2 detections on 1 image that the ground truth lacks were left out"]
    (tmp_path / "results" / "scene 002.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"scene 002\.txt must be text in UTF-8"):
        evaluate_detections(truth, tmp_path / "results")
    truth["images"].append({"id": 800, "file_name": "b/scene 001.png"})
    with pytest.raises(ValueError, match="several images of the ground truth are named scene 001"):
        evaluate_detections(truth, tmp_path / "results")


def test_detections_of_unknown_categories_are_left_out_and_counted(tmp_path):
    truth, found = make_scene(0)
    expected = evaluate_detections(truth, found)
    strange = [{**found[0], "category_id": 77}, {**found[1], "category_id": 77}, {**found[2], "category_id": 78}]
    report = evaluate_detections(truth, strange + found)
    assert report["AP"] == expected["AP"]
    assert report["n_detections"] == len(found)
    assert report["notes"] == ["3 detections of 2 categories that the ground truth lacks (77, 78) were left out"]
    with pytest.raises(
        ValueError, match=r"no detection is of a category of ground truth \(the first has category_id 77\)"
    ):
        evaluate_detections(truth, strange)
    write_text(tmp_path / "results", truth, found)
    with (tmp_path / "results" / "scene 001.txt").open("a") as file:
        file.write("\nzebra crossing 0.5 1 2 3 4\n")
    notes = evaluate_detections(truth, tmp_path / "results")["notes"]
    assert notes == ["1 detection of 1 category that the ground truth lacks (zebra crossing) was left out"]


def test_text_files_missing_for_images_are_counted(tmp_path):
    truth, found = make_scene(0)
    write_text(tmp_path / "results", truth, found)
    for path in sorted((tmp_path / "results").glob("*.txt"))[1:]:
        path.unlink()
    notes = evaluate_detections(truth, tmp_path / "results")["notes"]
    assert notes == ["19 of 20 images have no text file in results and no detections"]
    (tmp_path / "results" / "scene 001.txt").rename(tmp_path / "results" / "other.txt")
    with pytest.raises(ValueError, match=r"results: no file is named as an image .* \(the first is other.txt\)"):
        evaluate_detections(truth, tmp_path / "results")


def test_text_ground_truth_equals_json(tmp_path):
    truth, found = make_scene(0, crowd=0.1)
    for annotation in truth["annotations"]:
        annotation.pop("area")
    expected = evaluate_detections(truth, found)
    write_text(tmp_path / "results", truth, found)
    folder = tmp_path / "truth"
    folder.mkdir()
    names = {c["id"]: c["name"] for c in truth["categories"]}
    for image in truth["images"]:
        lines = []
        for a in truth["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = map(float, a["bbox"])
                difficult = " difficult" if a["iscrowd"] else ""
                lines.append(f"{names[a['category_id']]} {x!r} {y!r} {x + w!r} {y + h!r}{difficult}")
        (folder / f"scene {image['id']:03}.txt").write_text("\n".join(lines))
    report = evaluate_detections(folder, tmp_path / "results")
    for name in ("AP", "AP50", "APs", "APm", "beta_cls", "oLRP", "LaECE0", "n_images", "n_objects", "n_detections"):
        assert report[name] == pytest.approx(expected[name], abs=1e-9)
    n_crowd = sum(a["iscrowd"] for a in truth["annotations"])
    assert report["notes"] == [f"{n_crowd} difficult objects count as crowd regions: detections there are ignored"]
    (folder / "scene 001.txt").write_text("1 2 3 4")
    with pytest.raises(ValueError, match=r"line 1 must be 'class left top right bottom \[difficult\]', got '1 2 3 4'"):
        evaluate_detections(folder, tmp_path / "results")


def suspicious(notes, text):
    return any(text in note for note in notes)


def test_corners_normalized_boxes_and_percentages_are_noted():
    truth, found = make_scene(0)
    assert evaluate_detections(truth, found)["notes"] == []
    corners = [{**d, "bbox": [d["bbox"][0], d["bbox"][1], d["bbox"][0] + d["bbox"][2], d["bbox"][1] + d["bbox"][3]]}
               for d in found]  # fmt: skip
    text = "boxes of the detections reach beyond their image: boxes must be x, y, width, height, not two corners"
    assert suspicious(evaluate_detections(truth, corners)["notes"], text)
    small = [{**d, "bbox": [v / 640 for v in d["bbox"]]} for d in found]
    text = "all boxes of the detections are smaller than two pixels: boxes must be in pixels, not normalized to [0, 1]"
    assert suspicious(evaluate_detections(truth, small)["notes"], text)
    truth_small = {**truth, "annotations": [{**a, "bbox": [v / 640 for v in a["bbox"]]} for a in truth["annotations"]]}
    assert suspicious(evaluate_detections(truth_small, found)["notes"], "all boxes of the annotations are smaller")
    percent = [{**d, "score": 100 * d["score"]} for d in found]
    text = "calibration needs them in [0, 1], so divide percentages by 100"
    assert suspicious(evaluate_detections(truth, percent)["notes"], text)
    logits = [{**d, "score": 10 * d["score"] - 5} for d in found]
    assert suspicious(evaluate_detections(truth, logits)["notes"], "so apply sigmoid to logits")


def test_swapped_files_are_refused_and_lvis_files_noted(tmp_path):
    truth, found = make_scene(0)
    gt, dt = write_scene(tmp_path, truth, found)
    with pytest.raises(
        ValueError, match=r"truth.json must hold detections with scores, got .*; are the two files swapped"
    ):
        analyze(dt, gt)
    truth["images"][0]["neg_category_ids"] = [1]
    assert suspicious(evaluate_detections(truth, found)["notes"], "evaluate with LVIS's rules, lvis=True or --lvis")


def test_boxes_around_masks_are_noted():
    truth, found = make_scene(0)
    masks = []
    for d in found:
        x, y, w, h = d["bbox"]
        masks.append({k: v for k, v in d.items() if k != "bbox"} | {"segmentation": [[x, y, x + w, y, x + w, y + h]]})
    assert suspicious(evaluate_detections(truth, masks)["notes"], "have masks and no boxes: the boxes around the masks")


def test_federated_ground_truth_is_known_by_its_images():
    assert is_federated({"images": [{"id": 1}, {"id": 2, "neg_category_ids": []}]})
    assert not is_federated({"images": [{"id": 1}]})
    assert not is_federated(None)


def test_a_byte_order_mark_is_no_part_of_a_class_and_hidden_files_are_left_out(tmp_path):
    for folder, score in (("truth", ""), ("found", " 0.9")):
        (tmp_path / folder).mkdir()
        for name, encoding in (("a", "utf-8"), ("b", "utf-8-sig")):
            (tmp_path / folder / f"{name}.txt").write_text(f"car{score} 10 10 50 50\n", encoding=encoding)
        (tmp_path / folder / "._a.txt").write_bytes(b"\x00\x05\x16\x07")
    report = evaluate_detections(tmp_path / "truth", tmp_path / "found")
    assert [row["name"] for row in report["per_class"]] == ["car"]
    assert (report["AP"], report["n_images"]) == (1.0, 2)
