from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from concordet.measures import analyze, evaluate_detections
from concordet.measures.findings.bounds import suppress
from concordet.measures.overlaps import best_objects
from concordet.measures.reading.dataset import read_dataset
from tests.measures.reference import box_iou, coco_figures, run_pycocotools
from tests.measures.scenes import SHAPES, make_scene, write_scene

CONTRACT = [
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR100",
    "AP_upper",
    "AP50_upper",
    "AP75_upper",
    "AP_lower",
    "AP50_lower",
    "AP75_lower",
    "beta_cls",
    "pearson",
    "spearman",
    "kendall",
    "concordance",
    "AIC",
    "AIC_mean",
    "oLRP",
    "oLRP_loc",
    "oLRP_fp",
    "oLRP_fn",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_name_is_a_number_or_has_a_reason(shape):
    report = analyze(*make_scene(8, **SHAPES[shape])).to_dict()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for name in ("n_images", "n_detections", "n_true_positives"):
        assert isinstance(report[name], int)
    for entry in (report, *report["per_class"]):
        for name in CONTRACT:
            if entry[name] is None:
                assert len(entry["reasons"][name]) > 10
            else:
                assert -1 <= entry[name] <= 1 or name == "AIC"
                assert name not in entry["reasons"]
    for entry in report["per_class"]:
        assert entry["lrp_threshold"] is not None or entry["reasons"]["lrp_threshold"]


def test_analysis_holds_the_figures_of_evaluate_detections_and_its_own_arrays():
    truth, found = make_scene(8)
    analysis = analyze(truth, found)
    plain, report = evaluate_detections(truth, found), analysis.to_dict()
    for name, value in plain.items():
        if name not in ("per_class", "reasons", "notes"):
            assert report[name] == value
    hit = analysis.true_positive
    assert report["n_true_positives"] == hit.sum()
    assert report["spearman"] == pytest.approx(stats.spearmanr(analysis.scores[hit], analysis.ious[hit]).statistic)
    report["AP"] = 7
    assert analysis.to_dict()["AP"] == plain["AP"]
    ap, upper = 100 * report["AP_upper"], 100 * plain["AP"]
    assert f"a perfect ranking of the same boxes would give {ap:.1f} AP; you have {upper:.1f}." in analysis.sentence


def test_images_of_a_class_are_those_with_an_object_that_counts():
    truth, detections = make_scene(8, **SHAPES["ignores"])
    of_class = {category["id"]: set() for category in truth["categories"]}
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd"):
            of_class[annotation["category_id"]].add(annotation["image_id"])
    entries = analyze(truth, detections).to_dict()["per_class"]
    assert {entry["id"]: entry["n_images"] for entry in entries} == {id: len(images) for id, images in of_class.items()}


def test_empty_ground_truth_and_no_images():
    analysis = analyze({"images": [], "annotations": [], "categories": []}, [])
    assert analysis.to_dict()["AP"] is None
    assert analysis.sentence == "AP is undefined: the ground truth has no object."
    assert analysis.to_dict()["per_class"] == []


def test_best_objects_is_the_largest_iou_over_objects_of_image_and_class(monkeypatch):
    monkeypatch.setattr("concordet.measures.overlaps._PAIRS_AT_ONCE", 50)
    truth, found = make_scene(3, crowd=0.2)
    dataset = read_dataset(truth, found)
    objects, ious = best_objects(dataset, np.arange(len(found)))
    for i, d in enumerate(found):
        best = max(
            (
                box_iou(d["bbox"], a["bbox"])
                for a in truth["annotations"]
                if a["image_id"] == d["image_id"] and a["category_id"] == d["category_id"] and not a["iscrowd"]
            ),
            default=0.0,
        )
        assert ious[i] == pytest.approx(best, abs=1e-11)
        if best:
            held = truth["annotations"][objects[i]]
            assert box_iou(d["bbox"], held["bbox"]) == pytest.approx(best, abs=1e-11)
        else:
            assert objects[i] == -1


def test_disagreements_name_first_and_better_box():
    truth = {
        "images": [{"id": 3, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 1, "bbox": [0, 0, 10, 10]},
            {"id": 2, "image_id": 3, "category_id": 1, "bbox": [50, 0, 10, 10]},
        ],
    }
    rows = [([0, 0, 10, 5], 0.9), ([0, 0, 10, 9], 0.4), ([50, 0, 10, 10], 0.8), ([50, 0, 10, 6], 0.3)]
    found = [{"image_id": 3, "category_id": 1, "bbox": box, "score": s} for box, s in rows]
    (worst,) = analyze(truth, found).to_dict()["disagreements"]
    assert worst["first"] == {"bbox": [0, 0, 10, 5], "score": 0.9, "iou": 0.5}
    assert worst["better"] == {"bbox": [0, 0, 10, 9], "score": 0.4, "iou": 0.9}
    assert worst["gap"] == pytest.approx(0.4)
    assert (worst["image_id"], worst["file_name"], worst["class_name"]) == (3, "a.jpg", "cat")
    assert worst["object"] == [0, 0, 10, 10]


def greedy_nms(found, scores, threshold):
    kept = []
    for i in sorted(range(len(found)), key=lambda i: -scores[i]):
        same = [k for k in kept if all(found[k][key] == found[i][key] for key in ("image_id", "category_id"))]
        if all(box_iou(found[i]["bbox"], found[k]["bbox"]) <= threshold for k in same):
            kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize("shape", ["plain", "dense", "ties", "many_classes"])
def test_suppression_is_greedy_nms(shape, monkeypatch):
    monkeypatch.setattr("concordet.measures.findings.bounds._PAIRS_AT_ONCE", 500)
    truth, found = make_scene(1, **SHAPES[shape])
    dataset = read_dataset(truth, found)
    other = np.random.default_rng(0).random(len(found))
    results = suppress(dataset, [dataset.dt_scores, other], 0.4)
    for scores, survives in zip((dataset.dt_scores, other), results, strict=True):
        assert np.flatnonzero(survives).tolist() == greedy_nms(found, scores, 0.4)


def test_raw_detections_give_the_image_level():
    truth, raw = make_scene(1, n_images=6, n_classes=2, n_objects=30, n_detections=900)
    found = [raw[i] for i in greedy_nms(raw, [d["score"] for d in raw], 0.6)]
    report = analyze(truth, found, raw_detections=raw).to_dict()
    assert report["AP_raw"] == pytest.approx(coco_figures(run_pycocotools(truth, found))["AP"], abs=1e-9)
    assert report["AP_image_lower"] < report["AP_raw"] < report["AP_image_upper"]
    rho = []
    for image in truth["images"]:
        pairs = []
        for d in raw:
            same = [a for a in truth["annotations"] if a["category_id"] == d["category_id"]]
            same = [a for a in same if a["image_id"] == d["image_id"] == image["id"]]
            iou = max((box_iou(d["bbox"], a["bbox"]) for a in same), default=0)
            if iou >= 0.5:
                pairs.append((d["score"], iou))
        rho.append(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    assert report["beta_img"] == pytest.approx(np.mean(rho), abs=1e-9)


def test_a_raw_detection_of_iou_one_half_is_positive():
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}],
    }
    raw = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, height], "score": score}
        for height, score in ((5, 0.3), (8, 0.9), (4.9, 0.95))
    ]
    assert analyze(truth, raw, raw_detections=raw).to_dict()["beta_img"] == 1.0  # of the first two


def test_without_raw_detections_beta_img_says_what_it_needs():
    report = analyze(*make_scene(0)).to_dict()
    assert report["beta_img"] is None
    assert "raw_detections" in report["reasons"]["beta_img"]
    with pytest.raises(ValueError, match=r"nms_threshold must be an IoU in \(0, 1\], got 0"):
        analyze(*make_scene(0), raw_detections=[], nms_threshold=0)


def with_masks(truth, found):
    for record in (*truth["annotations"], *found):
        x, y, w, h = record["bbox"]
        record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x + w / 3, y + h]]
    return truth, found


def as_run_lengths(found):
    """Results as mmdetection and others write them: run lengths and no boxes; pycocotools needs both for mask areas."""
    from pycocotools import mask

    records = []
    for record in found:
        rle = mask.merge(mask.frPyObjects(record["segmentation"], 640, 640))
        plain = {"size": rle["size"], "counts": rle["counts"].decode()}
        records.append({k: v for k, v in record.items() if k != "bbox"} | {"segmentation": plain})
    return records


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("crowd", [0, 0.2])
@pytest.mark.parametrize("form", ["polygons", "run lengths"])
@pytest.mark.parametrize("boxes", [True, False])
def test_masks_are_pycocotools_of_masks_only(seed, crowd, form, boxes, tmp_path):
    truth, found = with_masks(*make_scene(seed, n_images=8, n_objects=40, n_detections=120, crowd=crowd))
    rle = as_run_lengths(found)
    expected = coco_figures(run_pycocotools(truth, rle, "segm"))
    given = found if form == "polygons" else [{**r, "bbox": d["bbox"]} for r, d in zip(rle, found, strict=True)]
    if not boxes:
        given = [{k: v for k, v in d.items() if k != "bbox"} for d in given]
    report = analyze(*write_scene(tmp_path, truth, given), iou_type="segm").to_dict()
    for name, value in expected.items():
        assert report[name] == (None if value is None else pytest.approx(value, abs=1e-9))
    assert any("APs, APm and APl use the areas of the masks" in note for note in report["notes"]) == boxes


def test_masks_with_and_without_boxes_agree_in_every_metric():
    truth, found = with_masks(*make_scene(2, n_images=8, n_objects=30, n_detections=120))
    expected = analyze(truth, found, iou_type="segm").to_dict()
    report = analyze(truth, as_run_lengths(found), iou_type="segm").to_dict()
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "beta_cls", "oLRP", "AIC"):
        assert report[name] == pytest.approx(expected[name], abs=1e-9)
    assert evaluate_detections(truth, found)["AP"] != expected["AP"]


def diamond(x, y, side):
    half = side / 2
    return [[x, y - half, x + half, y, x, y + half, x - half, y]]


def test_a_diamond_is_small_although_its_box_is_medium():
    truth = {
        "images": [{"id": 1, "width": 640, "height": 640}],
        "categories": [{"id": 1, "name": "diamond"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [80, 80, 40, 40], "area": 800, "iscrowd": 0}
        ],
    }
    truth["annotations"][0]["segmentation"] = diamond(100, 100, 40)
    found = as_run_lengths(
        [
            {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": diamond(300, 300, 40)},
            {"image_id": 1, "category_id": 1, "score": 0.8, "segmentation": diamond(100, 100, 40)},
        ]
    )
    assert coco_figures(run_pycocotools(truth, found, "segm"))["APs"] == pytest.approx(0.5)
    assert analyze(truth, found, iou_type="segm").to_dict()["APs"] == pytest.approx(0.5)
    del truth["annotations"][0]["area"]  # the mask's area is taken where the file has none
    assert analyze(truth, found, iou_type="segm").to_dict()["APs"] == pytest.approx(0.5)


def test_crowds_as_plain_run_lengths():
    truth, found = with_masks(*make_scene(3, n_images=4, n_objects=20, n_detections=120))
    for image in truth["images"]:
        image |= {"height": 640, "width": 640}
        pixels = np.zeros((640, 640), int, order="F")
        pixels[100:300, 50:500] = 1
        flat = pixels.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        record = {"image_id": image["id"], "category_id": 1, "bbox": [50, 100, 450, 200], "iscrowd": 1, "area": 90000}
        ident = len(truth["annotations"]) + 1
        truth["annotations"].append({**record, "id": ident, "segmentation": {"size": [640, 640], "counts": counts}})
    report = analyze(truth, found, iou_type="segm").to_dict()
    for name, expected in coco_figures(run_pycocotools(truth, as_run_lengths(found), "segm")).items():
        assert report[name] == (None if expected is None else pytest.approx(expected, abs=1e-9))


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ([], "must have a segmentation, got none; give it one or evaluate boxes"),
        ("abc", "segmentation must be a list of polygons"),
        ([[1, 2, 3, 4]], "segmentation must be a list of polygons"),
        ([[1, 2, 3, 4, "5", 6]], "segmentation must be a list of polygons"),
        ({"size": [640, 640]}, "segmentation must have counts"),
        ({"size": [64, 64], "counts": [4096]}, r"height and width \[640, 640\] as size, got \[64, 64\]"),
        ({"size": [640, 640], "counts": "!!!"}, "must have counts that can be decoded"),
        ({"size": [640, 640], "counts": [5, -1]}, "add up to 409600"),
    ],
)
def test_faulty_masks_are_named(mask, sentence):
    truth, found = with_masks(*make_scene(3))
    found[5]["segmentation"] = mask
    with pytest.raises(ValueError, match=r"detections: detection 5 \(from 0\).*" + sentence):
        analyze(truth, found, iou_type="segm")
    del truth["images"][2]["height"]
    with pytest.raises(ValueError, match=r"height of image 3 must be in 1\.\.65535 pixels for masks, got None"):
        analyze(truth, found, iou_type="segm")


def lvis_scene(seed):
    truth, found = make_scene(seed, n_classes=6)
    rng = np.random.default_rng(seed)
    for place, category in enumerate(truth["categories"]):
        category["frequency"] = "rcf"[place % 3]
    for image in truth["images"]:
        ids = [c["id"] for c in truth["categories"]]
        image["neg_category_ids"] = [i for i in ids if rng.random() < 0.3]
        image["not_exhaustive_category_ids"] = []
    return truth, found


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_lvis_judges_a_class_only_on_its_own_images(iou_type):
    truth, found = with_masks(*lvis_scene(4))
    report = analyze(truth, found, lvis=True, iou_type=iou_type).to_dict()
    if iou_type == "segm":
        found = as_run_lengths(found)
    by_frequency = {"r": [], "c": [], "f": []}
    for entry, category in zip(report["per_class"], truth["categories"], strict=True):
        ident = category["id"]
        objects = [a for a in truth["annotations"] if a["category_id"] == ident]
        positive = {a["image_id"] for a in objects}
        images = [i for i in truth["images"] if i["id"] in positive or ident in i["neg_category_ids"]]
        judged = {i["id"] for i in images}
        one = {"images": images, "categories": [category], "annotations": objects}
        kept = [d for d in found if d["category_id"] == ident and d["image_id"] in judged]
        expected = coco_figures(run_pycocotools(one, kept, iou_type, max_dets=(300,)))
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
            assert entry[name] == (None if expected[name] is None else pytest.approx(expected[name], abs=1e-9))
        by_frequency[category["frequency"]].append(expected["AP"])
    for key, values in by_frequency.items():
        assert report[f"AP{key}"] == pytest.approx(np.mean(values), abs=1e-9)
    assert report["AR300"] is not None
    assert report["AR100"] is None
    assert report["reasons"]["AR100"]


def test_lvis_does_not_blame_unmatched_boxes_where_annotation_is_not_exhaustive():
    truth, found = lvis_scene(4)
    for image in truth["images"]:
        image["not_exhaustive_category_ids"] = [c["id"] for c in truth["categories"]]
    report = analyze(truth, found, lvis=True).to_dict()
    assert report["oLRP_fp"] == 0.0
    assert report["AP50"] > analyze(*lvis_scene(4), lvis=True).to_dict()["AP50"]


def test_lvis_keeps_the_highest_of_an_image():
    truth, found = lvis_scene(5)
    few = [
        d
        for i in truth["images"]
        for d in sorted((d for d in found if d["image_id"] == i["id"]), key=lambda d: -d["score"])[:6]
    ]
    capped, whole = analyze(truth, found, lvis=True, max_dets=6).to_dict(), analyze(truth, few, lvis=True).to_dict()
    for name in ("AP", "beta_cls", "oLRP", "AP_upper"):
        assert capped[name] == pytest.approx(whole[name], abs=1e-12)
    with pytest.raises(ValueError, match="images must have neg_category_ids, got none"):
        analyze(*make_scene(0), lvis=True)
