"""Outputs destroy nothing, and standard output holds only what was asked to go there."""

import json
import os

import pytest

from concordet.cli import main
from concordet.cli.commands.list import KINDS
from concordet.cli.main import COMMANDS
from concordet.cli.outputs import check_outputs, is_ours
from concordet.errors import UsageError

from ..data.forms import coco_published
from ..trained import snapshot


@pytest.fixture
def files(tmp_path, finished):
    """Ground truth and detections in a folder of their own."""
    names = [tmp_path / "truth.json", tmp_path / "detections.json"]
    for name, source in zip(names, ("ground_truth.json", "detections.json"), strict=True):
        name.write_bytes((finished / source).read_bytes())
    return [str(name) for name in names]


def own_files(run):
    return [str(run / name) for name in ("ground_truth.json", "detections.json")]


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("index", [0, 1])
def test_an_input_is_never_overwritten(files, option, index, capsys, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(files[index])
    before = snapshot(tmp_path)
    for name in (files[index], str(link)):
        assert main(["analyze", *files, option, name, "--force"]) == 2
        assert f"{option} must not be an input of the command" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_files_of_others_need_force(files, capsys, tmp_path):
    out = tmp_path / "out.json"
    out.write_text('{"mine": 1}')
    assert main(["analyze", *files, "--json", str(out)]) == 1
    assert "--json must be a new file or one that concordet wrote" in capsys.readouterr().err
    assert out.read_text() == '{"mine": 1}'
    assert main(["analyze", *files, "--json", str(out), "--force"]) == 0
    assert "AP" in json.loads(out.read_text())
    assert main(["analyze", *files, "--json", str(out)]) == 0  # it is ours now


@pytest.mark.parametrize(
    "content",
    ['["cat", "dog"]', '{"AP": 0.5, "mine": 3}', '{"detectors": ["mine"]}', '{"before": {}, "after": {}}', "[1]"],
)
def test_files_of_others_are_not_taken_for_ours(content, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="--json must be a new file or one that concordet wrote"):
        check_outputs({"--json": path})


def test_files_in_input_folders_are_never_overwritten(tmp_path, capsys):
    root = coco_published(tmp_path / "pets")
    before = snapshot(root)
    for words in (
        ["convert", str(root), "--out", str(root / "annotations" / "instances_val2017.json")],
        ["data", str(root), "--json", str(root / "annotations" / "captions_train2017.json")],
        ["data", str(root), "--html", str(root / "train2017" / "a.jpg")],
    ):
        assert main([*words, "--force"]) == 2
        assert f"must not be a file in {root}, an input of the command" in capsys.readouterr().err
    assert snapshot(root) == before
    page = tmp_path / "pets" / "report.html"
    for _ in range(2):  # what concordet wrote there may be replaced
        assert main(["data", str(root), "--html", str(page)]) == 0


def test_plugins_and_configurations_are_inputs(finished, tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text("x = 1\n")
    sample = str(next((finished / "samples").iterdir()))
    for words in (
        ["predict", str(finished), sample, "--plugins", str(own), "--out", str(own)],
        ["evaluate", str(finished), "--plugins", str(own), "--json", str(own)],
        ["export", str(finished), "--plugins", str(own), "--out", "x.onnx", "--json", str(own)],
        ["train", "--plugins", str(own), "--out", str(tmp_path / "run"), "--json", str(own)],
        ["train", "--config", str(finished / "config.yaml"), "--json", str(finished / "config.yaml"), "--out", "x"],
    ):
        assert main([*words, "--force"]) == 2
        assert "must not be an input of the command" in capsys.readouterr().err
    assert own.read_text() == "x = 1\n"


def test_what_commands_write_is_known_again(files, finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    samples = str(finished / "samples")
    for words in (
        ["analyze", *files, "--json", f"{out}/analyze.json", "--html", f"{out}/analyze.html"],
        ["compare", str(finished), "--json", f"{out}/compare.json", "--out", f"{out}/compare.html"],
        ["predict", str(finished), samples, "--out", f"{out}/predict.json"],
        ["predict", str(finished), samples, "--threshold", "1", "--out", f"{out}/nothing.json"],
        ["evaluate", str(finished), "--json", f"{out}/evaluate.json", "--workers", "0"],
        *(["list", kind, "--json", f"{out}/{kind}.json"] for kind in KINDS),
        ["list", "--json", f"{out}/list.json"],
        ["analyze", *files, "--csv", f"{out}/classes.csv"],
        ["calibrate", *files, "--resamples", "5", "--json", f"{out}/cal.json", "--out", f"{out}/calibrator.json"],
        ["data", str(coco_published(tmp_path / "pets")), "--json", f"{out}/data.json"],
    ):
        assert main(words) == 0
    assert len(list(out.iterdir())) == 12 + len(KINDS)
    assert [path.name for path in out.iterdir() if not is_ours(path)] == []
    assert not is_ours(tmp_path / "truth.json")


def test_files_of_a_run_are_never_overwritten(finished, capsys):
    before = snapshot(finished)
    for name in ("evaluation.json", "checkpoints/last.ckpt"):
        words = ["predict", str(finished), str(finished / "samples"), "--out", str(finished / name), "--force"]
        assert main(words) == 1
        assert "--out must not be a file of a run" in capsys.readouterr().err
    assert snapshot(finished) == before


@pytest.mark.parametrize("name", ["metrics.csv", "positives.npz", "calibrator.json", "samples", "tensorboard"])
def test_other_files_of_a_run_are_not_overwritten_either(name, finished, capsys):
    path = finished / name
    if path.is_dir():
        path = next(file for file in path.rglob("*") if file.is_file())
    before = snapshot(finished)
    assert main(["analyze", *own_files(finished), "--json", str(path), "--force"]) == 1
    assert "--json must not be a file of a run" in capsys.readouterr().err
    image = next((finished / "samples").iterdir())
    assert main(["predict", str(finished), str(image), "--out", str(image), "--force"]) == 2
    assert snapshot(finished) == before


def test_outputs_that_cannot_be_files(tmp_path):
    with pytest.raises(ValueError, match="--json must be a file, got the folder"):
        check_outputs({"--json": str(tmp_path)})
    with pytest.raises(ValueError, match="nothing can be written to"):
        check_outputs({"--json": str(tmp_path / "none" / "out.json")})
    with pytest.raises(UsageError, match="--out must be another file than --json"):
        check_outputs({"--json": "-", "--out": "/dev/stdout"})
    check_outputs({"--json": os.devnull, "--out": "-"})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("option", ["--json", "--csv", "--html"])
def test_a_full_device_is_named(option, files, capsys):
    assert main(["analyze", *files, option, "/dev/full"]) == 1
    said = capsys.readouterr().err
    assert "/dev/full" in said
    assert "No space left on device" in said


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="this system has no /dev/fd")
def test_a_shells_pipe_is_written_to(files, tmp_path):
    """As in ``--json >(gzip > out.json.gz)``."""
    read, write = os.pipe()
    with os.fdopen(read) as reading, os.fdopen(write, "w") as writing:
        assert main(["list", "losses", "--json", f"/dev/fd/{write}"]) == 0
        writing.close()
        assert "focal" in json.load(reading)
    path = tmp_path / "redirected"
    with path.open("w") as file:
        file.write("before ")
        file.flush()
        assert main(["list", "losses", "--json", f"/dev/fd/{file.fileno()}"]) == 0
    assert path.read_text().startswith("before [")


@pytest.mark.parametrize("length", [240, 250])
def test_long_names_are_written(length, tmp_path):
    name = tmp_path / ("a" * length + ".json")
    assert main(["list", "losses", "--json", str(name)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name.name]


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
@pytest.mark.parametrize("command", ["analyze", "compare", "evaluate", "predict", "list"])
def test_standard_output_holds_json_only(command, name, files, finished, tmp_path, monkeypatch, capfd):
    words = {
        "analyze": [*files, "--json", name],
        "compare": [str(finished), "--out", "page.html", "--json", name],
        "evaluate": [str(finished), "--workers", "0", "--json", name],
        "predict": [str(finished), str(finished / "samples"), "--out", name],
        "list": ["losses", "--json", name],
    }[command]
    monkeypatch.chdir(tmp_path)
    assert main([command, *words]) == 0
    assert json.loads(capfd.readouterr().out)
    assert not (tmp_path / "-").exists()


def test_every_command_that_writes_has_force(capsys):
    for command in set(COMMANDS) - {"benchmark"}:
        assert main([command, "--help"]) == 0
        out = capsys.readouterr().out
        assert "--force" in out or "--json" not in out, command
