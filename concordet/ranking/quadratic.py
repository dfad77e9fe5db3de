"""The definition, read as it is written: whole matrices of pairs.

O(p (p + n)) time and memory. It is the reference that the other methods are tested against, and what to read first.
"""

from __future__ import annotations

from torch import Tensor

from concordet.distributed import SINGLE_PROCESS, SingleProcess
from concordet.ranking.counts import step
from concordet.ranking.sums import on_host


class PositivePairs:
    """The positives among each other: the matrix H(x_ik), x_ik = s_k - s_i, without its diagonal."""

    def __init__(self, positives: Tensor, delta: float) -> None:
        self.positives = positives.double()  # [p]
        x_positive = self.positives[None, :] - self.positives[:, None]  # [p, p]
        self._above_positive = step(x_positive, delta).fill_diagonal_(0)

    def positives_above(self, weights: Tensor) -> Tensor:
        return _weighted(self._above_positive, weights)

    def better_above(self, weights: Tensor, quality: Tensor) -> Tensor:
        better = quality[None, :] >= quality[:, None]  # [p, p] q_k >= q_i
        return _weighted(self._above_positive * better, weights)

    def spread_to_worse(self, coefficients: Tensor, quality: Tensor) -> Tensor:
        worse = quality[None, :] < quality[:, None]  # [p, p] q_k < q_i
        return _weighted((self._above_positive * worse).T, coefficients[:, None]).squeeze(1)


def _weighted(pairs: Tensor, weights: Tensor) -> Tensor:
    """``[p, c]`` sums of each row of ``[p, p]`` with weights ``[p, c]``."""
    if on_host(pairs):
        return pairs @ weights
    # elsewhere products of matrices have no fixed order, and refuse where one is asked for
    return (pairs * weights.T[:, None, :]).sum(dim=-1).T


class QuadraticCounts(PositivePairs):
    """Soft counts from the matrices H(x_ij), x_ij = s_j - s_i, with i a positive (rows) and j any logit (columns)."""

    def __init__(
        self, positives: Tensor, negatives: Tensor, delta: float, processes: SingleProcess = SINGLE_PROCESS
    ) -> None:
        super().__init__(positives, delta)
        self._processes = processes
        self._dtype = negatives.dtype
        x_negative = negatives.double()[None, :] - self.positives[:, None]  # [p, n]
        self._above_negative = step(x_negative, delta)

    def negatives_above(self) -> Tensor:
        return self._processes.all_sum(self._above_negative.sum(dim=1))

    def spread_to_negatives(self, coefficients: Tensor) -> Tensor:
        return (coefficients[:, None] * self._above_negative).sum(dim=0).to(self._dtype)
