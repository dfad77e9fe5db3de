"""Files of results: rows as CSV under what they were measured on, and a table for people beside them."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from concordet.files import replacing
from concordet.version import __version__


def environment(device: str = "cpu", packages: Sequence[str] = ("torch",)) -> dict[str, str]:
    """Hardware and versions, for the header of the results.

    Raises:
        ValueError: the device is not here.
    """
    card = {}
    if device != "cpu":
        import torch  # here, because memory of processes that need no torch is measured too

        if not torch.cuda.is_available():
            raise ValueError(f"device {device} is asked for, and PyTorch sees no GPU here; leave --device out")
        card = {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load average": " ".join(f"{v:.1f}" for v in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        **card,
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]], header: dict[str, str]) -> None:
    """A CSV file with the header in comment lines, written whole or not at all."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    for name, value in header.items():
        text.write(f"# {name}: {value}\n")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue())


def read_rows(path: Path, column: str | None = None, command: str = "") -> list[dict[str, str]]:
    """Rows of such a file.

    Raises:
        ValueError: it lacks a column that files of a command have.
    """
    with path.open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    if column is not None and not (rows and column in rows[0]):
        raise ValueError(f"{path} has no column {column}; name a file that {command} wrote")
    return rows


def known_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of such a file, none where there is no file yet."""
    return list(read_rows(path)) if path.exists() else []


def merge_rows(path: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """What the file has, and these rows: they take the place of those that have the same keys."""
    new = {tuple(str(row[key]) for key in keys) for row in rows}
    return [row for row in known_rows(path) if tuple(row[key] for key in keys) not in new] + list(rows)


def write_table(path: Path, rows: Sequence[dict[str, Any]], table: str, what: str, threads: int) -> None:
    """Rows as CSV, and beside it as Markdown the table under what was measured, by which versions.

    Args:
        path: the CSV file.
        rows: one or more.
        table: Markdown.
        what: the command, and what it measured.
        threads: PyTorch's, of one run.
    """
    write_rows(path, rows, environment())
    versions = f"concordet {__version__}, torch {metadata.version('torch')}, Python {platform.python_version()}"
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(
            f"{what}; {versions}, {platform.machine()}, {threads} of {os.cpu_count()} threads.\n\n{table}\n"
        )
