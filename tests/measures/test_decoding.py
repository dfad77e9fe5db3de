"""COCO files decoded by msgspec give the columns of the readers that take records one by one."""

from __future__ import annotations

import json
import os
from threading import Thread

import numpy as np
import pytest

from concordet.measures.reading import decoding
from concordet.measures.reading.dataset import read_dataset
from concordet.measures.reading.records import annotation_columns
from tests.measures.scenes import SHAPES, make_scene

WHAT = "results.json: detection"


def columns(text):
    return decoding.decoded_results(text.encode(), WHAT, masks=True)


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(decoding, "AT_ONCE", 300)


@pytest.mark.parametrize("indent", [None, 2])
def test_columns_are_those_of_the_whole_list(indent):
    _, results = make_scene(5, **SHAPES["crowds"])
    results[3]["segmentation"] = {"size": [4, 4], "counts": "04L0"}
    read = columns(json.dumps(results, indent=indent))
    whole = annotation_columns(results, WHAT, scored=True)
    for name in ("image_ids", "class_ids", "boxes", "scores"):
        np.testing.assert_array_equal(getattr(read, name), getattr(whole, name))
    assert read.segmentations == whole.segmentations


@pytest.mark.parametrize("first", range(100, 400, 7))
def test_text_that_looks_like_the_end_of_a_record_never_splits_one(monkeypatch, first):
    _, results = make_scene(5, **SHAPES["crowds"])
    results[2] |= {"attributes": [{"a": 1}, {"b": 2}], "note": "}, {"}
    monkeypatch.setattr(decoding, "AT_ONCE", first)
    read = columns(json.dumps(results))
    assert read is None or len(read) == len(results)


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", "[{}]", '[{"score": 1},]', "[] 3", "nothing", "[[[["])
def test_anything_else_is_left_to_the_reader_that_names_faults(text):
    assert columns(text) is None


def test_a_fault_is_named_by_its_place_in_the_file(tmp_path):
    truth, results = make_scene(5, **SHAPES["crowds"])
    results[40]["score"] = "high"
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(ValueError, match=r"results.json: detection 40 \(from 0\): score must be a finite number"):
        read_dataset(truth, path)


@pytest.mark.parametrize("masks", [False, True])
def test_annotations_are_those_of_the_whole_list(masks):
    truth, _ = make_scene(5, **SHAPES["crowds"])
    odd = truth["annotations"]
    odd[0] |= {"area": None, "iscrowd": None, "ignore": 1}
    odd[1] |= {"iscrowd": True, "ignore": True, "id": odd[0]["id"], "segmentation": [[0, 0, 4, 0, 4, 4]]}
    del odd[2]["area"]
    odd[3] |= {"area": 7, "bbox": [1, 2, 3, 4], "note": "}, {"}
    content = json.dumps(truth | {"info": {"year": 2017}}).encode()
    lists, read = decoding.decoded_truth(content, "annotation", masks=masks)
    whole = annotation_columns(odd, "annotation", scored=False)
    for name in ("image_ids", "class_ids", "boxes", "scores", "areas", "crowd"):
        np.testing.assert_array_equal(getattr(read, name), getattr(whole, name), err_msg=name)
    assert (read.n_ignore, read.n_duplicate_ids) == (whole.n_ignore, whole.n_duplicate_ids) == (1, 1)
    assert read.segmentations == (whole.segmentations if masks else None)
    assert lists == {"images": truth["images"], "categories": truth["categories"]}


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": 1.0},
        {"image_id": True},
        {"image_id": 2**63},
        {"category_id": "1"},
        {"bbox": [0, 0, 1]},
        {"bbox": [0, 0, 1, -1]},
        {"bbox": None},
        {"bbox": [0, 0, 1, 1e10]},
        {"score": None},
        {"score": True},
        {"score": 1e31},
        {"score": float("nan")},
    ],
)
def test_values_that_are_faults_elsewhere_are_not_accepted(change):
    record = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    assert len(columns(json.dumps([record]))) == 1
    assert columns(json.dumps([record, record | change])) is None


def test_without_a_list_of_images_they_are_those_of_the_records(tmp_path):
    truth, results = make_scene(5, **SHAPES["crowds"])
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"annotations": truth["annotations"]}), encoding="utf-8")
    dataset = read_dataset(path, results)
    assert dataset.image_ids.tolist() == sorted({r["image_id"] for r in [*truth["annotations"], *results]})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_read_once_whatever_they_hold(tmp_path):
    truth, results = make_scene(5, **SHAPES["crowds"])
    results[0]["bbox"] = [str(value) for value in results[0]["bbox"]]  # for the reader that names faults
    pipes = []
    for name, content in (("truth", truth), ("results", results)):
        os.mkfifo(tmp_path / name)
        pipes.append(Thread(target=(tmp_path / name).write_text, args=(json.dumps(content),), daemon=True))
        pipes[-1].start()
    with pytest.raises(ValueError, match=r"results: detection 0 \(from 0\): bbox must be four finite numbers"):
        read_dataset(tmp_path / "truth", tmp_path / "results")
    for pipe in pipes:
        pipe.join(10)
        assert not pipe.is_alive()
