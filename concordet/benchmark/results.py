"""Results files: CSV rows with the environment of each measurement, and Markdown tables of them."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from concordet.files import replacing, write_json
from concordet.version import __version__

ENVIRONMENT: Final = {
    "device": "{}",
    "processor": "{}",
    "cores": "{} cores",
    "threads": "PyTorch threads: {}",
    "clock": "{} time",
    "concordet": "concordet {}",
    "torch": "torch {}",
    "cuda": "CUDA {}",
    "numba": "Numba {}",
    "numpy": "numpy {}",
    "scipy": "scipy {}",
    "hotcoco": "hotcoco {}",
    "pycocotools": "pycocotools {}",
    "python": "Python {}",
}
"""Columns that describe the environment, and their formats in a caption."""


def environment(device: str = "cpu", packages: Sequence[str] | None = None) -> dict[str, str]:
    """Hardware and versions, as columns of a results file.

    Args:
        device: Device of the measurement, "cpu" or a CUDA device.
        packages: Installed packages whose versions matter; by default torch, and on a CPU also Numba if it is
            installed, as ranking losses then use it.

    Returns:
        Column name to value.

    Raises:
        ValueError: The device is not available.
    """
    if packages is None:
        packages = ("torch", "numba") if device == "cpu" and find_spec("numba") else ("torch",)
    card = {}
    if device != "cpu":
        import torch  # not at the top: the peak memory of processes without torch is measured too

        if not torch.cuda.is_available():
            raise ValueError(f"device must be one that PyTorch sees here, got {device}; leave --device out for the CPU")
        card = {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    return {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load_average": " ".join(f"{v:.1f}" for v in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown",
        "python": platform.python_version(),
        "concordet": __version__,
        **{name: metadata.version(name) for name in packages},
        **card,
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], measured_in: Mapping[str, str]) -> None:
    """Writes a CSV file atomically.

    Args:
        path: File to write; its folder is created if needed.
        rows: One mapping per row. Columns are the union of their keys.
        measured_in: Environment of this run, in the last columns. Rows of earlier runs, which have these columns
            already, keep their own.
    """
    measured = dict.fromkeys(key for row in rows for key in row if key not in measured_in)
    complete = [{**measured_in, **row} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*measured, *measured_in], lineterminator="\n")
        writer.writeheader()
        writer.writerows(complete)


def write_results(
    out: Path | None, json: Path | None, rows: Sequence[Mapping[str, Any]], measured_in: Mapping[str, str]
) -> None:
    """Writes the files of a benchmark's options ``--out`` (CSV) and ``--json``."""
    if out is not None:
        write_rows(out, rows, measured_in)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        write_json(json, {"environment": dict(measured_in), "rows": list(rows)})


def read_rows(path: Path, column: str | None = None, command: str = "") -> list[dict[str, str]]:
    """Rows of a results file.

    Args:
        path: File that :func:`write_rows` wrote.
        column: Column that the file must have.
        command: Command that writes such files, for the error message.

    Raises:
        ValueError: The column is missing.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if column is not None and not (rows and column in rows[0]):
        raise ValueError(f"{path} must be a results file with a column {column}; name a file that {command} wrote")
    return rows


def with_quartiles(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    """Median and quartiles of a ratio, from these columns of a row.

    Example:
        >>> with_quartiles({"ratio": "1.5", "q25": "1.4", "q75": "1.62"}, "ratio", "q25", "q75")
        '1.50 (1.40–1.62)'
    """
    return f"{float(row[value]):.2f} ({float(row[low]):.2f}–{float(row[high]):.2f})"


def known_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a results file; none if the file does not exist yet."""
    return list(read_rows(path)) if path.exists() else []


def merge_rows(path: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the file and the new ones, which replace those with the same keys."""
    new = {tuple(str(row[key]) for key in keys) for row in rows}
    return [row for row in known_rows(path) if tuple(row[key] for key in keys) not in new] + list(rows)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, text_columns: int = 1) -> str:
    """A Markdown table.

    Args:
        head: Column titles.
        rows: One sequence of cells per row.
        text_columns: Number of leading columns that are aligned left; the others are numbers.

    Raises:
        ValueError: A row has more or fewer cells than there are titles.

    Example:
        >>> print(table(["loss", "AP"], [["focal", "57.8"], ["rank_sort", "58.6"]]))
        | loss | AP |
        |---|---:|
        | focal | 57.8 |
        | rank_sort | 58.6 |
    """
    lines = [list(head), ["---" if i < text_columns else "---:" for i in range(len(head))]]
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"rows must have {len(head)} cells, got {len(row)} in {list(row)}; head is {list(head)}")
        lines.append([str(cell) for cell in row])
    first, rule, *body = lines
    return "\n".join([_line(first), "|" + "|".join(rule) + "|", *map(_line, body)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def caption(rows: Sequence[Mapping[str, str]]) -> str:
    """Hardware and versions of rows, for the line above their table; several values are separated by slashes.

    Example:
        >>> caption([{"AP": "1", "cores": "2", "torch": "2.6"}, {"AP": "2", "cores": "2", "torch": "2.7"}])
        '2 cores, torch 2.6 / 2.7'
    """
    values = {key: list(dict.fromkeys(row[key] for row in rows if row.get(key))) for key in ENVIRONMENT}
    return ", ".join(form.format(" / ".join(values[key])) for key, form in ENVIRONMENT.items() if values[key])
