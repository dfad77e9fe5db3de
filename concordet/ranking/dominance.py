"""Sums over {first place < a, second place < b} for many (a, b): a wavelet matrix in whole-tensor operations."""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_sums(values: Tensor) -> Tensor:
    """``[n + 1, ...]`` sums of the first 0, 1, ..., n rows."""
    return torch.cat([values.new_zeros((1, *values.shape[1:])), values.cumsum(dim=0)])


def dominance_sums(places: Tensor, weights: Tensor, lengths: Tensor, bounds: Tensor) -> Tensor:
    """Sum of the weights of the first ``lengths`` rows whose place is below ``bounds``.

    Level by level, from the highest bit of the places down, rows are parted stably by the bit. A query is a range of
    rows [begin, end); where its bound's bit is 1, the rows with bit 0 are all below the bound: their weights are added,
    and the query goes on with the rows of bit 1; otherwise it goes on with the rows of bit 0.

    Args:
        places: ``[n]`` int64, each of 0..n-1 once.
        weights: ``[n, c]``.
        lengths: ``[m]`` int64 in 0..n, how many first rows a query looks at.
        bounds: ``[m]`` int64 in 0..n, exclusive.

    Returns:
        ``[m, c]`` sums. O((n + m) log n) time, O(n + m) memory.

    Example:
        >>> places, weights = torch.tensor([2, 0, 1]), torch.tensor([[1.0], [10.0], [100.0]])
        >>> dominance_sums(places, weights, torch.tensor([2, 3]), torch.tensor([2, 2])).flatten()
        tensor([ 10., 110.])
    """
    n = len(places)
    begin, end = torch.zeros_like(lengths), lengths
    total = weights.new_zeros(len(lengths), weights.shape[1])
    rows = torch.arange(n, device=places.device)
    for level in reversed(range(n.bit_length())):
        bit = (places >> level) & 1  # [n]
        ones = prefix_sums(bit)  # [n + 1]
        n_zeros = n - ones[-1]
        below = prefix_sums(weights * (1 - bit)[:, None])  # [n + 1, c]
        goes_up = ((bounds >> level) & 1).bool()  # [m]
        total = total + torch.where(goes_up[:, None], below[end] - below[begin], 0)
        ones_begin, ones_end = ones[begin], ones[end]
        begin = torch.where(goes_up, n_zeros + ones_begin, begin - ones_begin)
        end = torch.where(goes_up, n_zeros + ones_end, end - ones_end)
        target = torch.where(bit.bool(), n_zeros + ones[:-1], rows - ones[:-1])
        places = torch.empty_like(places).scatter_(0, target, places)
        weights = torch.empty_like(weights).index_copy_(0, target, weights)
    return total
