"""Imports have no circles and follow the layers, and `import concordet.losses` needs torch only."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "concordet"

LAYERS = [
    {"version"},
    {"assigned", "boxes", "console", "distributed", "errors", "files", "locks", "images", "paths", "setting_types"},
    {"ranking"},
    {"losses"},
    {"detectors", "data", "measures"},
    {"calibration"},
    {"report", "export"},
    {"engine"},
    {"benchmark", "study"},
    {"cli"},
    {"studies"},
]
"""Parts from bottom to top: a part imports from lower layers and, within its layer, from itself only."""

SAME_LAYER = {("files", "errors"), ("images", "paths")}
"""(importer, imported) pairs that are allowed within a layer."""

MAX_FILES = 13
"""Largest number of modules in a folder, without `__init__.py`."""


def modules() -> dict[str, Path]:
    """Dotted name to file of every module of the package and of the studies."""
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "studies").rglob("*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


MODULES = modules()


@cache
def imports(name: str) -> set[str]:
    """Modules of the project that a module imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in MODULES else node.module)
    return (found & set(MODULES)) - {name}


def part(name: str) -> str:
    """The part of the project that a module belongs to."""
    words = name.split(".")
    return words[1] if words[0] == "concordet" and len(words) > 1 else words[0]


def level(name: str) -> int:
    return next(i for i, parts in enumerate(LAYERS) if part(name) in parts)


LAYERED = [name for name in MODULES if name not in ("concordet", "concordet.__main__")]


@pytest.mark.parametrize("name", LAYERED)
def test_imports_point_downward(name):
    for other in imports(name):
        if other == "concordet" or part(other) == part(name) or (part(name), part(other)) in SAME_LAYER:
            continue
        assert level(other) < level(name), f"{name} imports {other}"


def test_modules_import_without_a_circle():
    graph = {name: imports(name) for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_a_circle_would_be_found():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_late_imports_are_seen():
    assert "concordet.measures" in imports("concordet.cli.commands.analyze")


@pytest.mark.parametrize("folder", sorted({p.parent for p in MODULES.values()}), ids=lambda p: str(p.relative_to(ROOT)))
def test_folders_are_small(folder):
    files = [p.name for p in folder.glob("*.py") if p.name != "__init__.py"]
    assert len(files) <= MAX_FILES, files


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_losses_need_torch_only():
    others = {"torchvision", "scipy", "lightning", "sklearn", "transformers", "matplotlib"}
    assert not loaded_after("import concordet.losses") & others


def test_measures_and_reports_need_no_torch():
    assert "torch" not in loaded_after("import concordet.measures, concordet.report")
