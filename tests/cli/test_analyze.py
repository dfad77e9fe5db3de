"""`concordet analyze`: the page, its title, what the terminal shows, and the metrics of the classes as CSV."""

import csv
import json
import re

import pytest

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


@pytest.fixture
def shown(tmp_path, capsys):
    """Output of the command on these records, and status 0."""

    def output(truth, found, *words):
        for name, content in (("gt.json", truth), ("dt.json", found)):
            (tmp_path / name).write_text(json.dumps(content))
        assert main(["analyze", str(tmp_path / "gt.json"), str(tmp_path / "dt.json"), *words]) == 0
        return capsys.readouterr().out

    return output


def test_detections_on_unknown_images_are_a_red_note(shown, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    truth, found = make_scene(0)
    unknown = [{**found[0], "image_id": 5000 + i} for i in range(3)]
    notes = [line for line in shown(truth, unknown + found).splitlines() if "note: " in line]
    text = "3 detections on 3 images that the ground truth lacks were left out"
    assert notes[0] == f"\x1b[31mnote: {text}\x1b[0m"
    assert notes[1:]  # on ranking bounds: a property of the results, no mistake
    assert not any("\x1b[" in note for note in notes[1:])
    truth, found = make_scene(0, n_images=4, n_classes=1, n_objects=12, n_detections=40)
    page = tmp_path / "page.html"
    shown(truth, unknown + found, "--html", str(page), "--resamples", "2")
    assert re.findall(r'<li class="doubt">(.*?)</li>', page.read_text()) == [f"{text}."]


def test_the_terminal_has_directions_and_reasons(shown):
    truth, found = make_scene(0)
    out = shown(truth, [{**row, "score": 100 * row["score"]} for row in found])
    assert re.search(r"AP50 ↑ +│ +[\d.]+ ", out)
    assert re.search(r"oLRP ↓ +│ +[\d.]+ ", out)
    assert re.search(r"AIC ↓ +│ +– ", out)
    assert re.search(r"^AIC is undefined: \d+ true positives have a score outside \[0, 1\]$", out, re.MULTILINE)
    assert re.search(r"^beta_img is undefined: .*--raw FILE$", out, re.MULTILINE)
    assert "note: scores run from" in out


def test_lvis_has_the_metrics_of_lvis(shown):
    truth, found = make_scene(0)
    truth["images"] = [
        {**image, "neg_category_ids": [], "not_exhaustive_category_ids": []} for image in truth["images"]
    ]
    truth["categories"] = [{**row, "frequency": "rcf"[i % 3]} for i, row in enumerate(truth["categories"])]
    out = shown(truth, found, "--lvis")
    for title in ("AP, rare", "AP, common", "AP, frequent", "AR300"):
        assert re.search(rf"{title} ↑ +│ +[\d.]+ ", out), title
    assert "AR100" not in out
