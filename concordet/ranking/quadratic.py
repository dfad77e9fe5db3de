"""Soft counts straight from their definition, as matrices of pairs.

O(p (p + n)) time and memory. It is the reference that the other methods are tested against, and what to read first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from concordet.distributed import SINGLE_PROCESS, SingleProcess
from concordet.ranking.counts import step
from concordet.ranking.segments import ONE, Segments
from concordet.ranking.sums import on_host


class PositivePairs:
    """The positives among each other: the matrix H(x_ik), x_ik = s_k - s_i, without its diagonal."""

    def __init__(self, positives: Tensor, delta: float, segments: Segments = ONE) -> None:
        self.positives: Tensor = positives if positives.dtype == torch.float64 else positives.double()  # [p]
        self.segments = segments
        x_positive = self.positives[None, :] - self.positives[:, None]  # [p, p]
        self._above_positive = step(x_positive, delta).fill_diagonal_(0)
        same = segments.same()
        if same is not None:
            self._above_positive.mul_(same)
        self._better: tuple[Tensor, Tensor] | None = None

    def better_above(self, quality: Tensor, *weights: Tensor) -> list[Tensor]:
        better = self._better_pairs(quality)
        return [better.sum(1), *(_weighted(w, better) for w in weights)]

    def spread_to_worse(self, coefficients: Tensor, quality: Tensor) -> Tensor:
        worse = self._above_positive - self._better_pairs(quality)  # [p, p] where q_k < q_i
        return _weighted(coefficients, worse.t())

    def _better_pairs(self, quality: Tensor) -> Tensor:
        """``[p, p]`` H(x_ik) where q_k >= q_i, else 0; cached for the last quality."""
        if self._better is None or self._better[0] is not quality:
            self._better = (quality, self._above_positive * (quality[None, :] >= quality[:, None]))
        return self._better[1]


def _weighted(weights: Tensor, pairs: Tensor) -> Tensor:
    """``[p]`` sums of each row of ``[p, p]`` with weights ``[p]``."""
    if on_host(pairs):
        return pairs.mv(weights)
    # on other devices a matrix product sums in no fixed order, and refuses under deterministic algorithms
    return (pairs * weights).sum(dim=1)


class QuadraticCounts(PositivePairs):
    """Soft counts from the matrices H(x_ij), x_ij = s_j - s_i, with i a positive (rows) and j any logit (columns)."""

    def __init__(
        self,
        positives: Tensor,
        negatives: Tensor,
        delta: float,
        processes: SingleProcess = SINGLE_PROCESS,
        segments: Segments = ONE,
        negative_segments: Tensor | None = None,
    ) -> None:
        super().__init__(positives, delta, segments)
        self._processes = processes
        self._dtype = negatives.dtype
        x_negative = negatives.double()[None, :] - self.positives[:, None]  # [p, n]
        self._above_negative = step(x_negative, delta)
        if segments.index is not None:
            self._above_negative.mul_(segments.index[:, None] == negative_segments)

    def above(self, *weights: Tensor) -> list[Tensor]:
        negatives = self._processes.all_sum(self._above_negative.sum(dim=1))
        pairs = self._above_positive
        return [negatives, pairs.sum(1), *(_weighted(w, pairs) for w in weights)]

    def spread_to_negatives(self, coefficients: Tensor) -> Tensor:
        return (coefficients[:, None] * self._above_negative).sum(dim=0).to(self._dtype)
