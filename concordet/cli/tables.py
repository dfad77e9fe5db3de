"""Tables of figures on the terminal."""

from __future__ import annotations

from pathlib import Path

from concordet.report import METRICS, comparison_rows

WIDE = 160
NARROW = 125


def print_runs(folders: list[Path]) -> None:
    """One table: a row a run, or a column a run on a narrow terminal.

    AP and oLRP are in per cent; an undefined figure is a dash.
    """
    from rich.console import Console
    from rich.table import Table

    rows = comparison_rows(folders)
    cells = [[metric.text(row[metric.key]) for metric in METRICS] for row in rows]
    names = [[row["folder"], row["detector"], row["loss"]] for row in rows]
    headings = ["run", "detector", "loss", *(metric.title for metric in METRICS)]
    lines = [[*first, *rest] for first, rest in zip(names, cells, strict=True)]
    console = Console()
    # a pipe or a log has no width to fit into
    console = Console(width=None if console.is_terminal else WIDE)
    if console.width < NARROW:
        headings, lines = (
            [headings[0], *(line[0] for line in lines)],
            [[heading, *(line[place] for line in lines)] for place, heading in enumerate(headings) if place > 0],
        )
    table = Table()
    for place, heading in enumerate(headings):
        figure = place > (2 if console.width >= NARROW else 0)
        table.add_column(heading, justify="right" if figure else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)
