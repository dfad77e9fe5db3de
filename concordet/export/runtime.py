"""Exported files as detectors, called like :class:`concordet.detectors.Detector` in evaluation mode."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from concordet.errors import missing_package
from concordet.export.files import KEY, checked, format_of
from concordet.export.numpy_postprocess import postprocess

Runner = Callable[[Tensor], Sequence[np.ndarray]]


class ExportedDetector(nn.Module):
    """An exported file with torchvision's interface: a list of images to a list of detections.

    Args:
        run: Function from images ``[1, 3, h, w]`` to boxes, labels and scores as arrays.
        meta: Metadata of the file.
    """

    def __init__(self, run: Runner, meta: Mapping[str, Any]) -> None:
        super().__init__()
        self.run = run
        self.meta = meta

    @property
    def calibrated(self) -> bool:
        """Whether scores are calibrated."""
        return self.meta["calibrator"] is not None

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """``boxes`` ``[k, 4]``, ``labels`` ``[k]`` and ``scores`` ``[k]`` of each image ``[3, h, w]``."""
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        boxes, labels, scores = (output[0] for output in self.run(image[None].float().cpu()))
        if self.meta["outputs"] == "candidates":
            found = postprocess(boxes, labels, scores, self.meta)
        else:
            exist = labels > 0
            found = {"boxes": boxes[exist], "labels": labels[exist], "scores": scores[exist]}
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}


def load_exported(path: str | Path) -> ExportedDetector:
    """Loads a file that :func:`concordet.export.export_detector` wrote, to run it on the CPU.

    Args:
        path: File whose name ends in ``.onnx``, ``.torchscript`` or ``.pt2``.

    Returns:
        A module from a list of images ``[3, h, w]``, RGB in [0, 1], to a list of detections with ``boxes``, ``labels``
        and ``scores``; ``meta`` is the file's metadata.

    Raises:
        ValueError: the file does not exist, is damaged or not of this package, or a package is missing.

    Example:
        >>> from concordet.detectors import build_detector
        >>> from concordet.export import export_detector
        >>> model = build_detector("fcos", num_classes=2, size="nano")
        >>> meta = export_detector(model, "loaded.torchscript", class_names=["cat", "dog"])
        >>> detector = load_exported("loaded.torchscript")
        >>> (detection,) = detector([torch.rand(3, 96, 128)])
        >>> sorted(detection), detector.meta["class_names"]
        (['boxes', 'labels', 'scores'], ['cat', 'dog'])
    """
    path = Path(path)
    format = format_of(path)
    if not path.is_file():
        raise ValueError(f"model must be a file, got {path}, which does not exist; check the name")
    run, meta = {"onnx": _onnx, "torchscript": _torchscript, "pt2": _pt2}[format](path)
    return ExportedDetector(run, checked(meta, path))


def _onnx(path: Path) -> tuple[Runner, Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(missing_package("the format onnx", "onnxruntime", "export")) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise ValueError(f"model must be a whole ONNX file, got {path}; name another one") from error
    meta = session.get_modelmeta().custom_metadata_map.get(KEY)
    return lambda images: session.run(None, {"images": images.numpy()}), _parsed(meta)


def _torchscript(path: Path) -> tuple[Runner, Any]:
    extra = {KEY: ""}
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated
            warnings.simplefilter("ignore", FutureWarning)
            module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"model must be a whole TorchScript file, got {path}; name another one") from error
    return _numpy(module), _parsed(extra[KEY])


def _pt2(path: Path) -> tuple[Runner, Any]:
    extra = {KEY: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # a zip file of JSON and pickles, each of which raises different errors
        raise ValueError(f"model must be a whole file of torch.export, got {path}; name another one") from error
    return _numpy(program.module()), _parsed(extra[KEY])


def _numpy(module: Callable[[Tensor], Sequence[Tensor]]) -> Runner:
    def run(images: Tensor) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(images)]

    return run


def _parsed(text: str | bytes | None) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None
