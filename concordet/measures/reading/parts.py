"""Long JSON lists some records at a time, since a million records as Python objects take half a gigabyte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from concordet.files import read_text
from concordet.measures.reading.records import Columns, annotation_columns

CHARACTERS: Final = 5_000_000
"""About how much text is Python objects at a time."""

_BETWEEN: Final = re.compile(r"\}\s*,\s*(?=\{)")


def columns_of_file(path: Path, what: str) -> Columns | None:
    """Columns of a results file that is a list; None where it is not one, or has a fault that is to be named."""
    try:
        text = read_text(path).strip()
        if text[:1] != "[" or text[-1:] != "]":
            return None
        parts = [annotation_columns(part, what, scored=True) for part in _parts(text)]
    except (ValueError, RecursionError):
        return None
    return _joined(parts) if parts else None


def _parts(text: str) -> Iterator[list[Any]]:
    # a list is cut between two records; a cut anywhere else leaves a bracket or a quote open, which is a fault
    start, last = 1, len(text) - 1
    while start < last:
        cut = _BETWEEN.search(text, start + CHARACTERS)
        stop, following = (cut.start() + 1, cut.end()) if cut else (last, last)
        yield json.loads(f"[{text[start:stop]}]")
        start = following


def _joined(parts: list[Columns]) -> Columns:
    return Columns(
        image_ids=np.concatenate([part.image_ids for part in parts]),
        class_ids=np.concatenate([part.class_ids for part in parts]),
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        segmentations=[each for part in parts for each in part.segmentations or []],
        has_boxes=any(part.has_boxes for part in parts),
    )
