"""Files are whole or absent, and nobody's folder is overwritten."""

import json

import numpy as np
import pytest

from concordet.files import free_name, new_folder, plain, read_json, replacing, writable, write_json


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


def test_what_is_not_json_is_said(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON .*line 1"):
        read_json(tmp_path / "a.json")


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="already exists and is left as it is; name another"):
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
