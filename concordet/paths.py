"""Checks of paths that users and their files name: regular files, inside a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ALLOW: Final = "move the file, or allow it with allow_outside=True (--data.allow_outside true)"


def require_file(path: Path, what: str, fix: str = "name another file") -> Path:
    """``path``, after checking that it is a regular file: reading a pipe or a device might never end.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is not a regular file, or cannot be opened.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: {what} is missing; {fix}") from None
    except (OSError, ValueError) as error:  # ValueError: null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{str(path)[:300]!r}: {what} cannot be opened ({reason}); {fix}") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path}: {what} must be a file, got a folder; {fix}")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: {what} must be a regular file, got a pipe or a device; {fix}")
    return path


def is_inside(path: str, folder: str) -> bool:
    """Whether a resolved path is the resolved folder or lies below it.

    Example:
        >>> is_inside("/data/images/a.jpg", "/data/images"), is_inside("/data/images2/a.jpg", "/data/images")
        (True, False)
    """
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def require_inside(
    path: Path, folders: Sequence[Path], where: str, allow_outside: bool = False, *, fix: str = ALLOW
) -> Path:
    """``path``, after checking that it stays in one of the folders once links are resolved.

    Args:
        path: Path from an annotation file.
        folders: Folders that it may lie in.
        where: File and record that name it, for the error.
        allow_outside: Whether to skip the check.
        fix: What to do, for the error.

    Raises:
        ValueError: It leads outside, or is not a valid path.
    """
    try:
        inside = any(is_inside(os.path.realpath(path), os.path.realpath(folder)) for folder in folders)
    except (ValueError, OSError) as error:  # a null byte, or links in a circle
        raise ValueError(f"{where} names {str(path)!r}, which is not a path ({error}); correct it") from error
    if not allow_outside and not inside:
        raise ValueError(f"{where} names {path}, which leads outside {folders[0]}; {fix}")
    return path
