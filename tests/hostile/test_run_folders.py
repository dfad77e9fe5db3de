"""Values of run folders, settings and results that are refused, each with its sentence."""

import json
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from concordet.cli import main
from concordet.data import detect_format
from concordet.engine.config import read_settings
from concordet.measures import analyze
from concordet.measures.runs import read_runs

from ..data.forms import save, voc_objects
from ..trained import snapshot, tiny, words
from .kinds import copied_run
from .test_data import png

MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10))
NESTED = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


def header(shape, kind="<f8"):
    """An array's header without the array."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(path, arrays):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("evaluation.json", lambda c: c["metrics"].update(AP="0.5"), "AP must be a number or null, got '0.5'"),
        ("evaluation.json", lambda c: c["metrics"].update(AP=float("nan")), "AP must be a number or null, got nan"),
        ("evaluation.json", lambda c: c["metrics"].update(AP=10**400), "AP must be a number or null, got 1000"),
        ("evaluation.json", lambda c: c["metrics"].update(AP=True), "AP must be a number or null, got True"),
        ("evaluation.json", lambda c: c.update(per_class={"a": 1}), "per_class must be a list, got {'a': 1}"),
        ("evaluation.json", lambda c: c.update(per_class=[3]), r"per_class\[0\] must be an object, got 3"),
        ("evaluation.json", lambda c: c.update(reasons=[1]), r"reasons must be an object, got \[1\]"),
        ("evaluation.json", lambda c: c.update(loss=["ap"]), r"loss must be a text, got \['ap'\]"),
        ("ground_truth.json", lambda c: c.update(images={"id": 1}), "images must be a list, got {'id': 1}"),
        ("ground_truth.json", lambda c: c["images"][0].update(width="64"), "width of images.0. must be a number"),
        ("ground_truth.json", lambda c: c["categories"][0].pop("name"), "name of categories.0. must be a text"),
        ("detections.json", lambda c: c[1].update(score=None), "score of detection 1 .* must be a number"),
        (
            "detections.json",
            lambda c: c[1].update(raw_score=[1]),
            r"raw_score of detection 1 .* between 0 and 1, got \[1\]",
        ),
        (
            "detections.json",
            lambda c: c[1].update(raw_score=1.5),
            "raw_score of detection 1 .* between 0 and 1, got 1.5",
        ),
        ("detections.json", lambda c: c[0].update(bbox=[1, 2]), "bbox of detection 0 .* must be .x, y, w"),
    ],
)
def test_values_of_runs(name, change, sentence, finished, tmp_path):
    folder = copied_run(finished, tmp_path / "run")
    edit(folder / name, change)
    with pytest.raises(ValueError, match=rf"{name}: {sentence}"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metrics.csv", ("step,lr\n1," + "9" * 140_000).encode(), r"metrics\.csv must be a table, got .*field larger"),
        ("metrics.csv", b"step,lr\n1,\xff\n", r"metrics\.csv must be text in UTF-8"),
        ("config.yaml", NESTED.encode(), r"config\.yaml must hold at most 100000 values"),
        ("config.yaml", MERGED.encode(), r"config\.yaml is not valid YAML .*more than 100000 values"),
        ("config.yaml", b"seed: " + b"9" * 5000, r"config\.yaml is not valid YAML .*digits"),
        ("samples/0.png", png(60_000, 60_000), r"0\.png: the image cannot be decoded .*exceeds limit"),
    ],
)
def test_files_of_runs(name, content, sentence, finished, tmp_path, capsys):
    folder = copied_run(finished, tmp_path / "run")
    target = folder / name
    if name.startswith("samples"):
        for path in target.parent.iterdir():
            path.write_bytes(content)
        sentence = sentence.replace("0", r"\d+", 1)
    target.write_bytes(content)
    assert main(["compare", str(folder), "--out", str(tmp_path / "page.html")]) == 1
    said = capsys.readouterr().err
    assert re.search(sentence, said), said
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"scores": header("(3000000000,)"), "ious": header("(1,)") + bytes(8)}, r"got the claim of \[3000000000\]"),
        ({"scores": header("(1,)", "|O") + bytes(8)}, r"scores\.npy .* \[1\] object"),
        ({"scores": header("(1, 1)") + bytes(8)}, r"got the claim of \[1, 1\]"),
        ({"scores": header("(2,)") + bytes(8)}, r"got the claim of \[2\]"),
        ({"scores": b"text"}, "must be an archive of arrays, got a fault"),
        ({}, r"must hold as many scores as ious, got \[\]"),
    ],
)
def test_arrays_of_runs(arrays, sentence, finished, tmp_path):
    folder = copied_run(finished, tmp_path / "run")
    archive(folder / "positives.npz", arrays)
    with pytest.raises(ValueError, match=rf"positives\.npz .*{sentence}"):
        read_runs([folder])


def test_positives_that_are_no_numbers_between_0_and_1(finished, tmp_path):
    folder = copied_run(finished, tmp_path / "run")
    np.savez(folder / "positives.npz", scores=np.array([np.nan]), ious=np.array([0.5]))
    with pytest.raises(ValueError, match=r"positives\.npz must hold scores and IoUs between 0 and 1"):
        read_runs([folder])


@pytest.mark.parametrize("text", [NESTED, MERGED])
def test_settings_of_many_aliases(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml .*100000 values"):
        read_settings(path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--image_size", "0", "0"], "image_size must be between 1 and 16384 pixels, got [0, 0]"),
        (["--image_size", "[-3, 64]"], "image_size must be between 1 and 16384 pixels, got [-3, 64]"),
        (["--image_size", "1000000"], "image_size must be between 1 and 16384 pixels, got [1000000]"),
        (["--image_size", "1e400"], "whole numbers such as '[240, 320]', got inf; see concordet train --help"),
        (["--optim", "3"], "optim must be settings, such as --optim.NAME VALUE, got 3; see concordet train --help"),
        (["--data.workers", "100000"], "data.workers must be at most 256, got 100000; each is a process"),
        (["--loss", "a\0b"], "arguments must have no null byte, got 'a\\x00b'"),
        (["--options", "{num_classes: 3}"], "options must be those of the detector, got num_classes"),
    ],
)
def test_refused_settings(options, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *options, "--out", "run"]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def large(box=(0, 0, 9, 9), score=0.5):
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]
    return truth, [{"image_id": 1, "category_id": 1, "bbox": list(box), "score": score}]


def test_numbers_beyond_use_are_refused():
    with pytest.raises(ValueError, match=r"detection 0 \(from 0\): bbox must be in pixels, at most 1e\+09"):
        analyze(*large(box=(0, 0, 1e200, 1e200)))
    with pytest.raises(ValueError, match=r"detection 0 \(from 0\): score must be at most 1e\+30, got 1e\+308"):
        analyze(*large(score=1e308))


@pytest.mark.parametrize("form", ["name", "link"])
def test_pictures_of_an_analysis_stay_inside(form, tmp_path, capsys):
    """The worst case of the analysis is on an image outside of --images."""
    secret, images = save(tmp_path / "private", "secret"), tmp_path / "images"
    images.mkdir()
    name = "../private/secret.jpg" if form == "name" else "a.jpg"
    if form == "link":
        (images / name).symlink_to(secret)
    truth, rows = large()
    truth["images"][0] |= {"file_name": name, "width": 64, "height": 48}
    rows = [{**rows[0], "bbox": [0, 0, 9, 6], "score": 0.9}, {**rows[0], "score": 0.3}]
    paths = [tmp_path / "truth.json", tmp_path / "rows.json"]
    for path, content in zip(paths, (truth, rows), strict=True):
        path.write_text(json.dumps(content))
    words = ["analyze", *map(str, paths), "--images", str(images), "--html", str(tmp_path / "page.html")]
    assert main(words) == 1
    assert "image 1 of the ground truth names" in (said := capsys.readouterr().err)
    assert "leads outside" in said
    assert main([*words, "--allow_outside"]) == 0
    assert "data:image" in (tmp_path / "page.html").read_text()
    (images / "secret.jpg").write_bytes(secret.read_bytes())  # found by its last name
    assert main(words) == (0 if form == "name" else 1)


@pytest.mark.parametrize("option", ["image_size", "train_sizes"])
def test_enormous_images_of_a_checkpoint(option, finished, tmp_path, capsys):
    content = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    content["concordet"]["options"] = {option: [10**9, 10**9]}
    torch.save(content, tmp_path / "some.ckpt")
    image = save(tmp_path, "a")
    assert main(["predict", str(tmp_path / "some.ckpt"), str(image), "--out", str(tmp_path / "out.json")]) == 1
    said = capsys.readouterr().err
    assert re.search(rf"some\.ckpt must describe a detector .*: {option} must be .* from 1 to 16384 pixels, got", said)


def test_thousands_of_processes(tmp_path, capsys):
    assert main(["train", *words(tiny(devices="100000")), "--out", str(tmp_path / "run")]) == 1
    assert re.search(r"devices must be at most \d+ on the CPU of this machine, got 100000", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_calibrator_is_stored_in_checkpoints_of_the_run_only(finished, tmp_path):
    """The evaluation names the checkpoint; a path in it would lead to one of another run."""
    folder, other = copied_run(finished, tmp_path / "run"), tmp_path / "other.ckpt"
    other.write_bytes((finished / "checkpoints" / "last.ckpt").read_bytes())
    before = other.read_bytes()
    for name in (str(other), "../../other.ckpt"):
        edit(folder / "evaluation.json", lambda c, name=name: c["evaluated"].update(checkpoint=name))
        assert main(["calibrate", str(folder), "--resamples", "5"]) == 0
    assert other.read_bytes() == before


def test_a_run_that_another_process_writes_to(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    code = f"from concordet.locks import locked\nwith locked({str(folder)!r}, ''): print('in', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == b"in\n"
        before = snapshot(folder)
        for command in ("evaluate", "calibrate"):
            assert main([command, str(folder)]) == 1
            said = capsys.readouterr().err
            assert f"{folder} must not be in use, got one that process {process.pid} writes to; wait until" in said
        assert snapshot(folder) == before
        process.communicate(b"\n")
    assert main(["evaluate", str(folder), "--workers", "0"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="this system has only names in UTF-8")
def test_names_that_are_not_in_utf_8(tmp_path, capsys):
    """Images from old archives have names in Latin-1."""
    root = tmp_path / "photos"
    for name in ("a", "b", "c\udce9"):  # the byte E9 on the disk
        save(root, name)
        (root / f"{name}.xml").write_text(voc_objects(name[0]))
    page = tmp_path / "data.html"
    assert main(["data", str(root), "--html", str(page), "--json", str(tmp_path / "data.json")]) == 0
    assert page.read_text(encoding="utf-8")
    assert main(["convert", str(root), "--out", str(tmp_path / "coco.json")]) == 0
    splits = [detect_format(root).open(split, val_fraction=0.34) for split in ("train", "val")]
    assert sorted(map(len, splits)) == [1, 2]
    capsys.readouterr()


def test_half_a_character_as_the_name_of_a_class(tmp_path):
    truth, rows = large()
    truth["categories"][0]["name"] = "\ud800"
    for name, content in (("truth.json", truth), ("rows.json", rows)):
        (tmp_path / name).write_text(json.dumps(content))
    outputs = [str(tmp_path / name) for name in ("out.json", "out.html", "out.csv")]
    words = ["--json", outputs[0], "--html", outputs[1], "--csv", outputs[2], "--resamples", "5"]
    assert main(["analyze", str(tmp_path / "truth.json"), str(tmp_path / "rows.json"), *words]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["per_class"][0]["name"] == "\ud800"
    assert "</html>" in (tmp_path / "out.html").read_text(encoding="utf-8")
