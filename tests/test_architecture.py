"""Imports flow one way, and `import concordet.losses` needs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "concordet"

MAY_IMPORT = {
    "types": set(),
    "boxes": set(),
    "processes": set(),
    "ranking": {"types", "processes"},
    "losses": {"types", "boxes", "processes", "ranking"},
    "detectors": {"types", "boxes", "processes", "losses"},
    "data": set(),
    "measures": set(),
    "report": {"measures"},
    "engine": {"types", "boxes", "processes", "losses", "detectors", "data", "measures", "report"},
    "benchmark": {"types", "boxes", "ranking", "losses", "detectors", "data", "measures", "report", "engine"},
    "cli": {"engine", "data", "measures", "report", "losses", "detectors", "benchmark"},
}


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports, at its top or within functions."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "concordet" else [f"concordet.{a.name}" for a in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("concordet.")}
    return parts


def files_of(part: str) -> list[Path]:
    single = PACKAGE / f"{part}.py"
    return [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", [p for p in MAY_IMPORT if files_of(p)])
def test_imports_flow_one_way(part):
    for path in files_of(part):
        wrong = imported(path) - MAY_IMPORT[part] - {part, "version"}
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


def test_every_part_is_listed():
    parts = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert parts - {"__init__", "__main__", "version"} <= set(MAY_IMPORT)


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_losses_need_torch_alone():
    others = {"torchvision", "scipy", "lightning", "sklearn", "transformers", "matplotlib"}
    assert not loaded_after("import concordet.losses") & others


def test_measures_and_reports_need_no_torch():
    assert "torch" not in loaded_after("import concordet.measures, concordet.report")
