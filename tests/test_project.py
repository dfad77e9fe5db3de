"""What a release contains besides code."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from concordet.version import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def extras(name: str) -> set[str]:
    """Packages that an extra installs, with those of the extras it refers to."""
    packages: set[str] = set()
    for requirement in PROJECT["optional-dependencies"][name]:
        if requirement.startswith("concordet["):
            for other in requirement.removeprefix("concordet[").rstrip("]").split(","):
                packages |= extras(other)
        else:
            packages.add(requirement)
    return packages


def names(requirements: set[str]) -> set[str]:
    return {requirement.split("[")[0].split(">")[0].split("=")[0] for requirement in requirements}


@pytest.mark.parametrize("extra", ["report", "train"])
def test_extras_with_commands_have_what_the_command_line_needs(extra):
    assert names(extras("cli")) <= names(extras(extra))


def test_training_can_write_reports():
    assert names(extras("report")) <= names(extras("train"))


def test_every_package_has_a_lower_bound():
    for extra in PROJECT["optional-dependencies"]:
        assert [requirement for requirement in extras(extra) if ">=" not in requirement] == []


def test_the_readme_names_every_extra_of_users():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [e for e in PROJECT["optional-dependencies"] if f".[{e}]" not in text and e not in ("cli", "dev", "docs")]
    assert missing == []


def test_the_citation_names_this_version_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert len(citation["references"]) == 6
    assert all(paper["title"] and paper["authors"] and paper["year"] for paper in citation["references"])


def test_the_readme_names_the_wheel_of_this_version():
    wheels = re.findall(r"concordet-[^ ]+\.whl", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(wheels) == {f"concordet-{__version__}-py3-none-any.whl"}


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem)
def test_issue_forms_have_what_the_format_needs(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content["name"]
    assert content["description"]
    assert all(field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in content["body"])


def test_pinned_versions_install_with_the_oldest_python():
    """`make` takes the python3 of the machine, which may be older than the one that the versions were recorded with."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wrong = []
    for name, version in (line.split("==") for line in pinned if "==" in line):
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        needed = installed.metadata.get("Requires-Python")
        if installed.version == version and needed and not SpecifierSet(needed).contains(oldest):
            wrong.append(f"{name}=={version} needs Python {needed}")
    assert wrong == []
