"""``concordet list``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from concordet.cli.options import Parser
from concordet.errors import UsageError

KINDS = ("detectors", "losses", "measures", "datasets", "recipes")


def parser() -> Parser:
    """The options."""
    options = Parser(
        "list",
        "Names the detectors, losses, measures, data sets and recipes there are; losses with a leading + are added to "
        "another, and a recipe is a configuration behind a row of a paper's table, for concordet train --config NAME.",
        "concordet list losses",
        "concordet list detectors --json detectors.json",
        "concordet list recipes",
    )
    options.add_argument("kind", nargs="?", type=str, help=f"{', '.join(KINDS)}; all of them when not given")
    options.add_argument(
        "--json",
        type=str | None,
        help="write a list of the names, of recipes a list of what they are, to this file (- is the output)",
    )
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.files import writable, write_json

    given = parser().parse_args(words)
    if given.kind is not None and given.kind not in KINDS:
        raise UsageError(f"there is no list of {given.kind}; choose one of {', '.join(KINDS)}")
    found: Any
    if given.kind is None:
        found = {kind: names(kind) for kind in KINDS}
    elif given.kind == "recipes":
        from concordet.engine.recipes import describe_recipe

        found = [describe_recipe(name) for name in names("recipes")]
    else:
        found = names(given.kind)
    if given.json is None:
        show(given.kind, found)
    elif given.json == "-":
        print(json.dumps(found))
    else:
        writable(Path(given.json).parent)
        write_json(Path(given.json), found)


def show(kind: str | None, found: Any) -> None:
    """Prints names, a table of recipes, or everything with the recipes counted."""
    if kind == "recipes":
        from concordet.cli.tables import print_recipes

        print_recipes(found)
    elif kind is not None:
        print("\n".join(found))
    else:
        found = found | {"recipes": [f"{len(found['recipes'])} of them: concordet list recipes"]}
        print("\n".join(f"{kind}:\n" + "\n".join(f"  {name}" for name in found[kind]) for kind in KINDS))


def names(kind: str) -> list[str]:
    """The names of one kind, in the order in which they are documented."""
    if kind == "detectors":
        from concordet.detectors import list_detectors

        return list_detectors()
    if kind == "losses":
        from concordet.losses.criteria import list_losses

        return list_losses()
    if kind == "datasets":
        from concordet.data import list_datasets

        return list_datasets()
    if kind == "recipes":
        from concordet.engine.recipes import list_recipes

        return list_recipes()
    from concordet.report import MASK_METRICS, METRICS

    return [metric.key for metric in (*METRICS, *MASK_METRICS)]
