from __future__ import annotations

import json

from concordet.benchmark.analyze import CASES, Case, generate, run, run_cases
from concordet.benchmark.results import read_rows


def test_rows_hold_every_program_with_the_same_ap(tmp_path):
    rows = run_cases([Case("tiny", 10, 3, 30, 100)], repeats=1)
    assert len({row["AP"] for row in rows}) == 1
    assert [row["program"].split()[0].rstrip(",") for row in rows] == ["concordet", "hotcoco", "pycocotools"]


def test_generated_files_have_the_size_asked_for_and_are_the_same_each_time(tmp_path):
    truth, results = generate(Case("a", 10, 3, 30, 100), tmp_path)
    content = json.loads(truth.read_text())
    assert (len(content["images"]), len(content["annotations"]), len(json.loads(results.read_text()))) == (10, 30, 100)
    before = results.read_bytes()
    generate(Case("a", 10, 3, 30, 100), tmp_path)
    assert results.read_bytes() == before


def test_command_writes_the_files_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CASES, "small", Case("small", 5, 2, 10, 20))
    run(
        [
            "--cases",
            "small",
            "--repeats",
            "1",
            "--json",
            str(tmp_path / "new" / "a.json"),
            "--out",
            str(tmp_path / "a.csv"),
        ]
    )
    content = json.loads((tmp_path / "new" / "a.json").read_text())
    assert len(content["rows"]) == 3
    assert content["environment"]["hotcoco"]
    assert read_rows(tmp_path / "a.csv")[0]["hotcoco"] == content["environment"]["hotcoco"]
    assert [row["program"] for row in read_rows(tmp_path / "a.csv")] == [row["program"] for row in content["rows"]]
    assert "pycocotools, AP only" in capsys.readouterr().out
