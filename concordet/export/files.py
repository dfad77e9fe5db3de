"""Formats of exported files, and their metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from concordet.errors import UsageError, unknown

FORMATS = {"onnx": ".onnx", "torchscript": ".torchscript", "pt2": ".pt2"}
"""Name of each format to its file suffix."""

KEY = "concordet"
"""Key of the metadata, which are JSON, in a file."""

FORMAT, VERSION = "concordet export", 1


def format_of(path: str | Path, wanted: str | None = None) -> str:
    """The format of a file by its suffix.

    Args:
        path: File, which need not exist.
        wanted: Format that was asked for; None to infer it from the suffix.

    Raises:
        UsageError: the format is unknown, or the suffix belongs to another format.

    Example:
        >>> format_of("model.onnx")
        'onnx'
    """
    if wanted is not None:
        check_format(wanted)
    suffix = Path(path).suffix.lower()
    expected = list(FORMATS.values()) if wanted is None else [FORMATS[wanted]]
    if suffix not in expected:
        raise UsageError(f"out must end in {' or '.join(expected)}, got {path}; name the file accordingly")
    return next(name for name, end in FORMATS.items() if end == suffix)


def check_format(name: str) -> None:
    """Raises a UsageError where there is no format of this name."""
    if name not in FORMATS:
        raise UsageError(unknown("format", name, FORMATS))


def is_exported(path: str | Path) -> bool:
    """Whether a file name has the suffix of an exported file.

    Args:
        path: Name of the file, which need not exist.

    Returns:
        Whether it ends in ``.onnx``, ``.torchscript`` or ``.pt2``.

    Example:
        >>> is_exported("model.onnx"), is_exported("last.ckpt")
        (True, False)
    """
    return Path(path).suffix.lower() in FORMATS.values()


def checked(meta: Any, path: str | Path) -> Mapping[str, Any]:
    """The metadata of a file, if this version can read them.

    Raises:
        ValueError: they are missing, or of another version.
    """
    if not isinstance(meta, Mapping) or meta.get("format") != FORMAT:
        raise ValueError(f"model must be a file that `concordet export` wrote, got {path}; name another one")
    if meta.get("version") != VERSION:
        raise ValueError(f"{path} must be of version {VERSION}, got {meta.get('version')!r}; export the run again")
    return meta
