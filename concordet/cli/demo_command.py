"""``concordet demo``."""

from __future__ import annotations

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "demo",
        "Trains a small detector twice on digit scenes, with its usual and with a coupled loss, and compares them.",
        "concordet demo --out runs/demo",
    )
    options.add_argument("--out", type=str, default="runs/demo", help="its folder, or the next free name after it")
    options.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation of both runs")
    options.add_argument("--json", type=str | None, help="write the figures to this file too")
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    given = parser().parse_args(words)

    from pathlib import Path

    from concordet.cli.tables import print_runs
    from concordet.engine.demo import demo, summary
    from concordet.files import writable, write_json

    if given.json is not None:
        writable(Path(given.json).parent)
    folders, page = demo(given.out, seed=given.seed)
    if given.json is not None:
        write_json(given.json, summary(folders, page))
    print_runs(folders)
    print(f"page: {page}")
