"""Loggers of a run: metrics.csv, with one row per logged update, and Lightning's loggers."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from concordet.engine.config import TrainConfig, flat
from concordet.errors import UsageError, missing_package, unknown
from concordet.files import replacing

EXTRAS: Final = {"tensorboard": "train", "wandb": "wandb", "mlflow": "mlflow", "csv": None}
"""Extras of concordet that install the packages of loggers, by the name of logger and package."""


def check_logger(name: str) -> None:
    """Raises an error for an unknown logger, or if its package is not installed.

    Example:
        >>> check_logger("csv")
    """
    if name not in EXTRAS:
        raise UsageError(unknown("logger", name, EXTRAS))
    extra = EXTRAS[name]
    if extra is not None and find_spec(name) is None:
        raise ValueError(missing_package(f"--logger {name}", name, extra))


def build_loggers(config: TrainConfig, out: Path, *, keep: int = 0) -> list[Logger]:
    """metrics.csv, and the logger that the configuration names.

    Weights & Biases and MLflow read their own environment variables (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ...).
    Without ``MLFLOW_TRACKING_URI``, MLflow writes to ``mlflow.db`` in the run folder.

    Args:
        config: Configuration of the run.
        out: Run folder.
        keep: Number of updates that a resumed run has already made.
    """
    csv_log = CsvLog(out / "metrics.csv", keep=keep)
    if config.logger == "csv":
        return [csv_log]
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

    if config.logger == "tensorboard":
        return [csv_log, TensorBoardLogger(out, name="", version="tensorboard")]
    settings = {name: value for name, value in flat(config).items() if value is not None}
    logger: Logger
    if config.logger == "wandb":
        logger = WandbLogger(project="concordet", name=out.name, save_dir=out)
    else:
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'mlflow.db').absolute()}")
        logger = MLFlowLogger(experiment_name="concordet", run_name=out.name, tracking_uri=uri)
    logger.log_hyperparams(settings)
    return [csv_log, logger]


class CsvLog(Logger):
    """Logs metrics to one CSV file, with columns added as they appear.

    Args:
        path: File to write; it may exist.
        keep: Number of updates that a resumed run has already made; rows of later updates, which it repeats, are
            dropped.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = ["epoch", "step"]
        self.waiting: list[dict[str, Any]] = []
        if path.is_file():
            self._keep_until(keep)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration is in the run folder."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        # evaluation and training metrics of one update share a row
        if self.waiting and self.waiting[-1]["step"] == step:
            self.waiting[-1] |= row
        else:
            self.waiting.append(row)
        if len(self.waiting) > 100:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        if not self.waiting:
            return
        new = [name for row in self.waiting for name in row if name not in self.columns]
        if new or not self.path.is_file():
            rows = self._rows() if self.path.is_file() else []
            self.columns += sorted(set(new))
            self._rewrite(rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerows(self.waiting)
        self.waiting = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _rows(self) -> list[dict[str, Any]]:
        with self.path.open(newline="", encoding="utf-8") as file:
            # a killed process may have left an incomplete row
            return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdigit()]

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    def _keep_until(self, step: int) -> None:
        with self.path.open(newline="", encoding="utf-8") as file:
            self.columns = list(csv.DictReader(file).fieldnames or self.columns)
        self._rewrite([row for row in self._rows() if int(row["step"]) < step])
