"""The thesis's Algorithm 2: a prototype stands for each run of negatives between two consecutive positives.

Yavuz, Cam, Kalkan, Akbas: Bucketed Ranking-based Losses for Efficient Training of Object Detectors (ECCV 2024 and
thesis). An approximation for delta > 0; exact at delta = 0 unless negatives tie with positives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from concordet.distributed import SINGLE_PROCESS, SingleProcess
from concordet.ranking.exact import ExactCounts
from concordet.ranking.segments import ONE, Segments


def bucket(
    positives: Tensor,
    negatives: Tensor,
    processes: SingleProcess = SINGLE_PROCESS,
    segments: Segments = ONE,
    negative_segments: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Prototypes ``[b]`` (mean logits), sizes ``[b]``, ``[n]`` bucket of each negative, and ``[b]`` rankings or None.

    All logits are sorted in descending order, stably and positives first, so that a negative tied with a positive falls
    into the bucket below it (Algorithm 2, lines 1 and 2; the published code's sort is not stable, which changes
    gradients of tied scores by up to 16 % of the largest); of several rankings, one after the other. There is no bucket
    between adjacent positives. Positives are those of all ``processes``, negatives a process's own; buckets hold those
    of all.

    Example:
        >>> prototypes, sizes, _, _ = bucket(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.5, 0.0]))
        >>> prototypes, sizes
        (tensor([2.2500, 0.0000], dtype=torch.float64), tensor([2., 1.], dtype=torch.float64))
    """
    p, n_runs = len(positives), len(positives) + segments.n
    order = torch.sort(torch.cat([positives, negatives]), descending=True, stable=True).indices
    if segments.index is not None and negative_segments is not None:
        rankings = torch.cat([segments.index, negative_segments])
        order = order[torch.sort(rankings[order], stable=True).indices]
    is_negative = order >= p
    rows = order[is_negative] - p
    run = (~is_negative).cumsum(0)[is_negative]  # number of positives before each negative
    owners = None  # [runs] ranking of each run; a ranking of p positives has p + 1 runs
    if segments.index is not None and negative_segments is not None:
        run = run + negative_segments[rows]
        ends = (torch.bincount(segments.index, minlength=segments.n) + 1).cumsum(0)
        owners = torch.searchsorted(ends, torch.arange(n_runs, device=run.device), right=True)
    sorted_negatives = negatives[rows].double()
    # of each run, which is sorted: count, sum, largest value, and negated smallest value
    counts = torch.bincount(run, minlength=n_runs)
    ends = counts.cumsum(0)
    padded = torch.cat([sorted_negatives, sorted_negatives.new_zeros(1)])  # empty runs may begin at the end
    bounds = torch.stack([padded[ends - counts], -padded[ends - 1]]).masked_fill_(counts == 0, -torch.inf)
    largest, smallest = processes.all_max(bounds)
    sums = sorted_negatives.new_zeros(n_runs).index_add_(0, run, sorted_negatives)
    sizes, sums = processes.all_sum(torch.stack([counts.double(), sums]))
    used = sizes > 0
    # rounding must not move the mean of equal logits away from them
    prototypes = torch.clamp(sums / sizes, -smallest, largest)[used]
    which = (used.cumsum(0) - 1)[run]
    which = torch.empty_like(which).index_copy_(0, rows, which)
    return prototypes, sizes[used], which, None if owners is None else owners[used]


class BucketedCounts(ExactCounts):
    """Soft counts in which every negative is moved to its bucket's mean (Eqs. 3.20-3.22, over all buckets)."""

    def __init__(
        self,
        positives: Tensor,
        negatives: Tensor,
        delta: float,
        processes: SingleProcess = SINGLE_PROCESS,
        segments: Segments = ONE,
        negative_segments: Tensor | None = None,
    ) -> None:
        self._all_negatives = negatives
        if segments.index is None or negative_segments is None:
            lowest = positives.min()
        else:
            table = positives.new_full((segments.n,), torch.inf)
            lowest = table.scatter_reduce_(0, segments.index, positives, "amin")[negative_segments]
        self._kept = (negatives >= lowest - delta).nonzero().squeeze(1)
        kept_segments = None if negative_segments is None else negative_segments.index_select(0, self._kept)
        prototypes, sizes, self._bucket, owners = bucket(
            positives, negatives.index_select(0, self._kept), processes, segments, kept_segments
        )
        # buckets are those of all processes already, so the base class sums over one process
        super().__init__(positives, prototypes, delta, segments=segments, negative_segments=owners, weights=sizes)

    def spread_to_negatives(self, coefficients: Tensor) -> Tensor:
        """A prototype's share H b / FP goes to its b negatives in equal parts (Eq. 3.33)."""
        share = super().spread_to_negatives(coefficients).index_select(0, self._bucket)
        return torch.zeros_like(self._all_negatives).index_copy_(0, self._kept, share.to(self._all_negatives.dtype))
