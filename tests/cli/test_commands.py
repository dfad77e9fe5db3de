"""Every command, run as its user runs it, on a real run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from concordet.cli import main
from concordet.cli.main import COMMANDS
from concordet.engine import load_config

from ..trained import snapshot, tiny, words


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_helps_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "example" in out
    assert f"concordet {command}" in out


def test_help_is_quick_and_names_every_command():
    """Neither torch nor Lightning is imported for it; `python -m concordet` is the same program."""
    code = (
        "import sys; from concordet.cli import main\n"
        "for words in (['--help'], ['train', '--help'], ['demo', '--help'], ['predict', '--help']):\n"
        "    assert main(words) == 0\n"
        "assert not {'torch', 'lightning', 'numpy', 'PIL'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module = subprocess.run([sys.executable, "-m", "concordet", "--help"], capture_output=True, text=True)
    assert module.returncode == 0
    assert all(name in module.stdout for name in COMMANDS)
    assert done.stdout.startswith(module.stdout)


def test_version(capsys):
    from concordet import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"concordet {__version__}\n"


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("detectors", {"retinanet", "fcos", "atss"}),
        ("losses", {"default", "focal", "ce", "rank_sort", "ap", "+concordance", "+pse"}),
        ("measures", {"AP", "beta_img", "oLRP"}),
        ("datasets", {"digits", "coco", "voc"}),
    ],
)
def test_lists(kind, some, tmp_path, capsys):
    file = tmp_path / "names.json"
    assert main(["list", kind, "--json", str(file)]) == 0
    names = json.loads(file.read_text())
    assert some <= set(names)
    assert main(["list", kind]) == 0
    assert capsys.readouterr().out.split() == names


def test_measures_are_all_numbers_of_an_analysis_besides_counts():
    from concordet.cli.commands.list import names
    from concordet.measures import analyze

    objects = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}]
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": objects}
    report = analyze(truth, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 9], "score": 0.5}]).to_dict()
    numbers = {key for key, value in report.items() if value is None or isinstance(value, int | float)}
    metrics = {re.sub(r"(AP\d*)_(upper|lower)$", r"\1", key) for key in numbers if not key.startswith("n_")}
    assert len(metrics) > 20
    assert metrics <= set(names("measures"))


def test_everything_is_listed_without_a_kind(capsys):
    assert main(["list", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"detectors", "losses", "measures", "datasets", "presets", "recipes"}
    assert main(["list"]) == 0
    assert f"{len(found['recipes'])} of them: concordet list recipes" in capsys.readouterr().out


def test_recipes_are_a_table_of_the_papers_results(tmp_path, capsys):
    assert main(["list", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if " correlation_loss/atss_r50_rank_sort " in line]
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    assert cells == [
        "correlation_loss/atss_r50_rank_sort",
        "rank_sort",
        "coco",
        "1, 2, 6",
        "12",
        "39.9",
        "58.9",
        "42.6",
    ]
    assert any("36.3 (mask)" in line for line in lines)
    file = tmp_path / "recipes.json"
    assert main(["list", "recipes", "--json", str(file)]) == 0
    found = {recipe["name"]: recipe for recipe in json.loads(file.read_text())}
    recipe = found["correlation_loss/atss_r50_rank_sort"]
    assert (recipe["detector"], recipe["backbone"], recipe["loss"]) == ("atss", "resnet50", "rank_sort")
    assert recipe["rows"][0]["beta_img"] == 30.9


def test_settings_are_printed_and_read_back(tmp_path, capsys):
    assert main(["train", "--detector", "atss", "--optim.lr", "0.02", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "detector: atss" in printed
    file = tmp_path / "settings.yaml"
    file.write_text("\n".join(line for line in printed.splitlines() if not line.startswith(("out:", "resume:"))))
    assert main(["train", "--config", str(file), "--optim.lr", "0.03", "--print_config"]) == 0
    again = capsys.readouterr().out
    assert "lr: 0.03" in again
    assert "detector: atss" in again


def test_options_may_be_written_with_hyphens_and_switches_without_a_value(capsys):
    words = ["--global-ranking", "--data.batch-size=3", "--sync-batchnorm", "false", "--log-every", "7", "--compile"]
    assert main(["train", *words, "--print_config"]) == 0
    printed = capsys.readouterr().out.split("\n")
    for line in ("global_ranking: true", "  batch_size: 3", "sync_batchnorm: false", "log_every: 7", "compile: true"):
        assert line in printed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run made by the command."""
    run = tmp_path_factory.mktemp("cli") / "run"
    config = tiny(val_every=0, loss="focal+concordance(0.3)")
    assert main(["train", *words(config), "--out", str(run), "--json", str(run.parent / "figures.json")]) == 0
    return run


def test_train_saves_what_was_asked_for(trained, capsys):
    config = load_config(trained / "config.yaml")
    assert config == tiny(val_every=0, loss="focal+concordance(0.3)")
    assert "concordance" in (trained / "metrics.csv").read_text().splitlines()[0]


def test_train_writes_the_evaluation_as_json(trained, tmp_path, capsys):
    assert json.loads((trained.parent / "figures.json").read_text()) == json.loads(
        (trained / "evaluation.json").read_text()
    )
    out = str(tmp_path / "run")
    assert main(["train", "--out", out, "--evaluate", "false", "--json", str(tmp_path / "figures.json")]) == 2
    assert "evaluate must be true where --json is given" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_can_be_repeated_from_its_own_settings(trained, tmp_path):
    config = str(trained / "config.yaml")
    again = tmp_path / "again"
    assert main(["train", "--config", config, "--evaluate", "false", "--optim.steps", "1", "--out", str(again)]) == 0
    assert load_config(again / "config.yaml").loss == "focal+concordance(0.3)"


@pytest.mark.parametrize("spelling", [["--resume", "RUN"], ["--out", "RUN", "--resume"]])
def test_resuming_a_finished_run_changes_no_weight(trained, spelling, capsys):
    before = snapshot(trained)["checkpoints/last.ckpt"]
    assert main(["train", *(str(trained) if word == "RUN" else word for word in spelling)]) == 0
    assert snapshot(trained)["checkpoints/last.ckpt"] == before
    assert "focal+concordance" in capsys.readouterr().out


def test_evaluate(trained, tmp_path, capsys):
    file = tmp_path / "figures.json"
    out = tmp_path / "elsewhere"
    assert main(["evaluate", str(trained), "--json", str(file), "--workers", "0", "--batch_size", "1"]) == 0
    printed = capsys.readouterr().out
    for heading in ("AP50", "AP75", "AP90", "beta_img", "beta_cls", "oLRP", "AIC", "s / iteration"):
        assert heading in printed
    assert json.loads(file.read_text())["metrics"]["AP50"] is not None
    assert main(["evaluate", str(trained), "--split", "train", "--out", str(out), "--workers", "0"]) == 0
    assert json.loads((out / "evaluation.json").read_text())["evaluated"]["data"]["val_split"] == "train"


def test_other_evaluations_of_a_run_have_folders_in_it(trained, capsys):
    """Those on another split, of another checkpoint or of raw scores do not replace that of the run."""
    before = (trained / "evaluation.json").read_bytes()
    best = trained / "checkpoints" / "best.ckpt"
    shutil.copy(trained / "checkpoints" / "last.ckpt", best)
    for options, name in (
        (["--split", "train"], "evaluation-train"),
        (["--raw_scores"], "evaluation-raw_scores"),
        (["--checkpoint", "best", "--split", "train"], "evaluation-best-train"),
    ):
        for _ in range(2):  # the same evaluation again is not refused
            assert main(["evaluate", str(trained), *options, "--workers", "0"]) == 0
        assert f"evaluation: {trained / name}" in capsys.readouterr().out
        evaluated = json.loads((trained / name / "evaluation.json").read_text())["evaluated"]
        assert evaluated["data"]["val_split"] == ("train" if "--split" in options else None)
        assert evaluated["raw_scores"] == ("--raw_scores" in options)
        shutil.rmtree(trained / name)
    assert (trained / "evaluation.json").read_bytes() == before
    best.unlink()


def test_a_checkpoint_can_be_named_from_its_folder(trained, monkeypatch):
    """The evaluation of the run's own checkpoint is not taken for that of another one."""
    monkeypatch.chdir(trained.parent)
    before = json.loads((trained / "evaluation.json").read_text())["evaluated"]
    for name in (f"{trained.name}/checkpoints/last.ckpt", str(trained / "checkpoints" / "last.ckpt")):
        assert main(["evaluate", name, "--workers", "0"]) == 0
        assert json.loads((trained / "evaluation.json").read_text())["evaluated"] == before


def test_compare(trained, finished, tmp_path, capsys, monkeypatch):
    page, file = tmp_path / "page.html", tmp_path / "figures.json"
    assert main(["compare", str(finished), str(trained), "--out", str(page), "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["loss"] for row in rows] == ["default", "focal+concordance(0.3)"]
    assert "<html" in page.read_text()
    printed = capsys.readouterr().out
    assert "default" in printed
    assert str(page) in printed
    assert main(["compare", str(finished), str(trained), "--html", str(page)]) == 0
    # without a name it takes one that is free
    monkeypatch.chdir(tmp_path)
    (tmp_path / "comparison.html").write_text("mine")
    assert main(["compare", str(finished)]) == 0
    assert (tmp_path / "comparison.html").read_text() == "mine"
    assert (tmp_path / "comparison-2.html").exists()


def test_a_narrow_terminal_has_a_column_per_run(trained, finished, capsys, monkeypatch):
    from concordet.cli.tables import print_runs

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_runs([finished, trained])
    lines = capsys.readouterr().out.splitlines()
    assert any("beta_img" in line for line in lines)
    assert not any("beta_img" in line and "beta_cls" in line for line in lines)
    assert not any("…" in line for line in lines)


def test_predict(trained, tmp_path, capsys):
    out, drawn = tmp_path / "results.json", tmp_path / "drawn"
    assert main(["predict", str(trained), str(trained / "samples"), "--out", str(out), "--draw", str(drawn)]) == 0
    count = len(list((trained / "samples").iterdir()))
    assert len(list(drawn.iterdir())) == count
    assert f"in {count} images" in capsys.readouterr().out
    assert {"image_id", "category_id", "bbox", "score"} <= set(json.loads(out.read_text())[0])


def test_analyze(trained, tmp_path, capsys):
    page, file = tmp_path / "page.html", tmp_path / "figures.json"
    files = [str(trained / "ground_truth.json"), str(trained / "detections.json")]
    options = ["--images", str(trained / "samples"), "--html", str(page), "--json", str(file)]
    assert main(["analyze", *files, *options]) == 0
    printed = capsys.readouterr().out
    assert "perfect ranking of the same boxes would give" in printed
    figures = json.loads(file.read_text())
    ours = json.loads((trained / "evaluation.json").read_text())["metrics"]
    assert {name: figures[name] for name in ("AP", "AP50", "oLRP", "AIC")} == pytest.approx(
        {name: ours[name] for name in ("AP", "AP50", "oLRP", "AIC")}
    )
    assert "<html" in page.read_text()
    assert main(["analyze", *files, "--compare", files[1], "--resamples", "5"]) == 0
    assert "95 % interval" in capsys.readouterr().out


def test_demo_prints_one_table_and_the_page(tmp_path, monkeypatch, capsys):
    from concordet.engine import demo as module

    monkeypatch.setattr(
        module.demo,
        "__kwdefaults__",
        {"seed": 0, "settings": module.DemoSettings(config=tiny(val_every=0, optim_epochs=1))},
    )
    monkeypatch.chdir(tmp_path)  # a long path would be broken in the table
    file = tmp_path / "figures.json"
    assert main(["demo", "--out", "demo", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("┏") == 1
    assert all(loss in printed for loss in module.DEMO.losses.values())
    assert f"page: {Path('demo') / 'comparison.html'}" in printed
    assert len(json.loads(file.read_text())["runs"]) == 3
    assert "uncalibrated" in printed


def test_analyze_tells_files_of_one_name_apart(tmp_path, capsys):
    """Results of runs are all called detections.json."""
    truth = {
        "images": [{"id": i} for i in range(4)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in range(4)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for name, width in (("a", 6), ("b", 9)):
        (tmp_path / name).mkdir()
        results = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 10, width], "score": 0.5} for i in range(4)]
        (tmp_path / name / "detections.json").write_text(json.dumps(results))
    first, second = (str(tmp_path / name / "detections.json") for name in "ab")
    words = ["analyze", str(tmp_path / "truth.json"), first, "--compare", second, "--resamples", "10"]
    assert main(words) == 0
    assert "b/detections.json has 60.0 points of AP more than a/detections.json" in capsys.readouterr().out
