"""``concordet list``."""

from __future__ import annotations

import json
from pathlib import Path

from concordet.cli.options import Parser
from concordet.engine.errors import UsageError

KINDS = ("detectors", "losses", "measures", "datasets")


def parser() -> Parser:
    """The options."""
    options = Parser(
        "list",
        "Names the detectors, losses, measures and data sets there are; losses with a leading + are added to another.",
        "concordet list losses",
        "concordet list detectors --json detectors.json",
    )
    options.add_argument("kind", nargs="?", type=str, help=f"{', '.join(KINDS)}; all of them when not given")
    options.add_argument("--json", type=str | None, help="write a list of the names to this file (- is the output)")
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.engine.files import writable, write_json

    given = parser().parse_args(words)
    if given.kind is not None and given.kind not in KINDS:
        raise UsageError(f"there is no list of {given.kind}; choose one of {', '.join(KINDS)}")
    if given.kind is None:
        everything = {kind: names(kind) for kind in KINDS}
        found: object = everything
        text = "\n".join(f"{kind}:\n" + "\n".join(f"  {name}" for name in everything[kind]) for kind in KINDS)
    else:
        found = names(given.kind)
        text = "\n".join(names(given.kind))
    if given.json is None:
        print(text)
    elif given.json == "-":
        print(json.dumps(found))
    else:
        writable(Path(given.json).parent)
        write_json(Path(given.json), found)


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
    from concordet.report import METRICS

    return [metric.key for metric in METRICS]
