"""The numbers of :mod:`concordet.ranking.quadratic` in O((n + p) log p) time and O(n + p) memory; see README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from concordet.ranking.counts import step_at_zero
from concordet.ranking.dominance import dominance_sums, prefix_sums
from concordet.ranking.intervals import Intervals, cut


def suffix_sums(values: Tensor) -> Tensor:
    """``[n + 1]`` sums of the rows from 0, 1, ..., n on."""
    return prefix_sums(values.flip(0)).flip(0)


def count_above(axis: Intervals, delta: float, interval: Tensor, coordinate: Tensor, weights: Tensor | None) -> Tensor:
    """``[p]`` S_i = sum_j w_j H(k_j - t_i) over keys given by interval and coordinate, in ascending order of t.

        S_i = W(t_i + d) + [X_i - (t_i - d) W_i] / 2d

    with W(a) the weight of the keys from a on, and W_i, X_i weight and weight times key inside the window of i.
    """
    size = len(axis.origin)
    weight = suffix_sums(torch.bincount(interval, weights, minlength=size).double())
    full = weight[axis.upper + 1]
    if delta == 0:
        return full
    moment = coordinate if weights is None else coordinate * weights
    moment = suffix_sums(torch.bincount(interval, moment, minlength=size))
    inside = weight[axis.lower + 1] - full
    moment = moment[axis.lower + 1] - moment[axis.upper + 1]
    return full + (moment - (axis.local - delta) * inside) / (2 * delta)


def lines(axis: Intervals, delta: float, amount: Tensor) -> tuple[Tensor, Tensor]:
    """``[2p + 1]`` constant and slope of G(k) = sum_i a_i H(k - t_i) on every interval, amounts in ascending order.

    At t_i - d the line a_i (k - t_i + d) / 2d is added; at t_i + d it is taken off again and a_i is added instead.
    """
    size = len(axis.thresholds)
    closed = amount.new_zeros(size).index_copy_(0, axis.upper, amount)
    constant = prefix_sums(closed)
    if delta == 0:
        return constant, torch.zeros_like(constant)
    rise = amount / (2 * delta)
    slope = amount.new_zeros(size).index_copy_(0, axis.lower, rise).index_copy_(0, axis.upper, -rise)
    shift = (delta - axis.local) * rise
    offset = amount.new_zeros(size).index_copy_(0, axis.lower, shift).index_copy_(0, axis.upper, -shift)
    slope = torch.where(axis.live, prefix_sums(slope), 0.0)
    offset = torch.where(axis.live, prefix_sums(offset), 0.0)
    return constant + offset, slope


class ExactCounts:
    """Soft counts by intervals (positives and negatives) and by a wavelet matrix (positives by score and quality)."""

    def __init__(self, positives: Tensor, negatives: Tensor, delta: float, weights: Tensor | None = None) -> None:
        """``weights`` ``[n]`` says how many negatives each of the negatives stands for; None for one."""
        self.positives = positives.double()
        self._delta = delta
        self._negative_weights = weights
        self._axis = cut(positives, delta, negatives.dtype)
        self._negative_interval = self._axis.place(negatives)
        self._negative_coordinate = self._axis.coordinate(negatives, self._negative_interval)
        ascending = positives[self._axis.order].to(negatives.dtype)
        self._interval = self._axis.place(ascending)  # of the positives, ascending

    def negatives_above(self) -> Tensor:
        count = count_above(
            self._axis, self._delta, self._negative_interval, self._negative_coordinate, self._negative_weights
        )
        return self._unsort(count).clamp_min(0)

    def positives_above(self, weights: Tensor) -> Tensor:
        axis = self._axis
        ascending = weights[axis.order]
        columns = [count_above(axis, self._delta, self._interval, axis.local, w) for w in ascending.unbind(1)]
        return self._unsort(torch.stack(columns, 1) - step_at_zero(self._delta) * ascending)

    def better_above(self, weights: Tensor, quality: Tensor) -> Tensor:
        axis, p = self._axis, len(self.positives)
        ascending, quality = weights[axis.order], quality[axis.order]
        # keys at or above t_i + d and t_i - d: suffixes of the ascending order, prefixes of the descending one
        full = suffix_sums(torch.bincount(self._interval, minlength=2 * p + 1))
        inside = self._dominance(
            ascending, axis.local, quality, p - 1 - torch.arange(p, device=quality.device),
            full[axis.upper + 1], full[axis.lower + 1], strict=False,
        )  # fmt: skip
        total, window, moment = inside
        total = total + self._ramp(moment - (axis.local - self._delta)[:, None] * window)
        return self._unsort(total - step_at_zero(self._delta) * ascending)

    def spread_to_negatives(self, amount: Tensor) -> Tensor:
        constant, slope = lines(self._axis, self._delta, amount[self._axis.order])
        interval = self._negative_interval
        return torch.addcmul(constant[interval], slope[interval], self._negative_coordinate)

    def spread_to_worse(self, amount: Tensor, quality: Tensor) -> Tensor:
        axis, p = self._axis, len(self.positives)
        ascending, quality = amount[axis.order, None], quality[axis.order]
        # steps that have ended, and begun, at or below s_k: prefixes of the ascending order
        ended = prefix_sums(torch.zeros(2 * p, dtype=torch.long, device=quality.device).index_fill_(0, axis.upper, 1))
        begun = prefix_sums(torch.zeros(2 * p, dtype=torch.long, device=quality.device).index_fill_(0, axis.lower, 1))
        total, window, moment = self._dominance(
            ascending, axis.local, quality, torch.arange(p, device=quality.device),
            ended[self._interval], begun[self._interval], strict=True,
        )  # fmt: skip
        total = total + self._ramp((axis.local + self._delta)[:, None] * window - moment)
        return self._unsort(total.squeeze(1))

    def _dominance(
        self,
        weights: Tensor,
        local: Tensor,
        quality: Tensor,
        places: Tensor,
        full: Tensor,
        reach: Tensor,
        *,
        strict: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of better keys at places below ``full``; weights, and moments, of those from there to ``reach``."""
        descending, by_quality = torch.sort(-quality, stable=True)
        lengths = torch.searchsorted(descending, -quality, right=not strict)  # how many are better
        columns = torch.cat([weights, weights * local[:, None]], 1)[by_quality]
        sums = dominance_sums(places[by_quality], columns, lengths.repeat(2), torch.cat([full, reach]))
        at_full, at_reach = sums.split(len(lengths))
        c = weights.shape[1]
        return at_full[:, :c], (at_reach - at_full)[:, :c], (at_reach - at_full)[:, c:]

    def _ramp(self, difference: Tensor) -> Tensor:
        return difference / (2 * self._delta) if self._delta else torch.zeros_like(difference)

    def _unsort(self, ascending: Tensor) -> Tensor:
        return torch.empty_like(ascending).index_copy_(0, self._axis.order, ascending)
