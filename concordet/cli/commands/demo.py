"""``concordet demo``."""

from __future__ import annotations

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "demo",
        "Trains a small detector on digit scenes, with its default loss and with a coupled loss, and compares the two.",
        "concordet demo --out runs/demo",
    )
    options.add_argument(
        "--out", type=str, default="runs/demo", help="New folder for the runs; if it exists, the next free name."
    )
    options.add_argument("--seed", type=int, default=0, help="Random seed of both runs.")
    options.add_argument("--json", type=str | None, help="JSON file for the metrics; - is standard output.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    args = parser().parse_args(words)

    from concordet.cli.outputs import check_outputs, messages
    from concordet.cli.tables import print_runs
    from concordet.engine.demo import demo, summary
    from concordet.files import write_json

    check_outputs({"--json": args.json}, force=args.force)
    folders, page = demo(args.out, seed=args.seed)
    with messages(args.json):
        print_runs(folders)
        print(f"page: {page}")
    if args.json is not None:
        write_json(args.json, summary(folders, page))
