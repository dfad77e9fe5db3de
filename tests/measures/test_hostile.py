"""Files of arbitrary content give a report or an error of one sentence."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from concordet.measures import analyze
from tests.measures.scenes import make_scene

TRUTH, FOUND = make_scene(0, n_images=3, n_classes=2, n_objects=6, n_detections=12)
for record in (*TRUTH["annotations"], *FOUND):
    x, y, w, h = record["bbox"]
    record["segmentation"] = [[x, y, x + w, y, x + w, y + h]]

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 2**63, 1.0, "1", "", [], {}]),
    st.text(max_size=3),
    st.lists(st.one_of(st.floats(), st.none(), st.text(max_size=2), st.integers(-5, 5)), max_size=7),
    st.lists(st.lists(st.floats(-10, 700), max_size=8), max_size=2),
    st.fixed_dictionaries(
        {"size": st.just([640, 640]), "counts": st.one_of(st.text(max_size=5), st.lists(st.integers()))}
    ),
)
places = st.one_of(
    st.tuples(
        st.sampled_from(["images", "categories", "annotations", "found"]),
        st.integers(0, 1),
        st.sampled_from(
            ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "score", "segmentation"]
        ),
    ),
    st.tuples(
        st.sampled_from(["images", "categories"]),
        st.integers(0, 1),
        st.sampled_from(["name", "file_name", "width", "height", "frequency", "neg_category_ids"]),
    ),
    st.tuples(st.sampled_from(["images", "categories", "annotations", "found"]), st.integers(0, 1), st.none()),
    st.tuples(st.sampled_from(["images", "categories", "annotations", "found"]), st.none(), st.none()),
)


def put(everything, place, value):
    side, row, key = place
    if row is None:
        everything[side] = value
    elif key is None:
        if isinstance(everything[side], list) and len(everything[side]) > row:
            everything[side][row] = value
    elif isinstance(everything[side], list) and len(everything[side]) > row and isinstance(everything[side][row], dict):
        everything[side][row][key] = value


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(places, junk), min_size=1, max_size=2), st.sampled_from(["bbox", "segm"]), st.booleans())
def test_junk_gives_a_report_or_one_sentence(changes, iou_type, lvis):
    everything = copy.deepcopy({**TRUTH, "found": FOUND})
    if lvis:
        for image in everything["images"]:
            image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": []}
    for place, value in changes:
        put(everything, place, value)
    found = everything.pop("found")
    report, error = None, None
    try:
        report = analyze(everything, found, iou_type=iou_type, lvis=lvis).to_dict()
    except ValueError as raised:
        error = raised
    if report is not None:
        json.dumps(report, allow_nan=False)
    else:
        assert type(error) is ValueError
        assert "\n" not in str(error)
        assert not str(error).endswith(".")
        assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"counts": "22"}, "must have the image's height and width as size, got None"),
        ({"counts": [2, 2], "size": [4]}, r"must have the image's height and width as size, got \[4\]"),
        ({"counts": [2, 14], "size": None}, "must have the image's height and width as size, got None"),
        ({"counts": [2, 2.5, 11.5], "size": [4, 4]}, "must have counts that are whole numbers and add up to 16"),
        ([[0, 0, 2, 0, 2]], r"must be a list of polygons \[x, y, x, y, ...\] of three points or more"),
        ([[]], r"must be a list of polygons \[x, y, x, y, ...\] of three points or more"),
        (True, r"must be a list of polygons \[x, y, x, y, ...\] of three points or more"),
    ],
)
def test_masks_without_boxes_are_named(mask, message):
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    found = [{"image_id": 1, "category_id": 1, "segmentation": mask, "score": 0.5}]
    with pytest.raises(ValueError, match=r"0 \(from 0\): segmentation " + message):
        analyze(truth, found)


def test_nothing_has_intervals():
    for truth in ([], {"images": [{"id": 1}], "categories": [], "annotations": []}):
        assert analyze(truth, []).intervals(n_resamples=3)["per_class"] == []
