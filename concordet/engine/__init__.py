"""Training, evaluation and prediction.

Names are imported when first used: the configuration alone needs neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "DataConfig": "config",
    "OptimConfig": "config",
    "TrainConfig": "config",
    "load_config": "config",
    "save_config": "config",
    "train": "training.fit",
    "evaluate_run": "evaluation",
    "run_detector": "evaluation",
    "load_detector": "checkpoint",
    "predict": "prediction",
    "DetectionModule": "training.module",
    "DetectionData": "data",
    "DivergedError": "errors",
    "InterruptedRun": "errors",
    "UsageError": "errors",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = "concordet" if _WHERE[name] == "errors" else __name__
    return getattr(import_module(f"{package}.{_WHERE[name]}"), name)
