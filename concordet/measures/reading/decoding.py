"""COCO files whose records have the usual types, decoded by msgspec without a dictionary for each record.

A million records as dictionaries take half a gigabyte, and decoding them takes a third of the time of an analysis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from concordet.measures.reading.arrays import Floats, Ints
from concordet.measures.reading.records import Columns, check_values, joined

AT_ONCE: Final = 5_000_000
"""About how many bytes of a file are Python objects at a time."""

_BETWEEN: Final = re.compile(rb"\}\s*,\s*(?=\{)")
_LIST: Final = re.compile(rb"\s*\[")
_UNUSUAL: Final = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)

_Id = Annotated[int, msgspec.Meta(ge=1 - 2**63, le=2**63 - 1)]
_Box = tuple[float, float, float, float]
_Flag = bool | int | None


class _Result(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    bbox: _Box
    score: float


class _ResultWithMask(_Result, gc=False):
    segmentation: Any = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    bbox: _Box
    id: _Id | None = None
    area: float | None = None
    iscrowd: _Flag = None
    ignore: _Flag = None


class _AnnotationWithMask(_Annotation, gc=False):
    segmentation: Any = None


class _Truth(msgspec.Struct):
    annotations: msgspec.Raw
    images: list[dict[str, Any]] | None = None
    categories: list[dict[str, Any]] | None = None


# without and with masks
_RESULTS: Final[tuple[msgspec.json.Decoder[Any], ...]] = (
    msgspec.json.Decoder(list[_Result]),
    msgspec.json.Decoder(list[_ResultWithMask]),
)
_ANNOTATIONS: Final[tuple[msgspec.json.Decoder[Any], ...]] = (
    msgspec.json.Decoder(list[_Annotation]),
    msgspec.json.Decoder(list[_AnnotationWithMask]),
)


def decoded_results(content: bytes, what: str, *, masks: bool) -> Columns | None:
    """Columns of a results file; None where it is no list or a record has another form, which may be a fault.

    Args:
        content: Content of the file.
        what: Name of a record in errors.
        masks: Whether to read the masks too.
    """
    try:
        parts = [_result_columns(part, masks) for part in _parts(content, _RESULTS[masks])]
        return check_values(joined(parts), what)
    except _UNUSUAL:
        return None


def decoded_truth(content: bytes, what: str, *, masks: bool) -> tuple[dict[str, Any], Columns] | None:
    """Images and categories of an annotation file, and the columns of its annotations; None as above."""
    try:
        truth = msgspec.json.decode(content, type=_Truth)
        ids: list[int | None] = []
        parts = [
            _annotation_columns(part, masks, ids) for part in _parts(bytes(truth.annotations), _ANNOTATIONS[masks])
        ]
        columns = check_values(joined(parts), what)
    except _UNUSUAL:
        return None
    columns.n_duplicate_ids = 0 if None in ids else len(ids) - len(set(ids))
    return {"images": truth.images, "categories": truth.categories}, columns


def _parts(text: bytes, decoder: msgspec.json.Decoder[Any]) -> Iterator[list[Any]]:
    # a list is cut between two records; a cut anywhere else leaves a bracket or a quote open, which is a fault
    first, last = _LIST.match(text), text.rfind(b"]")
    start = first.end() if first is not None and not text[last + 1 :].strip() else None
    if start is None:
        decoder.decode(text)  # raises
    while start is not None:
        cut = _BETWEEN.search(text, start + AT_ONCE, last)
        yield decoder.decode(b"[" + text[start : cut.start() + 1 if cut else last] + b"]")
        start = cut.end() if cut else None


def _result_columns(records: list[Any], masks: bool) -> Columns:
    return Columns(
        image_ids=_integers([r.image_id for r in records]),
        class_ids=_integers([r.category_id for r in records]),
        boxes=_boxes(records),
        scores=np.array([r.score for r in records], np.float64),
        segmentations=[r.segmentation for r in records] if masks else None,
    )


def _annotation_columns(records: list[Any], masks: bool, ids: list[int | None]) -> Columns:
    ids += [r.id for r in records]
    return Columns(
        image_ids=_integers([r.image_id for r in records]),
        class_ids=_integers([r.category_id for r in records]),
        boxes=_boxes(records),
        scores=np.zeros(0),
        segmentations=[r.segmentation for r in records] if masks else None,
        areas=np.array([math.nan if r.area is None else r.area for r in records], np.float64),
        crowd=np.array([bool(r.iscrowd) for r in records], bool),
        n_ignore=sum(bool(r.ignore) and not r.iscrowd for r in records),
    )


def _integers(values: list[int]) -> Ints:
    return np.array(values, np.int64)


def _boxes(records: list[Any]) -> Floats:
    return np.fromiter(chain.from_iterable([r.bbox for r in records]), np.float64, 4 * len(records)).reshape(-1, 4)
