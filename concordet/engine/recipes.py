"""Recipes: configurations of the runs behind the papers' tables, shipped with the package.

A recipe is a YAML file with settings of ``concordet train``. Its ``paper`` has the paper's title and, for each row of a
table that the recipe reproduces, the row's name and values as printed there (AP in percent).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from concordet.engine.config import TrainConfig, load_config
from concordet.errors import UsageError, closest

FOLDER = Path(__file__).parent.parent / "recipes"


def list_recipes() -> list[str]:
    """Names of all recipes, ``paper/what``.

    Example:
        >>> "correlation_loss/atss_r50_rank_sort" in list_recipes()
        True
    """
    return list(_names())


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")))


def recipe_path(name: str) -> Path:
    """The file of a recipe.

    Raises:
        UsageError: there is no recipe of this name.
    """
    if name not in _names():
        match = closest(name, _names())
        fix = "see concordet list recipes" if match is None else f"did you mean {match}?"
        raise UsageError(f"recipe must be a name or a file, got {name}, which does not exist; {fix}")
    return FOLDER / f"{name}.yaml"


def config_path(name: str) -> Path:
    """The file that ``--config`` names: an existing file, or that of a recipe.

    Raises:
        UsageError: there is no such file or recipe.
    """
    return Path(name) if Path(name).exists() else recipe_path(name)


def load_recipe(name: str) -> TrainConfig:
    """A recipe as the configuration of a run, without ``data.root``.

    Example:
        >>> recipe = load_recipe("correlation_loss/atss_r50_rank_sort")
        >>> recipe.loss, recipe.paper["rows"][0]["AP"]
        ('rank_sort', 39.9)
    """
    return load_config(recipe_path(name))


def describe_recipe(name: str) -> dict[str, Any]:
    """A recipe as plain strings and numbers, for lists."""
    config = load_recipe(name)
    return {
        "name": name,
        "file": str(recipe_path(name)),
        "detector": config.detector,
        "backbone": config.backbone,
        "loss": config.loss,
        "data": config.data.name,
        "epochs": config.optim.epochs,
        **(config.paper or {}),
    }


def with_recipes(words: list[str]) -> list[str]:
    """Words of a command line in which ``--config`` may name a recipe instead of a file.

    Raises:
        UsageError: a name is neither.

    Example:
        >>> with_recipes(["--config", "correlation_loss/atss_r50_rank_sort", "--seed", "1"])[1][-23:]
        'atss_r50_rank_sort.yaml'
    """
    replaced = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=") if word.startswith("--config=") else ("", "", word)
        if before == "--config" or equals:
            replaced.append(f"{option}{equals}{config_path(value)}")
        else:
            replaced.append(word)
    return replaced
