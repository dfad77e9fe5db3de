from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from concordet.report.matching import corners, count_matches, iou_matrix, worst_disagreements

number = st.floats(0, 50, width=32)
boxes = st.lists(st.tuples(number, number, number, number), min_size=1, max_size=5)


def detection(bbox, score, *, category_id=1, image_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def annotation(bbox, *, category_id=1, image_id=1, iscrowd=0):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": iscrowd}


@given(boxes, boxes)
def test_iou_is_torchvisions(first, second):
    ours = iou_matrix(corners(first), corners(second))
    theirs = torch.nan_to_num(box_iou(torch.tensor(corners(first)), torch.tensor(corners(second))))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-9)


def test_each_object_is_found_once_and_crowds_forgive():
    objects = [annotation([0, 0, 10, 10]), annotation([50, 0, 10, 10]), annotation([0, 50, 40, 40], iscrowd=1)]
    found = [
        detection([0, 0, 10, 9], 0.9),
        detection([0, 0, 10, 10], 0.8),  # a duplicate
        detection([50, 0, 10, 10], 0.7, category_id=2),  # of another class
        detection([0, 50, 40, 38], 0.6),
    ]
    assert count_matches(objects, found) == (1, 2)
    assert count_matches([], []) == (0, 0)
    assert count_matches(objects[:2], [detection([0, 0, 10, 10], 0.9), detection([50, 0, 10, 6], 0.1)]) == (2, 0)


def test_the_worst_pair_is_found_on_one_object():
    truth = {"annotations": [annotation([0, 0, 10, 10])]}
    found = [detection([0, 0, 10, 5], 0.9), detection([0, 0, 10, 10], 0.4), detection([0, 0, 10, 8], 0.8)]
    (pair,) = worst_disagreements(truth, found)
    assert (pair.first["score"], pair.second["score"]) == (0.9, 0.4)
    assert (pair.first_iou, pair.second_iou) == (0.5, 1.0)
    assert pair.same_object
    np.testing.assert_allclose(pair.size, 0.25)


def test_pairs_are_of_one_class_and_one_image_and_in_the_wrong_order():
    truth = {
        "annotations": [
            annotation([0, 0, 10, 10]),
            annotation([50, 0, 10, 10], category_id=2),
            annotation([0, 0, 10, 10], image_id=2),
        ]
    }
    found = [
        detection([0, 0, 10, 5], 0.9),
        detection([50, 0, 10, 10], 0.4, category_id=2),
        detection([0, 0, 10, 10], 0.4, image_id=2),
    ]
    assert worst_disagreements(truth, found) == []
    agreeing = [detection([0, 0, 10, 5], 0.4), detection([0, 0, 10, 10], 0.9)]
    assert worst_disagreements(truth, agreeing) == []
    assert worst_disagreements({"annotations": [annotation([0, 0, 10, 10], iscrowd=1)]}, found) == []


def test_the_worst_come_first_one_an_image_and_no_more_than_asked():
    truth = {"annotations": [annotation([0, 0, 10, 10], image_id=i) for i in range(5)]}
    found = []
    for i in range(5):
        found += [detection([0, 0, 10, 9 - i], 0.9, image_id=i), detection([0, 0, 10, 10], 0.5, image_id=i)]
    pairs = worst_disagreements(truth, found, limit=3)
    assert [pair.image_id for pair in pairs] == [4, 3, 2]
    assert [pair.image_id for pair in worst_disagreements(truth, found, image_ids=[1])] == [1]
