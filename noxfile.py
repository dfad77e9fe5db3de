"""Sessions that check concordet with other versions of what it depends on, as CONTRIBUTING.md lists them.

    nox --list
    nox -s lowest                # the fast suite
    nox -s lowest -- quick       # a few tests of each package
    nox -s lowest -- tests/cli   # any arguments of pytest

Environments are built by uv in ``.nox``, which is deleted by ``rm -r .nox``; packages are shared with uv's cache. Each
session records the versions that it ran with and its outcome in ``studies/results/environments.csv``, from which
``python -m studies.pages`` makes the table in ``docs/compatibility.md``.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lowest", "newest", "typing"]

ROOT = Path(__file__).parent
RESULTS = ROOT / "studies" / "results" / "environments.csv"
PYTHON = "3.11"
"""The oldest Python that is supported."""
EXTRAS = [
    *("core", "numba", "cli", "measures", "detectors", "backbones", "transformers", "report", "train", "all"),
    *("export", "video", "supervision", "wandb", "mlflow", "ray"),
]
QUICK = [
    "tests/ranking/test_kernels.py::test_kernels_compile_for_a_gpu_with_64_bit_addresses",
    "tests/losses/test_modules.py",
    "tests/measures/test_analysis.py::test_analysis_holds_the_figures_of_evaluate_detections_and_its_own_arrays",
    "tests/cli/test_commands.py::test_lists",
    "tests/engine/test_train.py::test_a_run_folder_has_all_files",
]
"""Tests of each package that take half a minute together."""
ADAPTERS = "tests/detectors/adapters/test_install_transformers.py::TestEveryModel::test_default_is_the_models_own"
SHOWN = ["torch", "torchvision", "transformers", "numpy", "scipy", "lightning", "jsonargparse", "pillow", "hotcoco"]
"""Packages whose versions are recorded."""


@nox.session(python=PYTHON)
def lowest(session: nox.Session) -> None:
    """The lowest versions that pyproject.toml admits, with the oldest Python."""
    install(session, ".[dev]", "--resolution=lowest-direct")
    suite(session, quick=[*QUICK, ADAPTERS])


@nox.session(python=PYTHON)
def newest(session: nox.Session) -> None:
    """The newest version of everything, with the oldest Python."""
    install(session, ".[dev]", "--upgrade")
    suite(session, quick=[*QUICK, ADAPTERS])


@nox.session(python=["3.12", "3.13"])
def python(session: nox.Session) -> None:
    """Newer Pythons, with the newest of everything."""
    install(session, ".[dev]")
    suite(session)


@nox.session(python=PYTHON)
@nox.parametrize("version", ["2.6", "2.11", "2.14"])
def torch(session: nox.Session, version: str) -> None:
    """Older versions of PyTorch, with the newest of everything else."""
    install(session, ".[dev]", f"torch=={version}.*")
    suite(session)


@nox.session(python=PYTHON)
def transformers(session: nox.Session) -> None:
    """The lowest Transformers, which adapters and detection transformers depend on, with the newest of the rest."""
    bound = re.search(r'"transformers>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert bound is not None
    install(session, ".[dev]", f"transformers=={bound[1]}")
    suite(session, "tests/detectors", quick=[*QUICK, ADAPTERS])


@nox.session(python=PYTHON)
@nox.parametrize("extra", EXTRAS)
def extras(session: nox.Session, extra: str) -> None:
    """Each extra alone: what it promises works, and what it lacks is named in a sentence."""
    install(session, built(session, "wheel") + ("" if extra == "core" else f"[{extra}]"))
    installed(session, extra)


@nox.session(python=PYTHON)
@nox.parametrize("kind", ["wheel", "sdist"])
def package(session: nox.Session, kind: str) -> None:
    """The wheel and the sdist, each built and installed in a fresh environment."""
    install(session, built(session, kind) + "[report]")
    installed(session, "report")


@nox.session(python=PYTHON)
def typing(session: nox.Session) -> None:
    """A user's script and the package's types under mypy and pyright."""
    install(session, "--editable", ".[all]", "mypy", "pyright", "pytest", "pytest-timeout")
    suite(session, "tests/type_checks", "-m", "slow", quick=["tests/type_checks", "-m", "slow"])


def install(session: nox.Session, *arguments: str) -> None:
    """Installs into the session's environment; an environment that cannot be built is a failure too."""
    with recorded(session, only_failure=True):
        session.install(*arguments)


def built(session: nox.Session, kind: str) -> str:
    """Path of the wheel or the sdist, built now."""
    folder = Path(session.create_tmp()) / "dist"
    session.run("uv", "build", f"--{kind}", "--quiet", "--out-dir", str(folder), external=True)
    return str(max(folder.glob("*.whl" if kind == "wheel" else "*.tar.gz"), key=os.path.getmtime))


def suite(session: nox.Session, *tests: str, quick: list[str] = QUICK) -> None:
    """Runs tests from this checkout: those named on the command line, the quick ones, or ``tests`` (default: all)."""
    words = quick if session.posargs == ["quick"] else session.posargs or tests
    with tempfile.TemporaryDirectory() as folder, recorded(session) as row:
        report = Path(folder) / "report.xml"
        try:
            session.run("python", "-m", "pytest", f"--junitxml={report}", *words)
        finally:
            if report.exists():
                counts = ElementTree.parse(report).getroot().find("testsuite")
                assert counts is not None
                failed = int(counts.get("failures", 0)) + int(counts.get("errors", 0))
                skipped = int(counts.get("skipped", 0))
                row["tests"] = f"{int(counts.get('tests', 0)) - failed - skipped} passed, {failed} failed"


def installed(session: nox.Session, extra: str) -> None:
    """Checks an installed package from another folder, so that this checkout is not imported."""
    with tempfile.TemporaryDirectory() as folder, recorded(session) as row:
        session.chdir(folder)
        output = session.run("python", str(ROOT / "tests" / "installed.py"), extra, silent=True)
        session.log(str(output))
        row["tests"] = str(output).strip().splitlines()[-1]


@contextmanager
def recorded(session: nox.Session, only_failure: bool = False) -> Iterator[dict[str, str]]:
    """Writes a row with the session's outcome into the results file, over the row of the same session."""
    row = {"session": session.name, "outcome": "failed", "tests": ""}
    try:
        yield row
        row["outcome"] = "passed"
    finally:
        if not (only_failure and row["outcome"] == "passed"):
            save(row | versions(session) | {"date": time.strftime("%Y-%m-%d")})


def versions(session: nox.Session) -> dict[str, str]:
    """Versions in the session's environment."""
    code = (
        "import json, platform\nfrom importlib import metadata\n"
        f"have = {{d.metadata['Name'].lower(): d.version for d in metadata.distributions()}}\n"
        f"print(json.dumps({{'python': platform.python_version(), **{{n: have.get(n, '') for n in {SHOWN}}}}}))"
    )
    return json.loads(str(session.run("python", "-c", code, silent=True, log=False)))


def save(row: dict[str, str]) -> None:
    """Puts a row into the results file."""
    rows = {}
    if RESULTS.exists():
        with RESULTS.open(encoding="utf-8", newline="") as file:
            rows = {old["session"]: old for old in csv.DictReader(file)}
    rows[row["session"]] = row
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["session", "outcome", "tests", "python", *SHOWN, "date"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
