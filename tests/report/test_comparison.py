from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from concordet.calibration.runs import run_differences
from concordet.measures import analyze, compare
from concordet.measures.metrics import METRICS
from concordet.measures.runs import read_runs, same_ground_truth, setting_differences
from concordet.report import comparison_rows, write_comparison
from concordet.report.comparison import cautions, metrics_table_rows, summary
from concordet.report.page import breakable


@pytest.fixture
def page(run_folders, tmp_path, read_page):
    out = write_comparison(run_folders, tmp_path / "pages" / "comparison.html")
    assert out == tmp_path / "pages" / "comparison.html"
    assert [path.name for path in out.parent.iterdir()] == ["comparison.html"]
    return read_page(out.read_text(encoding="utf-8"))


def test_the_table_has_every_metric_with_its_difference(page, run_folders):
    rows = {
        row[0].split(" ↑")[0].split(" ↓")[0]: [" ".join(cell.split()) for cell in row[1:]]
        for row in page.tables["metrics"]
    }
    assert rows["AP"] == ["41.2", "39.8 −1.4"]
    assert rows["AP75"] == ["43.0", "45.0 +2.0"]
    assert rows["AP90"] == ["12.0", "–"]
    assert rows["beta_img"] == ["0.310", "0.520 +0.210"]
    assert rows["AIC mean"] == ["0.153", "0.101 −0.052"]
    assert rows["s / iteration"] == ["0.210", "0.210 ±0"]
    stored = json.loads((run_folders[0] / "evaluation.json").read_text())["metrics"]
    assert len(rows) == 1 + len(stored)
    explained = [a["title"] for _, a in page.tags if a.get("title")]
    assert all(metric.explanation in explained for metric in METRICS if metric.key in stored)


def test_the_summary_says_what_is_worse_as_plainly_as_what_is_better(run_folders, build_run, tmp_path):
    sentences = " ".join(summary(read_runs(run_folders))).replace("\u00a0", " ")
    assert "focal+concordance(0.3) reaches 39.8 AP where focal reaches 41.2: 1.4 points worse." in sentences
    assert "better by beta_img 0.310 → 0.520 and AIC mean 0.153 → 0.101 and the same by beta_cls 0.420" in sentences
    sentences = " ".join(summary(read_runs(run_folders[::-1])))
    assert "focal reaches 41.2 AP where focal+concordance(0.3) reaches 39.8: 1.4 points better." in sentences
    equal = build_run(tmp_path / "equal", loss="rank_sort", metrics={"AP": 0.4121})
    assert "rank_sort and focal reach the same AP, 41.2." in summary(read_runs([run_folders[0], equal]))
    undefined = build_run(tmp_path / "undefined", loss="ap", metrics={"AP": None})
    assert "cannot be compared" in summary(read_runs([run_folders[0], undefined]))[0]


def test_the_default_loss_has_an_article_in_sentences(run_folders, build_run, tmp_path, read_page):
    default = build_run(tmp_path / "own", loss="default")
    runs = read_runs([default, run_folders[1]])
    assert summary(runs)[0].endswith("where the default loss reaches 41.2: 1.4 points worse.")
    assert summary(runs[::-1])[0].startswith("The default loss reaches 41.2 AP where focal+concordance(0.3) reaches")
    page = read_page(write_comparison([default, run_folders[1]], tmp_path / "p.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert "differences from the default loss." in text
    assert re.search(r"would give [\d.]+ AP \(.*?\) for the default loss and [\d.]+ AP \(.*?\) for focal\+", text)


def test_raw_scores_of_different_losses_are_not_compared_by_scale(run_folders):
    for folder in run_folders:
        path = folder / "evaluation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": "not calibrated"}))
    (sentence,) = [s for s in summary(read_runs(run_folders)) if "agree with IoUs" in s]
    assert "beta_img" in sentence
    assert "AIC" not in sentence


def test_times_are_not_called_better_or_worse(run_folders, build_run, tmp_path):
    slower = build_run(tmp_path / "slower", loss="ap", metrics={"seconds_per_iteration": 0.3044, "AP": 0.3})
    rows = {row["metric"].key: row["cells"] for row in metrics_table_rows(read_runs([run_folders[0], slower]))}
    cells = rows["seconds_per_iteration"]
    assert [(cell["text"], cell["difference"]) for cell in cells] == [("0.210", ""), ("0.304", "+0.094")]
    assert [cell["verdict"] for cell in cells] == ["unknown", "same"]
    assert not any(cell["best"] for cell in cells)
    assert rows["AP"][1]["verdict"] == "worse"


def test_different_objects_are_no_comparison(run_folders):
    path = run_folders[1] / "ground_truth.json"
    truth = json.loads(path.read_text())
    truth["annotations"].pop()
    path.write_text(json.dumps(truth))
    assert "evaluated on different images or objects" in cautions(read_runs(run_folders))[0]


def test_cautions_name_what_else_differs(run_folders, build_run, tmp_path):
    also, once = cautions(read_runs(run_folders))
    assert also == "The runs also differ in optim.lr, so differences are not only due to the loss."
    assert "seed" in once
    alike = build_run(tmp_path / "alike", loss="rank_sort", n_images=1)
    seeds = [build_run(tmp_path / f"seed{i}", n_images=1) for i in range(2)]
    assert cautions(read_runs([seeds[0], alike])) == [once]
    assert cautions(read_runs(seeds)) == []


def test_of_many_runs_the_summary_names_the_best(build_run, tmp_path):
    folders = [
        build_run(tmp_path / f"r{i}", loss=f"l{i}", n_images=1, metrics={"AP": 0.4 + 0.01 * i}) for i in range(5)
    ]
    sentences = summary(read_runs(folders))
    assert sentences == ["AP is best for l4: 44.0, 40.0 for l0."]


def test_one_row_a_class_and_undefined_values_are_no_zeros(page):
    rows = page.tables["classes"]
    body = rows[2:]
    assert [row[0] for row in body] == ["disc", "box", "<ring> & co"]
    assert [row[1] for row in body] == ["26", "11", "35"]
    assert body[0][2:4] == ["30.0", "31.0"]
    assert body[2][6:8] == ["–", "–"]
    assert {len(row) for row in body} == {len(rows[1])}


def test_the_page_needs_nothing_else(page, tmp_path):
    text = (tmp_path / "pages" / "comparison.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", text)
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "xlink:href", "srcset"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name])
    assert str(tmp_path) not in text
    assert len(text) < 4_000_000


def test_identifiers_are_unique_and_links_lead_somewhere(page):
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    targets = {a["href"].removeprefix("#") for _, a in page.tags if a.get("href", "").startswith("#")}
    used = {m for _, a in page.tags for m in re.findall(r"url\(#([^)]*)\)", " ".join(map(str, a.values())))}
    assert targets | used <= set(identifiers)
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert all(a.get("aria-label") for a in page.with_class("plot"))


def test_curves_pictures_and_settings(page):
    assert {"Total loss", "classification", "box", "Learning rate", "AP on validation"} <= set(page.headings)
    pictures = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert sum(alt.startswith("Ground truth") for alt in pictures) == 6
    assert sum(alt.startswith("focal, image") for alt in pictures) == 6
    assert sum("is less accurate" in alt for alt in pictures) == 6
    assert [row[0] for row in page.tables["differences"][1:]] == ["loss", "optim.lr"]
    assert [row[1:] for row in page.tables["differences"][1:]] == [
        ["focal", "focal+concordance(0.3)"],
        ["0.01", "0.02"],
    ]


def test_the_perfect_ranking_is_that_of_the_analysis(run_folders, page):
    found = analyze(run_folders[0] / "ground_truth.json", run_folders[0] / "detections.json").to_dict()
    assert f"{100 * found['AP_upper']:.1f} AP" in page.text


@pytest.mark.parametrize(
    "missing",
    ["positives.npz", "samples", "ground_truth.json", "detections.json", "metrics.csv", "config.yaml"],
)
def test_a_missing_piece_is_named_and_the_rest_is_shown(missing, run_folders, tmp_path, read_page):
    path = run_folders[1] / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = read_page(write_comparison(run_folders, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert f"coupled has no {missing.removesuffix('/')}" in page.text
    stored = json.loads((run_folders[0] / "evaluation.json").read_text())["metrics"]
    assert len(page.tables["metrics"]) == 1 + len(stored)


def test_a_run_with_metrics_only(run_folders, tmp_path, read_page):
    for path in run_folders[0].iterdir():
        if path.name != "evaluation.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = write_comparison(run_folders[:1], tmp_path / "page.html").read_text(encoding="utf-8")
    page = read_page(text)
    assert "fcos with focal reaches 41.2 AP." in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_many_runs_keep_the_page_small(build_run, tmp_path):
    folders = [build_run(tmp_path / f"run{i}", seed=i, n_images=8) for i in range(9)]
    out = write_comparison(folders, tmp_path / "page.html")
    assert out.stat().st_size < 4_000_000
    assert [row["name"] for row in comparison_rows(folders)] == [f"run{i}" for i in range(9)]


def test_rows_for_tables(run_folders):
    default, coupled = comparison_rows(run_folders)
    assert default["loss"] == default["name"] == "focal"
    assert (default["AP"], coupled["AP"], coupled["AP90"]) == (0.412, 0.398, None)
    assert set(default) == {"name", "loss", "detector", "folder", *(m.key for m in METRICS)}


def test_runs_of_one_loss_are_told_apart(build_run, tmp_path):
    runs = [build_run(tmp_path / name / "run", loss="focal", n_images=1) for name in "ab"]
    assert len({row["name"] for row in comparison_rows(runs)}) == 2
    assert len({row["name"] for row in comparison_rows([runs[0], runs[0]])}) == 2
    default = build_run(tmp_path / "c", loss="default", n_images=1)
    assert [row["name"] for row in comparison_rows([default, runs[0]])] == ["default loss", "focal"]


def test_settings_name_what_differs_and_not_where_runs_lie(run_folders):
    assert setting_differences(read_runs(run_folders)) == [
        ("loss", ["focal", "focal+concordance(0.3)"]),
        ("optim.lr", ["0.01", "0.02"]),
    ]


def test_what_is_no_run_is_refused_by_name(run_folders, tmp_path):
    out = tmp_path / "page.html"
    with pytest.raises(ValueError, match="at least one run folder"):
        write_comparison([], out)
    with pytest.raises(ValueError, match=r"run must be a folder, got .*nowhere; name one"):
        write_comparison([tmp_path / "nowhere"], out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"run must be a folder with evaluation\.json, got .*empty without it; .* `concordet evaluate`"
    ):
        write_comparison([run_folders[0], tmp_path / "empty"], out)
    with pytest.raises(ValueError, match=r"page must be an HTML file, got the folder"):
        write_comparison(run_folders, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written"):
        write_comparison(run_folders, tmp_path / "file" / "page.html")
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("evaluation.json", '{"metrics": ', r"evaluation\.json must be valid JSON"),
        ("evaluation.json", "[]", r"evaluation\.json must hold an object, got a list"),
        ("evaluation.json", "{}", r"evaluation\.json must hold metrics, got None"),
        ("detections.json", "{}", r"detections\.json must hold a list, got a dict"),
        ("positives.npz", "PK\x03\x04", r"positives\.npz must be an archive of arrays"),
        ("config.yaml", "a: [", r"config\.yaml is not valid YAML"),
        ("samples/0.png", "no picture", r"0\.png: the image cannot be decoded"),
    ],
)
def test_a_damaged_file_is_named_and_the_previous_page_kept(name, content, sentence, run_folders, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("before")
    (run_folders[1] / name).write_text(content)
    (run_folders[0] / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        write_comparison(run_folders, out)
    assert out.read_text() == "before"


def test_positives_of_unequal_length_are_refused(run_folders, tmp_path):
    np.savez(run_folders[0] / "positives.npz", scores=np.zeros(3), ious=np.zeros(2))
    with pytest.raises(ValueError, match="as many scores as ious"):
        write_comparison(run_folders, tmp_path / "page.html")


def test_the_same_runs_give_the_same_page(run_folders, tmp_path):
    first, second = (write_comparison(run_folders, tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second


def test_markup_in_names_stays_text():
    assert str(breakable("<b>+x_y")) == "&lt;b&gt;+<wbr>x_<wbr>y"


def test_figures_need_neither_torch_nor_matplotlib():
    code = (
        "import sys, concordet.report as r; r.METRICS, r.comparison_rows; "
        "print({'torch', 'matplotlib', 'jinja2', 'PIL'} & sys.modules.keys()); "
        "r.write_comparison, r.write_analysis, r.draw_detections; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "False"]


def test_runs_are_compared_with_intervals(run_folders, tmp_path, read_page):
    first, second = (folder / "detections.json" for folder in run_folders)
    expected = compare(run_folders[0] / "ground_truth.json", first, second)
    (difference,) = run_differences(read_runs(run_folders))
    assert difference == expected
    page = read_page(write_comparison(run_folders, tmp_path / "page.html").read_text(encoding="utf-8"))
    rows = {row[0].split(" ")[0]: row[1:] for row in page.tables["intervals"][1:]}
    for name in ("AP", "AP50", "AP75", "oLRP"):
        entry = expected[name]
        assert rows[name][:2] == [f"{100 * entry[side]:.1f}" for side in ("first", "second")]
        assert rows[name][3] == " to ".join(f"{100 * entry[end]:+.1f}".replace("-", "−") for end in ("low", "high"))
        assert (rows[name][4] == "may be chance") == (not entry["differs"])


def test_runs_of_other_objects_have_no_intervals(run_folders, tmp_path, read_page):
    path = run_folders[1] / "ground_truth.json"
    truth = json.loads(path.read_text())
    truth["annotations"].pop()
    path.write_text(json.dumps(truth))
    assert run_differences(read_runs(run_folders)) == [None]
    page = read_page(write_comparison(run_folders, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "intervals" not in page.tables


def test_runs_with_other_images_are_not_compared_image_by_image(run_folders, tmp_path):
    """An image without objects changes no annotation, but its detections are false positives."""
    other = tmp_path / "other"
    shutil.copytree(run_folders[1], other)
    truth = json.loads((other / "ground_truth.json").read_text())
    truth["images"].append({**truth["images"][0], "id": 10_000, "file_name": "empty.png"})
    (other / "ground_truth.json").write_text(json.dumps(truth))
    runs = read_runs([run_folders[0], other])
    assert not same_ground_truth(runs)
    assert run_differences(runs, n_resamples=4) == [None]
