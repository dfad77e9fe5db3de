"""Files and folders that are either whole or absent, and never overwrite what somebody else made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well, and vanishes when it does not.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text(), [p.name for p in path.parent.iterdir()]
        ('whole', ['a.txt'])
    """
    path = Path(path)
    # the suffix stays: some writers choose the format by it
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """``value`` as strict JSON has it: NaN and infinities are None, tuples lists, NumPy and torch scalars numbers."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes ``value`` as JSON, whole or not at all; the folder must exist."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON; the sentence says where it stops being so.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); write it again or name another file") from error


def check_new(path: str | Path, mend: str) -> None:
    """Raises a ValueError that ends with ``mend`` where there is something at ``path`` already."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} already exists and is left as it is; {mend}")


def new_folder(path: str | Path, mend: str) -> Path:
    """Makes a folder that must not hold anything yet.

    Raises:
        ValueError: it exists and is not empty, or cannot be made or written; the sentence ends with ``mend``.
    """
    path = Path(path)
    check_new(path, mend)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {path} cannot be made ({error.strerror}); name another one") from error
    return writable(path)


def writable(folder: str | Path) -> Path:
    """``folder``, after seeing that a file can be made in it.

    Raises:
        ValueError: it is missing, not a folder, or not writable.
    """
    folder = Path(folder)
    probe = folder / f".writable.{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder} ({error.strerror}); name another folder") from error
    return folder


def free_name(path: str | Path) -> Path:
    """``path``, or the first of ``name-2``, ``name-3``, ... that nothing has yet.

    Example:
        >>> free_name("/nowhere/report.html").name
        'report.html'
    """
    path = Path(path)
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate
