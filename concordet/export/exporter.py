"""Exports a detector with calibration and metadata."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concordet.calibration import Calibrator
from concordet.detectors import Detector
from concordet.errors import missing_package
from concordet.export.calibration import Tables
from concordet.export.files import FORMAT, KEY, VERSION, format_of
from concordet.export.graph import Core, Whole
from concordet.export.suppression import IN_GRAPH
from concordet.files import replacing
from concordet.version import __version__

EXAMPLE = (9, 12)
"""Height and width of the example images for tracing, in multiples of the stride that images are padded to."""


def export_detector(
    model: Detector,
    path: str | Path,
    *,
    format: str | None = None,
    class_names: Sequence[str],
    category_ids: Sequence[int] | None = None,
    thresholds: Sequence[float] | None = None,
    calibrator: Calibrator | None = None,
    raw: bool = False,
) -> dict[str, Any]:
    """Writes a detector to a file that takes images and gives boxes, labels and scores.

    The input ``images`` is ``[b, 3, h, w]`` float32, RGB in [0, 1]: any number of images of one size. The outputs are
    ``boxes`` ``[b, k, 4]`` xyxy in pixels of the images, ``labels`` ``[b, k]`` int64 from 1 on and ``scores``
    ``[b, k]`` in descending order. k is the maximum number of detections per image; rows without a detection are 0.
    Resizing, normalization, decoding, non-maximum suppression and calibration are part of the file.

    Args:
        model: Detector of :mod:`concordet.detectors`; set to evaluation mode.
        path: File to write; its name ends in ``.onnx``, ``.torchscript`` or ``.pt2``.
        format: One of :data:`~concordet.export.FORMATS`; None to infer it from the file name.
        class_names: Name of each class, in the order of labels from 1.
        category_ids: Id of each class in the data set; 1, 2, ... by default.
        thresholds: Score threshold per class for showing detections; stored in the metadata.
        calibrator: Calibrator of the scores, whose class ids are ``category_ids``.
        raw: Whether to leave out suppression and calibration: the outputs are then candidates for
            :func:`concordet.export.postprocess`. Soft suppression implies it.

    Returns:
        The file's metadata.

    Raises:
        UsageError: the format is unknown, or does not match the file name.
        ValueError: a package is missing, or PyTorch cannot export this detector in this format.

    Example:
        >>> from concordet.detectors import build_detector
        >>> model = build_detector("fcos", num_classes=2, size="nano")
        >>> meta = export_detector(model, "detector.torchscript", class_names=["cat", "dog"])
        >>> meta["outputs"], meta["category_ids"]
        ('detections', [1, 2])
    """
    format = format_of(path, format)
    check_packages(format)
    model = model.eval()
    raw = raw or model.postprocess.nms not in IN_GRAPH
    category_ids = list(range(1, len(class_names) + 1)) if category_ids is None else list(category_ids)
    calibration = None if calibrator is None else calibrator.to_dict()
    meta: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "concordet": __version__,
        "class_names": list(class_names),
        "category_ids": category_ids,
        "thresholds": None if thresholds is None else list(thresholds),
        "image_size": list(model.resize.size),
        "keeps_shape": model.resize.keeps_shape,
        "outputs": "candidates" if raw else "detections",
        "postprocess": asdict(model.postprocess),
        "calibrator": calibration,
    }
    tables = None if calibration is None else Tables.of(calibration, category_ids)
    multiple = model.transform.size_divisible
    sides = (EXAMPLE[0] * multiple, EXAMPLE[1] * multiple) if model.resize.keeps_shape else model.resize.size
    with torch.no_grad(), _quiet(), replacing(path) as temporary:
        model([torch.rand(3, *sides)])  # RoI pools learn their strides from features
        core = Core(model, tables=tables, raw=raw, operator=format == "onnx").eval()
        try:
            if format == "onnx":
                from concordet.export import onnx_file

                onnx_file.write(temporary, core, model.resize, multiple, sides, meta)
            else:
                whole = Whole(core, model.resize.size, exact=not model.resize.keeps_shape, multiple=multiple)
                write = _write_torchscript if format == "torchscript" else _write_pt2
                write(temporary, whole, sides, meta)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, torch.onnx.OnnxExporterError) as error:
            first: BaseException = error
            while first.__cause__ is not None:
                first = first.__cause__
            reason = " ".join(str(first).split())[:300]
            raise ValueError(
                f"detector must be one that PyTorch can export as {format}, got {type(model).__name__} ({reason}); "
                "choose another format"
            ) from error
    return meta


def check_packages(format: str) -> None:
    """Raises a ValueError if a package that the format needs is not installed."""
    if format != "onnx":
        return
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ImportError as error:
            raise ValueError(missing_package("the format onnx", package, "export")) from error


def _write_torchscript(path: Path, whole: Whole, sides: tuple[int, int], meta: dict[str, Any]) -> None:
    traced = torch.jit.trace(whole.core, _core_example(sides), check_trace=False)
    whole.core = traced
    # not into the file, since PyTorch ends the process if the disk is full
    content = BytesIO()
    torch.jit.save(torch.jit.script(whole), content, _extra_files={KEY: json.dumps(meta)})
    path.write_bytes(content.getbuffer())


def _write_pt2(path: Path, whole: Whole, sides: tuple[int, int], meta: dict[str, Any]) -> None:
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1024)}
    for axis, name in ((2, "height"), (3, "width")):
        shapes[axis] = torch.export.Dim(name, min=16, max=8192)
    # Sides differ from those of the network's input, so that tracing cannot take them to be equal.
    example = torch.rand(2, 3, sides[0] + 4, sides[1] + 4)
    program = torch.export.export(whole, (example,), dynamic_shapes=(shapes,))
    content = BytesIO()
    torch.export.save(program, content, extra_files={KEY: json.dumps(meta)})
    path.write_bytes(content.getbuffer())


def _core_example(sides: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.tensor(sides, dtype=torch.float32)
    return torch.rand(2, 3, *sides), size, 1.25 * size


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences PyTorch's exporters, and computes attention with plain operators, which all formats have."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        torch.backends.mha.set_fastpath_enabled(before)
