"""Outputs destroy nothing, and standard output holds only what was asked to go there."""

import json
import os

import pytest

from concordet.cli import main
from concordet.cli.main import COMMANDS
from concordet.cli.outputs import check_outputs, is_ours
from concordet.errors import UsageError

from ..trained import snapshot


@pytest.fixture
def files(tmp_path, finished):
    """Ground truth and detections in a folder of their own."""
    names = [tmp_path / "truth.json", tmp_path / "detections.json"]
    for name, source in zip(names, ("ground_truth.json", "detections.json"), strict=True):
        name.write_bytes((finished / source).read_bytes())
    return [str(name) for name in names]


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
        *(["list", kind, "--json", f"{out}/{kind}.json"] for kind in ("detectors", "losses", "measures", "recipes")),
        ["list", "--json", f"{out}/list.json"],
    ):
        assert main(words) == 0
    assert len(list(out.iterdir())) == 12
    assert [path.name for path in out.iterdir() if not is_ours(path)] == []
    assert not is_ours(tmp_path / "truth.json")


def test_files_of_a_run_are_never_overwritten(finished, capsys):
    before = snapshot(finished)
    for name in ("evaluation.json", "checkpoints/last.ckpt"):
        words = ["predict", str(finished), str(finished / "samples"), "--out", str(finished / name), "--force"]
        assert main(words) == 1
        assert "--out must not be a file of a run" in capsys.readouterr().err
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
