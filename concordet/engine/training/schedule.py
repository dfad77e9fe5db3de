"""Optimizers, and learning-rate schedules as functions of the update."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from concordet.engine.config import OptimConfig

_START = 1 / 25  # one-cycle's first learning rate, as in Smith's schedule and torch's OneCycleLR
_STEPS = (2 / 3, 11 / 12)  # the "1x" schedule of 12 epochs drops after 8 and 11


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Trainable parameters in groups: backbone or not, with weight decay or (norms and biases) without."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(("backbone" in name.split("."), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * (config.backbone_lr_factor if backbone else 1.0),
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (backbone, decayed), parameters in sorted(groups.items(), reverse=True)
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over :func:`parameter_groups`."""
    groups = parameter_groups(model, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def warmup_updates(config: OptimConfig, total: int) -> int:
    """Number of updates during which the learning rate rises."""
    if config.warmup is None:
        wanted = 0.3 * total if config.schedule == "onecycle" else min(500, 0.1 * total)
    else:
        wanted = config.warmup * total if config.warmup < 1 else config.warmup
    return min(int(wanted), max(total - 1, 0))


def learning_rate_factor(config: OptimConfig, total: int) -> Callable[[int], float]:
    """The factor on the learning rate at each update 0..total-1.

    Args:
        config: Schedule and warm-up.
        total: Number of updates of the run.

    Example:
        >>> factor = learning_rate_factor(OptimConfig(schedule="cosine", warmup=2), total=10)
        >>> [round(factor(update), 2) for update in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    warmup = warmup_updates(config, total)
    epochs = config.milestones
    falls = [share * total for share in _STEPS] if epochs is None else [e * total / config.epochs for e in epochs]

    def factor(update: int) -> float:
        if update < warmup:
            if config.schedule == "onecycle":
                return _START + (1 - _START) * (1 - math.cos(math.pi * update / warmup)) / 2
            return (update + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "step":
            return config.drop ** sum(update >= fall for fall in falls)
        # onecycle and cosine: half a cosine from 1 to 0 over the remaining updates
        return (1 + math.cos(math.pi * min(1.0, (update - warmup) / max(total - warmup, 1)))) / 2

    return factor
