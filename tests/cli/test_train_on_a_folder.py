"""concordet train PATH: from a folder as people have it to a run, and evaluation on its splits."""

import json
from pathlib import Path

import pytest

from concordet.cli import main
from concordet.data import detect_format

from ..data.forms import IMAGES, voc_objects, voc_one_folder, write, yolo_parts_outside

SETTINGS = [
    *("--detector", "fcos", "--size", "nano", "--image_size", "64", "--accelerator", "cpu", "--data.workers", "0"),
    *("--data.batch_size", "2", "--optim.steps", "1", "--val_every", "0"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on images and annotations in one folder, two classes merged."""
    root = voc_one_folder(tmp_path_factory.mktemp("data") / "pets")
    out = root.parent / "run"
    words = [
        "train",
        str(root),
        *SETTINGS,
        "--data.classes",
        '{"cat": "pet", "dog": "pet"}',
        "--data.val_fraction",
        "0.4",
    ]
    assert main([*words, "--out", str(out)]) == 0
    return root, out


def test_what_was_recognized_and_held_out_is_recorded(run):
    root, out = run
    data = json.loads((out / "data.json").read_text())
    source = data["source"]
    assert source["description"] == "Pascal VOC, images and annotations in one folder: 5 images, 1 class"
    assert source["path"] == str(root)
    held_out = source["held_out"]
    assert (held_out["fraction"], held_out["seed"], len(held_out["images"])) == (0.4, 0, 2)
    val = detect_format(root).open("val", val_fraction=0.4)
    assert held_out["images"] == [val.image_path(index).name for index in range(2)]
    truth = json.loads((out / "ground_truth.json").read_text())
    assert [image["file_name"] for image in truth["images"]] == held_out["images"]
    assert [category["name"] for category in truth["categories"]] == ["pet"]
    assert data["train"]["images"] == 3


def test_evaluation_is_on_the_same_images(run, tmp_path):
    root, out = run
    again = tmp_path / "again"
    assert main(["evaluate", str(out), "--out", str(again), "--workers", "0", "--accelerator", "cpu"]) == 0
    assert (again / "ground_truth.json").read_text() == (out / "ground_truth.json").read_text()
    moved = root.rename(tmp_path / "elsewhere")
    third = tmp_path / "third"
    words = ["evaluate", str(out), "--root", str(moved), "--out", str(third), "--workers", "0", "--accelerator", "cpu"]
    assert main(words) == 0
    moved.rename(root)
    names = [image["file_name"] for image in json.loads((third / "ground_truth.json").read_text())["images"]]
    assert names == json.loads((out / "data.json").read_text())["source"]["held_out"]["images"]


def test_a_run_can_be_evaluated_on_another_file(run, tmp_path, monkeypatch):
    root, out = run
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(root), "--out", "copy", "--split", "train"]) == 0
    annotations = Path("copy", "annotations", "instances_train.json")
    words = ["--annotations", str(annotations), "--images", "copy/train", "--out", "other"]
    assert main(["evaluate", str(out), *words, "--workers", "0", "--accelerator", "cpu"]) == 0
    truth = json.loads((tmp_path / "other" / "ground_truth.json").read_text())
    expected = json.loads(annotations.read_text(encoding="utf-8"))
    names, wanted = ([Path(image["file_name"]).name for image in content["images"]] for content in (truth, expected))
    assert names == wanted
    assert len(names) == 4  # a fifth of five is held out by default


def test_a_run_goes_on_from_another_folder(tmp_path, monkeypatch):
    """Paths as typed are relative to the folder in which the training was started."""
    voc_one_folder(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "pets", *SETTINGS, "--out", "run"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", "../run", "--workers", "0"]) == 0
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    assert main(["train", "--resume", "../run"]) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the data must be named, got none; give its folder or annotation file"),
        (["pets", "--data.root", "pets"], "data.root belongs to a data set by name"),
        (["pets", "--data.train_annotations", "a.json"], "data.train_annotations belongs to a data set by name"),
        (["pets", "--data.classes", '["cow"]'], "classes must be among cat, dog, got cow"),
        (["pets", "--data.val_fraction", "2"], "val_fraction must be above 0 and below 1, got 2"),
        (["pets", "--data.val_split", "test"], "the split must be one of train, val, got test"),
    ],
)
def test_mistakes(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    voc_one_folder(tmp_path / "pets")
    assert main(["train", *words, "--out", "run"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_test_split_of_a_run_can_be_evaluated(tmp_path):
    from concordet.engine.config import DataConfig
    from concordet.engine.data import build_dataset

    root = yolo_parts_outside(tmp_path)
    (root / "val").rename(root / "test")
    write(root / "data.yaml", "train: train/images\ntest: test/images\nnames: [cat, dog]\n")
    config = DataConfig(path=str(root))
    assert [len(build_dataset(config, split)) for split in ("train", "val")] == [2, 1]
    assert len(build_dataset(DataConfig(path=str(root), val_split="test"), "val")) == 2


def test_faults_are_found_before_anything_is_trained(tmp_path, capsys):
    root = voc_one_folder(tmp_path / "pets")
    write(root / "c.xml", voc_objects("c").replace("<xmin>3<", "<xmin>three<"))
    assert main(["train", str(root), *SETTINGS, "--out", str(tmp_path / "run")]) == 1
    assert "c.xml: object 1 (dog) has no bndbox of four numbers; add or remove it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert set(IMAGES) == {path.stem for path in root.glob("*.jpg")}
