"""Small studies: finished runs stay, unfinished ones resume, failures are recorded, tables do not depend on the way."""

import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from concordet.cli import main
from concordet.engine import train
from concordet.engine.config import save_config
from concordet.errors import UsageError
from concordet.measures import analyze, evaluate_detections
from concordet.measures.bootstrap import MEASURES
from concordet.report.study import study_page
from concordet.study import Study, compare_study, load_study, run_cell, run_study, runner
from concordet.study.grid import parse_vary
from concordet.study.results import _write_result, draws_of, read_result, result_path
from concordet.study.runner import estimate_seconds, failure_file, finish_cell, state_of, stop

from ..trained import tiny

LOSSES = ("default", "focal")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two losses, two seeds: the runs of the first seed exist, two processes train the others."""
    grid = Study(
        tmp_path_factory.mktemp("study") / "small", ("fcos",), LOSSES, (1, 2), config=tiny(val_every=1), resamples=20
    )
    for cell in grid.cells():
        if cell.seed == 1:
            train(grid.config_of(cell), grid.run_folder(cell))
    states = run_study(grid, jobs=2)
    assert states["finished"] == 4, [p.read_text()[-500:] for p in (grid.folder / "runs").glob("*.log")]
    compare_study(grid)  # writes results of the first runs, too
    return grid


def test_differences_are_those_of_the_evaluations(study):
    report = compare_study(study)
    (group,) = report["groups"]
    for entry in group["losses"]:
        for seed, ap in zip(entry["seeds"], entry["metrics"]["AP"]["values"], strict=True):
            (cell,) = [c for c in study.cells() if (c.loss, c.seed) == (entry["loss"], seed)]
            folder = study.run_folder(cell)
            files = (json.loads((folder / f"{n}.json").read_text()) for n in ("ground_truth", "detections"))
            assert evaluate_detections(*files)["AP"] == pytest.approx(ap, abs=1e-12)
    first, second = (entry["metrics"]["AP"]["values"] for entry in group["losses"])
    row = group["losses"][1]["differences"]["AP"]
    assert row["value"] == pytest.approx(sum(second) / 2 - sum(first) / 2, abs=1e-9)
    assert row["low"] <= row["value"] <= row["high"]
    assert row["verdict"] in ("better", "worse", "may be chance")


def test_results_stand_for_their_runs(study, tmp_path):
    """Without run folders a study says the same, and results of two machines merge by copying files."""
    whole = compare_study(study)
    for part, losses in (("one", LOSSES[:1]), ("two", LOSSES[1:])):
        (tmp_path / part / "results").mkdir(parents=True)
        for cell in study.cells():
            if cell.loss in losses:
                shutil.copy(result_path(study, cell), tmp_path / part / "results")
    merged = replace(study, folder=tmp_path / "merged")
    merged.save()
    for part in ("one", "two"):
        shutil.copytree(tmp_path / part / "results", merged.folder / "results", dirs_exist_ok=True)
    assert {state_of(merged, cell) for cell in merged.cells()} == {"finished"}
    assert compare_study(merged) == whole
    assert run_study(merged)["finished"] == 4
    assert not (merged.folder / "runs").exists()


def test_a_result_says_what_the_run_says(study):
    for cell in study.cells():
        result, folder = read_result(study, cell), study.run_folder(cell)
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert result["metrics"]["AP"] == evaluation["metrics"]["AP"]
        assert result["per_class"] == {entry["name"]: entry["AP"] for entry in evaluation["per_class"]}
        analysis = analyze(*(json.loads((folder / f"{n}.json").read_text()) for n in ("ground_truth", "detections")))
        assert result["metrics"]["AP_upper"] == analysis.summary["AP_upper"]
        by_threshold = np.array(result["by_threshold"])
        assert by_threshold[:, 0] == pytest.approx(np.arange(50, 100, 5) / 100)
        assert by_threshold[[0, 8], 1] == pytest.approx([evaluation["metrics"][name] for name in ("AP50", "AP90")])
        assert by_threshold[:, 1].mean() == pytest.approx(evaluation["metrics"]["AP"])
        assert result["processor_ms"] is None or result["processor_ms"] > 0
        updates, aps = zip(*result["curve"], strict=True)
        assert updates == (3, 6)
        assert aps[-1] == pytest.approx(evaluation["metrics"]["AP"], abs=1e-6)
        draws = draws_of(result)
        assert draws.shape == (21, len(MEASURES))
        for name in set(MEASURES) - {"beta_cls"}:  # calibration errors too are those of cross-fitted scores
            value = draws[0, MEASURES.index(name)]
            assert value == pytest.approx(evaluation["metrics"][name], abs=1e-9, nan_ok=True), name
    (group,) = compare_study(study)["groups"]
    for entry in group["losses"]:
        results = [read_result(study, c) for c in study.cells() if c.loss == entry["loss"]]
        for name, of_class in entry["per_class"].items():
            assert of_class["mean"] == pytest.approx(np.mean([r["per_class"][name] for r in results]))
        assert [p["update"] for p in entry["curve"]] == [3, 6]
        assert [p["mean"] for p in entry["by_threshold"]] == pytest.approx(
            np.mean([r["by_threshold"] for r in results], axis=0)[:, 1]
        )


def test_ap_by_the_number_of_objects_is_that_of_the_images_alone(study):
    for cell in study.cells():
        folder = study.run_folder(cell)
        truth, detections = (json.loads((folder / f"{n}.json").read_text()) for n in ("ground_truth", "detections"))
        counts = Counter(annotation["image_id"] for annotation in truth["annotations"])
        median = statistics.median(counts[image["id"]] for image in truth["images"])
        metrics = read_result(study, cell)["metrics"]
        for key, many in (("AP_few", False), ("AP_many", True)):
            ids = {image["id"] for image in truth["images"] if (counts[image["id"]] > median) == many}
            part = truth | {
                "images": [image for image in truth["images"] if image["id"] in ids],
                "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
            }
            alone = evaluate_detections(part, [d for d in detections if d["image_id"] in ids])
            assert metrics[key] == pytest.approx(alone["AP"], abs=1e-9)


def test_results_that_do_not_fit_are_refused(study, tmp_path):
    grid = replace(study, folder=tmp_path / "other")
    shutil.copytree(study.folder / "results", grid.folder / "results")
    path = result_path(grid, grid.cells()[0])
    good = json.loads(path.read_text())
    for change, message in (
        ({"images": "0" * 64}, "evaluated on the same images"),
        ({"format": 7}, "must be the result of a study's run"),
        ({"draws": good["draws"][:3]}, "must have 20 resamples, got 2"),
        ({"trained_with": good["trained_with"] | {"optim.lr": 7.0}}, r"optim\.lr must be .*, got 7\.0"),
        ({"trained_with": good["trained_with"] | {"data.batch_size": 7}}, r"data\.batch_size must be 4, .* got 7 in"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            compare_study(grid)
    older = {key: value for key, value in good.items() if key != "trained_with"}
    path.write_text(json.dumps(older))
    assert compare_study(grid)["states"]["finished"] == 4


def test_a_run_of_another_study_gives_no_result(study, tmp_path):
    """Neither do results or runs that were trained elsewhere with other hardware or files change anything."""
    config = replace(study.config, accelerator="auto", timeout=7)
    same = replace(study, folder=tmp_path / "same", config=config)
    shutil.copytree(study.folder / "results", same.folder / "results")
    assert compare_study(same)["groups"] == compare_study(study)["groups"]
    optim = replace(study.config.optim, lr=study.config.optim.lr / 2)
    other = replace(study, folder=tmp_path / "other", config=replace(study.config, optim=optim))
    shutil.copytree(study.folder / "runs", other.folder / "runs")
    with pytest.raises(ValueError, match=r"optim\.lr must be .*, as in the study, got .* in .*other"):
        compare_study(other)


def test_finished_runs_are_not_trained_again(study):
    before = {p: p.stat().st_mtime_ns for p in (study.folder / "runs").rglob("evaluation.json")}
    assert len(before) == 4
    run_study(study)
    assert {p: p.stat().st_mtime_ns for p in (study.folder / "runs").rglob("evaluation.json")} == before


def test_the_command_shows_a_finished_study(study, tmp_path, capsys):
    words = ["study", "--out", str(study.folder), "--json", str(tmp_path / "report.json")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "4 finished" in printed
    assert "fcos, 2 seeds, compared with default" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["loss"] for entry in report["groups"][0]["losses"]] == list(LOSSES)
    page = (study.folder / "study.html").read_text(encoding="utf-8")
    assert "Difference in AP" in page
    for part in ("AP, small", "AP, best ranking", "Learning curves", "AP by IoU threshold"):
        assert part in page
    assert main(["study", "--out", str(study.folder), "--dry_run"]) == 0
    listed = capsys.readouterr().out
    assert "4 runs" in listed
    assert "fcos-focal-seed2" in listed


def test_seeds_have_a_column_where_losses_differ_in_them(study, tmp_path, capsys):
    grid = replace(study, folder=tmp_path / "other")
    shutil.copytree(study.folder, grid.folder, ignore=shutil.ignore_patterns("runs"))
    result_path(grid, grid.cells()[-1]).unlink()
    main(["study", "--out", str(grid.folder), "--report"])
    printed = capsys.readouterr().out
    assert "fcos, compared with default" in printed
    (default,) = (line for line in printed.splitlines() if line.startswith("│ default"))
    (focal,) = (line for line in printed.splitlines() if line.startswith("│ focal"))
    assert [line.split("│")[2].strip() for line in (default, focal)] == ["2", "1"]
    assert focal.split("│")[5].strip() == "one seed"


def test_points_that_may_be_chance_are_hollow():
    """One marker is painted with the color of the card behind it, and the description for screen readers says so."""
    row = {"low": 0.01, "high": 0.05}
    differences = {
        "ap": row | {"value": 0.03, "verdict": "better"},
        "focal": row | {"value": 0.02, "verdict": "one seed"},
    }
    entries = [{"loss": loss, "differences": {"AP": difference}} for loss, difference in differences.items()]
    empty = {
        "metrics": {},
        "per_class": {},
        "curve": [],
        "by_threshold": [],
        "processor_ms": None,
        "seeds": [],
        "n_pairs": 5,
        "seeds_needed": 7,
        "limit_of_images": 0.013,
    }
    losses = [empty | entry for entry in [{"loss": "default", "differences": {}}, *entries]]
    group = {"detector": "atss", "variant": "", "losses": losses}
    report = {
        "reference": "default",
        "confidence": 0.95,
        "groups": [group],
        "settings": {},
        "failures": [],
        "states": {},
    }
    page = study_page(report, title="digits")
    (plot,) = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert plot.count("fill: var(--card)") == 1
    assert "<td>7</td><td>1.3</td>" in page
    assert "ap +3.0 (+1.0 to +5.0, significant), focal +2.0 (+1.0 to +5.0)" in plot


def test_the_command_reads_a_configuration_file_or_a_recipe(tmp_path, capsys):
    save_config(tmp_path / "run.yaml", tiny())
    words = ["study", "--out", str(tmp_path / "new"), "--losses", *LOSSES, "--seeds", "2", "--dry_run"]
    for config, detector in (
        (str(tmp_path / "run.yaml"), tiny().detector),
        ("bucketed_ranking_losses/atss_r50_ap", "atss"),
    ):
        assert main([*words, "--config", config]) == 0
        assert f"{detector}-focal-seed2" in capsys.readouterr().out


def test_the_estimate_is_for_the_runs_that_are_left(tmp_path):
    grid = Study(tmp_path / "x", ("fcos",), ("default",), (1, 2, 3, 4, 5), config=tiny(optim_accumulate=4))
    assert estimate_seconds(grid) is None
    for cell, per_batch in zip(grid.cells(), (0.1, 0.3), strict=False):
        folder = grid.run_folder(cell)
        folder.mkdir(parents=True)
        timing = {"seconds_per_iteration": per_batch, "seconds_waiting_for_data": 0.05, "updates": 50}
        (folder / "timing.json").write_text(json.dumps(timing))
        (folder / "evaluation.json").write_text("{}")
    failure_file(grid, grid.cells()[2]).write_text("a reason")
    # 50 updates of 4 batches: 30 s and 70 s
    assert estimate_seconds(grid) == (pytest.approx(2 * 50), "the mean of 2 finished runs")
    assert estimate_seconds(grid, retry_failed=True)[0] == pytest.approx(3 * 50)


def test_processor_time_is_that_of_an_update(study, tmp_path):
    """Timings are those of batches, of which an update may have several."""
    grid = replace(study, folder=tmp_path / "x")
    cell = grid.cells()[0]
    folder = grid.run_folder(cell)
    shutil.copytree(study.run_folder(cell), folder)
    save_config(folder / "config.yaml", tiny(val_every=1, loss=cell.loss, seed=cell.seed, optim_accumulate=3))
    of_a_batch = json.loads((folder / "timing.json").read_text())["processor_seconds_per_iteration"]
    _write_result(grid, cell)
    written = json.loads(result_path(grid, cell).read_text())
    assert written["processor_ms"] == pytest.approx(3000 * of_a_batch)


@pytest.mark.slow
def test_a_failure_does_not_stop_the_others(study, tmp_path):
    """A run folder that is not ours makes one cell fail; it can be tried again once that is put right."""
    grid = replace(study, folder=tmp_path / "again")
    shutil.copytree(study.folder, grid.folder)
    cell = grid.cells()[0]
    folder = grid.run_folder(cell)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "somebody.txt").write_text("else's")
    states = run_study(grid)
    assert states == {"finished": 3, "failed": 1, "unfinished": 0, "new": 0}
    assert failure_file(grid, cell).read_text().startswith("concordet: error: ")
    report = compare_study(grid)
    assert [f["cell"] for f in report["failures"]] == [cell.name]
    assert report["groups"][0]["losses"][1]["n_pairs"] == 1
    shutil.rmtree(folder)
    assert run_study(grid, retry_failed=True)["finished"] == 4


@pytest.mark.slow
def test_an_interrupted_study_goes_on_to_the_same_table(study, tmp_path):
    """Killed while runs are at work, continued cell by cell: the metrics are those of the study that was left alone."""
    grid = replace(study, folder=tmp_path / "interrupted")
    timer = threading.Timer(6.0, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    try:
        while timer.is_alive():
            run_study(grid, jobs=2)
            shutil.rmtree(grid.folder / "runs")
            time.sleep(0.05)
    except KeyboardInterrupt:
        pass
    timer.join()
    for number in range(1, 5):
        assert run_cell(grid, number) == "finished"
    assert_same_table(study, grid)


def test_finished_runs_are_compared_without_training_the_others(study, tmp_path, capsys):
    grid = replace(study, folder=tmp_path / "half")
    grid.save()
    shutil.copytree(study.folder / "results", grid.folder / "results")
    result_path(grid, grid.cells()[-1]).unlink()
    assert main(["study", "--out", str(grid.folder), "--report"]) == 0
    assert "3 finished, 1 new" in capsys.readouterr().out
    assert not (grid.folder / "runs").exists()
    shutil.rmtree(grid.folder / "results")
    assert main(["study", "--out", str(grid.folder), "--report"]) == 1
    assert "no run of this study has finished" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_killed_ten_times_goes_on_to_the_same_table(study, tmp_path):
    """The study's process is killed; runs that outlive it are waited for, as after ``kill -9`` of the study alone."""
    grid = replace(study, folder=tmp_path / "killed")
    grid.save()
    words = [sys.executable, "-m", "concordet", "study", "--out", str(grid.folder), "--jobs", "2"]
    moments = np.random.default_rng(0).uniform(2.0, 15.0, 10)
    for number, seconds in enumerate(moments):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if number % 2:  # the runs too
            subprocess.run(["pkill", "-KILL", "-f", f"concordet train .*{grid.folder}"], check=False)
    assert run_study(grid, jobs=2) == {"finished": 4, "failed": 0, "unfinished": 0, "new": 0}
    assert_same_table(study, grid)


def assert_same_table(*studies):
    first, second = (compare_study(s)["groups"][0]["losses"] for s in studies)
    for a, b in zip(first, second, strict=True):
        assert a["metrics"]["AP"] == b["metrics"]["AP"]
        assert a["differences"].keys() == b["differences"].keys()
        for name, row in a["differences"].items():  # some runs of the fixture share a process, which rounds differently
            assert row == pytest.approx(b["differences"][name], abs=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked on Windows")
def test_a_run_of_another_process_is_waited_for(study, tmp_path):
    grid = replace(study, folder=tmp_path / "shared", losses=LOSSES[:1], seeds=(1,))
    (cell,) = grid.cells()
    folder = grid.run_folder(cell)
    folder.mkdir(parents=True)
    code = f"from concordet.locks import locked\nwith locked({str(folder)!r}, ''): print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline()
    assert finish_cell(grid, cell, 1) == "unfinished"  # the other's run is no failure
    events = []

    def report(event, cell, state):
        events.append((event, state))
        if event == "wait":
            shutil.copytree(study.run_folder(cell), folder, dirs_exist_ok=True)
            other.communicate(b"\n")

    assert run_study(grid, report=report)["finished"] == 1
    assert events == [("wait", "unfinished"), ("start", "finished"), ("end", "finished")]


@pytest.mark.skipif(sys.platform == "win32", reason="processes on Windows cannot be asked to stop")
def test_runs_that_ignore_ctrl_c_are_asked_to_stop():
    # as of a study that a shell started in the background
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
print(flush=True)
signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline()
    stop([process])
    assert process.returncode == 130


def test_cells_alternate_losses_and_have_folders_of_their_own(tmp_path):
    grid = Study(tmp_path, ("atss", "fcos"), LOSSES, (1, 2), {"optim.lr": (0.01, 0.02)}, tiny())
    cells = grid.cells()
    assert len(cells) == len({c.name for c in cells}) == 16
    assert {state_of(grid, cell) for cell in cells} == {"new"}
    assert [c.loss for c in cells[:4]] == ["default", "focal", "default", "focal"]
    config = grid.config_of(cells[-1])
    assert (config.detector, config.loss, config.seed, config.optim.lr) == ("fcos", "focal", 2, 0.02)


def test_any_setting_can_have_several_values(tmp_path):
    vary = parse_vary(["image_size=[64,64],[96,128]", "data.val_options.length=6,12"])
    grid = Study(tmp_path / "x", ("fcos",), ("default",), (1,), vary, tiny())
    names = [cell.name for cell in grid.cells()]
    assert len(set(names)) == 4
    assert names[0] == "fcos-default-image_size=64x64-data.val_options.length=6-seed1"
    config = grid.config_of(grid.cells()[-1])
    assert (config.image_size, config.data.val_options["length"]) == ((96, 128), 12)
    grid.save()
    assert load_study(grid.folder).cells() == grid.cells()


def test_options_add_to_a_saved_study(study, tmp_path, capsys):
    folder = tmp_path / "copy"
    replace(study, folder=folder).save()
    shutil.copytree(study.folder / "results", folder / "results")
    assert main(["study", "--out", str(folder), "--losses", "ap", "focal", "--seeds", "1", "--report"]) == 0
    report = json.loads((folder / "comparison.json").read_text())
    assert {entry["loss"] for entry in report["groups"][0]["losses"]} == {*LOSSES, "ap"}
    assert report["settings"]["size"] == "nano"  # not the default of a new study
    assert "2 of 6 runs are not finished" in capsys.readouterr().out
    assert load_study(folder).losses == LOSSES  # a report changes nothing
    assert main(["study", "--out", str(folder), "--reference", "focal", "--report"]) == 0
    assert json.loads((folder / "comparison.json").read_text())["reference"] == "focal"
    capsys.readouterr()
    assert main(["study", "--out", str(folder), "--resamples", "7", "--report"]) == 2
    assert "resamples must be 20, as in the study in" in capsys.readouterr().err
    assert main(["study", "--out", str(folder), "--vary", "optim.lr=1,2", "--report"]) == 2
    assert "vary must be nothing, as in the study in" in capsys.readouterr().err


@pytest.mark.parametrize(("visible", "expected"), [(None, ["0", "1"]), ("2, 5", ["2", "5"])])
def test_runs_use_the_gpus_that_are_visible(visible, expected, tmp_path, monkeypatch):
    grid = Study(tmp_path / "x", ("fcos",), ("default",), (1,), config=tiny())
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen = []
    monkeypatch.setattr(runner.subprocess, "Popen", lambda words, env, **_: seen.append(env["CUDA_VISIBLE_DEVICES"]))
    for gpu in (0, 1):
        runner.start_cell(grid, grid.cells()[0], gpu=gpu)
    assert seen == expected


@pytest.mark.parametrize("status", [-9, 130])
def test_a_stopped_cell_is_no_success(status, tmp_path, monkeypatch, capsys):
    """A job array would count it as finished; as in a whole study, a cell has one GPU."""
    grid = Study(tmp_path / "x", ("fcos",), ("default",), (1, 2, 3), config=tiny())
    grid.save()
    seen = []

    class Stopped:
        def __init__(self, words, env, **_):
            seen.append(env["CUDA_VISIBLE_DEVICES"])

        def wait(self):
            return status

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runner.subprocess, "Popen", Stopped)
    monkeypatch.setattr(runner, "count_gpus", lambda: 2)
    for number in (1, 2, 3):
        assert main(["study", "--out", str(grid.folder), "--cell", str(number)]) == 1
        assert "got one that was stopped or that another process trains" in capsys.readouterr().err
    assert seen == ["0", "1", "0"]


def test_a_study_goes_on_from_another_folder(tmp_path, monkeypatch, capsys):
    """Paths in its settings are absolute, and missing data is no reason to count all runs as failed."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    config = tiny(data_path="photos", data_name=None, plugins=["mine.py", "module"])
    grid = Study(Path("study"), ("fcos",), ("default",), (1,), config=config)
    grid.save()
    monkeypatch.chdir(tmp_path / "other")
    saved = load_study("../study").config
    assert saved.data.path == str(tmp_path / "photos")
    assert saved.plugins == [str(tmp_path / "mine.py"), "module"]
    replace(grid, folder=Path("../study"), config=replace(config, plugins=saved.plugins, data=saved.data)).save()
    (tmp_path / "photos").rmdir()
    (tmp_path / "mine.py").touch()
    (tmp_path / "other" / "module.py").touch()
    assert main(["study", "--out", "../study"]) == 2
    assert f"got {tmp_path / 'photos'}, which does not exist; correct it in" in capsys.readouterr().err
    assert not (tmp_path / "study" / "runs").exists()


def test_what_a_killed_process_leaves_is_still_a_study(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    for name in ("config.yaml", ".lock", ".study.123.tmp.json", ".config.9.tmp.yaml"):
        (folder / name).touch()
    grid = Study(folder, ("fcos",), ("default",), (1,), config=tiny())
    grid.save()
    assert load_study(folder).seeds == (1,)
    (folder / "study.json").unlink()
    (folder / "data.json").touch()  # a run has one, too
    with pytest.raises(ValueError, match="with other content"):
        grid.save()


def test_a_dry_run_can_be_read_by_programs(tmp_path, capsys):
    grid = Study(tmp_path / "x", ("fcos",), ("default", "ap"), (1,), config=tiny())
    grid.save()
    result_path(grid, grid.cells()[0]).parent.mkdir()
    result_path(grid, grid.cells()[0]).touch()
    assert main(["study", "--out", str(grid.folder), "--dry_run", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["cells"] == [
        {"cell": 1, "name": "fcos-default-seed1", "state": "finished"},
        {"cell": 2, "name": "fcos-ap-seed1", "state": "new"},
    ]
    assert plan["seconds_left"] is None


@pytest.mark.parametrize("words", [["--report"], ["--dry_run"]])
def test_its_own_output_may_be_replaced(words, study, tmp_path):
    out = str(tmp_path / "again.json")
    for _ in range(2):
        assert main(["study", "--out", str(study.folder), *words, "--json", out]) == 0


def test_a_study_is_read_back(tmp_path):
    grid = Study(tmp_path / "x", ("atss",), LOSSES, (1,), {"optim.lr": (0.01, 0.02)}, tiny())
    grid.save()
    assert load_study(grid.folder) == grid
    other = replace(grid, config=replace(grid.config, size="full"))
    with pytest.raises(UsageError, match="other settings"):
        other.save()
    replace(grid, losses=("ap",), seeds=(2,)).save()  # forgets nothing
    assert load_study(grid.folder) == replace(grid, losses=(*LOSSES, "ap"), seeds=(1, 2))


def test_a_study_needs_evaluations(tmp_path):
    with pytest.raises(UsageError, match="evaluate must be true in a study"):
        Study(tmp_path, ("fcos",), ("default",), (1,), config=tiny(evaluate=False))


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "out must be the folder"),
        (["--out", "{new}"], 2, "losses must be named"),
        (["--out", "{new}", "--losses", "default", "ranksort"], 2, "did you mean rank_sort?"),
        (["--out", "{new}", "--losses", "default", "--detectors", "yolo"], 2, "detector must be one of"),
        (["--out", "{new}", "--losses", "default", "default"], 2, "one or more different"),
        (["--out", "{new}", "--losses", "default", "--vary", "lr=1,2"], 2, "vary must name settings"),
        (["--out", "{new}", "--losses", "default", "--vary", "optim.lr"], 2, "vary must be NAME=VALUE"),
        (["--out", "{new}", "--losses", "default", "--vary", "optim.lr=1,1"], 2, "vary must give different values"),
        (["--out", "{new}", "--losses", "ap", "--vary", "optim.lr=1", "optim.lr=2"], 2, "each setting once"),
        (["--out", "{new}", "--losses", "ap", "--vary", "options={{a: 1}},{{a: 2}}"], 2, "got a mapping for options"),
        (["--out", "{new}", "--losses", "default", "--vary", "options.x.y=1"], 2, "vary must name settings"),
        (["--out", "{new}", "--losses", "default", "--reference", "ap"], 2, "reference must be one of the losses"),
        (["--out", "{new}", "--losses", "default", "--seeds", "0"], 2, "seeds must be at least 1"),
        (["--out", "{new}", "--losses", "default", "--vary", "preset=photos,full"], 2, "besides detector, evaluate"),
        (["--out", "{new}", "--losses", "default", "--cell", "1", "--json", "-"], 2, "json must be left out with --ce"),
        (["--out", "{new}", "--losses", "ap", "--dry_run", "--html", "x.html"], 2, "html must be left out with --dry"),
        (["--out", "{new}", "--losses", "ap", "--launcher", "ray", "--jobs", "2"], 2, "jobs must be left out with --l"),
    ],
)
def test_mistakes(words, status, message, tmp_path, capsys):
    new = tmp_path / "new"
    assert main(["study", *(word.format(new=new) for word in words)]) == status
    assert message in capsys.readouterr().err
    assert not new.exists()
    assert (
        state_of(Study(Path(new), ("atss",), LOSSES, (1,)), Study(Path(new), ("atss",), LOSSES, (1,)).cells()[0])
        == "new"
    )
