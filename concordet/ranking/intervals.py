"""Where the steps of all positives begin and end on the axis of logits, and a local origin for every interval between.

On one interval, sum_i a_i H(k - t_i) is a line in k; that is what makes everything near-linear. See README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHAIN_GAP = 4.0
"""Positives further apart than this many deltas share no origin; over 2 (touching windows), so rounding is harmless."""


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """The axis cut at the 2p thresholds t_i - d and t_i + d. Interval m holds the keys with m thresholds at or below.

    Attributes:
        thresholds: ``[2p]`` ascending, in the keys' dtype: the least number of that dtype not below the real threshold,
            so that comparing a key with it is exact.
        lower, upper: ``[p]`` which thresholds are t_i - d and t_i + d, for the positives in ascending order.
        order: ``[p]`` the ascending, stable order of the positives.
        local: ``[p]`` float64, t_i minus its chain's origin, in ascending order. A chain is a run of positives
            whose windows touch; origins keep sums of keys small where the windows are.
        origin: ``[2p + 1]`` float64, origin of the interval's chain.
        live: ``[2p + 1]`` whether any window covers the interval. Elsewhere H is 0 or 1 for every positive.
    """

    thresholds: Tensor
    lower: Tensor
    upper: Tensor
    order: Tensor
    local: Tensor
    origin: Tensor
    live: Tensor

    def place(self, keys: Tensor) -> Tensor:
        """``[n]`` the interval of every key."""
        return torch.searchsorted(self.thresholds, keys, right=True)

    def coordinate(self, keys: Tensor, interval: Tensor) -> Tensor:
        """``[n]`` float64, the keys seen from the origins of their intervals; 0 outside of all windows."""
        return torch.where(self.live[interval], keys.double() - self.origin[interval], 0.0)


def _round_up(positives: Tensor, shift: float, dtype: torch.dtype) -> Tensor:
    """The least numbers of ``dtype`` not below positives + shift, for float64 positives."""
    total = positives + shift
    if dtype == torch.float64:
        added = total - positives  # Knuth's two-sum: total + rest is the exact sum
        rest = (positives - (total - added)) + (shift - added)
        rounded, short = total, rest > 0
    else:
        rounded = total.to(dtype)
        short = rounded.double() < total
    return torch.where(short, torch.nextafter(rounded, rounded.new_tensor(float("inf"))), rounded)


def cut(positives: Tensor, delta: float, dtype: torch.dtype) -> Intervals:
    """Cut the axis at the thresholds of ``[p]`` positives (p > 0), for keys of ``dtype``."""
    p = len(positives)
    ascending, order = torch.sort(positives.double(), stable=True)
    new_chain = ascending.diff() > CHAIN_GAP * delta  # [p - 1]
    chain = torch.cat([new_chain.new_zeros(1, dtype=torch.long), new_chain.cumsum(0)])  # [p]
    top = ascending.new_empty(p).scatter_reduce_(0, chain, ascending, "amax", include_self=False)[chain]

    cuts = torch.cat([_round_up(ascending, -delta, dtype), _round_up(ascending, delta, dtype)])  # [2p]
    thresholds, place = torch.sort(cuts, stable=True)
    index = torch.empty_like(place).scatter_(0, place, torch.arange(2 * p, device=place.device))
    opens = torch.where(place < p, 1, -1).cumsum(0)
    start = top[:1]
    return Intervals(
        thresholds=thresholds,
        lower=index[:p],
        upper=index[p:],
        order=order,
        local=ascending - top,
        origin=torch.cat([start, torch.cat([top, top])[place]]),
        live=torch.cat([opens.new_zeros(1), opens]) > 0,
    )
