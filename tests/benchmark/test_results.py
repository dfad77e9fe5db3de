"""Files of results are whole, keep other rows, and say what they were measured on."""

from __future__ import annotations

import pytest
import torch

from concordet.benchmark import results


def test_results_are_written_whole(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    results.write_rows(path, [{"a": 1}, {"a": 2, "b": 3}], {"torch": "x"})
    assert path.read_text() == "# torch: x\na,b\n1,\n2,3\n"
    assert results.read_rows(path) == [{"a": "1", "b": ""}, {"a": "2", "b": "3"}]
    assert [file.name for file in path.parent.iterdir()] == ["rows.csv"]


def test_rows_of_the_same_keys_are_replaced_and_others_stay(tmp_path):
    path = tmp_path / "rows.csv"
    assert results.merge_rows(path, [{"a": 1, "b": "x", "c": 1}], "ab") == [{"a": 1, "b": "x", "c": 1}]
    results.write_rows(path, [{"a": 1, "b": "x", "c": 1}, {"a": 1, "b": "y", "c": 2}], {})
    merged = results.merge_rows(path, [{"a": 1, "b": "x", "c": 3}, {"a": 2, "b": "x", "c": 4}], "ab")
    assert [(str(r["a"]), r["b"], str(r["c"])) for r in merged] == [("1", "y", "2"), ("1", "x", "3"), ("2", "x", "4")]


def test_a_table_lies_beside_its_rows(tmp_path):
    results.write_table(tmp_path / "t.csv", [{"a": 1}], "| a |\n|---|\n| 1 |", "`command`: what", 1)
    assert results.read_rows(tmp_path / "t.csv") == [{"a": "1"}]
    first, empty, *table = (tmp_path / "t.md").read_text().splitlines()
    assert first.startswith("`command`: what; concordet ")
    assert first.endswith("threads.")
    assert (empty, table) == ("", ["| a |", "|---|", "| 1 |"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.csv", "t.md"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here_is_named():
    with pytest.raises(ValueError, match="device cuda is asked for"):
        results.environment("cuda")
