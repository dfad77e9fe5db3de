from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from concordet.measures import analyze, compare
from concordet.report import write_analysis


@pytest.fixture
def analysis(run_folders):
    return analyze(run_folders[0] / "ground_truth.json", run_folders[0] / "detections.json")


def test_the_page_says_what_the_analysis_found(analysis, tmp_path, read_page):
    out = write_analysis(analysis, tmp_path / "report.html", title="default <run>")
    text = out.read_text(encoding="utf-8")
    page, values = read_page(text), analysis.to_dict()
    assert page.headings[0] == "default <run>"
    assert analysis.sentence in page.text
    bounds = {row[0].split(" ")[0]: row[1:] for row in page.tables["bounds"][1:]}
    for name in ("AP", "AP50", "AP75", "AP90"):
        reached, perfect, _, worst = bounds[name]
        value, upper, lower = (values[k] for k in (name, f"{name}_upper", f"{name}_lower"))
        assert [reached, perfect] == [f"{100 * value:.1f}", f"{100 * upper:.1f}"]
        assert worst == f"{100 * min(lower, value):.1f}"  # duplicates can lift the bound above the value
    assert values["AP50_lower"] > values["AP50"]
    assert "the bounds of AP50 cross the value here" in " ".join(page.text.split())
    body = page.tables["classes"][1:]
    entries = sorted(values["per_class"], key=lambda e: e["n_objects"] * (e["AP"] - e["AP_upper"]))
    assert [row[0] for row in body] == [entry["name"] for entry in entries]
    assert [row[2] for row in body] == [f"{100 * entry['AP']:.1f}" for entry in entries]
    assert [row[-1] for row in body] == [f"{entry['lrp_threshold']:.3f}" for entry in entries]
    gains = sorted(values["gains"].values(), reverse=True)
    assert [row[1] for row in page.tables["gains"][1:]] == [f"{100 * g:+.1f}" if g >= 5e-4 else "±0" for g in gains]
    for name in ("APs", "APm", "APl", "AR1", "AR10", "AR100", "LaECE0", "LaACE0", "D_ECE"):
        assert [a for _, a in page.tags if a.get("data-metric") == name], name
    assert f"{values['kendall']:.3f}" in page.text
    assert values["reasons"]["beta_img"] in page.text  # undefined, and it says why
    assert not re.search(r"https?:|@import", text)
    assert len(page.with_class("plot")) == 3 + len(entries)  # a reliability diagram per class
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_worst_cases_are_pictures_when_images_are_given(analysis, run_folders, tmp_path, read_page):
    cases = analysis.to_dict()["disagreements"]
    assert cases
    out = write_analysis(analysis, tmp_path / "report.html", images=run_folders[0] / "samples")
    page = read_page(out.read_text(encoding="utf-8"))
    shown = [a["alt"] for tag, a in page.tags if tag == "img"]
    with_picture = [case for case in cases if case["image_id"] < 8][:12]
    assert [alt.split(":")[0] for alt in shown] == [f"Image {case['file_name']}" for case in with_picture]
    first = with_picture[0]["first"]
    assert f"score {first['score']:.3g}, IoU {first['iou']:.2f}" in page.text
    assert page.tables["cases"][2][0] == cases[0]["class_name"]


def test_pictures_that_are_not_there_are_counted(analysis, tmp_path, read_page):
    folder = tmp_path / "images"
    folder.mkdir()
    case = analysis.to_dict()["disagreements"][0]
    Image.new("L", (160, 120)).save(folder / f"{case['image_id']}.png")
    (folder / "1.png").write_text("no picture")
    page = read_page(write_analysis(analysis, tmp_path / "r.html", images=folder).read_text(encoding="utf-8"))
    assert re.search(r"\d+ of 12 images of the worst cases were readable in images \(looked for", page.text)
    with pytest.raises(
        ValueError, match=r"images must be a folder, got .*nowhere; name the folder that holds the images"
    ):
        write_analysis(analysis, tmp_path / "r.html", images=tmp_path / "nowhere")


def test_nothing_found_and_nothing_to_find(run_folders, tmp_path, read_page):
    truth = json.loads((run_folders[0] / "ground_truth.json").read_text())
    page = read_page(write_analysis(analyze(truth, []), tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "There are no detections, so AP is 0.0." in page.text
    truth["annotations"] = []
    found = json.loads((run_folders[0] / "detections.json").read_text())
    page = read_page(write_analysis(analyze(truth, found), tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "AP is undefined" in page.text


def test_bounds_within_images_when_there_are_raw_detections(run_folders, tmp_path, read_page):
    truth, found = run_folders[0] / "ground_truth.json", run_folders[0] / "detections.json"
    analysis = analyze(truth, found, raw_detections=found)
    page = read_page(write_analysis(analysis, tmp_path / "r.html").read_text(encoding="utf-8"))
    values = analysis.to_dict()
    _, _, within = [row for row in page.tables["bounds"] if row[0].startswith("AP ↑") or not row[0]][-3:]
    keys = ("AP_raw", "AP_image_upper", "AP_image_lower")
    assert [within[1], within[2], within[4]] == [f"{100 * values[key]:.1f}" for key in keys]
    assert f"{values['beta_img']:.3f}" in page.text


def test_a_comparison_says_which_differences_may_be_chance(analysis, run_folders, tmp_path, read_page):
    folders = [folder / "detections.json" for folder in run_folders]
    found = compare(run_folders[0] / "ground_truth.json", *folders, n_resamples=60)
    out = write_analysis(analysis, tmp_path / "r.html", comparison=found, other="coupled.json")
    page = read_page(out.read_text(encoding="utf-8"))
    rows = {row[0].split(" ")[0]: row[1:] for row in page.tables["intervals"][1:]}
    assert list(rows) == ["AP", "AP50", "AP75", "beta_cls", "oLRP", "LaECE₀", "LaACE₀", "D-ECE"]
    lead = f"coupled.json has {rows['AP'][2].lstrip('+−')} points of AP more than"
    assert page.with_class("summary")
    assert page.text.index(lead) < page.text.index("a perfect ranking")
    assert rows["AP"][:2] == [f"{100 * found['AP'][side]:.1f}" for side in ("first", "second")]
    for name in ("AP", "AP50", "oLRP"):
        assert (rows[name][-1] == "may be chance") == (not found[name]["differs"])
    assert rows["AP75"][-1] == "better"
    assert rows["AP"][3] == " to ".join(f"{100 * found['AP'][end]:+.1f}".replace("-", "−") for end in ("low", "high"))
    same = compare(run_folders[0] / "ground_truth.json", folders[0], folders[0], n_resamples=5)
    page = read_page(write_analysis(analysis, out, comparison=same).read_text(encoding="utf-8"))
    assert [row[-1] for row in page.tables["intervals"][1:]] == ["may be chance"] * 8
