"""Synthetic logits, AP Loss as published and options, shared by the benchmark of losses and the studies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

LOGITS: Final = (10_000, 100_000, 1_000_000)
SHARES: Final = (0.001, 0.01, 0.02, 0.05)
LOOPED: Final = 100
"""Number of positives for which the loop is timed; its time is scaled to all positives."""


@dataclass(frozen=True)
class Data:
    """The thesis's synthetic logits (Sec. 4.1.1): positives N(-1, 1), negatives N(1, 1), in random order."""

    logits: Tensor
    labels: Tensor
    targets: Tensor
    quality: Tensor
    loc_errors: Tensor

    @staticmethod
    def make(
        n: int,
        share: float,
        *,
        positive_mean: float = -1.0,
        negative_mean: float = 1.0,
        seed: int = 0,
        device: str = "cpu",
    ) -> Data:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.zeros(n, dtype=torch.int64)
        labels[torch.randperm(n, generator=generator)[: max(1, round(n * share))]] = 1
        targets = labels.float()
        logits = torch.randn(n, generator=generator) + torch.where(labels == 1, positive_mean, negative_mean)
        return Data(
            logits=logits.to(device).requires_grad_(),
            labels=labels.to(device),
            targets=targets.to(device),
            quality=torch.rand(n, generator=generator).to(device),
            loc_errors=torch.rand(int(labels.sum()), generator=generator).to(device).requires_grad_(),
        )


def loop_over_positives(data: Data, *, delta: float = 1.0, visited: int | None = None) -> Tensor:
    """``[n]`` gradient of AP Loss as published (Algorithm 1 in the thesis), in a loop over positives.

    Args:
        data: Logits and labels.
        delta: Half width of the ramp.
        visited: Number of positives after which the loop stops, to time a part of it; None visits all.
    """
    logits, labels = data.logits.detach(), data.labels
    positives = logits[labels == 1]
    relevant = (labels == 0) & (logits >= positives.min() - delta)
    negatives = logits[relevant]
    gradient_negative = torch.zeros_like(negatives)
    gradient_positive = torch.zeros_like(positives)
    for i, s in enumerate(positives[:visited]):
        above_positive = ((positives - s) / (2 * delta) + 0.5).clamp_(0, 1)
        above_positive[i] = 1
        above_negative = ((negatives - s) / (2 * delta) + 0.5).clamp_(0, 1)
        false = above_negative.sum()
        rank = above_positive.sum() + false
        gradient_positive[i] = -false / rank
        gradient_negative += above_negative / rank
    gradient = torch.zeros_like(logits)
    gradient[labels == 1], gradient[relevant] = gradient_positive, gradient_negative
    return gradient / len(positives)


@dataclass(frozen=True)
class Options:
    """Settings of a benchmark of losses; the thesis's grid by default."""

    study: str = "grid"
    logits: tuple[int, ...] = LOGITS
    shares: tuple[float, ...] = SHARES
    threads: int = 2
    budget: float = 3.0
    device: str = "cpu"
    out: Path = Path("losses.csv")
