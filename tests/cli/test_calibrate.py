"""`concordet calibrate`: files in, a calibrator, calibrated results, a report and a page out."""

import json

import pytest

from concordet.cli import main
from concordet.cli.outputs import is_ours

from ..calibration.test_calibration import ranking_results


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    truth, results = ranking_results(60)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_everything_is_written(files, tmp_path, capsys):
    out = {name: tmp_path / name for name in ("cal.json", "new.json", "report.json", "page.html")}
    before = (files / "results.json").read_bytes()
    words = [str(files / "truth.json"), str(files / "results.json"), "--resamples", "20"]
    options = zip(("--out", "--results", "--json", "--html"), map(str, out.values()), strict=True)
    assert main(["calibrate", *words, *(word for pair in options for word in pair)]) == 0
    report = json.loads(out["report.json"].read_text())
    for side in ("before", "after"):
        assert {"AP", "LaECE0", "LaACE0", "D_ECE", "AIC_mean"} <= set(report[side])
    assert report["after"]["AP"] == report["before"]["AP"]
    assert report["after"]["LaECE0"] < report["before"]["LaECE0"] / 2
    page = out["page.html"].read_text(encoding="utf-8")
    assert f"from {100 * report['before']['LaECE0']:.1f} to {100 * report['after']['LaECE0']:.1f}" in page
    assert f"{100 * report['after']['LaECE0']:.1f}" in capsys.readouterr().out
    assert (files / "results.json").read_bytes() == before
    applied = tmp_path / "applied.json"
    assert [name for name, path in out.items() if is_ours(path)] == ["cal.json", "report.json", "page.html"]
    words = ["--apply", str(out["cal.json"]), str(files / "results.json"), "--results", str(applied)]
    assert main(["calibrate", *words]) == 0
    assert applied.read_bytes() == out["new.json"].read_bytes()


def test_a_run_folder_is_enough(files, tmp_path):
    for name, source in (("ground_truth.json", "truth.json"), ("detections.json", "results.json")):
        (tmp_path / name).write_bytes((files / source).read_bytes())
    assert main(["calibrate", str(tmp_path), "--resamples", "0"]) == 0
    assert json.loads((tmp_path / "calibrator.json").read_text())["method"] == "isotonic"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["{truth}", "{results}"], 2, "an output must be named"),
        (["{truth}", "{results}", "--out", "{truth}"], 2, "--out must not be an input of the command"),
        (["{truth}", "{results}", "--out", "{new}", "--json", "{new}"], 2, "--json must be another file than --out"),
        (["{truth}", "--out", "{new}"], 2, "detections must be named for the annotations"),
        (["{truth}", "{results}", "--out", "{new}", "--method", "spline"], 2, "method must be one of isotonic"),
        (["{truth}", "{results}", "--out", "{new}", "--folds", "1"], 2, "folds must be at least 2"),
        (["{truth}", "{results}", "--out", "{new}", "--iou_type", "mask"], 2, "iou_type must be bbox or segm"),
        (["--apply", "{truth}", "{results}", "--results", "{new}"], 1, "must be a file that concordet calibrate wrote"),
        (["--apply", "{truth}", "{results}"], 2, "--results must name the file"),
        (["{folder}"], 1, "has no ground_truth.json"),
    ],
)
def test_mistakes(words, status, message, files, tmp_path, capsys):
    names = {"truth": files / "truth.json", "results": files / "results.json", "new": tmp_path / "new.json"}
    before = {path: path.read_bytes() for path in files.iterdir()}
    assert main(["calibrate", *(word.format(folder=tmp_path, **names) for word in words)]) == status
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files.iterdir()} == before
    assert not names["new"].exists()
