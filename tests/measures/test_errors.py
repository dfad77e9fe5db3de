"""Gains of AP50 without each type of error: a loop over the definitions of TIDE, and hotcoco's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from concordet.measures import analyze, coco
from concordet.measures.reading.dataset import read_dataset
from tests.measures.reference import box_iou, matched_pairs, run_pycocotools
from tests.measures.scenes import SHAPES, make_scene

NAMES = {
    "classification": "Cls",
    "localization": "Loc",
    "both": "Both",
    "duplicates": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}


def loop(truth, found):
    """The gains, detection by detection, from pycocotools' matches."""
    pairs = matched_pairs(run_pycocotools(truth, found))
    objects = {a["id"]: a for a in truth["annotations"] if not a["iscrowd"]}
    used = {pairs[i][0] for i in pairs if pairs[i][0] in objects}
    types, target = {}, {}
    for i, (match, ignored) in pairs.items():
        if match in objects or ignored:
            continue
        d = found[i - 1]
        near = [(box_iou(a["bbox"], d["bbox"]), a) for a in objects.values() if a["image_id"] == d["image_id"]]
        same = max((n for n in near if n[1]["category_id"] == d["category_id"]), key=lambda n: n[0], default=(0, None))
        other = max((n for n in near if n[1]["category_id"] != d["category_id"]), key=lambda n: n[0], default=(0, None))
        if 0.1 <= same[0] <= 0.5:
            types[i], target[i] = "localization", same[1]["id"]
        elif other[0] >= 0.5:
            types[i], target[i] = "classification", other[1]["id"]
        elif same[0] > 0.5:
            types[i] = "duplicates"
        elif max(same[0], other[0]) <= 0.1:
            types[i] = "background"
        else:
            types[i] = "both"
    winner = {}  # object to the detection with the highest score that would be matched to it
    for i in sorted(target, key=lambda i: (-found[i - 1]["score"], i)):
        if target[i] not in used:
            winner.setdefault(target[i], i)
    missed = [a for a in objects.values() if a["id"] not in used and a["id"] not in winner]

    def mean_ap(fix):
        values = []
        for c in sorted({a["category_id"] for a in objects.values()}):
            rows = []
            for i, (match, ignored) in pairs.items():
                d = found[i - 1]
                label, hit = d["category_id"], match in objects
                if fix and types.get(i) == fix:
                    if i not in winner.values():
                        continue
                    label, hit = objects[target[i]]["category_id"], True
                if label == c and not ignored:
                    rows.append((-d["score"], d["image_id"], i, hit))
            n = sum(a["category_id"] == c for a in objects.values())
            n -= sum(a["category_id"] == c for a in missed) if fix == "missed" else 0
            values.append(average(sorted(rows), n))
        return sum(values) / len(values)

    return {name: max(mean_ap(name) - mean_ap(None), 0) for name in NAMES}


def average(rows, n_objects):
    """Interpolated precision at 101 recalls."""
    points, hits = [], 0
    for k, (_, _, _, hit) in enumerate(rows, 1):
        hits += hit
        points.append((hits / max(n_objects, 1), hits / k))
    recalls = np.linspace(0, 1, 101)
    return sum(max((p for r, p in points if r >= recall), default=0) for recall in recalls) / 101 if n_objects else 0


@pytest.mark.parametrize("shape", ["plain", "crowds", "ties", "many_classes", "dense", "few_objects", "exact_boxes"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gains_equal_a_loop_over_the_definitions(shape, seed):
    truth, found = make_scene(seed, **SHAPES[shape])
    gains = analyze(truth, found).to_dict()["gains"]
    gains.pop("ranking")
    assert gains == pytest.approx(loop(truth, found), abs=1e-9)
    assert shape == "few_objects" or sum(value > 0 for value in gains.values()) >= 3


def hotcocos(truth, found, **settings):
    """hotcoco's gains of the same files."""
    limit = 300 if settings.get("lvis") else 100
    dataset = read_dataset(truth, found, max_dets=limit, **{"iou_type": "bbox", "lvis": False} | settings)
    result = coco.evaluator(
        dataset, coco.load(dataset), scores=None, max_dets=[limit], all_areas=False, thresholds=[0.5]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gains = result.tide_errors()["delta_ap"]
    return {name: max(gains[key], 0.0) for name, key in NAMES.items()}


def diamond(record):
    """The record with a mask: the polygon through the middles of its box's sides."""
    x, y, w, h = record["bbox"]
    return record | {"segmentation": [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]}


@pytest.mark.parametrize("shape", ["plain", "many_classes", "dense", "small_only"])
def test_gains_of_boxes_and_masks_equal_hotcocos(shape):
    truth, found = make_scene(3, **SHAPES[shape])
    for settings in ({}, {"iou_type": "segm"}):
        pair = truth | {"annotations": [*map(diamond, truth["annotations"])]}, [*map(diamond, found)]
        gains = analyze(*pair, **settings).to_dict()["gains"]
        gains.pop("ranking")
        assert gains == pytest.approx(hotcocos(*pair, **settings), abs=1e-9)


def test_a_class_whose_objects_are_all_missed_gains_nothing():
    # counting fewer objects leaves none: its AP stays 0, as in the code of TIDE's authors
    truth, found = make_scene(0)
    lost = truth["categories"][0]["id"]
    found = [d for d in found if d["category_id"] != lost]
    gains = analyze(truth, found).to_dict()["gains"]
    gains.pop("ranking")
    assert gains == pytest.approx(loop(truth, found), abs=1e-9)
    assert gains["missed"] < 1 / len(truth["categories"])


def test_one_detection_has_an_object_of_its_own_and_one_of_another_class():
    """The object of its own class counts as poorly localized, although it overlaps the other one, too."""
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 12], "area": 120, "iscrowd": 0},
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 4.5], "score": 0.9}]
    gains = analyze(truth, found).to_dict()["gains"]
    assert gains["localization"] == pytest.approx(loop(truth, found)["localization"]) == 0.5
