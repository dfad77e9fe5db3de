"""Files are written completely or not at all, and folders with content are refused."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from concordet.files import (
    free_name,
    new_folder,
    plain,
    read_json,
    remove_temporaries,
    replacing,
    writable,
    write_json,
)
from concordet.locks import locked


def test_what_fails_halfway_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": (1, np.float32(0.5)), 3: np.arange(2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1, 0.5], "3": [0, 1]}
    assert plain([float("inf"), True, None, "x"]) == [None, True, None, "x"]


def test_invalid_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json must be valid JSON, got a fault .*line 1"):
        read_json(tmp_path / "a.json")


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="already exists; name another"):
        new_folder(tmp_path, "name another")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert new_folder(tmp_path / "deep" / "new", "").is_dir()
    assert new_folder(tmp_path / "deep" / "new", "").is_dir()  # empty


def test_a_folder_that_cannot_be_made_or_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="cannot be made"):
        new_folder(file / "under", "")
    with pytest.raises(ValueError, match="nothing can be written to"):
        writable(tmp_path / "missing")


def test_free_names_count_up(tmp_path):
    assert free_name(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert free_name(tmp_path / "demo").name == "demo-3"


FAULTS = [errno.ENOSPC, errno.EACCES, errno.EIO]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
def test_a_failed_write_leaves_the_old_file_and_names_it(tmp_path, monkeypatch, function, number):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(*args):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            write_json(path, {"a": 1})
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file():
    """/dev/full refuses every byte."""
    with pytest.raises(OSError, match="No space left on device"):
        write_json("/dev/full", {"a": 1})


def test_links_stay_links_and_modes_stay(tmp_path):
    target = tmp_path / "target.json"
    target.write_text("old")
    target.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(target)
    write_json(link, [1], indent=None)
    assert link.is_symlink()
    assert target.read_text() == "[1]\n"
    assert target.stat().st_mode & 0o777 == 0o640


def test_devices_and_pipes_stay_what_they_are(tmp_path):
    write_json(os.devnull, {"a": 1})
    assert not os.path.isfile(os.devnull)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        write_json(pipe, [1, 2], indent=None)
        assert reader.communicate()[0] == "[1, 2]\n"
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_standard_output(capfd, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(name, [1], indent=None)
    assert capfd.readouterr().out == "[1]\n"
    assert not list(tmp_path.iterdir())


def test_temporary_files_of_ended_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old = tmp_path / f".last.{ended.pid}.tmp.ckpt"
    live = tmp_path / f".last.{os.getpid()}.tmp.ckpt"
    mine = tmp_path / ".mine.tmp"
    for path in (old, live, mine):
        path.write_text("")
    assert remove_temporaries(tmp_path) == [old]
    assert sorted(tmp_path.iterdir()) == sorted([live, mine])


def test_a_lock_can_be_waited_for(tmp_path):
    code = f"""
import time
from concordet.locks import locked
with locked({str(tmp_path)!r}, 'wait'):
    print('in', flush=True)
    time.sleep(0.5)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match="must not be in use"), locked(tmp_path, "wait"):
            pass
        with locked(tmp_path, "wait", patience=60):
            assert not other.stdout.read()
        assert other.wait() == 0


def test_a_folder_has_one_writer(tmp_path):
    code = f"from concordet.locks import locked\nwith locked({str(tmp_path)!r}, 'wait'): print('in', flush=True)"
    with locked(tmp_path, "wait"):
        with locked(tmp_path, "wait"):
            pass  # a process may enter again, and keeps the lock
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"must not be in use, got one that process {os.getpid()} writes to; wait" in done.stderr
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "in\n"
    assert not list(tmp_path.iterdir())
