"""Settings without asking: presets, classes on the command line, loggers, -q and -v."""

import json
import re

import pytest
from PIL import Image

from concordet.cli import main
from concordet.cli.commands.study import parser as study_parser
from concordet.cli.commands.study import study_of
from concordet.cli.commands.train import OWN
from concordet.engine import load_config
from concordet.engine.config import TrainConfig, flat, from_dict, to_dict
from concordet.engine.presets import PRESETS, Glance, choose_preset, glance, preset_config, preset_settings

from ..data.forms import voc_one_folder
from ..trained import tiny, words

QUICK = ("--optim.steps", "1", "--evaluate", "false", "--val_every", "0", "--data.batch_size", "2")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_settings_that_exist_and_change_something(name):
    defaults, settings = flat(TrainConfig()), preset_settings(name)
    assert set(settings) <= set(defaults)
    assert any(defaults[key] != value for key, value in settings.items())
    config = preset_config(name, loss="rank_sort", optim={"epochs": 3})
    assert (config.preset, config.loss, config.optim.epochs) == (name, "rank_sort", 3)


@pytest.mark.parametrize(
    ("images", "size", "gpu", "expected"),
    [
        (300, (640, 480), False, "small_photos"),
        (3001, (4000, 3000), False, "photos"),
        (300, (640, 480), True, "photos_gpu"),
        (118_000, (640, 480), True, "full"),
        (118_000, (200, 150), True, "thumbnails"),
        (0, None, False, "small_photos"),
    ],
)
def test_the_preset_follows_images_and_device(images, size, gpu, expected):
    assert choose_preset(Glance(images, size), gpu=gpu) == expected


def test_a_glance_counts_images_and_reads_sizes(tmp_path):
    for number in range(130):
        Image.new("RGB", (300 if number % 3 else 30, 200)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert glance(tmp_path) == Glance(131, (300, 200))
    assert glance(tmp_path / "0.png") == Glance(131, (300, 200))


def test_a_preset_is_chosen_printed_recorded_and_overridden(tmp_path, capsys):
    root = voc_one_folder(tmp_path / "pets")
    assert main(["train", str(root), *QUICK, "--image_size", "64", "--out", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    assert "preset thumbnails (5 images, most about 64 x 48 pixels, on a CPU): size nano" in err
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.preset, config.size, config.image_size, config.optim.epochs) == ("thumbnails", "nano", 64, 30)
    assert main(["train", "--config", str(tmp_path / "run" / "config.yaml"), "--print_config"]) == 0
    printed = capsys.readouterr()
    assert "image_size: 64" in printed.out
    assert "optim.epochs" not in printed.err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--preset", "small_photos"], ("small_photos", "nano", 40)),
        (["--preset", "none"], ("none", "full", 12)),
        (["--preset", "photos", "--size", "full", "--optim.epochs", "7"], ("photos", "full", 7)),
        (["--config", "CONFIG"], (None, "full", 9)),
        (["--config", "CONFIG", "--preset", "photos"], ("photos", "nano", 9)),
    ],
)
def test_a_preset_yields_to_options_and_files(more, expected, tmp_path, capsys):
    import yaml

    root = voc_one_folder(tmp_path / "pets")
    file = tmp_path / "settings.yaml"
    file.write_text("optim: {epochs: 9}\n")
    more = [str(file) if word == "CONFIG" else word for word in more]
    assert main(["train", str(root), *more, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["preset"], printed["size"], printed["optim"]["epochs"]) == expected


@pytest.mark.parametrize(
    ("path", "file"),
    [
        (True, None),
        (True, "optim: {epochs: 9}"),
        (True, "preset: photos\ndata: {batch_size: 3}"),
        (False, "preset: small_photos\nimage_size: 64\ndata: {path: PHOTOS}"),
        (False, "PRINTED"),
    ],
)
def test_a_study_reads_settings_as_a_training_does(path, file, tmp_path, capsys):
    """Data, presets and files give all runs of a study the settings that ``train`` prints for the same words."""
    import yaml

    root = str(voc_one_folder(tmp_path / "pets"))
    words = [root] * path
    if file == "PRINTED":
        assert main(["train", root, "--print_config"]) == 0
        file = capsys.readouterr().out
    if file is not None:
        (tmp_path / "settings.yaml").write_text(file.replace("PHOTOS", root))
        words += ["--config", str(tmp_path / "settings.yaml")]
    assert main(["train", *words, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    expected = {name: value for name, value in printed.items() if name not in OWN}
    expected["data"]["path"] = root
    assert main(["study", *words, "--losses", "default", "ap", "--out", str(tmp_path / "study"), "--cell", "9"]) == 2
    assert "cell must be a number from 1 to 6, got 9" in capsys.readouterr().err
    study = study_of(study_parser().parse_args([*words, "--losses", "default", "ap", "--out", str(tmp_path / "study")]))
    assert to_dict(study.config) == to_dict(from_dict(expected))


def test_a_study_of_data_that_cannot_be_read_trains_nothing(tmp_path, capsys):
    words = ["study", str(tmp_path / "photos"), "--losses", "default", "ap", "--out", str(tmp_path / "study")]
    assert main(words) == 1
    assert "path must be a folder or an annotation file" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "photos" / "a.png")
    assert main(words) == 1
    assert "must hold a data set" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_study_is_not_written_into_another_folder(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("detector: atss\n")
    (tmp_path / "file").write_text("text")
    for name in ("run", "file"):
        for more in (["--dry_run"], ["--cell", "1"], ["--report"]):
            words = ["study", "--losses", "default", "ap", "--out", str(tmp_path / name), *more]
            assert main(words) == 1
            assert "out must be a new folder or one of a study, got" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert (tmp_path / "run" / "config.yaml").read_text() == "detector: atss\n"
    assert main(["study", "--losses", "default", "ap", "--out", str(tmp_path / "new"), "--dry_run"]) == 2
    assert "the data must be named, got none" in capsys.readouterr().err
    assert main(["study", "--out", str(tmp_path / "new"), "--report"]) == 1
    assert "study.json" in capsys.readouterr().err


def test_options_that_would_have_no_effect_are_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("detector: atss\n")
    assert main(["train", "--resume", str(tmp_path / "run"), "--out", str(tmp_path / "other")]) == 2
    assert "out must be left out with --resume" in capsys.readouterr().err
    for option in ("--out", "--json", "--html"):
        words = ["calibrate", "--apply", "c.json", "r.json", "--results", "o.json", option, "x"]
        assert main(words) == 2
        assert f"{option} must be left out with --apply" in capsys.readouterr().err


def test_a_run_of_a_study_that_fails_says_why(tmp_path, capsys):
    root = voc_one_folder(tmp_path / "pets")
    words = ["--losses", "default", "ap", "--out", str(tmp_path / "study")]
    assert main(["study", str(root), *words, "--vary", "weights=none.ckpt", "--cell", "1"]) == 1
    printed = capsys.readouterr().err
    assert "preset thumbnails (5 images, most about 64 x 48 pixels, on a CPU): size nano" in printed
    assert re.search(r"the run fcos-default-weights=none.ckpt-seed1 failed: weights must be", printed)


def test_unknown_presets_and_loggers(tmp_path, capsys, monkeypatch):
    root = str(voc_one_folder(tmp_path / "pets"))
    assert main(["train", root, "--preset", "smal_photos", "--out", str(tmp_path / "run")]) == 2
    assert "got smal_photos; did you mean small_photos?" in capsys.readouterr().err
    assert main(["train", root, "--logger", "wanb", "--out", str(tmp_path / "run")]) == 2
    assert "logger must be one of tensorboard, wandb, mlflow, csv, got wanb; did you mean wandb?" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr("concordet.engine.training.logger.find_spec", lambda name: None)
    assert main(["train", root, "--logger", "wandb", "--out", str(tmp_path / "run")]) == 1
    assert "--logger wandb needs the package wandb; install it with: pip install 'concordet[wandb]'" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_presets_are_listed_with_cost_and_settings(capsys):
    assert main(["list", "presets"]) == 0
    out = capsys.readouterr().out
    assert main(["list", "presets", "--json", "-"]) == 0
    for preset in json.loads(capsys.readouterr().out):
        assert f"{preset['name']}: {preset['about']}\n  cost: {preset['cost']}\n  settings: " in out
        assert preset["settings"] == preset_settings(preset["name"])


@pytest.mark.parametrize(
    ("logger", "pattern"),
    [("csv", None), ("tensorboard", "tensorboard/events*"), ("mlflow", "mlflow.db"), ("wandb", "wandb/offline-run-*")],
)
def test_loggers_write_what_their_programs_read(logger, pattern, tmp_path, monkeypatch):
    if logger in ("wandb", "mlflow"):
        pytest.importorskip(logger)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    options = [*words(tiny(val_every=0, evaluate=False, optim_epochs=1)), "--logger", logger]
    assert main(["train", *options, "--out", str(run)]) == 0
    assert (run / "metrics.csv").is_file()
    others = [name for name in ("tensorboard", "mlflow.db", "wandb") if (run / name).exists()]
    assert others == ([] if pattern is None else [pattern.partition("/")[0]])
    if pattern is not None:
        assert list(run.glob(pattern))
    if logger == "mlflow":
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
        (experiment,) = [e for e in client.search_experiments() if e.name == "concordet"]
        (entry,) = client.search_runs([experiment.experiment_id])
        assert entry.data.params["detector"] == "fcos"
        assert entry.data.metrics["train/total"] > 0


@pytest.mark.parametrize(
    ("given", "names", "left_out"),
    [
        ("dog", ["dog"], 3),
        ("dog,cat", ["dog", "cat"], 0),
        ("pet=cat+dog", ["pet"], 0),
        ('{"cat": "kitty", "dog": null}', ["kitty"], 4),
    ],
)
@pytest.mark.parametrize("command", ["train", "data", "convert"])
def test_classes_are_chosen_and_merged_once_for_all_splits(command, given, names, left_out, tmp_path):
    root, out = voc_one_folder(tmp_path / "pets"), tmp_path / "out"
    if command == "train":
        assert main(["train", str(root), "--classes", given, *QUICK, "--image_size", "64", "--out", str(out)]) == 0
        content = json.loads((out / "data.json").read_text())
        assert content["source"]["description"].endswith(f", {len(names)} class{'es' * (len(names) > 1)}")
        counts = content["train"].get("objects_of_other_classes_left_out", 0)
        assert (counts > 0) == (left_out > 0)
    elif command == "data":
        assert main(["data", str(root), f"--classes={given}", "--json", str(tmp_path / "data.json")]) == 0
        content = json.loads((tmp_path / "data.json").read_text())
        assert content["classes"] == names
        assert content["splits"]["all"]["counts"].get("objects_of_other_classes_left_out", 0) == left_out
    else:
        assert main(["convert", str(root), "--classes", given, "--out", str(tmp_path / "all.json")]) == 0
        content = json.loads((tmp_path / "all.json").read_text())
        assert [category["name"] for category in content["categories"]] == names
        assert len(content["annotations"]) == 7 - left_out


def test_a_class_in_two_groups_is_refused(tmp_path, capsys):
    root = voc_one_folder(tmp_path / "pets")
    assert main(["data", str(root), "--classes", "cat,pet=cat+dog"]) == 2
    assert "classes must have each class once, got cat, pet=cat+dog; leave one" in capsys.readouterr().err


def test_quiet_and_verbose(tmp_path, capsys):
    root = str(voc_one_folder(tmp_path / "pets"))
    run = ["train", root, *QUICK, "--image_size", "64", "--logger", "csv", "--out"]
    assert main([*run, str(tmp_path / "quiet"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["-v", *run, str(tmp_path / "verbose")]) == 0
    assert "preset thumbnails" in capsys.readouterr().err
    assert main(["data", root, "--quiet", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["format"] == "voc"
    assert err == ""
    assert main(["data", "nothing", "-q"]) == 1
    assert capsys.readouterr().err.startswith("concordet: error: path must be a folder")


def test_help_shows_the_ten_options_that_matter_first(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    first = out[out.index("main options:") : out.index("\noptions:")]
    shown = [line.split()[0].rstrip(",") for line in first.splitlines() if line.startswith("  --")]
    assert shown == [
        *("--out", "--preset", "--detector", "--size", "--loss", "--image_size", "--classes"),
        *("--optim.epochs", "--data.batch_size", "--resume"),
    ]
    assert all(out.count(f"\n  {name} ") + out.count(f"\n  {name},") == 1 for name in shown)
    for python in ("Optional", "Literal", "Union", "dict[", "type:", "CONFIG"):
        assert python not in out, python
    assert "-q prints errors only, -v prints more" in out
