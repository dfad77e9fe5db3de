"""Every exported name has a docstring from which a reader can use it; the examples run as doctests."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

import pytest

PACKAGES = (
    "losses",
    "losses.functional",
    "measures",
    "calibration",
    "detectors",
    "engine",
    "export",
    "report",
    "data",
    "study",
)


def exported(*packages: str) -> dict[str, Any]:
    """Exported classes and functions by name; aliases of types, tables and numbers have no docstring of their own."""
    objects = {}
    for package in packages:
        module = import_module(f"concordet.{package}")
        for name in module.__all__:
            item = getattr(module, name)
            if inspect.isclass(item) or inspect.isfunction(item):
                objects[f"{package}.{name}"] = item
    return objects


OBJECTS = exported(*PACKAGES)
FUNCTIONS = {name: item for name, item in OBJECTS.items() if inspect.isfunction(item)}


def faults(item: Any) -> list[str]:
    """What a docstring lacks."""
    doc = inspect.getdoc(item) or ""
    if inspect.isclass(item) and issubclass(item, Exception):
        return [] if doc else ["docstring"]
    missing = [] if ">>>" in doc else ["Example"]
    if inspect.isclass(item):
        return missing
    signature = inspect.signature(item)
    arguments = section(doc, "Args")
    missing += [name for name in signature.parameters if not re.search(rf"^\s*[\w*, ]*\b{name}\b.*:", arguments, re.M)]
    if signature.return_annotation not in (None, "None", inspect.Signature.empty) and not section(doc, "Returns"):
        missing.append("Returns")
    if re.search(r"^    +raise \w+Error", inspect.getsource(item), re.M) and not section(doc, "Raises"):
        missing.append("Raises")
    return missing


def section(doc: str, title: str) -> str:
    """Text of a section of a docstring in Google's style."""
    match = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", doc + "\n", re.M)
    return match.group(1) if match else ""


@pytest.mark.parametrize("name", OBJECTS)
def test_docstrings_have_what_a_reader_needs(name):
    assert faults(OBJECTS[name]) == []


def test_examples_are_run():
    """The exceptions start processes, or need data that cannot be shipped."""
    skipped = {name for name, item in OBJECTS.items() if "+SKIP" in (inspect.getdoc(item) or "")}
    assert skipped == {"data.CityscapesFolder", "study.run_study", "study.run_study_on_ray"}


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.startswith("losses.functional.")])
def test_losses_name_their_paper_with_an_equation_or_section(name):
    if name.endswith(("value_checks", ".correlation", "soft_rank")):
        pytest.skip("not a loss")
    assert re.search(r"Eqs?\. |Sec\. |Section |Figure |Algorithm ", section(inspect.getdoc(OBJECTS[name]), "Paper"))


def test_the_check_finds_what_is_missing():
    def documented(x: int, *, y: int) -> int:
        """Adds.

        Args:
            x: First.
        """
        raise ValueError

    assert faults(documented) == ["Example", "y", "Returns", "Raises"]
