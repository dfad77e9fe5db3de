"""The numbers of :mod:`concordet.ranking.quadratic` in O((n + p) log p) time and O(n + p) memory; see README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from concordet.distributed import SINGLE_PROCESS, SingleProcess
from concordet.ranking.backend_torch import backend_for
from concordet.ranking.counts import step_at_zero
from concordet.ranking.intervals import Intervals, build_intervals
from concordet.ranking.quadratic import PositivePairs
from concordet.ranking.sums import WaveletTree, binned_sums, prefix_sums, suffix_sums

MAX_PAIRWISE_POSITIVES = 256
"""Positives up to which their pairs are looked at one by one: a matrix this small is made faster than a tree."""


def count_above(axis: Intervals, delta: float, weight: Tensor, moment: Tensor) -> Tensor:
    """``[p]`` S_i = sum_j w_j H(k_j - t_i), in ascending order of t, from the moments of the keys.

        S_i = W(t_i + d) + [X_i - (t_i - d) W_i] / 2d

    with W(a) the weight of the keys from a on, and W_i, X_i weight and weight times key inside the window of i.
    """
    weight = suffix_sums(weight)
    full = weight.index_select(0, axis.upper + 1)
    if delta == 0:
        return full
    moment = suffix_sums(moment)
    inside = weight.index_select(0, axis.lower + 1) - full
    moment = moment.index_select(0, axis.lower + 1) - moment.index_select(0, axis.upper + 1)
    return full + (moment - (axis.local - delta) * inside) / (2 * delta)


def interval_lines(axis: Intervals, delta: float, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """``[2p + 1]`` constant and slope of G(k) = sum_i a_i H(k - t_i) on every interval, amounts in ascending order.

    At t_i - d the line a_i (k - t_i + d) / 2d is added; at t_i + d it is taken off again and a_i is added instead.
    """
    size = len(axis.thresholds)
    closed = coefficients.new_zeros(size).index_copy_(0, axis.upper, coefficients)
    constant = prefix_sums(closed)
    if delta == 0:
        return constant, torch.zeros_like(constant)
    rise = coefficients / (2 * delta)
    slope = coefficients.new_zeros(size).index_copy_(0, axis.lower, rise).index_copy_(0, axis.upper, -rise)
    shift = (delta - axis.local) * rise
    offset = coefficients.new_zeros(size).index_copy_(0, axis.lower, shift).index_copy_(0, axis.upper, -shift)
    slope = torch.where(axis.live, prefix_sums(slope), 0.0)
    offset = torch.where(axis.live, prefix_sums(offset), 0.0)
    return constant + offset, slope


class ExactCounts:
    """Soft counts by intervals (positives and negatives) and by a wavelet tree (positives by score and quality).

    Among :data:`MAX_PAIRWISE_POSITIVES` positives or fewer, by the matrix of their pairs.
    """

    def __init__(
        self,
        positives: Tensor,
        negatives: Tensor,
        delta: float,
        processes: SingleProcess = SINGLE_PROCESS,
        *,
        weights: Tensor | None = None,
    ) -> None:
        """``weights`` ``[n]`` float64 says how many negatives each of the negatives stands for; None for one."""
        self._processes = processes
        self.positives = positives.double()
        self._delta = delta
        self._pairs = PositivePairs(positives, delta) if len(positives) <= MAX_PAIRWISE_POSITIVES else None
        self._negatives = negatives
        self._passes = backend_for(negatives)
        self._axis = axis = build_intervals(positives, delta, negatives.dtype)
        self._interval, self._weight, self._moment = self._passes.locate_and_sum(axis, negatives, weights)
        ascending = positives.index_select(0, axis.order).to(negatives.dtype)
        self._positive_interval = axis.locate(ascending)
        self._tree: tuple[Tensor, tuple[Tensor, Tensor, Tensor, WaveletTree]] | None = None

    def negatives_above(self) -> Tensor:
        count = self._unsort(count_above(self._axis, self._delta, self._weight, self._moment)).clamp_min(0)
        return self._processes.all_sum(count)

    def positives_above(self, weights: Tensor) -> Tensor:
        if self._pairs is not None:
            return self._pairs.positives_above(weights)
        axis, size = self._axis, len(self._axis.origin)
        columns = []
        for column in weights.unbind(1):
            own = column.index_select(0, axis.order)
            weight = binned_sums(self._positive_interval, own, size)
            moment = binned_sums(self._positive_interval, own * axis.local, size)
            count = count_above(axis, self._delta, weight, moment)
            columns.append(self._unsort(count - step_at_zero(self._delta) * own))
        return torch.stack(columns, 1)

    def better_above(self, weights: Tensor, quality: Tensor) -> Tensor:
        if self._pairs is not None:
            return self._pairs.better_above(weights, quality)
        axis, p = self._axis, len(self.positives)
        ascending = weights.index_select(0, axis.order)
        # keys at or above t_i + d and t_i - d are all but a prefix of the ascending order
        count = prefix_sums(binned_sums(self._positive_interval, None, 2 * p + 1))
        below_upper, below_lower = count.index_select(0, axis.upper + 1), count.index_select(0, axis.lower + 1)
        everything, at_upper, at_lower = self._better(ascending, quality, below_upper, below_lower, strict=False)
        window, moment = (at_upper - at_lower).chunk(2, 1)
        total = (everything - at_upper).chunk(2, 1)[0] + self._ramp(
            moment - (axis.local - self._delta)[:, None] * window
        )
        return self._unsort(total - step_at_zero(self._delta) * ascending)

    def spread_to_negatives(self, coefficients: Tensor) -> Tensor:
        constant, slope = interval_lines(self._axis, self._delta, coefficients.index_select(0, self._axis.order))
        return self._passes.spread(self._axis, self._negatives, self._interval, constant, slope)

    def spread_to_worse(self, coefficients: Tensor, quality: Tensor) -> Tensor:
        if self._pairs is not None:
            return self._pairs.spread_to_worse(coefficients, quality)
        axis, p = self._axis, len(self.positives)
        ascending = coefficients.index_select(0, axis.order)[:, None]
        # steps that have ended, and begun, at or below s_k: prefixes of the ascending order
        edges = torch.zeros(2 * p, dtype=torch.int32, device=quality.device)
        ended = prefix_sums(edges.index_fill_(0, axis.upper, 1)).index_select(0, self._positive_interval)
        begun = self._positive_interval - ended
        _, at_ended, at_begun = self._better(ascending, quality, ended, begun, strict=True)
        window, moment = (at_begun - at_ended).chunk(2, 1)
        total = at_ended.chunk(2, 1)[0] + self._ramp((axis.local + self._delta)[:, None] * window - moment)
        return self._unsort(total.squeeze(1))

    def _better(
        self, weights: Tensor, quality: Tensor, first: Tensor, second: Tensor, *, strict: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[p, 2c]`` weights and moments of the better ones: of all, and of the ``first`` and ``second`` lowest.

        Everything is in ascending order of the positives but ``quality``; weights are ``[p, c]``.
        """
        by_quality, sorted_quality, worst_last, tree = self._quality_tree(quality)
        lengths = torch.searchsorted(sorted_quality, worst_last, right=not strict)  # how many are better
        columns = torch.cat([weights, weights * self._axis.local[:, None]], 1).index_select(0, by_quality)
        sums = tree.sums(columns, lengths=lengths.repeat(2), bounds=torch.cat([first, second]))
        return prefix_sums(columns).index_select(0, lengths), *sums.split(len(lengths))

    def _quality_tree(self, quality: Tensor) -> tuple[Tensor, Tensor, Tensor, WaveletTree]:
        """The positives from best to worst, and a tree over their ascending places; kept for one quality."""
        if self._tree is None or self._tree[0] is not quality:
            worst_last = quality.index_select(0, self._axis.order).neg()
            sorted_quality, by_quality = torch.sort(worst_last, stable=True)
            self._tree = (quality, (by_quality, sorted_quality, worst_last, WaveletTree(by_quality)))
        return self._tree[1]

    def _ramp(self, difference: Tensor) -> Tensor:
        return difference / (2 * self._delta) if self._delta else torch.zeros_like(difference)

    def _unsort(self, ascending: Tensor) -> Tensor:
        return torch.empty_like(ascending).index_copy_(0, self._axis.order, ascending)
