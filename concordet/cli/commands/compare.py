"""``concordet compare``."""

from __future__ import annotations

from pathlib import Path

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "compare",
        "Compares evaluated runs: prints a table, and writes an HTML page with plots and pictures that opens offline.",
        "concordet compare runs/default runs/coupled --out comparison.html",
    )
    options.add_argument("runs", nargs="+", type=str, help="Folders of evaluated runs.")
    options.add_argument(
        "--out",
        "--html",
        type=str | None,
        help="HTML page to write; by default comparison.html, or the next free name.",
    )
    options.add_argument("--json", type=str | None, help="JSON file for the metrics; - is standard output.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    args = parser().parse_args(words)

    from concordet.calibration.runs import run_differences
    from concordet.cli.outputs import check_outputs, messages
    from concordet.cli.tables import print_runs
    from concordet.files import free_name, write_json
    from concordet.measures.compare import comparison_sentence
    from concordet.measures.runs import read_runs
    from concordet.report import comparison_rows
    from concordet.report.comparison import comparison_page
    from concordet.report.page import write_page

    folders = [Path(name) for name in args.runs]
    page = Path(args.out) if args.out else free_name(Path("comparison.html"))
    rows = comparison_rows(folders)
    check_outputs({"--out": page, "--json": args.json}, args.runs, force=args.force)
    runs = read_runs(folders)
    differences = run_differences(runs)
    write_page(comparison_page(runs, differences), page)
    with messages(args.json, page):
        print_runs(folders)
        for run, difference in zip(runs[1:], differences, strict=True):
            if difference is not None:
                print(comparison_sentence(difference, runs[0].name, run.name))
        print(f"page: {page}")
    if args.json:
        for row, difference in zip(rows[1:], differences, strict=True):
            row["difference"] = difference  # from the first run, with intervals
        write_json(args.json, rows)
