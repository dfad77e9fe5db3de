"""Intervals between the points where the positives' steps begin and end, each with an origin near its keys.

On one interval, sum_i a_i H(k - t_i) is a line in k; that is what makes everything near-linear. See README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from concordet.ranking.sums import as_number, on_host

CHAIN_GAP = 4.0
"""Positives further apart than this many deltas share no origin. Windows touch at 2; above it, rounding cannot split
windows that do."""

MAX_SHARED = 1024.0
"""Positives within so many deltas share one origin in any case: sums lose no more than 10 of float64's 53 bits."""

CELLS_PER_THRESHOLD = 4
"""Cells of the look-up grid per threshold: more shorten the search in a cell and make the grid slower to build and
to read."""

MIN_CELLS, MAX_CELLS = 1 << 14, 1 << 20

MAX_SEARCHED_KEYS = 3000
"""Number of keys up to which a binary search among all thresholds is faster than building and reading a grid."""

MIN_GRID_KEYS = 1 << 14
"""Number of ascending keys, for which a binary search is fast, from which the grid is faster still."""

MIN_BITWISE_SORT = 1 << 15
"""Number of float32 values from which sorting by their bits is faster, additional operations included."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Equal cells over the thresholds, so that a key's interval is searched in its cell only.

    Attributes:
        low, scale: the cell of a key is (key - low) * scale, clamped. Rounding is monotone and the same for keys and
            thresholds, so that it may make the grid slow but never wrong.
        last: ``[cells]`` int32, number of thresholds in the cells up to and including each one.
        padded: negative infinities, which a search may read, then the thresholds.
        steps: descending powers of two whose sum is at least the largest number of thresholds in a cell.
    """

    low: float
    scale: float
    last: Tensor
    padded: Tensor
    steps: tuple[int, ...]

    @classmethod
    def build(cls, thresholds: Tensor) -> Grid:
        """Grid over ``[m]`` ascending thresholds, m > 1."""
        n_cells = min(MAX_CELLS, max(MIN_CELLS, 1 << (CELLS_PER_THRESHOLD * len(thresholds)).bit_length()))
        low, high = thresholds[:: len(thresholds) - 1].tolist()
        # bounded on both sides: (key - low) * scale must not be 0 * infinity
        scale = max((n_cells - 1) / max(high - low, 1e-30), 1e-30)
        cells = thresholds.sub(low).mul_(scale).to(torch.int32)  # as for keys, which are clamped in addition
        counts = torch.bincount(cells, minlength=n_cells)
        steps = tuple(1 << bit for bit in reversed(range(int(as_number(counts.max())).bit_length())))
        padded = pad(thresholds, (sum(steps), 0), value=-torch.inf)
        return cls(low=low, scale=scale, last=counts.cumsum(0, dtype=torch.int32), padded=padded, steps=steps)

    def locate(self, keys: Tensor) -> Tensor:
        """``[n]`` int32, number of thresholds at or below each finite key."""
        cells = keys.sub(self.low).mul_(self.scale).clamp_(0, len(self.last) - 1).to(torch.int32)
        interval = self.last.index_select(0, cells)
        for step in self.steps:
            # if the threshold `step` positions below is above the key, so are all between
            probe = self.padded[sum(self.steps) - step :].index_select(0, interval)
            interval.add_(probe > keys, alpha=-step)
        return interval


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """The axis cut at the 2p thresholds t_i - d and t_i + d. Interval m holds the keys with m thresholds at or below.

    Attributes:
        thresholds: ``[2p]`` ascending, in the keys' dtype: the smallest number of that dtype not below the exact
            threshold, so that comparisons of keys with it are exact.
        bounds: ``[2, p]`` thresholds t_i - d and t_i + d, in ascending order.
        edges: ``[2, p]`` the intervals that begin at them.
        own: ``[p]`` the interval of each positive.
        start: ``[p]`` float64, local - d: the beginning of each window.
        local: ``[p]`` float64, t_i minus its chain's origin, in ascending order. A chain is a run of positives whose
            windows touch; origins keep the magnitudes of summed keys small.
        origin: float64, ``[2p + 1]`` origin of the interval's chain, or ``[1]`` where there is one chain only.
        dead: intervals between chains, where no window is open (indices, some of them repeated); None for one chain.
            There, and above all windows, H is 0 or 1 for every positive.
        grid: look-up grid for keys; None where a binary search is faster.
    """

    thresholds: Tensor
    bounds: Tensor
    edges: Tensor
    own: Tensor
    local: Tensor
    start: Tensor
    origin: Tensor
    dead: Tensor | None
    grid: Grid | None

    @property
    def size(self) -> int:
        """Number of intervals."""
        return len(self.thresholds) + 1

    def locate(self, keys: Tensor) -> Tensor:
        """``[n]`` int32, the interval of every finite key."""
        if self.grid is not None:
            return self.grid.locate(keys)
        return torch.searchsorted(self.thresholds, keys, right=True, out_int32=True)

    def coordinate(self, keys: Tensor, interval: Tensor) -> Tensor:
        """``[n]`` float64, keys minus the origins of their intervals; meaningless outside of all windows."""
        return torch.sub(keys, self.origin if len(self.origin) == 1 else self.origin.index_select(0, interval))

    def blank(self, values: Tensor) -> Tensor:
        """``values`` ``[..., 2p + 1]`` with 0 where no window is open, in place; the first interval stays as it is."""
        if self.dead is not None:
            values.index_fill_(-1, self.dead, 0)
        values[..., -1].zero_()
        return values


@lru_cache
def signs_of_edges(device: torch.device) -> Tensor:
    """``[3, 1]`` float64: signs of d in t - d (where the window of t begins), t + d (where it ends), and t itself."""
    return torch.tensor([[-1.0], [1.0], [0.0]], dtype=torch.float64, device=device)


def _thresholds(positives: Tensor, delta: float, dtype: torch.dtype) -> Tensor:
    """``[3, p]`` smallest numbers of ``dtype`` not below t - d, t + d and t, for float64 positives t."""
    if delta == 0:
        return positives.to(dtype).expand(3, -1).contiguous()
    signs = signs_of_edges(positives.device)
    total = torch.add(positives, signs, alpha=delta)
    if dtype == torch.float64:
        added = total - positives  # Knuth's two-sum: total + rest is the exact sum
        rest = (positives - (total - added)) + (signs * delta - added)
        rounded, short = total, rest > 0
    else:
        rounded = total.to(dtype)
        short = rounded < total  # in float64
    return torch.nextafter(rounded, torch.where(short, torch.inf, rounded))  # unchanged where not short


def sort_ascending(values: Tensor) -> tuple[Tensor, Tensor]:
    """Stable ascending sort of finite values; many float32 values on a CPU are sorted by their bits, which is faster.

    Example:
        >>> sort_ascending(torch.tensor([1.0, -2.0, 0.0]))[1]
        tensor([1, 2, 0])
    """
    if values.dtype != torch.float32 or not on_host(values) or len(values) < MIN_BITWISE_SORT:
        ascending, order = torch.sort(values, stable=True)
        return ascending, order
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0 into 0
    order = torch.sort(bits ^ ((bits >> 31) & 0x7FFFFFFF), stable=True).indices
    return values.index_select(0, order), order


def _locate_few(thresholds: Tensor, grid: Grid | None, keys: Tensor) -> Tensor:
    """Number of thresholds at or below each key."""
    if grid is None or keys.numel() < MIN_GRID_KEYS:
        return torch.searchsorted(thresholds, keys, right=True)
    return grid.locate(keys.flatten()).long().view(keys.shape)


def build_intervals(positives: Tensor, delta: float, dtype: torch.dtype, n_keys: int = 1 << 62) -> Intervals:
    """Cuts the axis at the thresholds of p > 0 positives.

    Args:
        positives: ``[p]`` float64, finite, ascending.
        delta: half width of the step.
        dtype: dtype of the keys, which represents the positives exactly.
        n_keys: number of keys that will be located.
    """
    ends_and_own = _thresholds(positives, delta, dtype)
    both = ends_and_own[:2]
    thresholds = sort_ascending(both.flatten())[0]
    grid = Grid.build(thresholds) if on_host(thresholds) and n_keys > MAX_SEARCHED_KEYS else None
    located = _locate_few(thresholds, grid, ends_and_own)  # above the last of equal thresholds
    edges = located[:2]
    origin, top, dead = positives[-1:], positives[-1:], None
    if not (on_host(positives) and _one_chain(positives, delta)):
        ends = pad(positives.diff() > CHAIN_GAP * delta, (0, 1), value=True)  # [p] of chains
        top = torch.where(ends, positives, torch.inf).flip(0).cummin(0).values.flip(0)  # last positive of each chain
        # the interval above a threshold belongs to the last window that has begun
        opened = torch.searchsorted(both[0], thresholds, right=True)
        origin = pad(top.index_select(0, opened - 1), (1, 0))
        closed = ends & (pad(both[0, 1:], (0, 1), value=torch.inf) > both[1])
        dead = torch.where(closed, edges[1], 2 * len(positives))
    local = positives - top
    return Intervals(
        thresholds=thresholds,
        bounds=both,
        edges=edges,
        own=located[2],
        local=local,
        start=local - delta,
        origin=origin,
        dead=dead,
        grid=grid,
    )


def _one_chain(positives: Tensor, delta: float) -> bool:
    """Whether all positives may share one origin: they are close together, or their windows are one chain.

    At delta = 0 there are no windows, and origins are not used.
    """
    extent = as_number(positives[-1]) - as_number(positives[0])
    return delta == 0 or extent <= MAX_SHARED * delta or as_number(positives.diff().max()) <= CHAIN_GAP * delta
