"""Independent rankings in one call: which ranking each positive belongs to, and sums and scans within each.

Everything is dense, ``[s, ...]`` for s rankings: the number of operations does not depend on s, and sums of one ranking
contain no values of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from concordet.ranking.sums import as_number


@dataclass(frozen=True)
class Segments:
    """The rankings of p positives.

    Attributes:
        index: ``[p]`` int64 ranking of each positive; None where there is only one ranking.
        n: number of rankings.

    Example:
        >>> Segments(torch.tensor([1, 0, 1]), 2).sizes(3)
        tensor([2, 1, 2])
    """

    index: Tensor | None = None
    n: int = 1

    def flat(self, column: Tensor, width: int) -> Tensor:
        """Index into a flattened ``[s, width]`` table of each positive's ``column`` ``[..., p]``."""
        return column if self.index is None else column + self.index * width

    def table(self, values: Tensor, index: Tensor, width: int) -> Tensor:
        """``[..., s, width]`` sums of the ``values`` ``[..., m]`` at each flat ``index`` ``[m]``."""
        table = values.new_zeros(*values.shape[:-1], self.n * width)
        return table.index_add_(-1, index, values).unflatten(-1, (self.n, width))

    def sizes(self, p: int) -> Tensor | int:
        """Number of positives in the ranking of each positive, ``[p]``; an int where there is only one ranking."""
        if self.index is None:
            return p
        ones = torch.ones_like(self.index)
        return ones.new_zeros(self.n).index_add_(0, self.index, ones).index_select(0, self.index)

    def means(self, values: Tensor, sizes: Tensor | int) -> Tensor:
        """``[t, s]`` means of ``values`` ``[t, p]`` over the positives of each ranking, 0 without any.

        ``sizes`` are those of :meth:`sizes`.
        """
        if self.index is None:
            return values.mean(-1, keepdim=True)
        return self.table(values / sizes, self.index, 1).squeeze(-1)

    def running(self, scan: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """``[p]`` running results of ``scan`` (along the last dimension) over each ranking's ``values``, at least 0.

        Example:
            >>> Segments(torch.tensor([1, 0, 1]), 2).running(lambda x: x.cumsum(-1), torch.tensor([1.0, 2.0, 4.0]))
            tensor([1., 2., 5.])
        """
        if self.index is None:
            return scan(values)
        index = self.flat(torch.arange(len(values), device=values.device), len(values))
        return scan(self.table(values, index, len(values))).flatten().index_select(0, index)

    def same(self) -> Tensor | None:
        """``[p, p]`` whether two positives are in one ranking; None where all are."""
        return None if self.index is None else self.index[:, None] == self.index


ONE = Segments()
"""All positives in one ranking."""


def check_segment_range(segments: Tensor, n: int, where: str = "") -> None:
    """Raises a ValueError that begins with ``where`` unless all ``segments`` are in 0..n-1.

    Example:
        >>> check_segment_range(torch.tensor([0, 2]), 2)
        Traceback (most recent call last):
        ValueError: segments must be in 0..1, got values from 0 to 2; count segments from 0
    """
    if segments.numel() == 0:
        return
    smallest, largest = (int(as_number(value)) for value in segments.long().aminmax())  # no unsigned aminmax
    if smallest < 0 or largest >= n:
        raise ValueError(
            f"{where}segments must be in 0..{n - 1}, got values from {smallest} to {largest}; count segments from 0"
        )
