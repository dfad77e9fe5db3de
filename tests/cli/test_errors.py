"""What goes wrong is one sentence and an exit status, and nothing that was there is lost."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from concordet.cli import main

from ..trained import snapshot, tiny, words


def said(capsys):
    """The error that was printed: one line, no traceback."""
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("concordet: error: ")]
    assert len(errors) == 1, lines
    assert not [line for line in lines if line.startswith("Traceback")]
    assert lines[-1] == errors[0]
    return errors[0].removeprefix("concordet: error: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "command must be one of demo, train, "),
        (["trian"], "got trian; did you mean train?"),
        (["evalute"], "did you mean evaluate?"),
        (["train"], "out must be a folder for the run, got none"),
        (["analyze", "gt.json"], "detections must be named, got none; see concordet analyze --help"),
        (["evaluate"], "run must be named, got none; see concordet evaluate --help"),
        (["benchmark", "losses", "--foo"], "option must be one that concordet benchmark losses has, got --foo; see"),
        (
            ["benchmark", "losses", "--threads", "x"],
            "--threads must be a whole number from 1, got x; see",
        ),
        (["benchmark", "losses", "--study", "x"], "--study must be one of grid, large, got x; choose one"),
        (["train", "--lr", "3"], "option must be one that concordet train has, got --lr; did you mean --optim.lr?"),
        (["train", "--epochs", "3"], "did you mean --optim.epochs?"),
        (["train", "--optim.epoch", "3", "--out", "x"], "did you mean --optim.epochs?"),
        (["train", "--bach_size", "3"], "did you mean --data.batch_size?"),
        (["train", "--size", "huge", "--out", "x"], "size must be one of full, nano, got huge"),
        (["train", "--optim.schedule", "cosin", "--out", "x"], "got cosin; did you mean cosine?"),
        (["train", "--optim.lr", "fast", "--out", "x"], "optim.lr must be a number, got fast"),
        (["train", "--image_size", "big", "--out", "x"], "image_size must be a whole number or two whole numbers"),
        (["train", "--optim.epochs", "0", "--out", "x"], "optim.epochs must be at least 1, got 0"),
        (["train", "--detector", "yolo", "--out", "x"], "detector must be one of retinanet, fcos"),
        (["train", "--detector", "faster-rcn", "--out", "x"], "did you mean faster_rcnn?"),
        (["train", "--loss", "focal+", "--out", "x"], "focal+"),
        (["train", "--data.name", "imagenet", "--out", "x"], "data.name must be one of"),
        (
            ["train", "--config", "correlation_loss/atss_r50_ranksort"],
            "did you mean correlation_loss/atss_r50_rank_sort?",
        ),
        (["train", "--resume"], "resume must be the folder of a run, got none"),
        (["train", "photos", "--out"], "--out"),
        (["train", "--plugins", "none.py", "--out", "x"], "none.py, which does not exist"),
        (["list", "colors"], "kind must be one of detectors, losses"),
        (["predict", "run"], "images"),
        (["predict", "run", "image.png"], "an output must be given, got none; add --out FILE"),
        (["predict", "run", "image.png", "--out", "x", "--threshold", "2"], "threshold must be between 0 and 1, got 2"),
        (["analyze", "a", "b", "--iou_type", "keypoints"], "iou_type must be one of bbox, segm, got keypoints"),
        (["analyze", "a", "b", "--json", ""], "--json must be a file name"),
        (["analyze", "a", "b", "--json", "a"], "--json must not be an input of the command, got a"),
        (["analyze", "a", "b", "--json", "x", "--html", "x"], "--json must be another file than --html, got x"),
        (["benchmark"], "benchmark must be one of losses, detectors, analyze, got none"),
        (["benchmark", "coffee"], "benchmark must be one of losses"),
        (["compare"], "runs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert sentence in said(capsys)
    assert not list(tmp_path.iterdir())


def test_no_command_shows_the_usage(capsys):
    assert main([]) == 2
    assert "usage: concordet" in capsys.readouterr().out


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """A small COCO folder, and a function that changes its annotations."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    draws = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "thing"}]}
    for i in range(4):
        name = f"{i}.jpg"
        Image.fromarray(draws.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root / "images" / name)
        content["images"].append({"id": i, "file_name": name, "width": 64, "height": 64})
        content["annotations"].append(
            {"id": i + 1, "image_id": i, "category_id": 5, "bbox": [8, 8, 30, 30], "area": 900, "iscrowd": 0}
        )
    (root / "all.json").write_text(json.dumps(content))

    def change(edit):
        edit(content)
        (root / "all.json").write_text(json.dumps(content))

    return root, change


def train_on(root, out, *more):
    places = {"data_name": "coco", "data_train_options": {}, "data_val_options": {}, "data_batch_size": 2}
    for part in ("train", "val"):
        places |= {f"data_{part}_annotations": str(root / "all.json"), f"data_{part}_images": str(root / "images")}
    return main(
        ["train", *words(tiny(val_every=0, evaluate=False, optim_epochs=1, **places)), "--out", str(out), *more]
    )


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_truncated_image(coco, tmp_path, capsys, workers):
    root, _ = coco
    file = root / "images" / "2.jpg"
    file.write_bytes(file.read_bytes()[:1500])
    assert train_on(root, tmp_path / "run", "--data.workers", workers) == 1
    sentence = said(capsys)
    assert str(file) in sentence
    assert "cannot be decoded" in sentence


def test_an_annotation_that_names_a_missing_file(coco, tmp_path, capsys):
    root, _ = coco
    (root / "images" / "1.jpg").unlink()
    assert train_on(root, tmp_path / "run") == 1
    assert "1.jpg" in said(capsys)
    assert not (tmp_path / "run").exists()


def test_a_class_id_out_of_range(coco, tmp_path, capsys):
    root, change = coco
    change(lambda content: content["annotations"][3].update(category_id=77))
    assert train_on(root, tmp_path / "run") == 1
    assert "77" in said(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("emptied", [["images", "annotations"], ["categories", "annotations"]])
def test_an_empty_data_set(coco, tmp_path, capsys, emptied):
    root, change = coco
    change(lambda content: [content[name].clear() for name in emptied])
    assert train_on(root, tmp_path / "run") == 1
    sentence = said(capsys)
    assert "all.json" in sentence
    assert "empty" in sentence or "no image" in sentence or "no entries" in sentence
    assert not (tmp_path / "run").exists()


def test_annotations_that_are_cut_or_missing(coco, tmp_path, capsys):
    root, _ = coco
    file = root / "all.json"
    file.write_text(file.read_text()[:-40])
    assert train_on(root, tmp_path / "run") == 1
    assert "all.json" in said(capsys)
    file.unlink()
    assert train_on(root, tmp_path / "run") == 1
    assert "all.json" in said(capsys)


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_learning_rate_that_makes_the_loss_infinite(tmp_path, capsys):
    config = tiny(optim_lr=1e15, optim_warmup=0, optim_clip=0.0, optim_schedule="constant", val_every=0)
    assert main(["train", *words(config), "--out", str(tmp_path / "run")]) == 1
    sentence = said(capsys)
    assert "at update" in sentence
    assert "a smaller optim.lr" in sentence


def test_an_unwritable_output_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert main(["train", *words(tiny()), "--out", str(file / "run")]) == 1
    assert "cannot be made" in said(capsys)
    assert main(["train", *words(tiny()), "--out", str(file)]) == 1
    assert "already exists" in said(capsys)
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["train", *words(tiny()), "--out", str(tmp_path / "run")]) == 1
    assert "cannot be made (Permission denied)" in said(capsys)


def test_a_run_folder_that_exists(finished, capsys):
    before = snapshot(finished)
    assert main(["train", *words(tiny()), "--out", str(finished)]) == 1
    assert "already exists; name another --out, or continue the run with --resume" in said(capsys)
    assert snapshot(finished) == before


def test_resuming_with_other_settings(finished, capsys):
    before = snapshot(finished)
    assert main(["train", "--resume", str(finished), "--optim.lr", "0.5"]) == 2
    assert "optim.lr must be 0.001, with which the run in" in said(capsys)
    assert main(["train", "--resume", str(finished / "samples")]) == 1
    assert "run must be a folder with config.yaml" in said(capsys)
    assert snapshot(finished) == before


def test_a_checkpoint_of_another_detector_or_class_count(finished, tmp_path, capsys):
    other = tiny(detector="atss", weights=str(finished))
    assert main(["train", *words(other), "--out", str(tmp_path / "run")]) == 1
    assert "got atss; name another checkpoint, or use fcos" in said(capsys)
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "evaluation.json").unlink()
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("    - '7'\n", "    - '7'\n    - '9'\n"))
    before = snapshot(copy)
    assert main(["evaluate", str(copy)]) == 1
    assert "was trained on (3, 7), got 3 (3, 7, 9)" in said(capsys)
    assert snapshot(copy) == before


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut"])
def test_a_file_that_is_no_checkpoint(finished, tmp_path, capsys, content):
    file = tmp_path / "some.ckpt"
    file.write_bytes(content)
    image = next((finished / "samples").iterdir())
    assert main(["predict", str(file), str(image), "--out", str(tmp_path / "out.json")]) == 1
    assert "some.ckpt; name another one, such as checkpoints/last.ckpt" in said(capsys)
    assert not (tmp_path / "out.json").exists()


def test_earlier_results_survive_a_failure(finished, tmp_path, capsys):
    out = tmp_path / "out.json"
    out.write_text("[]")
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert main(["predict", str(finished), str(tmp_path / "bad.png"), "--out", str(out)]) == 1
    assert "bad.png" in said(capsys)
    assert out.read_text() == "[]"
    missing = tmp_path / "nowhere" / "out.json"
    assert main(["predict", str(finished), str(finished / "samples"), "--out", str(missing)]) == 1
    assert "nothing can be written to" in said(capsys)


def test_a_folder_that_was_not_evaluated(tmp_path, capsys):
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 1
    assert "run must be a folder with evaluation.json, got" in said(capsys)
    assert not (tmp_path / "page.html").exists()


def test_an_analysis_of_nothing(tmp_path, finished, capsys):
    truth = str(finished / "ground_truth.json")
    assert main(["analyze", truth, str(tmp_path / "none.json")]) == 1
    assert "none.json" in said(capsys)
    (tmp_path / "cut.json").write_text('[{"image_id": 1,')
    assert main(["analyze", truth, str(tmp_path / "cut.json")]) == 1
    assert "cut.json" in said(capsys)


# --- everything else ------------------------------------------------------------------------------------------------


def test_a_traceback_is_shown_when_asked_for(tmp_path, capsys):
    assert main(["--debug", "compare", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("odd"), "RuntimeError: odd (unexpected error: --debug prints the traceback)"),
        (PermissionError(13, "Permission denied", "a/b"), "a/b: Permission denied"),
        (FileNotFoundError("a/b: no such folder; name another"), "a/b: no such folder; name another"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "a/b: Not a directory"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "a text file must be in UTF-8"),
        (Image.DecompressionBombError("Image size exceeds limit"), "Image size exceeds limit"),
        (ModuleNotFoundError("x", name="hotcoco"), "concordet list needs the package hotcoco; install it with"),
        (
            ValueError(
                "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback\n  x\nValueError: bad: it"
            ),
            "bad: it",
        ),
    ],
)
def test_other_failures(error, sentence, capsys, monkeypatch):
    def fail(words):
        raise error

    monkeypatch.setattr("concordet.cli.commands.list.run", fail)
    assert main(["list"]) == 1
    assert said(capsys).startswith(sentence)


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), RuntimeError("DataLoader worker (pid 18002) is killed by signal: Terminated.")],
    ids=["Ctrl-C", "SIGTERM to all processes"],
)
def test_a_stopped_command_has_the_status_that_shells_expect(error, capsys, monkeypatch):
    def fail(words):
        raise error

    monkeypatch.setattr("concordet.cli.commands.list.run", fail)
    assert main(["list"]) == 130
    assert said(capsys) == "stopped"


def test_sigterm_is_ctrl_c(capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("concordet.cli.commands.list.run", lambda words: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["list"]) == 130
    assert said(capsys) == "stopped"
    assert signal.getsignal(signal.SIGTERM) is before


def test_output_that_nobody_reads(capfd, monkeypatch):
    """`concordet list | head -1`: no complaint, also none when Python closes the output."""

    def fail(words):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("concordet.cli.commands.list.run", fail)
    monkeypatch.setattr("os.dup2", lambda first, second: None)
    assert main(["list"]) == 1
    assert capfd.readouterr() == ("", "")
