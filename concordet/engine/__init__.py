"""Training, evaluation and prediction.

Names are imported when first used: the configuration alone needs neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from concordet.errors import DivergedError, InterruptedRun, UsageError, requires

if TYPE_CHECKING:
    from concordet.engine.checkpoint import load_detector
    from concordet.engine.config import DataConfig, OptimConfig, TrainConfig, load_config, save_config
    from concordet.engine.data import DetectionData
    from concordet.engine.evaluation import evaluate_run, run_detector
    from concordet.engine.prediction import predict
    from concordet.engine.predictor import Predictor, load
    from concordet.engine.training.fit import train
    from concordet.engine.training.module import DetectionModule

__all__ = [
    "DataConfig",
    "DetectionData",
    "DetectionModule",
    "DivergedError",
    "InterruptedRun",
    "OptimConfig",
    "Predictor",
    "TrainConfig",
    "UsageError",
    "evaluate_run",
    "load",
    "load_config",
    "load_detector",
    "predict",
    "run_detector",
    "save_config",
    "train",
]

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with requires(f"concordet.engine.{name}", "train"):
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
