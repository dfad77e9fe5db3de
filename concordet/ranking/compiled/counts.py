"""Soft counts by intervals, as in :mod:`concordet.ranking.exact`, and by Fenwick trees among the positives.

Each step is one loop of :mod:`concordet.ranking.compiled.loops`. At few logits, this replaces dozens of small
operations; at many, intermediate tensors of the size of the logits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from concordet.distributed import SINGLE_PROCESS, SingleProcess
from concordet.ranking.compiled import loops
from concordet.ranking.compiled.loops import Floats, Integers
from concordet.ranking.counts import step_at_zero
from concordet.ranking.intervals import CHAIN_GAP
from concordet.ranking.segments import ONE, Segments, check_segment_range


class CompiledCounts:
    """Soft counts, :class:`concordet.ranking.counts.Counts`, of logits on a CPU.

    Args:
        positives: ``[p]`` logits in ascending order, p > 0.
        negatives: ``[n]`` float32 or float64 keys.
        delta: half width of the step.
        processes: processes whose negatives are counted together.
        segments: ranking of each positive.
        negative_segments: ``[n]`` int64 ranking of each key; None for one ranking.
    """

    def __init__(
        self,
        positives: Tensor,
        negatives: Tensor,
        delta: float,
        processes: SingleProcess = SINGLE_PROCESS,
        segments: Segments = ONE,
        negative_segments: Tensor | None = None,
    ) -> None:
        self.positives: Tensor = positives.double()
        self.segments = segments
        self._processes = processes
        self._delta = float(delta)
        self._keys = negatives.numpy()
        self._order: Tensor | None = None  # of positives, one ranking after the other
        p = len(positives)
        if segments.index is None:
            owner, first = np.zeros(p, np.int64), np.array([0, p])
        else:
            sorted_index, self._order = torch.sort(segments.index, stable=True)
            owner, first = sorted_index.numpy(), np.zeros(segments.n + 1, np.int64)
            np.cumsum(np.bincount(owner, minlength=segments.n), out=first[1:])
        self._owner, self._first = owner, first
        # the gap is an argument, since the cache of a loop knows of changes in its own file only
        cut = loops.cut(self._grouped(self.positives), first, self._delta, CHAIN_GAP * self._delta)
        thresholds, self._axis, self._opened, self._local, self._intervals, self._below, self._passed = cut
        rankings = np.empty(0, np.int64)
        if negative_segments is not None:
            check_segment_range(negative_segments, segments.n)  # the loops check no index
            rankings = negative_segments.numpy()
        grid = loops.build_grid(thresholds, first)
        self._where, self._sums = loops.count_keys(self._keys, rankings, first, thresholds, self._axis, *grid)
        self._best: tuple[Tensor, tuple[Floats, Integers]] | None = None

    def above(self, *weights: Tensor) -> list[Tensor]:
        keys = loops.keys_above(self._first, self._intervals, self._local, self._opened, self._sums, self._delta)
        rows = self._with_ones(weights)
        positives = loops.positives_above(self._first, self._below, self._local, rows, self._delta)
        return [self._processes.all_sum(self._ranked(keys)), *self._without_own(positives, rows)]

    def better_above(self, quality: Tensor, *weights: Tensor) -> list[Tensor]:
        quality_and_order, rows = self._best_first(quality), self._with_ones(weights)
        above = loops.better_above(
            self._first, self._owner, self._below, self._local, *quality_and_order, rows, self._delta
        )
        return self._without_own(above, rows)

    def spread_to_negatives(self, coefficients: Tensor) -> Tensor:
        lines = loops.lines(
            self._first, self._intervals, self._local, self._axis, self._opened, self._grouped(coefficients),
            self._delta,
        )  # fmt: skip
        shares = np.empty_like(self._keys)
        loops.spread(self._keys, self._where, lines, shares)
        return torch.from_numpy(shares)

    def spread_to_worse(self, coefficients: Tensor, quality: Tensor) -> Tensor:
        quality_and_order, rows = self._best_first(quality), self._grouped(coefficients)
        shares = loops.spread_to_worse(
            self._first, self._owner, self._passed, self._local, *quality_and_order, rows, self._delta
        )
        return self._ranked(shares)

    def _best_first(self, quality: Tensor) -> tuple[Floats, Integers]:
        """``[p]`` qualities and the order of positives from best to worst; cached for the last quality."""
        if self._best is None or self._best[0] is not quality:
            grouped = self._grouped(quality)
            order = torch.sort(torch.from_numpy(grouped), descending=True, stable=True).indices
            self._best = (quality, (grouped, order.numpy()))
        return self._best[1]

    def _without_own(self, above: Floats, rows: Floats) -> list[Tensor]:
        """Sums over the other positives, from those that include each positive itself."""
        return list(self._ranked(above - step_at_zero(self._delta) * rows))

    def _with_ones(self, weights: tuple[Tensor, ...]) -> Floats:
        """``[1 + c, p]`` ones, and the weights."""
        return np.stack([np.ones(len(self._local)), *map(self._grouped, weights)])

    def _grouped(self, values: Tensor) -> Floats:
        """``[p]`` values of the positives in the order of the loops."""
        return (values if self._order is None else values.index_select(0, self._order)).contiguous().numpy()

    def _ranked(self, values: Floats) -> Tensor:
        """``[..., p]`` values from the loops in the order of the positives."""
        tensor = torch.from_numpy(values)
        return tensor if self._order is None else torch.empty_like(tensor).index_copy_(-1, self._order, tensor)
