"""Tables of figures on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# key in evaluation.json, heading, factor, decimals
COLUMNS: tuple[tuple[str, str, int, int], ...] = (
    ("AP", "AP", 100, 1),
    ("AP50", "AP50", 100, 1),
    ("AP75", "AP75", 100, 1),
    ("AP90", "AP90", 100, 1),
    ("beta_img", "beta_img", 1, 3),
    ("beta_cls", "beta_cls", 1, 3),
    ("oLRP", "oLRP", 100, 1),
    ("AIC", "AIC", 1, 1),
    ("AIC_mean", "AIC mean", 1, 3),
    ("seconds_per_iteration", "s/iter", 1, 3),
)

WIDE = 160
NARROW = 125


def read_figures(folders: list[Path]) -> list[dict[str, Any]]:
    """The figures of evaluated runs, one row each.

    Raises:
        ValueError: a folder holds no evaluation.
    """
    from concordet.engine.files import read_json

    rows = []
    for folder in folders:
        path = folder / "evaluation.json"
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no evaluation.json; name a run folder, and evaluate it first with: "
                f"concordet evaluate {folder}"
            )
        report = read_json(path)
        figures = {key: report["metrics"].get(key) for key, *_ in COLUMNS}
        rows.append({"run": str(folder), "detector": report["detector"], "loss": report["loss"], **figures})
    return rows


def print_runs(folders: list[Path]) -> None:
    """One table: a row a run, or a column a run on a narrow terminal.

    AP and oLRP are in per cent; an undefined figure is a dash.
    """
    from rich.console import Console
    from rich.table import Table

    rows = read_figures(folders)
    cells = [[_text(row[key], factor, decimals) for key, _, factor, decimals in COLUMNS] for row in rows]
    names = [[row["run"], row["detector"], row["loss"]] for row in rows]
    headings = ["run", "detector", "loss", *(heading for _, heading, *_ in COLUMNS)]
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


def _text(value: float | None, factor: int, decimals: int) -> str:
    return "-" if value is None else f"{factor * value:.{decimals}f}"
