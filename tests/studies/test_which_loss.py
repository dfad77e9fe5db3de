"""The comparison of all losses: its tables, and that it can be repeated."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import mean, stdev

import pytest
from scipy import stats

from concordet.engine.config import save_config
from concordet.measures.bootstrap import MEASURES
from concordet.study import Study, load_study, run_study
from concordet.study.results import read_result, result_path
from studies import which_loss

AP = {  # by loss, one value per seed
    "default": (0.40, 0.42, 0.44),
    "default+pse(0.1)": (0.41, 0.43, 0.452),
    "default+pse(1)": (0.38, 0.41, 0.42),
    "ap": (0.50, 0.519, 0.541),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished study of four losses, two detectors and three seeds; every draw of images gives the value itself."""
    study = Study(tmp_path / "weights", ("atss", "fcos"), tuple(AP), (1, 2, 3), resamples=4)
    study.save()
    for cell in study.cells():
        value = AP[cell.loss][cell.seed - 1] + (0.1 if cell.detector == "fcos" else 0)
        result = {
            "format": 1,
            "seed": cell.seed,
            "metrics": {"AP": value, "AP50": value + 0.2},
            "per_class": {"a": value},
            "curve": [[4, value / 2], [8, value]],
            "processor_ms": 10.0,
            "environment": {"torch": "2.14.1", "threads": 1},
            "images": "0",
            "draws": 5 * [[value, value + 0.2, *([None] * (len(MEASURES) - 2))]],
        }
        path = result_path(study, cell)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result))
    monkeypatch.setattr(which_loss, "FOLDER", tmp_path)
    which_loss.report.cache_clear()
    yield tmp_path
    which_loss.report.cache_clear()


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_losses_are_sorted_with_the_reference_first(folder):
    head, _, *lines = rows(which_loss.losses("weights", "atss"))
    assert [line[0] for line in lines] == ["`default`", "`ap`", "`default+pse(0.1)`", "`default+pse(1)`"]
    assert [line[1] for line in lines] == ["3"] * 4
    for line in lines:
        values = [100 * v for v in AP[line[0].strip("`")]]
        assert line[head.index("AP ↑")] == f"{mean(values):.1f} ± {stdev(values):.1f}"
    differences = [100 * (a - b) for a, b in zip(AP["ap"], AP["default"], strict=True)]
    assert lines[1][head.index("difference")].startswith(f"**{mean(differences):+.1f} (")  # ten points are seen
    assert lines[0][head.index("difference")] == "reference"
    assert "AP50 ↑" in head
    assert "AP75 ↑" not in head  # no run has it
    assert which_loss.measured("weights", "atss").startswith("Trained with PyTorch threads: 1, torch 2.14.1.\n")


def test_the_summary_has_a_column_per_detector(folder):
    head, _, *lines = rows(which_loss.summary(("weights",), n_best=2))
    assert head == ["AP ↑", "atss", "fcos"]
    assert [line[0] for line in lines] == ["`default`", "`ap`", "`default+pse(0.1)`"]
    gain = 100 * mean(a - b for a, b in zip(AP["ap"], AP["default"], strict=True))
    assert [line[1] for line in lines[:2]] == ["42.0 ± 2.0", f"52.0 ± 2.1, **{gain:+.1f}**"]
    assert [line[2].split(" ")[0] for line in lines[:2]] == ["52.0", "62.0"]


def test_progress_is_in_the_middle_and_at_the_end(folder):
    head, _, *lines = rows(which_loss.progress(("weights",)))
    assert head == ["loss", "atss", "fcos"]
    assert [line[0] for line in lines] == ["`ap`", "`default+pse(0.1)`", "`default+pse(1)`"]
    gain = 100 * mean(a - b for a, b in zip(AP["ap"], AP["default"], strict=True))
    assert lines[0][1:] == 2 * [f"{gain / 2:+.1f}, {gain:+.1f}"]


def test_repeated_runs_stand_beside_the_first(folder):
    study = load_study(folder / "weights")
    again = replace(study, folder=folder / "again", detectors=("atss",), seeds=(2,))
    again.save()
    for cell in again.cells():
        result = json.loads(result_path(study, cell).read_text())
        result["metrics"]["AP"] -= 0.012
        result_path(again, cell).parent.mkdir(exist_ok=True)
        result_path(again, cell).write_text(json.dumps(result))
    head, _, *lines = rows(which_loss.repeated("weights", "again"))
    assert head == ["AP ↑", "in the tables", "again", "difference"]
    assert lines[0] == ["`default`", "42.0", "40.8", "-1.2"]
    assert len(lines) == len(AP)


def test_more_losses_need_larger_differences():
    """The t-test at Bonferroni's level, which Holm's first step is."""
    head, _, *lines = rows(which_loss.seeds_table(seeds=(3, 5), losses=(1, 4)))
    assert head == ["seeds", "1 loss", "4 losses"]
    for line, n in zip(lines, (3, 5), strict=True):
        expected = [stats.t.ppf(1 - 0.05 / m / 2, n - 1) / n**0.5 for m in (1, 4)]
        assert [float(cell) for cell in line[1:]] == pytest.approx(expected, abs=0.051)


def test_weights_show_each_detector_and_the_mean(folder):
    head, _, line = rows(which_loss.weights())
    assert head == ["coupling", "weight 0.1", "weight 1"]
    gains = [
        100 * mean(a - b for a, b in zip(AP[f"default+pse({w})"], AP["default"], strict=True)) for w in ("0.1", "1")
    ]
    assert line == ["`default+pse`", *(f"{g:+.1f} ({g:+.1f}, {g:+.1f})" for g in gains)]


def test_a_varied_setting_has_a_column_per_value(folder):
    study = replace(
        load_study(folder / "weights"), folder=folder / "rates", losses=("default", "ap"), vary={"optim.lr": (0.1, 0.2)}
    )
    study.save()
    for cell in study.cells():
        plain = result_path(replace(study, vary={}), replace(cell, settings=()))
        result = json.loads((folder / "weights" / "results" / plain.name).read_text())
        result["metrics"]["AP"] += dict(cell.settings)["optim.lr"]
        result_path(study, cell).parent.mkdir(exist_ok=True)
        result_path(study, cell).write_text(json.dumps(result))
    head, _, *lines = rows(which_loss.settings("rates"))
    assert head == ["AP ↑", "loss", "`optim.lr=0.1`", "`optim.lr=0.2`"]
    assert [line[:2] for line in lines] == [[d, f"`{x}`"] for d in ("atss", "fcos") for x in ("default", "ap")]
    for detector, loss, *texts in lines:
        base = 100 * mean(AP[loss.strip("`")]) + (10 if detector == "fcos" else 0)
        assert [float(text.split(" ")[0]) for text in texts] == pytest.approx([base + 10, base + 20], abs=0.051)


def test_claims_of_papers_stand_beside_the_differences(folder, monkeypatch):
    """A loss that is the default of a detector is compared as such; losses without runs have no difference."""
    claims = (("ap", "default+pse(1)", "better"), ("ap", "focal", "equal"), ("alrp", "ap", "better"))
    monkeypatch.setattr(which_loss, "PAPERS", claims)
    monkeypatch.setattr(which_loss, "SAME_AS_DEFAULT", {("fcos", "focal")})
    head, _, *lines = rows(which_loss.papers(("weights",)))
    assert head == ["loss", "compared with", "its paper", "atss", "fcos"]
    gains = [
        f"{100 * mean(a - b for a, b in zip(AP['ap'], AP[o], strict=True)):+.1f}" for o in ("default+pse(1)", "default")
    ]
    assert [cell.split(" ")[0] for cell in lines[0][3:]] == [gains[0]] * 2
    assert [cell.split(" ")[0] for cell in lines[1][3:]] == ["–", gains[1]]
    assert lines[2] == ["`alrp`", "`ap`", "better", "–", "–"]


def test_detectors_without_runs_are_left_out(folder):
    for path in (folder / "weights" / "results").glob("fcos-*"):
        path.unlink()
    assert which_loss.trained("weights") == ["atss"]
    assert which_loss.draw("weights").read_text().startswith("<?xml")


def test_results_are_copied_without_runs(folder, tmp_path, monkeypatch):
    """And without the names of this machine's folders."""
    (folder / "weights" / "runs").mkdir()
    study = load_study(folder / "weights")
    photos = replace(study.config, data=replace(study.config.data, path=str(tmp_path / "photos"), name=None))
    save_config(folder / "weights" / "config.yaml", photos)
    monkeypatch.setattr(which_loss, "FOLDER", tmp_path / "elsewhere")
    assert which_loss.copy(folder / "weights") == "weights"
    copied = sorted(p.name for p in (tmp_path / "elsewhere" / "weights").iterdir())
    assert copied == ["config.yaml", "results", "study.json"]
    copy = load_study(tmp_path / "elsewhere" / "weights")
    assert (copy.losses, copy.config.data.path) == (tuple(AP), "photos")


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", sorted(p.parent.name for p in which_loss.FOLDER.glob("*/study.json")))
def test_a_tenth_can_be_repeated(tmp_path, name):
    """Trained again, runs reach the AP of the results; other processors round differently, as other seeds do."""
    whole = load_study(which_loss.FOLDER / name)
    if whole.config.data.name != "digits":
        pytest.skip("its photographs are not part of the project")
    done = [cell for cell in whole.cells() if result_path(whole, cell).is_file()]
    tenth = done[: -(-len(done) // 10)]
    losses = tuple(dict.fromkeys(cell.loss for cell in tenth))
    again = replace(whole, folder=tmp_path / name, detectors=whole.detectors[:1], losses=losses, seeds=whole.seeds[:1])
    assert run_study(again, jobs=2)["finished"] == len(again.cells())
    for cell in again.cells():
        before, after = (read_result(study, cell)["metrics"]["AP"] for study in (whole, again))
        assert after == pytest.approx(before, abs=0.05)
