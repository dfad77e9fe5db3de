"""Logs the quantities that the papers plot: gradient ratio, self-balancing weight, harmonic factors, inconsistency."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from concordet.assigned import Assigned
from concordet.losses.criteria import Criterion, StagedCriterion
from concordet.losses.criteria.observers import gradient_ratio, observe


class WatchLosses(pl.Callback):
    """Logs ``watch/...`` curves of a detector's criterion with every row of the log.

    ``watch/gradient_ratio`` uses the gradient of the training step; the other curves cost another evaluation of the
    loss, without gradient. Each stage of a detector with several has its own curves, named like its loss terms:
    ``watch/rpn_gradient_ratio``.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._values: dict[str, Tensor] = {}
        self._assigned: dict[str, Assigned] = {}
        self._gradients: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        criterion = getattr(pl_module.model, "criterion", None)
        staged = isinstance(criterion, StagedCriterion)
        # stages may share a criterion, which modules() yields once
        for one in criterion.modules() if isinstance(criterion, nn.Module) else ():
            if isinstance(one, Criterion):
                # a hook on the criterion works for every detector
                self._handles.append(one.register_forward_hook(partial(self._see, trainer, staged)))

    def _see(self, trainer: pl.Trainer, staged: bool, criterion: Criterion, args: tuple[Assigned], terms: Any) -> None:
        (assigned,) = args
        if not criterion.training or (trainer.global_step + 1) % _every(trainer) or not assigned.logits.requires_grad:
            return
        assigned = replace(assigned, group=criterion.group)
        prefix = f"{assigned.stage}_" if staged else ""
        with torch.autocast(assigned.logits.device.type, enabled=False):
            self._values |= {prefix + name: value for name, value in observe(criterion, assigned).items()}
        name = f"{prefix}gradient_ratio"
        self._assigned[name] = assigned
        # a hook that refers to its own tensor would keep it in memory for ever
        assigned.logits.register_hook(partial(self._gradients.__setitem__, name))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # processes communicate here, where DDP's reduction of gradients is over
        gradients = sorted(self._gradients.items())
        ratios = {name: gradient_ratio(gradient, self._assigned[name]) for name, gradient in gradients}
        for name, value in (self._values | ratios).items():
            if torch.isfinite(value):
                pl_module.log(f"watch/{name}", value, batch_size=1)
        for seen in (self._values, self._assigned, self._gradients):
            seen.clear()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _every(trainer: pl.Trainer) -> int:
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]  # set by Lightning's logger connector
