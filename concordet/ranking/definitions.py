"""The ranking losses as definitions: error, target and the pmf that spreads their difference.

A definition gets soft counts and says, for every positive i, its error and how the error is distributed:

    L = 1/|P| sum_i (l(i) - l*(i)),    L_ij = (l(i) - l*(i)) p(j|i),
    dL/ds_i = 1/|P| (sum_j L_ji - sum_j L_ij)    (identity update, RS Loss Eqs. 3.5-3.9 in the thesis)

With N(i) = sum over negatives of H(x_ij), p(j|i) is H(x_ij) / N(i) over the negatives, or H(x_ij)[q_j < q_i] over its
sum on the positives that have a lower quality than i and rank above it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from concordet.ranking.counts import Counts

MIN_FALSE_POSITIVES = 1e-5
"""aLRP and NDCG spread nothing from a positive with fewer false positives (Algorithm A.1, line 28: "for stability")."""

MIN_WORSE = 1e-10
"""RS spreads nothing from a positive with fewer worse positives above it (the published code's epsilon)."""


class Support(Enum):
    """Support of the pmf p(j|i): whose logits go down when the logit of positive i goes up."""

    NEGATIVES = "negatives"
    WORSE_POSITIVES = "worse positives"


class AuxKind(Enum):
    """Auxiliary input: none, one value per logit (``[n]``, read at the positives), or one per positive (``[p]``)."""

    NONE = "none"
    PER_LOGIT = "per logit"
    PER_POSITIVE = "per positive"


@dataclass(frozen=True, kw_only=True)
class Term:
    """One output of a ranking loss, per positive.

    Attributes:
        value: ``[p]`` values whose mean is the value of the loss.
        error: ``[p]`` l(i) - l*(i), the error that the update distributes.
        pmf_denominator: ``[p]`` sum of the numerators of p(j|i); where it is 0, nothing is distributed.
        support: support of p(j|i).
    """

    value: Tensor
    error: Tensor
    pmf_denominator: Tensor
    support: Support = Support.NEGATIVES


@dataclass(frozen=True, kw_only=True)
class Result:
    """Terms of a loss, and the constants of a part that is differentiated by autograd.

    Attributes:
        terms: one per output.
        weights: ``[p]`` weight of each positive's own loss in a differentiable part (aLRP), or None.
    """

    terms: tuple[Term, ...]
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A ranking loss: its name, its outputs, its auxiliary input, its settings, and the function that defines it.

    Attributes:
        name: name under which the loss is registered.
        compute: function of (counts, aux, \\*, self_relation, \\**settings) that returns a :class:`Result`. ``aux`` is
            ``[p]`` float64 in the order of ``counts``: quality, localization errors, or zeros for a loss without any.
        n_terms: number of outputs.
        aux: kind of the auxiliary input.
        settings: numbers that ``compute`` takes as keyword arguments, and their defaults.

    Example:
        >>> AP.settings
        {'interpolated': 0.0}
    """

    name: str
    compute: Callable[..., Result]
    n_terms: int = 1
    aux: AuxKind = AuxKind.NONE
    settings: Mapping[str, float] = field(default_factory=dict)


def average_precision(counts: Counts, aux: Tensor, *, self_relation: float, interpolated: float) -> Result:
    """l(i) = N(i) / rank(i), target 0 (AP Loss; aLRP's Eqs. 2-4).

    ``interpolated`` (the published code) takes precision as its running maximum in ascending order of the scores.
    """
    false_positives = counts.negatives_above()
    rank = self_relation + counts.positives_above(torch.ones_like(aux)[:, None])[:, 0] + false_positives
    error = false_positives / rank
    if interpolated:
        order = torch.argsort(counts.positives, stable=True)
        error = 1 - torch.empty_like(rank).index_copy_(0, order, (1 - error)[order].cummax(0).values)
    return Result(terms=(Term(value=error, error=error, pmf_denominator=false_positives),))


def localization_recall_precision(counts: Counts, aux: Tensor, *, self_relation: float) -> Result:
    """aLRP Loss, with E the positives' localization errors.

    Classification: l(i) = N(i) / rank(i); distributed: (N(i) + sum_{k != i} E_k H(x_ik)) / rank(i) (Eq. 14).
    Localization: 1/|P| sum_i 1/rank(i) sum_{k at or before i in the order} E_k, linear in E; returned as its weights.
    """
    false_positives = counts.negatives_above()
    above = counts.positives_above(torch.stack([torch.ones_like(aux), aux], 1))
    rank = self_relation + above[:, 0] + false_positives
    denominator = torch.where(false_positives > MIN_FALSE_POSITIVES, false_positives, 0)
    error = torch.where(denominator > 0, (false_positives + above[:, 1]) / rank, 0)
    # E_k counts at every positive from k's index in the order downwards
    order = torch.argsort(counts.positives, descending=True, stable=True)
    weights = torch.empty_like(rank).index_copy_(0, order, (1 / rank)[order].flip(0).cumsum(0).flip(0))
    term = Term(value=false_positives / rank, error=error, pmf_denominator=denominator)
    return Result(terms=(term,), weights=weights)


def rank_sort(counts: Counts, aux: Tensor, *, self_relation: float) -> Result:
    """RS Loss, with q the positives' quality: ranking as AP, and sorting among the positives (Eqs. 3.11-3.17).

    l_S(i) = sum_k H(x_ik)(1 - q_k) / rank+(i); its target is the same over q_k >= q_i only, and the error goes to the
    worse positives above i.
    """
    false_positives = counts.negatives_above()
    weights = torch.stack([torch.ones_like(aux), 1 - aux], 1)
    self_row = self_relation * weights
    above = self_row + counts.positives_above(weights)
    better = self_row + counts.better_above(weights, aux)
    rank_positive, worse = above[:, 0], (above - better)[:, 0]
    ranking = false_positives / (rank_positive + false_positives)
    worse = torch.where(worse > MIN_WORSE, worse, 0)
    sorting = torch.where(worse > 0, above[:, 1] / rank_positive - better[:, 1] / better[:, 0], 0)
    return Result(
        terms=(
            Term(value=ranking, error=ranking, pmf_denominator=false_positives),
            Term(value=sorting, error=sorting, pmf_denominator=worse, support=Support.WORSE_POSITIVES),
        )
    )


def discounted_cumulative_gain(counts: Counts, aux: Tensor, *, self_relation: float) -> Result:
    """NDCG Loss: 1 - sum_i G(i) / G_max, G(i) = 1 / log2(1 + rank(i)) (Eqs. A.39-A.44).

    Distributed: (1 - G(i)) / G_max.
    G_max = sum_i 1 / log2(1 + i); the formula printed in Appendix D lacks the reciprocal.
    """
    false_positives = counts.negatives_above()
    rank = self_relation + counts.positives_above(torch.ones_like(aux)[:, None])[:, 0] + false_positives
    p = len(rank)
    gain = 1 / torch.log2(1 + rank)
    ideal = (1 / torch.log2(torch.arange(2, p + 2, dtype=gain.dtype, device=gain.device))).sum()
    denominator = torch.where(false_positives > MIN_FALSE_POSITIVES, false_positives, 0)
    # the engine divides by p, this loss by G_max only (Z = 1)
    error = torch.where(denominator > 0, p * (1 - gain) / ideal, 0)
    return Result(terms=(Term(value=1 - p * gain / ideal, error=error, pmf_denominator=denominator),))


AP = Definition(name="ap", compute=average_precision, settings={"interpolated": 0.0})
ALRP = Definition(name="alrp", compute=localization_recall_precision, aux=AuxKind.PER_POSITIVE)
RANK_SORT = Definition(name="rank_sort", compute=rank_sort, n_terms=2, aux=AuxKind.PER_LOGIT)
NDCG = Definition(name="ndcg", compute=discounted_cumulative_gain)
