"""Targets of detections at any IoU threshold, against a loop over images and classes."""

from __future__ import annotations

import numpy as np
import pytest

from concordet.measures import coco
from concordet.measures.matching import ANY_OVERLAP, match_at, match_by_hotcoco, match_detections
from concordet.measures.reading.dataset import read_dataset
from tests.measures.reference import greedy_targets
from tests.measures.scenes import SHAPES, make_scene


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_targets_are_those_of_a_greedy_loop(shape, tau):
    truth, found = make_scene(11, **SHAPES[shape])
    matched = match_detections(truth, found, tau=tau)
    targets, counted = greedy_targets(truth, found, tau)
    assert matched.rows.tolist() == sorted(targets)
    np.testing.assert_allclose(matched.targets, [targets[i] for i in matched.rows], atol=1e-11)
    assert matched.counted.tolist() == [counted[i] for i in matched.rows]
    for k, row in enumerate(matched.rows):
        record = found[row]
        assert (matched.image_ids[k], matched.class_ids[k]) == (record["image_id"], record["category_id"])
        assert matched.scores[k] == record["score"]
    for category in truth["categories"]:
        objects = [a for a in truth["annotations"] if a["category_id"] == category["id"] and not a["iscrowd"]]
        assert matched.n_objects[category["id"]] == len(objects)


def test_touching_boxes_do_not_match_at_tau_zero_and_a_sliver_does():
    truth = np.array([[1, 0, 0, 10, 10, 3]], float)
    touching = np.array([[1, 10, 0, 10, 10, 0.9, 3]], float)
    assert match_detections(truth, touching).targets.tolist() == [0]
    sliver = np.array([[1, 10 - 1e-6, 0, 10, 10, 0.9, 3], [1, 0, 0, 10, 10, 0.5, 3]], float)
    first, second = match_detections(truth, sliver).targets
    assert first == pytest.approx(1e-6 / 20, rel=1e-4)
    assert second == 0  # the object is taken by the higher score


def test_a_detection_beside_a_crowd_counts_and_one_that_overlaps_it_does_not():
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "iscrowd": 1}],
    }
    rows = np.array([[1, 100, 0, 10, 10, 0.9, 1], [1, 95, 0, 10, 10, 0.8, 1]], float)
    matched = match_detections(truth, rows)
    assert matched.counted.tolist() == [True, False]
    assert matched.targets.tolist() == [0, 0]
    assert matched.n_objects == {1: 0}
    assert match_detections(truth, rows, tau=0.6).counted.tolist() == [True, True]


def test_a_box_beyond_the_largest_area_range_counts_nowhere():
    truth = np.array([[1, 0, 0, 10, 10, 3]], float)
    rows = np.array([[1, 20, 20, 1e5, 1.1e5, 0.9, 3], [1, 20, 20, 1e5, 0.9e5, 0.8, 3]], float)
    assert match_detections(truth, rows).counted.tolist() == [False, True]  # as pycocotools, from 1e10 pixels


def test_rows_are_indices_in_the_source_where_images_are_unknown_or_detections_too_many():
    truth, found = make_scene(0)
    strange = [{**found[0], "image_id": 9999}]
    matched = match_detections(truth, strange + found)
    assert matched.rows.tolist() == list(range(1, len(found) + 1))
    few = match_detections(truth, found, max_dets=1)
    best = {}
    for i, d in enumerate(found):
        key = d["image_id"], d["category_id"]
        if key not in best or d["score"] > found[best[key]]["score"]:
            best[key] = i
    assert sorted(few.rows.tolist()) == sorted(best.values())


@pytest.mark.parametrize("tau", [-0.1, 1, float("nan")])
def test_tau_must_be_an_iou_below_one(tau):
    with pytest.raises(ValueError, match=r"tau must be an IoU in \[0, 1\), got"):
        match_detections(*make_scene(0), tau=tau)


@pytest.mark.parametrize("max_dets", [3, 100])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_are_hotcocos(shape, seed, max_dets):
    truth, found = make_scene(seed, **SHAPES[shape])
    for annotation in truth["annotations"][::7]:
        annotation["area"] = 2e10  # beyond the largest area range, so that it does not count
    for record in found[::3]:
        record["score"] = round(record["score"], 1)  # ties
    dataset = read_dataset(truth, found, iou_type="bbox", lvis=False, max_dets=max_dets)
    thresholds = (ANY_OVERLAP, 0.3, 0.5, 0.75, 1.0)
    ours = match_at(dataset, max_dets=max_dets, thresholds=thresholds)
    theirs = match_by_hotcoco(dataset, coco.load(dataset), max_dets=max_dets, thresholds=thresholds)
    for a, b in zip(ours, theirs, strict=True):
        for name in ("rows", "images", "classes", "scores", "ious", "objects", "true_positive", "ignored", "n_objects"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        held = [sorted(zip(m.object_images, m.object_classes, strict=True)) for m in (a, b)]
        assert held[0] == held[1]
