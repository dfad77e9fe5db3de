"""Where the steps of all positives begin and end on the axis of logits, and a local origin for every interval between.

On one interval, sum_i a_i H(k - t_i) is a line in k; that is what makes everything near-linear. See README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from concordet.ranking.sums import on_host, prefix_sums

CHAIN_GAP = 4.0
"""Positives further apart than this many deltas share no origin; over 2 (touching windows), so rounding is harmless."""

CELLS_PER_THRESHOLD = 4
"""Cells of the look-up grid: more make the search in a cell shorter and the grid slower to build and to read."""

MAX_CELLS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Equal cells over the thresholds, so that placing a key needs a short search in its cell, not in all thresholds.

    Attributes:
        low, scale: 0-dim; a key's cell is (key - low) * scale, clamped. Rounding is the same for keys and thresholds
            and monotone, so that cells never lie.
        first: ``[cells]`` int32, thresholds in the cells before.
        padded: the thresholds, and infinities that a search may look at.
        steps: powers of two, descending, that add up to the most thresholds in a cell or more.
    """

    low: Tensor
    scale: Tensor
    first: Tensor
    padded: Tensor
    steps: tuple[int, ...]

    def locate(self, keys: Tensor) -> Tensor:
        """``[n]`` int32, thresholds at or below each finite key."""
        interval = self.first.index_select(0, _cells(keys, self.low, self.scale, len(self.first)))
        for step in self.steps:
            # thresholds ascend: if the one `step` places on is not above the key, none before it is
            probe = self.padded.index_select(0, interval + (step - 1))
            interval.add_(keys >= probe, alpha=step)
        return interval


def _cells(keys: Tensor, low: Tensor, scale: Tensor, n_cells: int) -> Tensor:
    return keys.sub(low).mul_(scale).clamp_(0, n_cells - 1).to(torch.int32)


def _grid(thresholds: Tensor) -> Grid:
    n_cells = min(MAX_CELLS, 1 << (CELLS_PER_THRESHOLD * len(thresholds)).bit_length())
    low = thresholds[0]
    # both bounds keep 0 and infinity out of (key - low) * scale
    scale = ((n_cells - 1) / (thresholds[-1] - low).clamp_min(1e-30)).clamp_min(1e-30)
    counts = torch.bincount(_cells(thresholds, low, scale, n_cells), minlength=n_cells)
    steps = tuple(1 << bit for bit in reversed(range(int(counts.max()).bit_length())))
    return Grid(
        low=low,
        scale=scale,
        first=(counts.cumsum(0) - counts).to(torch.int32),
        padded=torch.cat([thresholds, thresholds.new_full((sum(steps),), torch.inf)]),
        steps=steps,
    )


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """The axis cut at the 2p thresholds t_i - d and t_i + d. Interval m holds the keys with m thresholds at or below.

    Attributes:
        thresholds: ``[2p]`` ascending, in the keys' dtype: the least number of that dtype not below the real
            threshold, so that comparing a key with it is exact.
        lower, upper: ``[p]`` which thresholds are t_i - d and t_i + d, for the positives in ascending order.
        order: ``[p]`` the ascending, stable order of the positives.
        local: ``[p]`` float64, t_i minus its chain's origin, in ascending order. A chain is a run of positives whose
            windows touch; origins keep sums of keys small where the windows are.
        origin: ``[2p + 1]`` float64, origin of the interval's chain.
        shared_origin: 0-dim float64, where the host sees for nothing that there is but one chain; else None.
        live: ``[2p + 1]`` whether any window covers the interval. Elsewhere H is 0 or 1 for every positive.
        grid: finds a key's interval; None where the device searches faster by itself.
    """

    thresholds: Tensor
    lower: Tensor
    upper: Tensor
    order: Tensor
    local: Tensor
    origin: Tensor
    shared_origin: Tensor | None
    live: Tensor
    grid: Grid | None

    def locate(self, keys: Tensor) -> Tensor:
        """``[n]`` int32, the interval of every finite key."""
        if self.grid is not None:
            return self.grid.locate(keys)
        return torch.searchsorted(self.thresholds, keys, right=True, out_int32=True)

    def coordinate(self, keys: Tensor, interval: Tensor) -> Tensor:
        """``[n]`` float64, the keys seen from the origins of their intervals; meaningless outside of all windows."""
        if self.shared_origin is not None:
            return keys.to(torch.float64, copy=True).sub_(self.shared_origin)
        origin = self.origin.index_select(0, interval)
        return torch.sub(keys, origin, out=origin)


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
    return torch.where(short, torch.nextafter(rounded, rounded.new_tensor(torch.inf)), rounded)


def sort_ascending(values: Tensor) -> tuple[Tensor, Tensor]:
    """Stable ascending sort of finite values; float32 on a CPU by its bits, which PyTorch sorts several times faster.

    Example:
        >>> sort_ascending(torch.tensor([1.0, -2.0, 0.0]))[1]
        tensor([1, 2, 0])
    """
    if values.dtype != torch.float32 or not on_host(values):
        return torch.sort(values, stable=True)
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0 into 0
    order = torch.sort(bits ^ ((bits >> 31) & 0x7FFFFFFF), stable=True).indices
    return values.index_select(0, order), order


def build_intervals(positives: Tensor, delta: float, dtype: torch.dtype) -> Intervals:
    """Cut the axis at the thresholds of ``[p]`` finite positives (p > 0), for keys of ``dtype``."""
    p = len(positives)
    ascending, order = sort_ascending(positives)
    ascending = ascending.double()
    ends = torch.cat([ascending.diff() > CHAIN_GAP * delta, ascending.new_ones(1, dtype=torch.bool)])  # [p] of chains
    top = torch.where(ends, ascending, torch.inf).flip(0).cummin(0).values.flip(0)  # last of each one's chain

    # merge the two ascending lists; a window that begins where another ends comes first
    low, high = _round_up(ascending, -delta, dtype), _round_up(ascending, delta, dtype)
    rows = torch.arange(p, device=positives.device)
    lower = rows + torch.searchsorted(high, low)
    upper = rows + torch.searchsorted(low, high, right=True)
    thresholds = low.new_empty(2 * p).index_copy_(0, lower, low).index_copy_(0, upper, high)
    origin = top.new_empty(2 * p).index_copy_(0, lower, top).index_copy_(0, upper, top)
    opens = torch.ones_like(thresholds, dtype=torch.int32).index_fill_(0, upper, -1)
    return Intervals(
        thresholds=thresholds,
        lower=lower,
        upper=upper,
        order=order,
        local=ascending - top,
        origin=torch.cat([top[:1], origin]),
        shared_origin=top[0] if on_host(top) and bool(top[0] == top[-1]) else None,
        live=prefix_sums(opens) > 0,
        grid=_grid(thresholds) if on_host(thresholds) else None,
    )
