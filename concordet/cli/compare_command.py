"""``concordet compare``."""

from __future__ import annotations

from pathlib import Path

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "compare",
        "Puts evaluated runs side by side: a table here, and a page with plots and pictures that opens offline.",
        "concordet compare runs/usual runs/coupled --out comparison.html",
    )
    options.add_argument("runs", nargs="+", type=str, help="run folders that hold an evaluation")
    options.add_argument(
        "--out", type=str | None, help="the page; comparison.html here, or the next free name, when not given"
    )
    options.add_argument("--json", type=str | None, help="write the figures to this file too")
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    given = parser().parse_args(words)

    from concordet.cli.tables import print_runs
    from concordet.files import free_name, writable, write_json
    from concordet.report import comparison_rows, write_comparison

    folders = [Path(name) for name in given.runs]
    page = Path(given.out) if given.out else free_name(Path("comparison.html"))
    rows = comparison_rows(folders)
    for path in (page, *([Path(given.json)] if given.json else [])):
        writable(path.parent)
    write_comparison(folders, page)
    if given.json:
        write_json(given.json, rows)
    print_runs(folders)
    print(f"page: {page}")
