"""The ranking losses as definitions: error, target and the pmf that spreads their difference.

A definition gets soft counts and says, for every positive i, its error and who pays for it:

    L = 1/|P| sum_i (l(i) - l*(i)),    L_ij = (l(i) - l*(i)) p(j|i),
    dL/ds_i = 1/|P| (sum_j L_ji - sum_j L_ij)    (identity update, RS Loss Eqs. 3.5-3.9 in the thesis)

With N(i) = sum over negatives of H(x_ij), the published p(j|i) is H(x_ij) / N(i) over the negatives, or
H(x_ij)[q_j < q_i] / sum over the positives that are worse than i but stand above it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from concordet.ranking.counts import Counts

MIN_FALSE_POSITIVES = 1e-5
"""aLRP and NDCG spread nothing from a positive with fewer false positives (Algorithm A.1, line 28: "for stability")."""

MIN_WORSE = 1e-10
"""RS spreads nothing from a positive with fewer worse positives above it (the published code's epsilon)."""


class Payers(Enum):
    """Who pays for the error of a positive: the support of p(j|i)."""

    NEGATIVES = "negatives"
    WORSE_POSITIVES = "worse positives"


class Side(Enum):
    """What side information a loss is given: nothing, ``[n]`` values of which the positives' are read, or ``[p]``."""

    NONE = "none"
    BY_LOGIT = "by logit"
    BY_POSITIVE = "by positive"


@dataclass(frozen=True, kw_only=True)
class Term:
    """One output of a ranking loss, by positive.

    Attributes:
        value: ``[p]`` what is averaged to the loss's value.
        error: ``[p]`` l(i) - l*(i), what is moved.
        mass: ``[p]`` sum of the numerators of p(j|i); where it is 0 nothing is moved.
        payers: the support of p(j|i).
    """

    value: Tensor
    error: Tensor
    mass: Tensor
    payers: Payers = Payers.NEGATIVES


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a definition returns: its terms, and constants for a part that is differentiated as usual.

    Attributes:
        terms: one per output.
        weights: ``[p]`` how much each positive's own loss counts in a differentiable part (aLRP), or None.
    """

    terms: tuple[Term, ...]
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A ranking loss: its name, its number of terms, its side information, and the function that writes it.

    ``compute(counts, own, side)`` gets the soft counts, the self relation and ``[p]`` float64 side information
    (quality, localization errors; zeros for a loss that needs none), and returns a :class:`Result`.
    """

    name: str
    n_terms: int
    side: Side
    compute: Callable[[Counts, float, Tensor], Result]


def _ones(counts: Counts) -> Tensor:
    return torch.ones_like(counts.positives)[:, None]


def average_precision(counts: Counts, own: float, side: Tensor) -> Result:
    """l(i) = N(i) / rank(i), target 0 (AP Loss; aLRP's Eqs. 2-4)."""
    false = counts.negatives_above()
    rank = own + counts.positives_above(_ones(counts))[:, 0] + false
    error = false / rank
    return Result(terms=(Term(value=error, error=error, mass=false),))


def interpolated_average_precision(counts: Counts, own: float, side: Tensor) -> Result:
    """The published AP Loss: precision is its running maximum in ascending order of the scores."""
    false = counts.negatives_above()
    rank = own + counts.positives_above(_ones(counts))[:, 0] + false
    order = torch.argsort(counts.positives, stable=True)
    best = torch.empty_like(rank).index_copy_(0, order, (1 - false / rank)[order].cummax(0).values)
    return Result(terms=(Term(value=1 - best, error=1 - best, mass=false),))


def localization_recall_precision(counts: Counts, own: float, side: Tensor) -> Result:
    """aLRP Loss, with E the positives' localization errors.

    Classification: l(i) = N(i) / rank(i), moved: (N(i) + sum_{k != i} E_k H(x_ik)) / rank(i) (Eq. 14).
    Localization: 1/|P| sum_i 1/rank(i) sum_{k at or before i in the order} E_k, linear in E; its weights come back.
    """
    false = counts.negatives_above()
    above = counts.positives_above(torch.stack([torch.ones_like(side), side], 1))
    rank = own + above[:, 0] + false
    mass = torch.where(false > MIN_FALSE_POSITIVES, false, 0)
    error = torch.where(mass > 0, (false + above[:, 1]) / rank, 0)
    # E_k counts at every positive from its own place in the order downwards
    order = torch.argsort(counts.positives, descending=True, stable=True)
    weights = torch.empty_like(rank).index_copy_(0, order, (1 / rank)[order].flip(0).cumsum(0).flip(0))
    return Result(terms=(Term(value=false / rank, error=error, mass=mass),), weights=weights)


def rank_sort(counts: Counts, own: float, side: Tensor) -> Result:
    """RS Loss, with q the positives' quality: ranking as AP, and sorting among the positives (Eqs. 3.11-3.17).

    l_S(i) = sum_k H(x_ik)(1 - q_k) / rank+(i); its target is the same over q_k >= q_i only; worse ones above pay.
    """
    false = counts.negatives_above()
    weights = torch.stack([torch.ones_like(side), 1 - side], 1)
    own_row = own * weights
    above = own_row + counts.positives_above(weights)
    better = own_row + counts.better_above(weights, side)
    rank_positive, worse = above[:, 0], (above - better)[:, 0]
    rank = rank_positive + false
    ranking = false / rank
    worse = torch.where(worse > MIN_WORSE, worse, 0)
    sorting = torch.where(worse > 0, above[:, 1] / rank_positive - better[:, 1] / better[:, 0], 0)
    return Result(
        terms=(
            Term(value=ranking, error=ranking, mass=false),
            Term(value=sorting, error=sorting, mass=worse, payers=Payers.WORSE_POSITIVES),
        )
    )


def discounted_cumulative_gain(counts: Counts, own: float, side: Tensor) -> Result:
    """NDCG Loss: 1 - sum_i G(i) / G_max, G(i) = 1 / log2(1 + rank(i)); moved: (1 - G(i)) / G_max (Eqs. A.39-A.44).

    G_max = sum_i 1 / log2(1 + i); the formula printed in Appendix D lacks the reciprocal.
    """
    false = counts.negatives_above()
    rank = own + counts.positives_above(_ones(counts))[:, 0] + false
    p = len(rank)
    gain = 1 / torch.log2(1 + rank)
    best = (1 / torch.log2(torch.arange(2, p + 2, dtype=gain.dtype, device=gain.device))).sum()
    mass = torch.where(false > MIN_FALSE_POSITIVES, false, 0)
    # the engine divides by p, this loss by G_max alone (Z = 1)
    error = torch.where(mass > 0, p * (1 - gain) / best, 0)
    return Result(terms=(Term(value=1 - p * gain / best, error=error, mass=mass),))


AP = Definition(name="ap", n_terms=1, side=Side.NONE, compute=average_precision)
INTERPOLATED_AP = Definition(name="interpolated_ap", n_terms=1, side=Side.NONE, compute=interpolated_average_precision)
ALRP = Definition(name="alrp", n_terms=1, side=Side.BY_POSITIVE, compute=localization_recall_precision)
RANK_SORT = Definition(name="rank_sort", n_terms=2, side=Side.BY_LOGIT, compute=rank_sort)
NDCG = Definition(name="ndcg", n_terms=1, side=Side.NONE, compute=discounted_cumulative_gain)
