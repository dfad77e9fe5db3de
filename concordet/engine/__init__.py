"""Training, evaluation and prediction.

Names are imported when first used: the configuration alone needs neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from concordet.errors import DivergedError, InterruptedRun, UsageError

_MODULES = {
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
    "Predictor": "predictor",
    "load": "predictor",
    "DetectionModule": "training.module",
    "DetectionData": "data",
}

__all__ = [*_MODULES, "DivergedError", "InterruptedRun", "UsageError"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
