"""Tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from concordet.report import comparison_rows, metrics_of

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 190
"""Columns of a console that is not a terminal."""

NARROW = 155
"""Columns below which a table of runs is transposed."""


def print_runs(folders: list[Path]) -> None:
    """Prints one table: a row per run, or a column per run on a narrow terminal.

    AP and oLRP are in percent; an undefined value is a dash.
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
            [[heading, *(line[index] for line in lines)] for index, heading in enumerate(headings) if index > 0],
        )
    table = Table()
    for index, heading in enumerate(headings):
        is_value = index > (2 if console.width >= NARROW else 0)
        table.add_column(heading, justify="right" if is_value else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def print_recipes(recipes: list[dict[str, Any]]) -> None:
    """Prints one table: a row per recipe, with the AP that the first of its paper's rows reports.

    Args:
        recipes: Descriptions by :func:`concordet.engine.recipes.describe_recipe`.
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
        values = [first.get(f"{key}_mask" if masks else key) for key in ("AP", "AP50", "AP75")]
        texts = ["-" if value is None else f"{value:.1f}" for value in values]
        texts[0] += " (mask)" if masks else ""
        settings = [recipe["name"], recipe["loss"], recipe["data"], ", ".join(tables), str(recipe["epochs"])]
        table.add_row(*settings, *texts)
    wide_console().print(table)


def wide_console() -> Console:
    """A console of the terminal's width; pipes and logs have none, and get :data:`WIDE`.

    Names of classes and folders are printed as they are, brackets included.
    """
    from rich.console import Console

    width = None if Console().is_terminal else WIDE
    return Console(width=width, markup=False, emoji=False)
