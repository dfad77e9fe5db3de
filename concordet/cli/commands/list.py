"""``concordet list``."""

from __future__ import annotations

from typing import Any

from concordet.cli.options import Parser
from concordet.errors import UsageError, unknown

KINDS = ("detectors", "losses", "measures", "datasets", "presets", "recipes")


def parser() -> Parser:
    """The options."""
    options = Parser(
        "list",
        "Lists detectors, losses, measures, data sets, presets and recipes.\n\n"
        "Losses with a leading + are couplings, which are added to another loss. A recipe is the configuration behind "
        "a\n"
        "row of a paper's table (concordet train --config NAME), a preset a set of settings that suits a kind of data\n"
        "(concordet train --preset NAME).",
        "concordet list losses",
        "concordet list detectors --json detectors.json",
        "concordet list presets",
        "concordet list recipes",
    )
    options.add_argument("kind", nargs="?", type=str, help=f"What to list: {', '.join(KINDS)}; everything by default.")
    options.add_argument(
        "--json",
        type=str | None,
        help="JSON file for the names, and for details of presets and recipes; - is standard output.",
    )
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.cli.outputs import check_outputs
    from concordet.files import write_json

    args = parser().parse_args(words)
    if args.kind is not None and args.kind not in KINDS:
        raise UsageError(unknown("kind", args.kind, KINDS))
    check_outputs({"--json": args.json}, force=args.force)
    content: Any
    if args.kind is None:
        content = {kind: names(kind) for kind in KINDS}
    elif args.kind == "recipes":
        from concordet.engine.recipes import describe_recipe

        content = [describe_recipe(name) for name in names("recipes")]
    elif args.kind == "presets":
        from concordet.engine.presets import describe_preset

        content = [describe_preset(name) for name in names("presets")]
    else:
        content = names(args.kind)
    if args.json is None:
        show(args.kind, content)
    else:
        write_json(args.json, content)


def show(kind: str | None, content: Any) -> None:
    """Prints names, a table of recipes, or everything with the number of recipes."""
    if kind == "recipes":
        from concordet.cli.tables import print_recipes

        print_recipes(content)
    elif kind == "presets":
        for preset in content:
            settings = " ".join(f"--{name} {as_option(value)}" for name, value in preset["settings"].items())
            print(f"{preset['name']}: {preset['about']}\n  cost: {preset['cost']}\n  settings: {settings}")
    elif kind is not None:
        print("\n".join(content))
    else:
        content = content | {"recipes": [f"{len(content['recipes'])} of them: concordet list recipes"]}
        print("\n".join(f"{kind}:\n" + "\n".join(f"  {name}" for name in content[kind]) for kind in KINDS))


def as_option(value: Any) -> str:
    """A setting as it is written on the command line.

    Example:
        >>> as_option({"cache": True, "max_size": 320}), as_option([240, 320]), as_option("nano")
        ("'{cache: true, max_size: 320}'", "'[240, 320]'", 'nano')
    """
    import yaml

    if isinstance(value, dict | list):
        return f"'{yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()}'"
    return str(value)


def names(kind: str) -> list[str]:
    """The names of one kind, in the order of the documentation."""
    if kind == "detectors":
        from concordet.detectors import list_detectors

        return list_detectors()
    if kind == "losses":
        from concordet.losses.criteria import list_losses

        return list_losses()
    if kind == "datasets":
        from concordet.data import list_datasets

        return list_datasets()
    if kind == "presets":
        from concordet.engine.presets import list_presets

        return list_presets()
    if kind == "recipes":
        from concordet.engine.recipes import list_recipes

        return list_recipes()
    from concordet.measures.metrics import TABLE

    return [metric.key for metric in TABLE]
