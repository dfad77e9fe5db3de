"""The ranking losses as definitions: error, target and the pmf that distributes their difference.

A definition takes soft counts and returns, for every positive i, its error and how the error is distributed:

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
from concordet.ranking.sums import running_sums

MIN_FALSE_POSITIVES = 1e-5
"""aLRP and NDCG distribute no error of a positive with fewer false positives (Algorithm A.1, line 28: "for
stability")."""

MIN_WORSE = 1e-10
"""RS distributes no error of a positive with fewer worse positives above it (the published code's epsilon)."""


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
        pmf_denominator: ``[p]`` sum of the numerators of p(j|i).
        min_denominator: nothing is distributed where ``pmf_denominator`` is not above this number.
        support: support of p(j|i).
    """

    value: Tensor
    error: Tensor
    pmf_denominator: Tensor
    min_denominator: float = 0.0
    support: Support = Support.NEGATIVES


@dataclass(frozen=True, kw_only=True)
class Result:
    """Terms of a loss, and the weights of a part that autograd differentiates.

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
            ``[p]``, the auxiliary input of the positives, or None.
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


def average_precision(counts: Counts, aux: Tensor | None, *, self_relation: float, interpolated: float) -> Result:
    """l(i) = N(i) / rank(i), target 0 (AP Loss; aLRP's Eqs. 2-4).

    ``interpolated`` (the published code) takes precision as its running maximum in ascending order of the scores.
    """
    false_positives, positives = counts.above()
    rank = self_relation + positives + false_positives
    error = false_positives / rank
    if interpolated:
        error = 1 - counts.segments.running(lambda precision: precision.cummax(-1).values, 1 - error)
    return Result(terms=(Term(value=error, error=error, pmf_denominator=false_positives),))


def localization_recall_precision(counts: Counts, aux: Tensor, *, self_relation: float) -> Result:
    """aLRP Loss, with E the positives' localization errors.

    Classification: l(i) = N(i) / rank(i); distributed: (N(i) + sum_{k != i} E_k H(x_ik)) / rank(i) (Eq. 14).
    Localization: 1/|P| sum_i 1/rank(i) sum_{k at or before i in the order} E_k, linear in E; returned as its weights.
    """
    false_positives, positives, errors = counts.above(aux)
    inverse_rank = (self_relation + positives + false_positives).reciprocal()
    # E_k counts at k and at every positive ranked below it
    weights = counts.segments.running(running_sums, inverse_rank)
    value = false_positives * inverse_rank
    term = Term(
        value=value,
        error=torch.addcmul(value, errors, inverse_rank),
        pmf_denominator=false_positives,
        min_denominator=MIN_FALSE_POSITIVES,
    )
    return Result(terms=(term,), weights=weights)


def rank_sort(counts: Counts, aux: Tensor, *, self_relation: float) -> Result:
    """RS Loss, with q the positives' quality: ranking as AP, and sorting among the positives (Eqs. 3.11-3.17).

    l_S(i) = sum_k H(x_ik)(1 - q_k) / rank+(i); its target is the same over q_k >= q_i only, and the error goes to the
    worse positives above i.
    """
    loss = 1 - aux
    own_loss = self_relation * loss
    false_positives, positives, positive_losses = counts.above(loss)
    better, better_losses = counts.better_above(aux, loss)
    positive_rank, better_rank = self_relation + positives, self_relation + better
    ranking = false_positives / (positive_rank + false_positives)
    current, target = (own_loss + positive_losses) / positive_rank, (own_loss + better_losses) / better_rank
    worse = positives - better
    sorting = torch.where(worse > MIN_WORSE, current - target, 0)
    return Result(
        terms=(
            Term(value=ranking, error=ranking, pmf_denominator=false_positives),
            Term(
                value=sorting,
                error=sorting,
                pmf_denominator=worse,
                min_denominator=MIN_WORSE,
                support=Support.WORSE_POSITIVES,
            ),
        )
    )


def discounted_cumulative_gain(counts: Counts, aux: Tensor | None, *, self_relation: float) -> Result:
    """NDCG Loss: 1 - sum_i G(i) / G_max, G(i) = 1 / log2(1 + rank(i)) (Eqs. A.39-A.44).

    Distributed: (1 - G(i)) / G_max.
    G_max = sum_i 1 / log2(1 + i); the formula printed in Appendix D lacks the reciprocal.
    """
    false_positives, positives = counts.above()
    rank = self_relation + positives + false_positives
    gain = torch.log2(1 + rank).reciprocal()
    p = counts.segments.sizes(len(rank))
    gains = torch.log2(torch.arange(2, len(rank) + 2, dtype=gain.dtype, device=gain.device)).reciprocal()
    # the operator divides by p, this loss by G_max only (Z = 1)
    ratio = p / running_sums(gains)[p - 1]
    share = ratio * gain
    term = Term(
        value=1 - share,
        error=ratio - share,
        pmf_denominator=false_positives,
        min_denominator=MIN_FALSE_POSITIVES,
    )
    return Result(terms=(term,))


AP = Definition(name="ap", compute=average_precision, settings={"interpolated": 0.0})
ALRP = Definition(name="alrp", compute=localization_recall_precision, aux=AuxKind.PER_POSITIVE)
RANK_SORT = Definition(name="rank_sort", compute=rank_sort, n_terms=2, aux=AuxKind.PER_LOGIT)
NDCG = Definition(name="ndcg", compute=discounted_cumulative_gain)
