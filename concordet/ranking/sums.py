"""Prefix sums, suffix sums and sums over {place < a, length < b} (a wavelet tree), all in whole-tensor operations."""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_sums(values: Tensor) -> Tensor:
    """``[n + 1, ...]`` sums of the first 0, 1, ..., n rows.

    Example:
        >>> prefix_sums(torch.tensor([1, 2, 3]))
        tensor([0, 1, 3, 6])
    """
    return torch.cat([values.new_zeros((1, *values.shape[1:])), values]).cumsum(0)


def suffix_sums(values: Tensor) -> Tensor:
    """``[n + 1]`` sums of the rows from 0, 1, ..., n on.

    Example:
        >>> suffix_sums(torch.tensor([1, 2, 3]))
        tensor([6, 5, 3, 0])
    """
    return prefix_sums(values.flip(0)).flip(0)


def dominance_sums(places: Tensor, weights: tuple[Tensor, ...], lengths: Tensor, bounds: Tensor) -> tuple[Tensor, ...]:
    """Sums of the weights of the first ``lengths`` rows whose place is below ``bounds``.

    A wavelet tree, walked for all queries at once. On a level, rows stand in blocks of 2h consecutive places, in their
    first order within a block. A query is in the block [S, S + 2h) that its bound falls into and sees the block's
    rows before ``end``; ``zeros`` of them have a place in the block's first half. Where the bound is in the second
    half, these are all below it: their weights are added, and the query goes on in the second half; otherwise it goes
    on in the first. Places are a permutation, so every block before S is full: no starts need to be looked up.

    Args:
        places: ``[n]`` integers, each of 0..n-1 once.
        weights: tensors ``[n]``.
        lengths: ``[m]`` integers in 0..n, how many first rows a query looks at.
        bounds: ``[m]`` integers in 0..n, exclusive.

    Returns:
        A tensor ``[m]`` for each of the weights. O((n + m) log n) time, O(n + m) memory.

    Example:
        >>> places, weights = torch.tensor([2, 0, 1]), torch.tensor([1.0, 10.0, 100.0])
        >>> dominance_sums(places, (weights,), torch.tensor([2, 3]), torch.tensor([2, 2]))
        (tensor([ 10., 110.]),)
    """
    n, n_levels = len(places), len(places).bit_length()
    size = 1 << n_levels  # > n, so that a bound of n is inside; the places from n on have no weight
    rows = torch.arange(size, dtype=torch.int32, device=places.device)
    places = torch.cat([places.to(torch.int32), rows[n:]])
    # a last row that no query looks at before: sums of the first 0..n rows
    columns = [torch.cat([column, column.new_zeros(size - n)]) for column in weights]
    end, bounds = lengths.to(torch.int32), bounds.to(torch.int32)
    totals = [column.new_zeros(len(bounds)) for column in columns]
    for level in reversed(range(n_levels)):
        half = 1 << level
        in_first = (places & half) == 0  # [size]
        zeros = prefix_sums(in_first.to(torch.int32)).to(torch.int32)  # [size + 1]
        # places and weights of the next level: first halves to the front of their blocks
        start = rows & -(2 * half)
        before = zeros[:-1] - (start >> 1)  # of the first half, in the same block
        target = torch.where(in_first, start + before, rows - before + half)
        places = torch.empty_like(places).scatter_(0, target.long(), places)
        columns = [torch.empty_like(column).index_copy_(0, target.long(), column) for column in columns]

        start = bounds & -(2 * half)  # [m]
        seen = zeros.index_select(0, end) - (start >> 1)
        in_second = (bounds & half) != 0
        first_end = start + seen
        for total, column in zip(totals, columns, strict=True):
            sums = prefix_sums(column)
            found = sums.index_select(0, first_end) - sums.index_select(0, start)
            total.add_(found * in_second)
        end = torch.where(in_second, end + half - seen, first_end)
    return tuple(totals)
