"""Trained detectors as files for other runtimes: ONNX, TorchScript and ``torch.export``.

Names are imported when first used: :func:`postprocess` needs NumPy only.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from concordet.errors import requires

_MODULES = {
    "FORMATS": "files",
    "export_detector": "exporter",
    "is_exported": "files",
    "load_exported": "runtime",
    "postprocess": "numpy_postprocess",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with requires(f"concordet.export.{name}", "export"):
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
