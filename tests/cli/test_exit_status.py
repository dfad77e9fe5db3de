"""Exit status 2: the command itself asks for what cannot be. Status 1: files, data, packages or devices are at fault.

A value out of range or of another type, a name that is not among the choices, a missing option and a contradiction are
bad usage, whatever the files hold; so are settings files and plugins that do not exist, which are part of the command.
"""

import shutil

import pytest

from concordet.cli import main
from tests.installed import write_files

ANALYZE = ["analyze", "truth.json", "detections.json"]
CALIBRATE = ["calibrate", "truth.json", "detections.json", "--out", "c.json"]
TRAIN = ["train", "--out", "new", "--data.name", "digits", "--size", "nano", "--accelerator", "cpu"]
STUDY = ["study", "--out", "study", "--losses", "default"]
LOSSES, DETECTORS = ["benchmark", "losses"], ["benchmark", "detectors", "--detectors", "fcos", "--size", "nano"]
EVALUATE, PREDICT = ["evaluate", "run", "--out", "other"], ["predict", "run", "photos", "--out", "p.json"]


def cases(base, **options):
    """One command line per option and bad value."""
    return [[*base, f"--{name}", value] for name, values in options.items() for value in values]


BAD_USAGE = [
    *cases(ANALYZE, max_dets=["-3", "0", "x"], resamples=["-1", "0", "1.5"], iou_type=["x"]),
    [*ANALYZE, "--compare", "detections.json", "--resamples", "0"],
    *cases(CALIBRATE, folds=["-1", "1", "x"], resamples=["-1", "x"], max_dets=["0"], method=["x"], iou_type=["x"]),
    *cases(TRAIN, seed=["x"], val_every=["-1"], log_every=["0"], nodes=["0"], timeout=["0"], devices=["0", "x"]),
    *cases(TRAIN, checkpoint_minutes=["-1", "nan"], precision=["16"], accelerator=["tpu"], logger=["x"], preset=["x"]),
    *cases(TRAIN, loss=["x", "focal+x", "focal+spearman(-1)"], backbone=["x"], options=["{x: 1}", "{loss: ap}", "x"]),
    *cases(TRAIN, image_size=["0", "[-1, 5]", "[1, 2, 3]"], plugins=["none.py"], config=["none.yaml"]),
    *cases([*TRAIN, "--size", "full"], backbone=["x", "timm/x"]),
    *(
        [*TRAIN, f"--optim.{name}", value]
        for name in ("lr", "weight_decay", "momentum", "drop", "warmup", "clip", "ema", "accumulate", "epochs", "steps")
        for value in ("-1", "nan")
    ),
    *(
        [*TRAIN, f"--data.{name}", value]
        for name, values in {
            "batch_size": ["0"],
            "workers": ["-1"],
            "val_fraction": ["0", "1", "2"],
            "name": ["x"],
            "augment": ["x"],
            "train_split": ["x"],
            "val_split": ["x"],
            "classes": ["x"],
            "root": ["x"],
            "train_options": ["{length: -1}", "{size: x}", "{x: 1}", "{seed: -1}"],
        }.items()
        for value in values
    ),
    [*TRAIN, "--calibration.fraction", "1"],
    *cases(STUDY, seeds=["0"], jobs=["0", "-1"], cell=["0", "99"], resamples=["0"], launcher=["x"], detectors=["x"]),
    *cases(STUDY, vary=["x", "optim.lr=x", "optim.lr=-1", "x=1"]),
    ["study", "--out", "study", "--losses", "x"],
    *cases(LOSSES, threads=["-1", "0", "x"], logits=["0", "-1"], shares=["0", "2", "nan"], budget=["-1", "inf"]),
    *cases(LOSSES, device=["x"], study=["x"]),
    *cases(DETECTORS, threads=["-1"], side=["0"], batch=["0"], classes=["-1"], rounds=["0"], losses=["x"]),
    *cases(DETECTORS, device=["x"]),
    ["benchmark", "analyze", "--repeats", "0"],
    *cases(EVALUATE, batch_size=["0", "-1", "x"], workers=["-1"], split=["x"], root=["x"], accelerator=["tpu"]),
    *cases(PREDICT, threshold=["2", "x", "cat=0.5"], every=["0"], accelerator=["tpu"], plugins=["none.py"]),
    *cases(["export", "run"], out=["x.foo"]),
    *cases(["export", "run", "--out", "x.onnx"], format=["x", "pt2"], which=["x"]),
    *cases(["data", "photos"], pictures=["-1"], name=["x"], classes=["x"]),
    *cases(["convert", "photos", "--out", "o.json"], name=["x"], classes=["x"], split=["x"]),
    ["demo", "--seed", "x"],
]

FAILURES = [
    *cases(ANALYZE, compare=["none.json"], raw=["none.json"], images=["none"], html=["none/a.html", "."]),
    ["analyze", "none.json", "detections.json"],
    [*TRAIN, "--weights", "none.ckpt"],
    ["train", "none", "--out", "new"],
    ["calibrate", "none.json", "detections.json", "--out", "c.json"],
    ["compare", "none"],
    *cases(LOSSES, table=["none.csv", "truth.json"], out=["truth.json"]),
    *cases(EVALUATE, checkpoint=["none.ckpt"]),
    ["evaluate", "none"],
    ["predict", "run", "none.jpg", "--out", "p.json"],
    [*PREDICT, "--draw", "truth.json"],
    ["export", "none", "--out", "x.onnx"],
    ["data", "none"],
]


@pytest.fixture
def folder(tmp_path, monkeypatch, finished, _folder_of_examples):
    """The current folder: detections with their ground truth, a run, and data as photographs with a table of boxes."""
    monkeypatch.chdir(tmp_path)
    write_files()
    (tmp_path / "run").symlink_to(finished)
    shutil.copytree(_folder_of_examples / "photos", tmp_path / "photos")
    return tmp_path


def check(words, status, folder, capsys):
    before = sorted(path.name for path in folder.iterdir())
    assert main(words) == status
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("concordet: error: ")
    assert "unexpected failure" not in last
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("words", BAD_USAGE, ids=" ".join)
def test_bad_usage(words, folder, capsys):
    check(words, 2, folder, capsys)


@pytest.mark.parametrize("words", FAILURES, ids=" ".join)
def test_what_else_fails(words, folder, capsys):
    check(words, 1, folder, capsys)
