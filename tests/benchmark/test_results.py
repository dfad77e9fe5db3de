"""Results files are written whole, keep other rows, and say where each row was measured."""

from __future__ import annotations

import csv
import json
from importlib import metadata

import pytest
import torch

from concordet.benchmark import results


def test_results_are_written_whole(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    results.write_rows(path, [{"a": 1}, {"a": 2, "b": 3}], {"torch": "x"})
    assert path.read_text() == "a,b,torch\n1,,x\n2,3,x\n"
    assert results.read_rows(path) == [{"a": "1", "b": "", "torch": "x"}, {"a": "2", "b": "3", "torch": "x"}]
    assert [file.name for file in path.parent.iterdir()] == ["rows.csv"]


def test_rows_of_the_same_keys_are_replaced_and_others_stay(tmp_path):
    path = tmp_path / "rows.csv"
    assert results.merge_rows(path, [{"a": 1, "b": "x", "c": 1}], "ab") == [{"a": 1, "b": "x", "c": 1}]
    results.write_rows(path, [{"a": 1, "b": "x", "c": 1}, {"a": 1, "b": "y", "c": 2}], {})
    merged = results.merge_rows(path, [{"a": 1, "b": "x", "c": 3}, {"a": 2, "b": "x", "c": 4}], "ab")
    assert [(str(r["a"]), r["b"], str(r["c"])) for r in merged] == [("1", "y", "2"), ("1", "x", "3"), ("2", "x", "4")]


def test_rows_of_an_earlier_run_keep_their_environment(tmp_path):
    path = tmp_path / "rows.csv"
    results.write_rows(path, [{"a": 1}, {"a": 2}], {"torch": "old", "processor": "first"})
    results.write_rows(path, results.merge_rows(path, [{"a": 2}], "a"), {"torch": "new", "processor": "second"})
    assert results.read_rows(path) == [
        {"a": "1", "torch": "old", "processor": "first"},
        {"a": "2", "torch": "new", "processor": "second"},
    ]
    assert results.caption(results.read_rows(path)) == "first / second, torch old / new"


def test_files_are_plain_csv(tmp_path):
    path = tmp_path / "rows.csv"
    results.write_rows(path, [{"case": "a, b"}], results.environment())
    (row,) = csv.DictReader(path.open())
    assert row["case"] == "a, b"
    assert torch.__version__.startswith(row["torch"])
    assert int(row["cores"]) > 0


def test_measurements_name_numba_where_it_is_installed():
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    assert results.environment().get("numba") == installed.get("numba")
    assert "numba" not in results.environment(packages=("torch",))


def test_json_holds_the_rows_and_the_environment(tmp_path):
    results.write_results(None, tmp_path / "new" / "r.json", [{"a": 1}], {"torch": "x"})
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == {"environment": {"torch": "x"}, "rows": [{"a": 1}]}


def test_a_table_with_a_missing_cell_is_refused():
    with pytest.raises(ValueError, match=r"rows must have 2 cells, got 1 in \['x'\]"):
        results.table(["a", "b"], [["x"]])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_unavailable_device_is_named():
    with pytest.raises(ValueError, match="device must be one that PyTorch sees here, got cuda; leave --device out"):
        results.environment("cuda")
