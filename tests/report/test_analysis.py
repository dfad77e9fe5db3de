from __future__ import annotations

import csv
import json
import re
from collections import Counter
from urllib.parse import unquote

import pytest
from PIL import Image

from concordet.calibration.details import details
from concordet.measures import analyze, compare
from concordet.measures.analysis import LOSSES
from concordet.report import write_analysis
from concordet.report.analysis import findings
from concordet.report.findings import curves_view
from tests.measures.reference import box_iou
from tests.measures.scenes import make_scene


@pytest.fixture
def analysis(run_folders):
    return analyze(run_folders[0] / "ground_truth.json", run_folders[0] / "detections.json")


def test_the_page_says_what_the_analysis_found(analysis, tmp_path, read_page):
    out = write_analysis(analysis, tmp_path / "report.html", title="default <run>")
    text = out.read_text(encoding="utf-8")
    page, values = read_page(text), analysis.to_dict()
    assert page.headings[0] == "default <run>"
    largest = max(values["gains"], key=values["gains"].__getitem__)
    assert (
        f"The largest cost is {LOSSES[largest]} ({100 * values['gains'][largest]:.1f} points of AP50); of " in page.text
    )
    bounds = {row[0].split(" ")[0]: row[1:] for row in page.tables["bounds"][1:]}
    for name in ("AP", "AP50", "AP75", "AP90"):
        reached, perfect, _, worst, interval = bounds[name]
        assert ("to" in interval) == (name != "AP90")
        value, upper, lower = (values[k] for k in (name, f"{name}_upper", f"{name}_lower"))
        assert [reached, perfect] == [f"{100 * value:.1f}", f"{100 * upper:.1f}"]
        assert worst == f"{100 * min(lower, value):.1f}"  # duplicates can lift the bound above the value
    assert values["AP50_lower"] > values["AP50"]
    assert "Here, the bounds of AP50 cross the value" in " ".join(page.text.split())
    body = page.tables["classes"][1:]
    entries = sorted(values["per_class"], key=lambda e: e["n_objects"] * (e["AP"] - e["AP_upper"]))
    assert [row[0] for row in body] == [entry["name"] for entry in entries]
    assert [row[2].split(" ")[0] for row in body] == [f"{100 * entry['AP']:.1f}" for entry in entries]
    assert [row[-1] for row in body] == [f"{entry['lrp_threshold']:.3f}" for entry in entries]
    gains = sorted(values["gains"].values(), reverse=True)
    assert [row[1] for row in page.tables["gains"][1:]] == [f"{100 * g:+.1f}" if g >= 5e-4 else "±0" for g in gains]
    for name in ("APs", "APm", "APl", "AR1", "AR10", "AR100", "LaECE0", "LaACE0", "D_ECE"):
        assert [a for _, a in page.tags if a.get("data-metric") == name], name
    assert f"{values['kendall']:.3f}" in page.text
    assert values["reasons"]["beta_img"] in page.text  # undefined, and it says why
    assert not re.search(r"https?:|@import", text)
    per_class = 3  # precision by recall, both by threshold, and calibration
    assert len(page.with_class("plot")) == 3 + 3 + 3 + per_class * len(entries)
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_worst_cases_are_pictures_when_images_are_given(analysis, run_folders, tmp_path, read_page):
    cases = analysis.to_dict()["disagreements"]
    assert cases
    out = write_analysis(analysis, tmp_path / "report.html", images=run_folders[0] / "samples")
    page = read_page(out.read_text(encoding="utf-8"))
    shown = [a["alt"] for tag, a in page.tags if tag == "img"]
    with_picture = [case for case in cases if case["image_id"] < 8][:6]
    worst = [row for row in analysis.to_dict()["images"] if row["image_id"] < 8][:9]
    expected = [f"Image {row['file_name']}" for row in [*worst, *with_picture]]
    assert [alt.split(":")[0] for alt in shown] == expected
    assert f"{worst[0]['n_missed']} of {worst[0]['n_objects']} objects missed" in shown[0]
    links = [a["href"] for tag, a in page.tags if tag == "a" and a["href"].endswith(".png")]
    assert links
    assert all((tmp_path / link).is_file() for link in links)
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
    assert re.search(r"\d+ of \d+ images of the worst cases were readable in images \(looked for", page.text)
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
    assert page.text.index(lead) < page.text.index("The largest cost is")
    assert rows["AP"][:2] == [f"{100 * found['AP'][side]:.1f}" for side in ("first", "second")]
    for name in ("AP", "AP50", "oLRP"):
        assert (rows[name][-1] == "may be chance") == (not found[name]["differs"])
    assert rows["AP75"][-1] == "better"
    assert rows["AP"][3] == " to ".join(f"{100 * found['AP'][end]:+.1f}".replace("-", "−") for end in ("low", "high"))
    same = compare(run_folders[0] / "ground_truth.json", folders[0], folders[0], n_resamples=5)
    page = read_page(write_analysis(analysis, out, comparison=same).read_text(encoding="utf-8"))
    assert [row[-1] for row in page.tables["intervals"][1:]] == ["may be chance"] * 8


def test_the_summary_says_which_of_order_scale_and_boxes_costs_most(tmp_path, read_page):
    for which, jitter, factor in (("boxes", 0.12, 1.0), ("scale", 0.01, 0.01)):
        truth, found = make_scene(0, jitter=jitter)
        for d in found:  # the score is the IoU, so that the order costs nothing
            key = d["image_id"], d["category_id"]
            held = [a["bbox"] for a in truth["annotations"] if (a["image_id"], a["category_id"]) == key]
            d["score"] = factor * max([box_iou(box, d["bbox"]) for box in held], default=0.0)
        each = analyze(truth, found)
        extra = details(each, n_resamples=5)
        costs = extra.costs
        assert costs["order"] + costs["boxes"] == pytest.approx(each.summary["AP50"] - each.summary["AP"])
        page = read_page(write_analysis(each, tmp_path / "r.html", details=extra).read_text(encoding="utf-8"))
        assert page.tables["costs"][1][0].lower() == max(costs, key=costs.__getitem__) == which
        phrase = {"boxes": "the boxes cost most", "scale": "the scale of the scores costs most"}[which]
        assert f"of order, scale and boxes, {phrase} ({100 * costs[which]:.1f} points of" in page.text
    assert extra.report["operating"]["before"]["LaECE0"] > extra.report["operating"]["after"]["LaECE0"]


def test_the_page_shows_confusion_curves_sizes_and_calibration(tmp_path, read_page):
    truth, found = make_scene(0, n_objects=200, n_detections=2000)
    analysis = analyze(truth, found)
    values, extra = analysis.to_dict(), details(analysis, n_resamples=30)
    page = read_page(write_analysis(analysis, tmp_path / "r.html", details=extra).read_text(encoding="utf-8"))
    first, *rows, background = page.tables["confusion"]
    names = [row["name"] for row in values["confusion"]["per_class"]]
    assert first[1:] == [*names, "missed"]
    for i, (cells, row) in enumerate(zip(rows, values["confusion"]["per_class"], strict=True)):
        assert cells[0] == row["name"]
        assert cells[1 + i] == f"{100 * row['right'] / row['n_objects']:.0f}"
        assert cells[-1] == f"{100 * row['missed'] / row['n_objects']:.0f}"
    assert [int(cell or 0) for cell in background[1:-1]] == [r["background"] for r in values["confusion"]["per_class"]]
    assert [[r[0], r[1], int(r[2])] for r in page.tables["confused"][1:4]] == [
        [pair["object"], pair["detection"], pair["count"]] for pair in values["confusion"]["pairs"][:3]
    ]
    assert [row[1] for row in page.tables["sizes"][1:]] == [str(row["n_objects"]) for row in values["sizes"]]
    assert [row[2] for row in page.tables["sizes"][1:]] == [f"{100 * row['AP']:.1f}" for row in values["sizes"]]
    ends = " to ".join(f"{100 * end:.1f}" for end in extra.intervals["AP"])
    assert f"AP is {100 * values['AP']:.1f} (95 % interval {ends})" in page.text
    for row in values["per_class"]:
        curve = analysis.curve(row["id"])
        index = curve.at(row["lrp_threshold"])
        kept = f"{int(curve.n_kept[index]):,} detections, precision {curve.precision[index]:.2f}"
        assert f"{kept}, recall {curve.recall[index]:.2f}" in page.text
    assert "Effect of calibration" in page.headings
    before, after = (extra.report[side]["LaECE0"] for side in ("before", "after"))
    assert page.tables["calibrated"][1][1:] == [f"{100 * before:.1f}", f"{100 * after:.1f}"]
    thresholds = [f"{entry['threshold']:.3g}" for entry in extra.report["per_class"]]
    assert [f"{float(row[3]):.3g}" for row in page.tables["mapped"][1:]] == thresholds


def test_many_classes_have_a_list_of_confusions_and_no_matrix(tmp_path, read_page):
    truth, found = make_scene(0, n_classes=40, n_images=30, n_objects=300, n_detections=900)
    page = read_page(write_analysis(analyze(truth, found), tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "confusion" not in page.tables
    assert "confused" in page.tables
    assert "the 6 of " in page.text


@pytest.mark.parametrize(("n_classes", "said"), [(8, False), (12, True)])
def test_curves_of_many_classes_are_those_with_most_objects(n_classes, said):
    truth, found = make_scene(0, n_classes=n_classes, n_images=30, n_objects=400, n_detections=1200)
    analysis = analyze(truth, found)
    view = curves_view(analysis, analysis.to_dict())
    counts = Counter(row["category_id"] for row in truth["annotations"])
    names = {row["id"]: row["name"] for row in truth["categories"]}
    shown = {names[ident] for ident, _ in counts.most_common(8)}
    assert min(counts[i] for i in counts if names[i] in shown) > max(
        [counts[i] for i in counts if names[i] not in shown], default=0
    )
    assert set(view["whole"]["lines"]) == shown
    note = f"The 8 of {n_classes} classes with most objects are shown."
    assert (view["whole"]["left_out"] == note) == said


def test_scores_that_cannot_be_calibrated_say_why(tmp_path, read_page):
    truth, found = make_scene(0)
    percent = analyze(truth, [{**d, "score": 100 * d["score"]} for d in found])
    page = read_page(write_analysis(percent, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Not available: scores must be in [0, 1], got" in page.text
    assert "of order and boxes, " in page.text


def test_low_scores_get_a_fitted_axis(tmp_path, read_page):
    truth, found = make_scene(0)
    low = analyze(truth, [{**d, "score": d["score"] / 40} for d in found])
    page = read_page(write_analysis(low, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "0.025" in page.text  # the last tick of the scores, which end at 1/40


@pytest.mark.parametrize(
    ("beta", "words"),
    [(-0.5, "disagree"), (-0.1, "do not agree"), (0.113, "barely agree"), (0.3, "agree weakly"),
     (0.466, "agree moderately"), (0.7, "agree well"), (0.9, "agree very well")],
)  # fmt: skip
def test_correlations_have_words_on_a_scale(beta, words):
    (sentence,) = findings({"beta_cls": beta, "n_classes_correlated": 2, "per_class": []})
    assert f"scores and IoUs of true positives {words}:" in sentence


def test_most_to_gain_is_said_of_classes_with_ten_objects_and_hides_empty_ones(tmp_path, read_page):
    truth, found = make_scene(1, n_objects=120, n_detections=900)
    truth["categories"].append({"id": 99, "name": "no such thing"})
    few = truth["categories"][0]["id"]
    held = [a for a in truth["annotations"] if a["category_id"] == few]
    truth["annotations"] = [a for a in truth["annotations"] if a not in held[9:]]
    page = read_page(write_analysis(analyze(truth, found), tmp_path / "r.html").read_text(encoding="utf-8"))
    (sentence,) = [line for line in page.text.splitlines() if "would gain most for" in line]
    assert truth["categories"][0]["name"] not in sentence
    assert "no such thing" not in [row[0] for row in page.tables["classes"]]
    assert "1 without objects is not shown" in page.text


def test_the_classes_can_be_saved_as_csv(analysis, tmp_path, read_page):
    page = read_page(write_analysis(analysis, tmp_path / "r.html").read_text(encoding="utf-8"))
    (address,) = [a["href"] for tag, a in page.tags if tag == "a" and a.get("download") == "classes.csv"]
    rows = list(csv.DictReader(unquote(address.split(",", 1)[1]).splitlines()))
    assert [row["name"] for row in rows] == [entry["name"] for entry in analysis.summary["per_class"]]
    assert [float(row["AP"]) for row in rows] == [entry["AP"] for entry in analysis.summary["per_class"]]
