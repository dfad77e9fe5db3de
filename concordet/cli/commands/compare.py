"""``concordet compare``."""

from __future__ import annotations

from pathlib import Path

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "compare",
        "Compares evaluated runs: a table here, and a page with plots and pictures that opens offline.",
        "concordet compare runs/default runs/coupled --out comparison.html",
    )
    options.add_argument("runs", nargs="+", type=str, help="Run folders that hold an evaluation.")
    options.add_argument(
        "--out", type=str | None, help="HTML page to write; by default comparison.html, or the next free name."
    )
    options.add_argument("--json", type=str | None, help="JSON file for the metrics; - is standard output.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    args = parser().parse_args(words)

    from concordet.cli.outputs import check_outputs, messages
    from concordet.cli.tables import print_runs
    from concordet.files import free_name, write_json
    from concordet.report import comparison_rows, write_comparison

    folders = [Path(name) for name in args.runs]
    page = Path(args.out) if args.out else free_name(Path("comparison.html"))
    rows = comparison_rows(folders)
    check_outputs({"--out": page, "--json": args.json}, args.runs, force=args.force)
    write_comparison(folders, page)
    with messages(args.json, page):
        print_runs(folders)
        print(f"page: {page}")
    if args.json:
        write_json(args.json, rows)
