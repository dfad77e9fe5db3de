"""Commands on streams that are not UTF-8, such as pipes on Windows."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from concordet.cli import main
from concordet.cli.main import COMMANDS
from concordet.cli.streams import PLAIN
from tests.installed import write_files


def run(encoding, *words):
    """Exit status, output and errors of a command whose streams have this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        status = main(list(words))
    for stream in streams:
        stream.flush()
    return status, *(stream.buffer.getvalue().decode(encoding) for stream in streams)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_errors_of_every_command(command, encoding):
    status, out, _ = run(encoding, command, "--help")
    assert status == 0
    assert out.startswith("usage: concordet")
    status, _, errors = run(encoding, command, "−–…Ω.json", "--no_such_option")
    assert status == 2
    assert errors.startswith("concordet: error: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_measures_are_printed(encoding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files()
    status, out, errors = run(encoding, "analyze", "truth.json", "detections.json", "--html", "a.html")
    assert (status, errors) == (0, "")
    assert "AP50" in out
    assert "minus – sign −" in (tmp_path / "a.html").read_text(encoding="utf-8")
    status, out, errors = run(encoding, "calibrate", "truth.json", "detections.json", "--out", "c.json")
    assert (status, errors) == (0, "")
    assert "AP" in out


def test_runs_are_printed(finished, tmp_path):
    for words in (["evaluate", str(finished)], ["compare", str(finished), "--out", str(tmp_path / "comparison.html")]):
        status, out, errors = run("ascii", *words)
        assert (status, errors) == (0, "")
        assert "AP" in out


def test_signs_of_our_messages_have_a_plain_form():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stdout(stream):
        assert main(["--version"]) == 0
        print("−0.5 ± 0.1 – α", "".join(PLAIN), flush=True)
    printed = stream.buffer.getvalue().decode("ascii").splitlines()[-1]
    assert printed == "-0.5 +- 0.1 - ? " + "".join(PLAIN.values())


def test_a_pipe_of_another_process():
    settings = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    words = [sys.executable, "-m", "concordet", "−→"]
    done = subprocess.run(words, capture_output=True, env=settings, check=False)
    assert done.returncode == 2
    assert b"got -->;" in done.stderr
