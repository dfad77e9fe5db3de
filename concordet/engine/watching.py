"""Logs what the papers watch: gradient balance, self-balancing weight, harmonic factors, inconsistency."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from concordet.losses.criteria import Criterion, StagedCriterion
from concordet.losses.watch import gradient_ratio, observe
from concordet.types import Assigned


class WatchLosses(pl.Callback):
    """Logs ``watch/...`` figures of a detector's criterion with every row of the log.

    ``watch/gradient_ratio`` is read off the gradient that training computes anyway; the other figures cost one more
    evaluation of the loss without gradient.  Of a detector with several stages the last is watched.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._figures: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        criterion = getattr(pl_module.model, "criterion", None)
        if isinstance(criterion, StagedCriterion):
            criterion = list(criterion.stages.values())[-1]
        if isinstance(criterion, Criterion):
            # the hook sees what the detector hands to its criterion, so that no detector needs to know of watching
            self._handle = criterion.register_forward_hook(lambda module, args, _: self._see(trainer, module, args[0]))

    def _see(self, trainer: pl.Trainer, criterion: Criterion, assigned: Assigned) -> None:
        if not criterion.training or (trainer.global_step + 1) % _every(trainer) or not assigned.logits.requires_grad:
            return
        with torch.autocast(assigned.logits.device.type, enabled=False):
            self._figures = observe(criterion, assigned)
        assigned.logits.register_hook(lambda gradient: self._note_gradient(gradient, assigned))

    def _note_gradient(self, gradient: Tensor, assigned: Assigned) -> None:
        self._figures["gradient_ratio"] = gradient_ratio(gradient, assigned)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in self._figures.items():
            if torch.isfinite(value):
                pl_module.log(f"watch/{name}", value, batch_size=1)
        self._figures = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _every(trainer: pl.Trainer) -> int:
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
