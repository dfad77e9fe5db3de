"""Sums over bins, prefix sums and sums over {index < a, row < b} (a wavelet tree), all in whole-tensor operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def on_host(tensor: Tensor) -> bool:
    """Whether reading a value costs nothing; on other devices the host would wait, and no graph could be captured."""
    return tensor.is_cpu


def as_number(value: Tensor) -> float:
    """The number in a 0-dim tensor on the host."""
    # unlike item(), tolist() is no operation to torch.compile
    return float(value.tolist())  # type: ignore[arg-type]  # not a list for 0 dimensions


def binned_sums(bins: Tensor, weights: Tensor | None, size: int) -> Tensor:
    """``[size]`` sums of the ``weights`` ``[n]`` in each bin, or counts without weights.

    Example:
        >>> binned_sums(torch.tensor([2, 0, 2]), None, 4)
        tensor([1, 0, 2, 0])
    """
    if on_host(bins):
        return torch.bincount(bins, weights, minlength=size)
    # on other devices bincount synchronizes to learn the number of bins
    weights = torch.ones_like(bins, dtype=torch.int64) if weights is None else weights
    return weights.new_zeros(size).index_add_(0, bins, weights)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """``[c, m]`` elements at each ``index`` ``[m]`` of ``[c, n]`` rows; ``index_select`` takes several times as long.

    Example:
        >>> take(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 1, 0]))
        tensor([[2., 2., 1.],
                [4., 4., 3.]])
    """
    return rows.gather(1, index.expand(len(rows), -1))


def running_sums(values: Tensor) -> Tensor:
    """``[..., n]`` sums of the first 1, ..., n values along the last dimension.

    Example:
        >>> running_sums(torch.tensor([1.0, 2.0, 3.0]))
        tensor([1., 3., 6.])
    """
    if not on_host(values) and values.is_floating_point() and torch.are_deterministic_algorithms_enabled():
        return _fixed_order_sums(values)  # cumsum has no fixed order on such devices, and refuses
    return values.cumsum(-1)


def prefix_sums(values: Tensor) -> Tensor:
    """``[..., n + 1]`` sums of the first 0, 1, ..., n values along the last dimension.

    Example:
        >>> prefix_sums(torch.tensor([1, 2, 3]))
        tensor([0, 1, 3, 6])
    """
    return pad(running_sums(values), (1, 0))


def _fixed_order_sums(values: Tensor) -> Tensor:
    """Running sums by doubling: log2 n whole-tensor additions (Hillis and Steele)."""
    reach = 1
    while reach < values.shape[-1]:
        values = torch.cat([values[..., :reach], values[..., reach:] + values[..., :-reach]], -1)
        reach *= 2
    return values


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts that add up to ``[..., n]`` float64 values; sums of the first parts have no rounding error.

    The first part is a multiple of a power of two that is coarse enough for every partial sum to be exact. The second
    one is about 2^-52 of the sum of all magnitudes, so that its rounding does not matter. Differences of running sums
    are then accurate however large the values before them are.

    Example:
        >>> high, low = split(torch.tensor([1e9, 1 / 3], dtype=torch.float64))
        >>> (high + low).tolist(), float(low.abs().max()) < 1e-6
        ([1000000000.0, 0.3333333333333333], True)
    """
    coarse = 4 * values.abs().sum(-1, keepdim=True)
    high = (values + coarse) - coarse
    return high, values - high


MAX_ROWS = 1 << 16
"""Largest number of queries times levels of a wavelet tree that are looked up together: more would make fewer
operations, but on tensors that no longer fit the cache."""


class WaveletTree:
    """Sums of the weights of the first rows whose index is below a bound, for many queries at once.

    On the level of h = 2^level, rows stand in blocks of 2h consecutive indices, in their first order within a block. A
    query is in the block [S, S + 2h) of its bound and sees the rows of this block before its pointer; some of them have
    an index in the first half. If the bound is in the second half, these are all below it: their weights are added, and
    the query descends to the second half; otherwise it descends to the first. A row descends like a query whose bound
    is its own index and whose pointer is its own position. Indices are a permutation, so every block before S is full
    and has h indices in its first half: starts of blocks need no look-up.

    Args:
        indices: ``[n]`` int64, each of 0..n-1 once.
        lengths: ``[m]`` int64, number of first rows that each query sees.
        bounds: ``[m]`` int64 in 0..n.

    O((n + m) log n) time and memory, some seven operations per level.

    Example:
        >>> queries = {"lengths": torch.tensor([2, 3]), "bounds": torch.tensor([2, 2])}
        >>> WaveletTree(torch.tensor([2, 0, 1]), **queries).sums(torch.tensor([[1.0], [10.0], [100.0]])).flatten()
        tensor([ 10., 110.])
    """

    def __init__(self, indices: Tensor, lengths: Tensor, bounds: Tensor) -> None:
        n, n_levels, device = len(indices), len(indices).bit_length(), indices.device
        halves = (1 << torch.arange(n_levels - 1, -1, -1, dtype=torch.int32, device=device))[:, None]  # [levels, 1]
        targets = torch.cat([indices, bounds]).to(torch.int32)  # [n + m] rows, then queries
        in_second = (targets & halves).bool()  # [levels, n + m]
        half_starts = (targets & (-2 * halves)).bitwise_right_shift_(1)
        in_first = (~in_second[:, :n]).to(torch.int32)
        pointer = torch.cat([torch.arange(n, device=device), lengths]).to(torch.int32)
        by_order, before = torch.empty_like(in_first[0]), in_first.new_zeros(n + 1)
        rows, ends = [], []
        for level in range(n_levels):
            by_order.index_copy_(0, pointer[:n].long(), in_first[level])
            torch.cumsum(by_order, 0, dtype=torch.int32, out=before[1:])
            first = before.index_select(0, pointer).add_(half_starts[level])
            second = (pointer - first).add_(half_starts[level], alpha=2).add_(halves[level])
            pointer = torch.where(in_second[level], second, first)
            rows.append(pointer[:n])
            ends.append(first[n:])
        levels = torch.arange(n_levels, dtype=torch.int32, device=device)[:, None]
        # [levels * n] the row at each position of the next level, by its number or by its position on this level
        self._together = max(1, MAX_ROWS // max(len(lengths), 1))
        stands = torch.stack(rows)
        if self._together > 1:
            sources = torch.arange(n, dtype=torch.int32, device=device).repeat(n_levels)
        else:  # with many rows, the position on this level is the closer one in memory
            sources = torch.cat([torch.arange(n, dtype=torch.int32, device=device), stands[:-1].flatten()])
        targets = stands.add_(levels * n).flatten().long()
        self._rows = torch.empty_like(sources).index_copy_(0, targets, sources)
        # [levels, m] sums from the start of the block to the end of the first half's rows, where they are added
        self._rows = self._rows.view(n_levels, n)
        last = torch.stack(ends)
        offsets = (levels % self._together) * (n + 1)
        # in place: allocating a tensor of this size takes longer than filling it
        first = half_starts[:, n:].mul_(2).sub_(last).mul_(in_second[:, n:]).add_(last)
        self._ends, self._starts = last.add_(offsets), first.add_(offsets)

    def sums(self, weights: Tensor, queries: slice = slice(None)) -> Tensor:
        """``[m, c]`` sums of ``[n, c]`` weights, for some of the queries."""
        (n, c), (n_levels, m) = weights.shape, self._ends[:, queries].shape
        total = weights.new_zeros(m, c)
        for first in range(0, n_levels, self._together):
            levels = slice(first, first + self._together)
            by_order = weights.index_select(0, self._rows[levels].flatten()).view(-1, n, c)
            if self._together == 1:
                weights = by_order[0]
            sums = pad(running_sums(by_order.transpose(1, 2)).transpose(1, 2), (0, 0, 1, 0)).view(-1, c)
            added = sums.index_select(0, self._ends[levels, queries].flatten())
            added.sub_(sums.index_select(0, self._starts[levels, queries].flatten()))
            total.add_(added if self._together == 1 else added.view(-1, m, c).sum(0))
        return total
