"""Prefix sums, suffix sums and sums over {place < a, length < b} (a wavelet tree), all in whole-tensor operations."""

from __future__ import annotations

import torch
from torch import Tensor


def on_host(tensor: Tensor) -> bool:
    """Whether a value can be looked at for nothing; on other devices the host would wait, and no graph be captured."""
    return tensor.is_cpu


def binned_sums(places: Tensor, weights: Tensor | None, size: int) -> Tensor:
    """``[size]`` sums of the ``weights`` ``[n]`` of each place, or how many there are.

    Example:
        >>> binned_sums(torch.tensor([2, 0, 2]), None, 4)
        tensor([1, 0, 2, 0])
    """
    if on_host(places):
        return torch.bincount(places, weights, minlength=size)
    # elsewhere counting bins asks the device how many there are
    weights = torch.ones_like(places, dtype=torch.int64) if weights is None else weights
    return weights.new_zeros(size).index_add_(0, places, weights)


def prefix_sums(values: Tensor) -> Tensor:
    """``[n + 1, ...]`` sums of the first 0, 1, ..., n rows, in the values' dtype.

    Example:
        >>> prefix_sums(torch.tensor([1, 2, 3]))
        tensor([0, 1, 3, 6])
    """
    sums = values.new_zeros((len(values) + 1, *values.shape[1:]))
    if values.is_floating_point() and not on_host(values) and torch.are_deterministic_algorithms_enabled():
        sums[1:] = _fixed_order_sums(values)  # PyTorch's own have no fixed order there, and refuse
    else:
        torch.cumsum(values, 0, dtype=values.dtype, out=sums[1:])
    return sums


def _fixed_order_sums(values: Tensor) -> Tensor:
    """Inclusive prefix sums by doubling: log2 n whole-tensor additions (Hillis and Steele)."""
    reach = 1
    while reach < len(values):
        values = torch.cat([values[:reach], values[reach:] + values[:-reach]])
        reach *= 2
    return values


def suffix_sums(values: Tensor) -> Tensor:
    """``[n + 1]`` sums of the rows from 0, 1, ..., n on.

    Example:
        >>> suffix_sums(torch.tensor([1, 2, 3]))
        tensor([6, 5, 3, 0])
    """
    return prefix_sums(values.flip(0)).flip(0)


class WaveletTree:
    """Sums of the weights of the first rows whose place is below a bound, for many queries at once.

    On the level of h = 2^level, rows stand in blocks of 2h consecutive places, in their first order within a block. A
    query is in the block [S, S + 2h) that its bound falls into and sees the rows before ``end``; some of them have a
    place in the first half. Where the bound is in the second half, these are all below it: their weights are added, and
    the query goes on in the second half; otherwise it goes on in the first. Places are a permutation, so every block
    before S is full and holds h places of a first half: no starts need to be looked up.

    Args:
        places: ``[n]`` int64, each of 0..n-1 once. O(n log n) time and memory.

    Example:
        >>> tree, weights = WaveletTree(torch.tensor([2, 0, 1])), torch.tensor([[1.0], [10.0], [100.0]])
        >>> tree.sums(weights, lengths=torch.tensor([2, 3]), bounds=torch.tensor([2, 2])).flatten()
        tensor([ 10., 110.])
    """

    def __init__(self, places: Tensor) -> None:
        n = len(places)
        self._n_levels = n.bit_length()
        self._size = 1 << self._n_levels  # > n, so that a bound of n is inside; the places from n on have no weight
        rows = torch.arange(self._size, device=places.device)
        places = torch.cat([places, rows[n:]])
        self._levels = []
        for level in reversed(range(self._n_levels)):
            half = 1 << level
            in_second = (places >> level) & 1  # [size]
            zeros = prefix_sums(1 - in_second)  # [size + 1]
            # the next level: first halves to the front of their blocks
            start = rows & -(2 * half)
            in_first_half = zeros[:-1] + (start >> 1)
            target = torch.where(in_second.bool(), rows + (start + half) - in_first_half, in_first_half)
            source = torch.empty_like(rows).scatter_(0, target, rows)
            places = places.index_select(0, source)
            self._levels.append((half, zeros.to(torch.int32), source))

    def sums(self, weights: Tensor, *, lengths: Tensor, bounds: Tensor) -> Tensor:
        """``[m, c]`` sums of ``[n, c]`` weights of the first ``lengths`` ``[m]`` rows with a place below ``bounds``
        ``[m]``.

        O((n + m) log n) time, O(n + m log n) memory.
        """
        weights = torch.cat([weights, weights.new_zeros(self._size - len(weights), weights.shape[1])])
        end, bounds = lengths.to(torch.int32, copy=True), bounds.to(torch.int32)  # end is written to
        bits = torch.arange(self._n_levels - 1, -1, -1, dtype=torch.int32, device=bounds.device)[:, None]
        halves = torch.ones_like(bits) << bits
        starts, in_second = bounds & -(2 * halves), (bounds & halves).bool()  # [levels, m]
        half_starts, second_starts = starts >> 1, starts + halves
        total = weights.new_zeros(len(bounds), weights.shape[1])
        for i, (_, zeros, source) in enumerate(self._levels):
            weights = weights.index_select(0, source)
            sums = prefix_sums(weights)
            start, second = starts[i], in_second[i]
            first_end = zeros.index_select(0, end).add_(half_starts[i])
            added = sums.index_select(0, torch.where(second, first_end, start))
            total.add_(added).sub_(sums.index_select(0, start))
            end = torch.where(second, end.sub_(first_end).add_(second_starts[i]), first_end)
        return total
