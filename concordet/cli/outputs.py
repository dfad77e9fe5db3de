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
from concordet.files import is_descriptor, is_standard_output, writable
from concordet.paths import is_inside

_HEAD = 65_536  # bytes that are searched for the signs of our files

_OURS = (
    r'^\s*<!doctype html>.*name="generator" content="concordet',  # pages
    r'^\s*\{\s*("metrics": \{\s*)?"AP": [^,]*,\s*"AP50": [^,]*,\s*"AP75": [^,]*,\s*"AP90": ',  # analyze, evaluate
    r"^id,name,n_objects,n_detections,n_true_positives,AP,",  # analyze --csv
    r'^\s*\[\s*\{\s*"name": [^{}]*"folder": [^{}]*"AP90": ',  # compare
    r'^\s*\{\s*"format": "concordet ',  # calibrators, metadata of exported files
    r'^\s*\{\s*"before": \{[^{}]*"LaECE0": [^{}]*\},\s*"after": \{',  # calibrate
    r'^\s*\{\s*"format": "\w+",\s*"description": "[^"]*",\s*"splits": ',  # data
    r'^\s*\{\s*"page": [^{}]*"runs": \[\s*\{\s*"run": ',  # demo
    r'^\s*\[\s*\{"image_id": [^{}]*"file_name": ',  # predict
    r'^\s*\{\s*"reference": "[^"]*",\s*"confidence": [^,]*,\s*"n_resamples": ',  # study
    r'^\s*\{\s*"cells": \[\s*\{\s*"cell": 1,\s*"name": ',  # study --dry_run
    r"^\s*\[\s*\]\s*$",  # predict, without detections
    r'^\s*\{\s*"detectors": \[\s*"retinanet"',  # list
    r'^\s*\[\s*("retinanet",\s*"fcos"|"default",\s*"focal"|"AP",\s*"AP50"|"cityscapes",\s*"coco"),',  # list, one kind
    r'^\s*\[\s*\{\s*"name": "\w+/\w+",\s*"file": [^{}]*"loss": ',  # list recipes
    r'^\s*\[\s*\{\s*"name": "\w+",\s*"about": [^{}]*"cost": ',  # list presets
)
"""Patterns by which files that concordet wrote are recognized."""

_RUN_FILES = {
    *("config.yaml", "data.json", "evaluation.json", "detections.json", "ground_truth.json", "timing.json"),
    *("metrics.csv", "positives.npz", "calibrator.json"),
}
_RUN_FOLDERS = {"checkpoints", "samples", "tensorboard"}


def check_outputs(
    outputs: Mapping[str, str | Path | None],
    inputs: Iterable[str | Path | None] = (),
    *,
    force: bool = False,
    own: str | None = None,
) -> None:
    """Refuses outputs that would overwrite inputs or files of others, before anything is computed.

    Args:
        outputs: Option to the file that it names; None is not written.
        inputs: Files and folders that the command reads.
        force: Whether files that concordet did not write may be overwritten.
        own: Name of the file of a run that this command writes.

    Raises:
        UsageError: an output is an input, a file in an input folder that concordet did not write, or another output.
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
        if real == "-" or is_descriptor(output):
            continue
        if path.is_dir():
            raise ValueError(f"{name} must be a file, got the folder {output}; name a file in it")
        if not path.is_file():  # new, a device or a pipe
            if not path.exists():
                writable(Path(real).parent)
            continue
        writable(Path(real).parent)
        if Path(real).name != own and _is_of_a_run(Path(real)):
            raise ValueError(f"{name} must not be a file of a run, got {output}; name another file")
        if is_ours(path):
            continue
        folder = next((path for other, path in read.items() if is_inside(real, other)), None)
        if folder is not None:
            raise UsageError(
                f"{name} must not be a file in {folder}, an input of the command, got {output}; name another file"
            )
        if not force:
            raise ValueError(
                f"{name} must be a new file or one that concordet wrote, got {output}; name another one, or add --force"
            )


def is_ours(path: Path) -> bool:
    """Whether concordet may overwrite a file: it looks like one that concordet wrote, or is empty."""
    with path.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8", errors="replace")
    return not head or any(re.search(pattern, head, re.DOTALL | re.IGNORECASE) for pattern in _OURS)


def _is_of_a_run(path: Path) -> bool:
    """Whether a resolved path is a file that training or evaluation has written to a run folder."""
    for folder in path.parents:
        first = path.relative_to(folder).parts[0]
        own = path.parent == folder and path.name in _RUN_FILES
        if (own or first in _RUN_FOLDERS) and (folder / "config.yaml").is_file():
            return True
    return False


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
