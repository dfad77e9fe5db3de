"""Results files that are read in parts give the columns of the whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from concordet.measures.reading import parts
from concordet.measures.reading.dataset import read_dataset
from concordet.measures.reading.records import annotation_columns
from tests.measures.scenes import SHAPES, make_scene

WHAT = "results.json: detection"


def columns(folder, text):
    path = folder / "results.json"
    path.write_text(text, encoding="utf-8")
    return parts.columns_of_file(path, WHAT)


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(parts, "CHARACTERS", 300)


@pytest.mark.parametrize("indent", [None, 2])
def test_columns_are_those_of_the_whole_list(tmp_path, indent):
    _, results = make_scene(5, **SHAPES["crowds"])
    results[3]["segmentation"] = {"size": [4, 4], "counts": "04L0"}
    read = columns(tmp_path, json.dumps(results, indent=indent))
    whole = annotation_columns(results, WHAT, scored=True)
    for name in ("image_ids", "class_ids", "boxes", "scores"):
        np.testing.assert_array_equal(getattr(read, name), getattr(whole, name))
    assert read.segmentations == whole.segmentations


@pytest.mark.parametrize("first", range(100, 400, 7))
def test_text_that_looks_like_the_end_of_a_record_never_splits_one(tmp_path, monkeypatch, first):
    _, results = make_scene(5, **SHAPES["crowds"])
    results[2] |= {"attributes": [{"a": 1}, {"b": 2}], "note": "}, {"}
    monkeypatch.setattr(parts, "CHARACTERS", first)
    read = columns(tmp_path, json.dumps(results))
    assert read is None or len(read) == len(results)


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", "[{}]", '[{"score": 1},]', "[] 3", "nothing", "[[[["])
def test_anything_else_is_left_to_the_reader_that_names_faults(tmp_path, text):
    assert columns(tmp_path, text) is None


def test_a_fault_is_named_by_its_place_in_the_file(tmp_path):
    truth, results = make_scene(5, **SHAPES["crowds"])
    results[40]["score"] = "high"
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(ValueError, match=r"results.json: detection 40 \(from 0\): score must be a finite number"):
        read_dataset(truth, path)
