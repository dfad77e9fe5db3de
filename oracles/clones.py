"""Files of the authors' repositories, read from clones."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

ADDRESSES = {
    "RankSortLoss": "https://github.com/kemaloksuz/RankSortLoss",
    "BucketedRankingBasedLosses": "https://github.com/blisgard/BucketedRankingBasedLosses",
    "CorrLoss": "https://github.com/fehmikahraman/CorrLoss",
    "fast-soft-sort": "https://github.com/google-research/fast-soft-sort",
    "Co-DETR": "https://github.com/Sense-X/Co-DETR",
    "LRP-Error": "https://github.com/kemaloksuz/LRP-Error",
    "tide": "https://github.com/dbolya/tide",
}
FOLDER = Path(".oracles")
"""Folder of clones; `ORACLES_CLONES` names a folder with bare clones `...NAME/repo` to read instead."""


@cache
def clone(name: str) -> Path | None:
    """The repository's clone; None, with a printed message, without a clone and without network."""
    named = os.environ.get("ORACLES_CLONES")
    folders = [p / "repo" for p in Path(named).iterdir() if p.name.endswith(name)] if named else []
    folder = folders[0] if folders and folders[0].exists() else FOLDER / f"{name}.git"
    if not folder.exists():
        FOLDER.mkdir(exist_ok=True)
        command = ["git", "clone", "--quiet", "--bare", "--depth", "1", ADDRESSES[name], str(folder)]
        subprocess.run(command, capture_output=True, check=False)
    if folder.exists():
        return folder
    print(f"skipped: {name} cannot be cloned; a network or ORACLES_CLONES is needed", flush=True)
    return None


def _git(folder: Path, *command: str) -> str:
    return subprocess.run(["git", f"--git-dir={folder}", *command], capture_output=True, text=True, check=True).stdout


@cache
def source(name: str, path: str) -> str | None:
    """The text of a repository's file; None where there is no clone.

    Raises:
        FileNotFoundError: if the repository has no such file.
    """
    folder = clone(name)
    if folder is None:
        return None
    try:
        return _git(folder, "show", f"HEAD:{path}")
    except subprocess.CalledProcessError as error:
        raise FileNotFoundError(f"path must be a file of {name}, got {path}") from error


def versions() -> dict[str, str | None]:
    """Commit and date of every repository; None of those without a clone."""
    found = {name: clone(name) for name in ADDRESSES}
    return {
        name: folder and _git(folder, "log", "-1", "--date=short", "--format=%h of %ad", "HEAD").strip()
        for name, folder in found.items()
    }


def definition(
    name: str, path: str, function: str, scope: dict[str, Any] | None = None, *, owner: str | None = None
) -> Callable[..., Any] | None:
    """A function of a repository's file, or a method of its class ``owner``; on the CPU, without decorators.

    None where there is no clone.
    """
    text = source(name, path)
    if text is None:
        return None
    body = ast.parse(text.replace(".cuda()", "")).body
    if owner is not None:
        body = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == owner).body
    node = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == function)
    node.decorator_list.clear()
    space = {"torch": torch, **(scope or {})}
    exec(compile(ast.Module([node], []), path, "exec"), space)
    loaded: Callable[..., Any] = space[function]
    return loaded
