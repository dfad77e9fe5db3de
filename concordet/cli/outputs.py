"""Output files, checked before a command computes, and standard output, reserved for results if ``-`` asks for it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from concordet.console import QUIET, verbosity
from concordet.errors import UsageError
from concordet.files import is_standard_output, writable

_HEAD = 65_536  # bytes that are searched for the signs of our files

_OURS = (
    r'^\s*<!doctype html>.*name="generator" content="concordet',  # pages
    r'^\s*\{\s*"AP": ',  # analyze
    r'^\s*\{\s*"metrics": \{\s*"AP": ',  # train and evaluate
    r'^\s*\[\s*\{\s*"name": [^{}]*"folder": ',  # compare
    r'^\s*\{\s*"format": "concordet ',  # calibrators
    r'^\s*\{\s*"before": \{.*"after": \{',  # calibrate
    r'^\s*\{\s*"page": .*"runs": ',  # demo
    r'^\s*\[\s*\{"image_id": [^{}]*"file_name": ',  # predict
    r"^\s*\[\s*\]\s*$",  # predict, without detections
    r'^\s*\{\s*"detectors": \[',  # list
    r'^\s*\[\s*"[\w+()]+"\s*[,\]]',  # list, one kind
    r'^\s*\[\s*\{\s*"name": "[\w/]+",\s*"(file|about)": ',  # list recipes, list presets
)
"""Patterns by which files that concordet wrote are recognized."""

_RUN_FILES = ("config.yaml", "data.json", "evaluation.json", "detections.json", "ground_truth.json", "timing.json")


def check_outputs(
    outputs: Mapping[str, str | Path | None], inputs: Iterable[str | Path | None] = (), *, force: bool = False
) -> None:
    """Refuses outputs that would overwrite inputs or files of others, before anything is computed.

    Args:
        outputs: Option to the file that it names; None is not written.
        inputs: Files and folders that the command reads.
        force: Whether files that concordet did not write may be overwritten.

    Raises:
        UsageError: an output is an input or another output.
        ValueError: an output is a folder, a file that concordet did not write or a part of a run, or its folder cannot
            be written.
    """
    read = {os.path.realpath(path): path for path in inputs if path is not None}
    written: dict[str, str] = {}
    for name, output in outputs.items():
        if output is None:
            continue
        if str(output).strip() == "" or "\0" in str(output):
            raise UsageError(f"{name} must be a file name, got {str(output)!r}; give one, or - for standard output")
        path = Path(output)
        real = "-" if is_standard_output(output) else os.path.realpath(path)
        if real in written:
            raise UsageError(f"{name} must be another file than {written[real]}, got {output}; name two files")
        if real in read:
            raise UsageError(f"{name} must not be an input of the command, got {output}; name another file")
        written[real] = name
        if real == "-":
            continue
        if path.is_dir():
            raise ValueError(f"{name} must be a file, got the folder {output}; name a file in it")
        if not path.is_file():  # new, a device or a pipe
            if not path.exists():
                writable(Path(real).parent)
            continue
        writable(Path(real).parent)
        if _is_of_a_run(Path(real)):
            raise ValueError(f"{name} must not be a file of a run, got {output}; name another file")
        if not (force or is_ours(path)):
            raise ValueError(
                f"{name} must be a new file or one that concordet wrote, got {output}; name another one, or add --force"
            )


def is_ours(path: Path) -> bool:
    """Whether concordet may overwrite a file: it looks like one that concordet wrote, or is empty."""
    with path.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8", errors="replace")
    return not head or any(re.search(pattern, head, re.DOTALL | re.IGNORECASE) for pattern in _OURS)


def _is_of_a_run(path: Path) -> bool:
    if path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").is_file():
        return True
    return path.name in _RUN_FILES and (path.parent / "config.yaml").is_file()


@contextlib.contextmanager
def messages(*outputs: str | Path | None) -> Iterator[None]:
    """Prints messages to standard error while an output is standard output, and nowhere with ``-q``."""
    if verbosity() == QUIET:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    elif any(output is not None and is_standard_output(output) for output in outputs):
        with contextlib.redirect_stdout(sys.stderr):
            yield
    else:
        yield
