"""The benchmark of training steps runs, and says how much the losses look at."""

from __future__ import annotations

import json

import pytest

from concordet.benchmark import detectors, losses
from concordet.benchmark.results import read_rows, write_rows


def test_a_detector_is_measured_with_every_loss():
    options = detectors.Options(("faster_rcnn",), size="nano", side=64, batch=1, rounds=2, threads=1)
    rows = detectors.measure("faster_rcnn", options)
    assert [row["loss"] for row in rows] == ["default", *detectors.LOSSES]
    assert rows[0]["times_default"] == 1
    assert all(row["median_ms"] > 0 and row["q25"] <= row["times_default"] <= row["q75"] for row in rows)
    seen = {row["loss"]: row["predictions"] for row in rows}
    assert seen["rank_sort"] > seen["default"]  # ranking losses do not sample


def test_a_table_comes_from_the_file(tmp_path, capsys):
    out, json_out = tmp_path / "steps.csv", tmp_path / "steps.json"
    words = "--size nano --detectors fcos --losses ap --rounds 1 --side 64 --threads 1 --out"
    detectors.run([*words.split(), str(out), "--json", str(json_out)])
    assert [row["loss"] for row in read_rows(out)] == ["default", "ap"]
    content = json.loads(json_out.read_text())
    assert [row["loss"] for row in content["rows"]] == ["default", "ap"]
    assert content["environment"]["size"] == "nano"
    capsys.readouterr()
    detectors.run(["--table", str(out)])
    assert "| fcos |" in capsys.readouterr().out


def test_results_of_another_kind_are_no_table(tmp_path):
    out = tmp_path / "other.csv"
    write_rows(out, [{"a": 1}], {})
    for module in (detectors, losses):
        with pytest.raises(
            ValueError,
            match=r"other\.csv must be a results file with a column (detector|case); .*benchmark (detectors|losses)",
        ):
            module.run(["--table", str(out)])


def test_existing_files_are_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "losses.csv").write_text("mine")
    losses.run(["--logits", "1000", "--shares", "0.01", "--budget", "0.01", "--threads", "1", "--json", "losses.json"])
    assert (tmp_path / "losses.csv").read_text() == "mine"
    assert len(read_rows(tmp_path / "losses-2.csv")) == len(losses.CASES) + len(losses.COMPILED)
    assert len(json.loads((tmp_path / "losses.json").read_text())["rows"]) == len(losses.CASES) + len(losses.COMPILED)


def test_a_failure_says_which_detector():
    options = detectors.Options(("fcos",), size="none", rounds=1)
    with pytest.raises(RuntimeError, match="measurement of fcos failed: ValueError: size must be one of full, nano"):
        detectors.in_own_process("fcos", options)
