"""Tables of figures on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from concordet.report import comparison_rows, metrics_of

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 190
NARROW = 155


def print_runs(folders: list[Path]) -> None:
    """One table: a row a run, or a column a run on a narrow terminal.

    AP and oLRP are in per cent; an undefined figure is a dash.
    """
    from rich.table import Table

    rows = comparison_rows(folders)
    metrics = metrics_of(rows)
    cells = [[metric.text(row[metric.key]) for metric in metrics] for row in rows]
    names = [[row["folder"], row["detector"], row["loss"]] for row in rows]
    headings = ["run", "detector", "loss", *(metric.title for metric in metrics)]
    lines = [[*first, *rest] for first, rest in zip(names, cells, strict=True)]
    console = wide_console()
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


def print_recipes(recipes: list[dict[str, Any]]) -> None:
    """One table: a recipe a row, with the APs that the first of its paper's rows reports.

    Args:
        recipes: what :func:`concordet.engine.recipes.describe_recipe` gives.
    """
    from rich.table import Table

    table = Table()
    for heading in ("recipe", "loss", "data", "table"):
        table.add_column(heading, overflow="fold")
    for heading in ("epochs", "AP", "AP50", "AP75"):
        table.add_column(heading, justify="right")
    for recipe in recipes:
        first, tables = recipe["rows"][0], dict.fromkeys(row["table"] for row in recipe["rows"])
        masks = "AP_mask" in first
        figures = [first.get(f"{key}_mask" if masks else key) for key in ("AP", "AP50", "AP75")]
        texts = ["-" if figure is None else f"{figure:.1f}" for figure in figures]
        texts[0] += " (mask)" if masks else ""
        settings = [recipe["name"], recipe["loss"], recipe["data"], ", ".join(tables), str(recipe["epochs"])]
        table.add_row(*settings, *texts)
    wide_console().print(table)


def wide_console() -> Console:
    """A console as wide as the terminal; a pipe or a log has no width to fit into."""
    from rich.console import Console

    console = Console()
    return Console(width=None if console.is_terminal else WIDE)
