"""The definition, read as it is written: whole matrices of pairs.

O(p (p + n)) time and memory. It is the reference that the other methods are tested against, and what to read first.
"""

from __future__ import annotations

from torch import Tensor

from concordet.ranking.counts import step
from concordet.ranking.processes import ALONE, Everyone


class QuadraticCounts:
    """Soft counts from the matrices H(x_ij), x_ij = s_j - s_i, with i a positive (rows) and j any logit (columns)."""

    def __init__(self, positives: Tensor, negatives: Tensor, delta: float, processes: Everyone = ALONE) -> None:
        self._processes = processes
        self.positives = positives.double()  # [p]
        self._dtype = negatives.dtype
        x_negative = negatives.double()[None, :] - self.positives[:, None]  # [p, n]
        x_positive = self.positives[None, :] - self.positives[:, None]  # [p, p]
        self._above_negative = step(x_negative, delta)
        self._above_positive = step(x_positive, delta)
        self._above_positive.fill_diagonal_(0)

    def negatives_above(self) -> Tensor:
        return self._processes.sum(self._above_negative.sum(dim=1))

    def positives_above(self, weights: Tensor) -> Tensor:
        return (self._above_positive[:, :, None] * weights[None, :, :]).sum(dim=1)

    def better_above(self, weights: Tensor, quality: Tensor) -> Tensor:
        better = quality[None, :] >= quality[:, None]  # [p, p] q_k >= q_i
        return ((self._above_positive * better)[:, :, None] * weights[None, :, :]).sum(dim=1)

    def spread_to_negatives(self, amount: Tensor) -> Tensor:
        return (amount[:, None] * self._above_negative).sum(dim=0).to(self._dtype)

    def spread_to_worse(self, amount: Tensor, quality: Tensor) -> Tensor:
        worse = quality[None, :] < quality[:, None]  # [p, p] q_k < q_i
        return (amount[:, None] * self._above_positive * worse).sum(dim=0)
