"""`concordet analyze`: the page, its title, and the metrics of the classes as CSV."""

import csv
import json

from concordet.cli import main
from tests.measures.scenes import make_scene


def test_analyze_names_its_page_and_writes_the_classes(tmp_path):
    truth, found = make_scene(0)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps(found))
    page, table, values = (tmp_path / name for name in ("page.html", "classes.csv", "values.json"))
    words = [
        "analyze",
        str(tmp_path / "gt.json"),
        str(tmp_path / "dt.json"),
        "--title",
        "My detector",
        "--resamples",
        "5",
    ]
    assert main([*words, "--html", str(page), "--csv", str(table), "--json", str(values)]) == 0
    assert "<h1>My detector</h1>" in page.read_text()
    report = json.loads(values.read_text())
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["AP"]) for row in rows] == [row["AP"] for row in report["per_class"]]
    assert report["intervals"]["n_resamples"] == 5
    assert set(report["costs"]) == {"order", "scale", "boxes"}


def test_calibrated_scores_of_a_run_get_a_note(tmp_path, capsys):
    truth, found = make_scene(0)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    for name, records, noted in (("dt", found, False), ("run", [{**d, "raw_score": d["score"]} for d in found], True)):
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
        assert main(["analyze", str(tmp_path / "gt.json"), str(tmp_path / f"{name}.json")]) == 0
        assert ("note: the scores are calibrated" in " ".join(capsys.readouterr().out.split())) == noted
