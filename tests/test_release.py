"""What is published: the packages' contents, and workflows and tables that name what exists."""

from __future__ import annotations

import ast
import csv
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from concordet.version import __version__

from .test_readme import links

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEXT = {".cff", ".css", ".html", ".j2", ".js", ".md", ".py", ".rst", ".toml", ".txt", ".yaml", ".yml"}
BUILD = "from setuptools import build_meta as b; b.build_sdist({0!r}); b.build_wheel({0!r})"


def sessions() -> list[str]:
    """Names of the nox sessions, read from the source: nox need not be installed."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: eval(ast.unparse(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "EXTRAS"
    }
    names = []
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        calls = {ast.unparse(d.func): d for d in function.decorator_list if isinstance(d, ast.Call)}
        if "nox.session" not in calls:
            continue
        pythons = calls["nox.session"].keywords[0].value
        if "nox.parametrize" in calls:
            name, values = calls["nox.parametrize"].args
            values = constants[values.id] if isinstance(values, ast.Name) else ast.literal_eval(values)
            names += [f"{function.name}({ast.literal_eval(name)}={value!r})" for value in values]
        elif isinstance(pythons, ast.List):
            names += [f"{function.name}-{version}" for version in ast.literal_eval(pythons)]
        else:
            names.append(function.name)
    return names


def steps(path: Path) -> list[str]:
    """Commands of a workflow, with the values of its matrix."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step]


def test_every_extra_of_users_has_a_session():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, flags=re.MULTILINE)) - {"dev", "docs"}
    assert {f"extras(extra={extra!r})" for extra in extras} <= set(sessions())


def test_every_session_has_passed():
    with (ROOT / "studies" / "results" / "environments.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["session"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(sessions())
    assert {name: row["outcome"] for name, row in rows.items() if row["outcome"] != "passed"} == {}
    assert [name for name, row in rows.items() if not re.match(r"[1-9]\d* .*, 0 (failed|not)$", row["tests"])] == []


def test_contributing_has_a_command_for_every_kind_of_session():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [name for name in sessions() if name.partition("(")[0] not in text] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_workflows_run_exists(path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    for command in steps(path):
        for target in re.findall(r"\bmake ([\w-]+)", command):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
        for test in re.findall(r"\btests/[\w/.]+", command):
            assert (ROOT / test).exists()
    named = re.findall(r"package\(kind='\w+'\)", text) + (["typing"] if "typing" in text else [])
    assert set(named) <= set(sessions())


def test_the_weekly_workflow_lists_more_than_the_default_sessions():
    """``nox --list`` prints the sessions of ``nox.options.sessions`` only, unless some are selected."""
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "versions.yml").read_text(encoding="utf-8"))
    jobs = content["jobs"]
    (command,) = [step["run"] for step in jobs["list"]["steps"] if step.get("id") == "sessions"]
    assert "--list --json --keywords" in command
    assert jobs["session"]["strategy"]["matrix"]["session"] == "${{ fromJSON(needs.list.outputs.sessions) }}"


def test_actions_have_one_version_each():
    uses = {step for path in WORKFLOWS for step in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))}
    assert len(uses) == len({action.partition("@")[0] for action in uses})


def test_files_end_as_the_hooks_want():
    """With one line break, and lines without spaces at their ends: `pre-commit run --all-files` is a workflow."""
    folders = ("concordet", "docs", "examples", "oracles", "studies", "tests", ".github")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    wrong = []
    for path in paths:
        excluded = path.parent.name == "notebooks" or path.is_relative_to(ROOT / "studies" / "results")
        if path.suffix in TEXT and path.is_file() and not excluded:
            text = path.read_bytes()
            if (text and not re.search(rb"[^\n]\n\Z", text)) or re.search(rb"[ \t\r]\n", text):
                wrong.append(str(path.relative_to(ROOT)))
    assert wrong == []


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """File names in the sdist and the wheel, without their first folder, and the text of the wheel's metadata."""
    source, out = tmp_path_factory.mktemp("source") / "concordet", tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs", "shared")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run([sys.executable, "-c", BUILD.format(str(out))], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(out.glob("*.tar.gz"))) as sdist:
        first = {name.partition("/")[2] for name in sdist.getnames()}
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        second = set(wheel.namelist())
        metadata = wheel.read(next(name for name in second if name.endswith("METADATA"))).decode()
    return first, second, metadata


@pytest.mark.slow
def test_packages_have_the_package_and_its_documents(packages):
    sdist, wheel, metadata = packages
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "concordet").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert sources <= sdist
    assert {name for name in wheel if ".dist-info/" not in name} == sources
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "THIRD_PARTY_NOTICES.md"} <= sdist
    assert [name for name in sdist if re.match(r"tests|studies|oracles|\.", name)] == []
    assert [link for link in links((ROOT / "README.md").read_text(encoding="utf-8")) if link not in sdist] == []
    assert f"\nVersion: {__version__}\n" in metadata
    classifiers = re.findall(r"^Classifier: (.*)$", metadata, flags=re.MULTILINE)
    assert {"Programming Language :: Python :: 3.13", "Typing :: Typed"} <= set(classifiers)
