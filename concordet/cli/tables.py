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
    """One table, one row a run; AP and oLRP in per cent, an undefined figure is a dash."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("run", "detector", "loss"):
        table.add_column(heading, overflow="fold")
    for _, heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in read_figures(folders):
        figures = [
            "-" if row[key] is None else f"{factor * row[key]:.{decimals}f}" for key, _, factor, decimals in COLUMNS
        ]
        table.add_row(row["run"], row["detector"], row["loss"], *figures)
    console = Console()
    # a pipe or a log has no width to fit into
    Console(width=None if console.is_terminal else 160).print(table)
