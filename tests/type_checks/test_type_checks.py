"""Type checkers accept a user's script, see a user's mistakes, and find types on what is public."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [Path(__file__).with_name("user.py"), Path(__file__).with_name("mistakes.py")]
COMPLETENESS = 0.98

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
needs_pyright = pytest.mark.skipif(shutil.which("pyright") is None, reason="needs pyright: nox -s typing")


@pytest.fixture
def scripts(tmp_path):
    """The scripts in a folder outside the package, as users have them."""
    return [shutil.copy(script, tmp_path) for script in SCRIPTS]


def test_mypy_strict(scripts, tmp_path):
    # errors in concordet itself are `make lint`'s; the configuration of this project must not help
    words = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", *scripts]
    settings = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_pyright
def test_pyright(scripts, tmp_path):
    settings = {"extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    words = ["pyright", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_pyright
def test_public_names_have_types():
    # --verifytypes reads the environment that is active, not --pythonpath
    settings = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = ["pyright", "--verifytypes", "concordet", "--ignoreexternal", "--outputjson"]
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
    score = json.loads(done.stdout)["typeCompleteness"]["completenessScore"]
    assert score > COMPLETENESS
