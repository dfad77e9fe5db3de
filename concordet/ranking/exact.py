"""The values of :mod:`concordet.ranking.quadratic` in O((n + p) log p) time and O(n + p) memory; see README.md.

With s rankings in one call, all share one set of intervals, and sums are tables ``[s, 2p + 1]``: O(n + s p) memory.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import torch
from torch import Tensor

from concordet.distributed import SINGLE_PROCESS, SingleProcess
from concordet.ranking.backend_torch import backend_for
from concordet.ranking.counts import step_at_zero
from concordet.ranking.intervals import Intervals, build_intervals
from concordet.ranking.quadratic import PositivePairs
from concordet.ranking.segments import ONE, Segments
from concordet.ranking.sums import WaveletTree, binned_sums, prefix_sums, running_sums, split, take

MAX_PAIRWISE_POSITIVES = 256
"""Number of positives up to which a matrix of their pairs is faster than a tree."""


def interval_lines(axis: Intervals, delta: float, coefficients: Tensor, segments: Segments) -> Tensor:
    """``[2, s (2p + 1)]`` slope and constant of G(k) = sum_i a_i H(k - t_i) on every interval of each ranking.

    At t_i - d the line a_i (k - t_i + d) / 2d is added; at t_i + d it is subtracted again and a_i is added instead.
    """
    if delta == 0:
        changes = torch.zeros_like(coefficients).expand(2, 2, -1).clone()
    else:
        rise = coefficients / (2 * delta)
        changes = torch.stack([rise, axis.start * rise])[:, None] * signs_of_lines(rise.device)
    changes[1, 1].add_(coefficients)
    edges = segments.flat(axis.edges, axis.size).flatten()
    lines = running_sums(segments.table(changes.flatten(1), edges, axis.size))  # [2, s, 2p + 1]
    axis.blank(lines[0])
    return lines.flatten(1)


@lru_cache
def signs_of_lines(device: torch.device) -> Tensor:
    """``[2, 2, 1]`` float64: at t - d slope a / 2d begins and (t - d) a / 2d is subtracted, at t + d the reverse."""
    return torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64, device=device)[:, :, None]


class ExactCounts:
    """Soft counts by intervals (positives and negatives) and by a wavelet tree (positives by score and quality).

    Among :data:`MAX_PAIRWISE_POSITIVES` positives or fewer, by the matrix of their pairs.

    Args:
        positives: ``[p]`` logits in ascending order.
        negatives: ``[n]`` keys.
        delta: half width of the step.
        processes: processes whose negatives are counted together.
        segments: ranking of each positive.
        negative_segments: ``[n]`` int64 ranking of each key; None for one ranking.
        weights: ``[n]`` float64 number of negatives that each key stands for; None for one.
    """

    def __init__(
        self,
        positives: Tensor,
        negatives: Tensor,
        delta: float,
        processes: SingleProcess = SINGLE_PROCESS,
        segments: Segments = ONE,
        negative_segments: Tensor | None = None,
        *,
        weights: Tensor | None = None,
    ) -> None:
        self._processes = processes
        self.positives: Tensor = positives.double()
        self.segments = segments
        self._delta = delta
        self._keys = positives if positives.dtype == negatives.dtype else positives.to(negatives.dtype)
        self._few = len(positives) <= MAX_PAIRWISE_POSITIVES
        self._negatives = negatives
        self._backend = backend_for(negatives)
        self._axis = axis = build_intervals(self.positives, delta, negatives.dtype, len(negatives))
        self._located, self._weight, self._moment = self._backend.locate_and_sum(
            axis, negatives, weights, negative_segments, segments.n
        )
        self._tree: tuple[Tensor, tuple[Tensor, Tensor, Tensor | None, WaveletTree]] | None = None

    def above(self, *weights: Tensor) -> list[Tensor]:
        axis, size, n = self._axis, self._axis.size, self.segments.n
        # sums over the keys of each interval: of negatives, of positives, of weighted positives
        bins = self.segments.flat(axis.own, size)
        counts = [self._weight.flatten(), binned_sums(bins, None, n * size)]
        counts += [binned_sums(bins, w, n * size) for w in weights]
        if self._delta:
            counts += [axis.blank(self._moment).flatten()]
            counts += [binned_sums(bins, v, n * size) for v in (axis.local, *(w * axis.local for w in weights))]
        # S_i = W(t_i + d) + [X_i - (t_i - d) W_i] / 2d, with W(a) the weight of the keys at or above a, and W_i, X_i
        # weight and weight times key inside the window of i; sums start at the highest key
        table = torch.stack(counts) if self._delta else torch.stack(counts).double()
        sums = running_sums(table.view(-1, n, size).flip(-1)).flatten(1)
        from_top = self.segments.flat((size - 1) - axis.edges, size)
        sums = take(sums, from_top.flatten()).unflatten(1, (2, -1))  # [2c, 2, p]
        result = sums[: 2 + len(weights), 1]
        if self._delta:
            window, moment = (sums[:, 0] - sums[:, 1]).chunk(2)
            inside = torch.addcmul(moment, axis.start, window, value=-1)
            result = torch.add(result, inside, alpha=1 / (2 * self._delta))
        negatives, positives, *weighted = result.unbind()
        # a positive does not count itself
        own = step_at_zero(self._delta)
        weighted = [total.sub_(w, alpha=own) for total, w in zip(weighted, weights, strict=True)]
        return [self._processes.all_sum(negatives), positives.sub_(own), *weighted]

    def better_above(self, quality: Tensor, *weights: Tensor) -> list[Tensor]:
        if self._few:
            return self._pairs.better_above(quality, *weights)
        rows = torch.stack([torch.ones_like(quality), *weights])
        total, (at_lower, at_upper) = self._better(rows, quality, strict=False)
        count = total[: len(rows)] - at_upper[: len(rows)]
        if self._delta:
            window, moment = (at_upper - at_lower).chunk(2)
            count = count + (moment - self._axis.start * window) / (2 * self._delta)
        return list((count - step_at_zero(self._delta) * rows).unbind())

    def spread_to_negatives(self, coefficients: Tensor) -> Tensor:
        lines = interval_lines(self._axis, self._delta, coefficients, self.segments)
        return self._backend.spread(self._axis, self._negatives, self._located, lines)

    def spread_to_worse(self, coefficients: Tensor, quality: Tensor) -> Tensor:
        if self._few:
            return self._pairs.spread_to_worse(coefficients, quality)
        # the steps that begin, and those that end, at or below s_k are prefixes of the ascending order
        _, (begun, ended) = self._better(coefficients[None], quality, strict=True)
        if not self._delta:
            return ended[0]
        window, moment = begun - ended
        return ended[0] + ((self._axis.local + self._delta) * window - moment) / (2 * self._delta)

    @cached_property
    def _pairs(self) -> PositivePairs:
        return PositivePairs(self.positives, self._delta, self.segments)

    def _better(self, weights: Tensor, quality: Tensor, *, strict: bool) -> tuple[Tensor, Tensor]:
        """``[2c, p]`` weights and moments of all better positives, and ``[2, 2c, p]`` of those below two bounds.

        The bounds are t_i - d and t_i + d or, for ``strict`` comparison of qualities, the last positives whose steps
        begin and end at or below s_k. Weights are ``[c, p]``; at delta = 0 there are no moments.
        """
        by_quality, lengths, starts, tree = self._quality_tree(quality)
        p, part = len(quality), int(strict)
        columns = torch.cat([weights, weights * self._axis.local]) if self._delta else weights
        columns = take(columns, by_quality)
        queries = slice(2 * part * p, 2 * (part + 1) * p)
        if starts is None:
            total = take(prefix_sums(columns), lengths[part])
            return total, tree.sums(columns.t().contiguous(), queries).t().unflatten(1, (2, p)).movedim(1, 0)
        # rankings are concatenated: subtract those before, in two parts so that no rounding errors remain
        parts = torch.stack(split(columns))  # [2, 2c, p]
        sums = prefix_sums(parts)
        before = sums.index_select(2, starts)
        total = (sums.index_select(2, lengths[part]) - before).sum(0)
        sums = tree.sums(parts.flatten(0, 1).t().contiguous(), queries).t().view(2, -1, 2, p)
        return total, (sums - before[:, :, None]).sum(0).movedim(1, 0)

    def _quality_tree(self, quality: Tensor) -> tuple[Tensor, Tensor, Tensor | None, WaveletTree]:
        """The positives from best to worst, ``[2, p]`` numbers of better ones, and a tree over their ascending order.

        Cached for the last quality. With several rankings, both orders have one ranking after the other, and a
        positive's ranking begins at its entry of ``starts`` ``[p]``.
        """
        if self._tree is not None and self._tree[0] is quality:
            return self._tree[1]
        axis, p = self._axis, len(quality)
        worst_last = quality.neg()
        sorted_quality, by_quality = torch.sort(worst_last, stable=True)
        # numbers of positives as good or better, and better; searching sorted values takes a fraction of the time
        lengths = torch.stack(
            [torch.searchsorted(sorted_quality, sorted_quality, right=right) for right in (True, False)]
        )
        lengths = torch.empty_like(lengths).index_copy_(1, by_quality, lengths)
        # numbers of positives below t_i - d and t_i + d; of steps that begin and end at or below s_k
        below = torch.searchsorted(self._keys, axis.bounds)
        bounds = torch.stack([below, torch.searchsorted(axis.bounds, self._keys.repeat(2, 1), right=True)])
        indices, starts = by_quality, None
        if self.segments.index is not None:
            by_score = _Stacked(self.segments.index, self.segments)
            by_rank = _Stacked(self.segments.index.index_select(0, by_quality), self.segments)
            lengths, bounds = by_rank.stack(lengths), by_score.stack(bounds)
            rows = torch.arange(p, device=quality.device)
            starts = by_score.stack(torch.zeros_like(rows))
            ranks = by_rank.stack(rows.new_zeros(p).index_copy_(0, by_quality, rows))  # [p] row of each positive
            indices = rows.new_zeros(p).index_copy_(0, ranks, by_score.stack(rows))
            by_quality = rows.new_zeros(p).index_copy_(0, ranks, rows)
        tree = WaveletTree(indices, lengths[:, None].expand(2, 2, p).flatten(), bounds.flatten())
        self._tree = (quality, (by_quality, lengths, starts, tree))
        return self._tree[1]


class _Stacked:
    """Positives in some order, rearranged so that one ranking follows the other."""

    def __init__(self, order: Tensor, segments: Segments) -> None:
        """``order`` ``[p]`` has the ranking of each positive in that order, ``segments`` the rankings of queries."""
        p = len(order)
        index = torch.arange(p, device=order.device) + order * (p + 1)
        ones = order.new_zeros(segments.n * (p + 1)).index_fill_(0, index, 1)
        self._before = prefix_sums(ones)[:-1]
        self._segments, self._width = segments, p + 1

    def stack(self, first: Tensor) -> Tensor:
        """``[..., p]`` end, in the new order, of the positives of a query's ranking among the ``first`` ones."""
        return self._before.index_select(0, self._segments.flat(first, self._width).flatten()).view(first.shape)
