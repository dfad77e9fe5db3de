"""Callbacks of training: averaged weights and measured times."""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from concordet.engine.checkpoint import EMA_KEY

WARMUP_ITERATIONS = 5  # slow ones, until memory pools, cuDNN's algorithms and caches are set up
_MAX_ITERATIONS = 20_000


class AveragedWeights(pl.Callback):
    """Exponential moving average of weights and float buffers, which is evaluated and saved with the weights.

    w_ema <- d w_ema + (1 - d) w after every update, with d = min(decay, (1 + k) / (10 + k)) at update k, so that the
    initial weights have no influence on short runs. A criterion's state and integer buffers are not averaged.

    Args:
        decay: Decay d in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.updates: int = 0
        self._live: dict[str, Tensor] = {}

    @staticmethod
    def averaged(module: pl.LightningModule) -> dict[str, Tensor]:
        """The tensors that are averaged, by name."""
        state = module.state_dict()
        return {n: v for n, v in state.items() if v.is_floating_point() and ".criterion." not in f".{n}"}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in self.averaged(pl_module).items()}
        self.average = {name: value.to(pl_module.device) for name, value in self.average.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # the tensors stay the same during training, and collecting them takes milliseconds
        self._live = self.averaged(pl_module)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.updates:
            return
        self.updates = trainer.global_step
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), [self._live[name] for name in self.average], weight)

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule) -> None:
        for name, value in self.averaged(pl_module).items():
            kept = value.clone()
            value.copy_(self.average[name])
            self.average[name].copy_(kept)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[EMA_KEY] = dict(self.average)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.average = {name: value.clone() for name, value in checkpoint[EMA_KEY].items()}

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]


class StartNote(pl.Callback):
    """Records whether training has started: an error before that, in a resumed run, is one of restoring its state."""

    def __init__(self) -> None:
        self.started: bool = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = True


class IterationTimer(pl.Callback):
    """Seconds of each iteration (forward, backward, update), its processor time, and the waiting time for images.

    On a GPU the clock is read after a synchronization. The first iterations of a process are left out.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waited: list[float] = []
        self.processor: list[float] = []
        self.skipped: int = 0
        self._done_here = 0
        self._start = self._processor_start = 0.0
        self._end: float | None = None

    @staticmethod
    def _now(pl_module: pl.LightningModule) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        return time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # time between epochs (evaluation, checkpoints, start of workers) is not waiting time
        self._end = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._start, self._processor_start = self._now(pl_module), time.process_time()
        if self._end is not None and self._done_here >= WARMUP_ITERATIONS and len(self.waited) < _MAX_ITERATIONS:
            self.waited.append(self._start - self._end)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end = self._now(pl_module)
        taken = self._end - self._start
        if self._done_here < WARMUP_ITERATIONS:
            self.skipped += 1
        elif len(self.seconds) < _MAX_ITERATIONS:
            self.seconds.append(taken)
            self.processor.append(time.process_time() - self._processor_start)
        self._done_here += 1
        pl_module.log("seconds_per_iteration", taken)
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])

    def report(self) -> dict[str, Any]:
        """Medians in seconds (None without iterations), and the number of iterations that were left out."""
        return {
            "seconds_per_iteration": statistics.median(self.seconds) if self.seconds else None,
            "processor_seconds_per_iteration": statistics.median(self.processor) if self.processor else None,
            "seconds_waiting_for_data": statistics.median(self.waited) if self.waited else None,
            "iterations": len(self.seconds),
            "iterations_left_out": self.skipped,
            "note": (
                "median of forward, backward and update; waiting for images is counted separately, and the first "
                f"{WARMUP_ITERATIONS} iterations of each process are left out"
            ),
        }

    def state_dict(self) -> dict[str, Any]:
        seconds = {"seconds": list(self.seconds), "waited": list(self.waited), "processor": list(self.processor)}
        return seconds | {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.waited = list(state_dict["seconds"]), list(state_dict["waited"])
        self.processor = list(state_dict.get("processor", ()))  # absent before version 0.2
        self.skipped = state_dict["skipped"]
