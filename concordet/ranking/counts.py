"""The one primitive: soft counts over positives and negatives, as an interface that every method implements.

    H(x) = clamp(x / 2d + 1/2, 0, 1) for d > 0,    H(x) = [x >= 0] for d = 0

counts how far a key lies above a query. Every ranking loss and its gradient is made of the sums below. A method
(matrices of pairs, intervals, buckets) computes them, and a definition makes a loss of them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from concordet.ranking.segments import Segments

MASKED_LOGIT = {dtype: torch.finfo(dtype).min for dtype in (torch.float32, torch.float64)}
"""Logit of a key that is not a negative: far below every positive, so that H is 0."""


def step(difference: Tensor, delta: float) -> Tensor:
    """The smoothed step H of half width ``delta``; at ``delta`` = 0 it is hard, and a tie counts 1.

    Example:
        >>> step(torch.tensor([-2.0, -0.5, 0.0, 3.0]), 1.0)
        tensor([0.0000, 0.2500, 0.5000, 1.0000])
        >>> step(torch.tensor([-2.0, -0.5, 0.0, 3.0]), 0.0)
        tensor([0., 0., 1., 1.])
    """
    if delta == 0:
        return (difference >= 0).to(difference.dtype)
    return (difference / (2 * delta) + 0.5).clamp(0, 1)


def step_at_zero(delta: float) -> float:
    """H(0): 1/2 for a smoothed step, 1 for the hard one."""
    return 1.0 if delta == 0 else 0.5


class Counts(Protocol):
    """Soft counts of p positives s_i among each other and among n keys, in float64.

    Keys are the negatives' logits, finite, and :data:`MASKED_LOGIT` elsewhere. With several processes, positives are
    those of all, keys a process's own, and counts of negatives are added up over all. With several rankings in one
    call, only logits of one ranking are compared.

    Attributes:
        positives: ``[p]`` logits of the positives in ascending order; of equal ones, the later one first.
        segments: ranking of each positive.
    """

    positives: Tensor
    segments: Segments

    def above(self, *weights: Tensor) -> list[Tensor]:
        """Soft counts of the negatives, the positives and the weighted positives that rank above each positive i.

        ``[p]`` each: N(i) = sum over negatives j of H(s_j - s_i), the sum over positives k != i of H(s_k - s_i), and
        for every ``weights`` ``[p]`` the sum of w_k H(s_k - s_i).
        """
        ...

    def better_above(self, quality: Tensor, *weights: Tensor) -> list[Tensor]:
        """Soft counts of the positives above i with q_k >= q_i: unweighted, and with each of the ``weights``."""
        ...

    def spread_to_negatives(self, coefficients: Tensor) -> Tensor:
        """``[n]`` sum over positives i of a_i H(s_j - s_i) for every key j, in the keys' dtype; 0 at masked keys.

        The adjoint of the negatives' counts, for coefficients a ``[p]``.
        """
        ...

    def spread_to_worse(self, coefficients: Tensor, quality: Tensor) -> Tensor:
        """``[p]`` sum over positives i of a_i H(s_k - s_i) [q_k < q_i] for every positive k."""
        ...
