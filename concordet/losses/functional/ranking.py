"""AP, aLRP, Rank & Sort and NDCG losses: error-driven updates on top of :mod:`concordet.ranking`."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from concordet.distributed import process_group
from concordet.losses.functional.checks import (
    check_choice,
    check_count,
    check_device,
    check_finite,
    check_floating,
    check_positive,
    check_range,
    check_ranking_labels,
    check_same,
    check_segments,
    values_are_checked,
)
from concordet.ranking import RankingOptions, ranking_loss, step_at_zero
from concordet.ranking.definitions import ALRP as ALRP_DEFINITION
from concordet.ranking.definitions import AP, NDCG, RANK_SORT, Definition
from concordet.ranking.operator import UNKNOWN
from concordet.ranking.sums import as_number, on_host

Method = Literal["auto", "exact", "quadratic", "bucketed"]
"""How a ranking loss is computed: ``auto`` and ``exact`` are near-linear, ``quadratic`` is the definition, ``bucketed``
the thesis's approximation."""


class ALRP(NamedTuple):
    """aLRP Loss in its two parts; their sum is the loss.

    Attributes:
        classification: 0-dim (``[s]`` with segments) part that ranks positives above negatives, in [0, 1].
        localization: 0-dim (``[s]``) localization errors of the positives, weighted by rank; differentiable in
            ``loc_errors``.

    Example:
        >>> import torch
        >>> parts = alrp_loss(torch.tensor([2.0, 1.0]), torch.tensor([1, 0]), torch.tensor([0.4]))
        >>> sum(parts)
        tensor(0.4000)
    """

    classification: Tensor
    localization: Tensor


class RankSort(NamedTuple):
    """RS Loss in its two parts; their sum is the loss.

    Attributes:
        ranking: 0-dim (``[s]`` with segments) part that ranks positives above negatives, in [0, 1].
        sorting: 0-dim (``[s]``) part that sorts the positives by quality, at least 0.

    Example:
        >>> import torch
        >>> parts = rank_sort_loss(torch.tensor([2.0, 1.0]), torch.tensor([1, 1]), torch.tensor([0.5, 0.9]))
        >>> parts.ranking, parts.sorting > 0
        (tensor(0.), tensor(True))
    """

    ranking: Tensor
    sorting: Tensor


def ap_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    delta: float = 1.0,
    interpolated: bool = False,
    self_relation: float | None = None,
    method: Method = "auto",
    group: dist.ProcessGroup | None = None,
    n_positives: int | None = None,
    segments: Tensor | None = None,
    n_segments: int | None = None,
) -> Tensor:
    r"""AP Loss: one minus the precision at the positives, averaged.

    .. math:: L = \frac{1}{|P|} \sum_{i \in P} \frac{N_{FP}(i)}{rank(i)}, \quad
              N_{FP}(i) = \sum_{j \in N} H(s_j - s_i), \quad
              rank(i) = c + \sum_{k \in P, k \ne i} H(s_k - s_i) + N_{FP}(i)

    with H(x) = clamp(x / 2 delta + 1/2, 0, 1) and c the ``self_relation``. The backward pass is the error-driven
    update, not a derivative: a positive's gradient is its error, negated and divided by the number of positives; that
    error is distributed over the negatives that rank above it.

    Args:
        logits: ``[n]`` raw scores of any range, typically flattened over batch, anchors and classes; fp16 to fp64.
        labels: ``[n]`` integers or bool: 1 positive, 0 negative, -1 ignored. Background is 0 here, unlike in
            :class:`~concordet.assigned.Assigned`, where it is -1: positives beside -1 without any 0 are refused.
        delta: half width of the smoothed step, in logits; 1 as published. 0 is the hard step, where ties count as
            above.
        interpolated: take precision as its running maximum, as the published code does and the paper's equations do
            not.
        self_relation: what a positive adds to its own rank; None for 1, as published (1/2 for ``method="bucketed"``
            with delta > 0, the thesis's algorithm).
        method: "auto" and "exact" (near-linear, the same values), "quadratic" (the definition) or "bucketed" (the
            thesis's approximation).
        group: processes whose batches are ranked together, with any ``method``; all of them must call, with or without
            positives. Values are then global and gradients are the global loss's times the number of processes, so
            that DDP's average is the global gradient. Positives are exchanged, negatives are not.
        n_positives: number of labels that are 1, if the caller knows it. On a GPU the loss then never waits for the
            device, so that it can be part of a CUDA graph; otherwise it waits once. A wrong number is an error on a CPU
            and makes the loss NaN on other devices.
        segments: ``[n]`` integers in 0..s-1, the ranking of each logit: s independent rankings in one call, with as
            many operations as one of them. None for one ranking.
        n_segments: number s of rankings; the same in all processes of ``group``.

    Returns:
        0-dim loss in [0, 1], float32 (float64 for float64 logits); 0 with zero gradients without positives or
        negatives. With ``segments``, ``[s]`` losses, each equal to that of a separate call.

    Raises:
        ValueError: shapes, dtypes, devices, labels or hyperparameters are not as above, or a logit is not finite.

    Paper:
        Chen et al.: AP-Loss for Accurate One-Stage Object Detection (TPAMI 2020); Eqs. 2-5 of the aLRP Loss paper.

    Example:
        >>> import torch
        >>> logits = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
        >>> loss = ap_loss(logits, torch.tensor([0, 1, 0]), delta=0.0)
        >>> loss.backward()
        >>> loss.detach(), logits.grad
        (tensor(0.5000), tensor([ 0.5000, -0.5000,  0.0000]))
    """
    labels = _checked_labels("ap_loss", logits, labels, n_positives, group)
    settings = {"interpolated": float(interpolated)}
    values, _ = _rank(
        "ap_loss", AP, logits, labels, None, delta, self_relation, 1.0, method, group, n_positives, segments,
        n_segments, **settings,
    )  # fmt: skip
    return values.squeeze(0)


def alrp_loss(
    logits: Tensor,
    labels: Tensor,
    loc_errors: Tensor,
    *,
    delta: float = 1.0,
    self_relation: float | None = None,
    method: Method = "auto",
    group: dist.ProcessGroup | None = None,
    n_positives: int | None = None,
    segments: Tensor | None = None,
    n_segments: int | None = None,
) -> ALRP:
    r"""Average Localization-Recall-Precision Loss: false positives and localization errors by one ranking.

    .. math:: L_{cls} = \frac{1}{|P|} \sum_i \frac{N_{FP}(i)}{rank(i)}, \quad
              L_{loc} = \frac{1}{|P|} \sum_i \frac{1}{rank(i)} \sum_{k \text{ at or above } i} E_k

    The update of the logits moves (N_FP(i) + sum_{k != i} E_k H(s_k - s_i)) / rank(i) from each positive to the
    negatives above it (Eq. 14), scaled by the gradient at ``classification``. ``localization`` is differentiable in
    ``loc_errors`` only. As in the published code, its numerator follows the hard, stable order over the smoothed rank
    (Appendix E), the update uses plain E (not the cumulated one of Algorithm A.1, line 29), and no update leaves a
    positive with N_FP <= 1e-5.

    Args:
        logits: ``[n]`` raw scores; fp16 to fp64.
        labels: ``[n]`` integers or bool: 1 positive, 0 negative, -1 ignored. Background is 0 here, unlike in
            :class:`~concordet.assigned.Assigned`, where it is -1: positives beside -1 without any 0 are refused.
        loc_errors: ``[p]`` localization errors of the positives, in their order in ``logits``; published: 1 - GIoU in
            [0, 2] (that is, (1 - GIoU) / 2 over 1 - 0.5).
        delta: half width of the smoothed step; 1 as published.
        self_relation: what a positive adds to its own rank; None for 1 (for "bucketed": 1/2 with delta > 0).
        method: see :func:`ap_loss`.
        group: see :func:`ap_loss`.
        n_positives: see :func:`ap_loss`.
        segments: see :func:`ap_loss`.
        n_segments: see :func:`ap_loss`.

    Returns:
        ALRP(classification, localization), 0-dim each, or ``[s]`` each with ``segments``.

    Raises:
        ValueError: as :func:`ap_loss`, or ``loc_errors`` does not have one value, at least 0, per positive.

    Paper:
        Oksuz et al.: A Ranking-based, Balanced Loss Function Unifying Classification and Localisation in Object
        Detection (NeurIPS 2020), Eqs. 9-14. Its self-balancing is the criterion's, see ``concordet.losses.criteria``.

    Example:
        >>> import torch
        >>> logits = torch.tensor([2.0, 1.0, 0.0])
        >>> alrp_loss(logits, torch.tensor([1, 0, 1]), torch.tensor([0.2, 0.4]), delta=0.0)
        ALRP(classification=tensor(0.1667), localization=tensor(0.2000))
    """
    check_floating("alrp_loss", "loc_errors", loc_errors, 1)
    check_device("alrp_loss", "loc_errors", loc_errors, "logits", logits)
    labels = _checked_labels("alrp_loss", logits, labels, n_positives, group)
    _check_errors(loc_errors, labels)
    values, weights = _rank(
        "alrp_loss", ALRP_DEFINITION, logits, labels, loc_errors, delta, self_relation, 1.0, method, group, n_positives,
        segments, n_segments,
    )  # fmt: skip
    if loc_errors.dtype != weights.dtype:
        loc_errors = loc_errors.to(weights.dtype)
    if segments is None:
        localization = torch.dot(loc_errors, weights)
    else:
        # each product at the index of its positive among the logits, where segments name the ranking
        is_positive = labels == 1
        products = torch.cat([weights.new_zeros(1), loc_errors * weights])
        products = products.index_select(0, is_positive.cumsum(0) * is_positive)
        localization = products.new_zeros(values.shape[1]).index_add(0, segments.long(), products)
    localization = process_group(group).all_sum(localization)
    if localization.dtype != values.dtype:
        localization = localization.to(values.dtype)
    return ALRP(values.squeeze(0), localization)


def rank_sort_loss(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor,
    *,
    delta: float = 0.5,
    self_relation: float | None = None,
    method: Method = "auto",
    group: dist.ProcessGroup | None = None,
    n_positives: int | None = None,
    segments: Tensor | None = None,
    n_segments: int | None = None,
) -> RankSort:
    r"""Rank & Sort Loss: positives above negatives, and positives by their quality.

    .. math:: \ell_R(i) = \frac{N_{FP}(i)}{rank(i)}, \quad
              \ell_S(i) - \ell_S^*(i) = \frac{\sum_k H(x_{ik})(1 - q_k)}{\sum_k H(x_{ik})}
              - \frac{\sum_k H(x_{ik}) [q_k \ge q_i] (1 - q_k)}{\sum_k H(x_{ik}) [q_k \ge q_i]}

    over positives k, with x_ik = s_k - s_i. The sorting error is distributed over the positives that are worse
    (q_k < q_i) but rank above i. Unlike in the published code, the gradient that arrives at ``sorting`` scales the
    sorting update, and a positive of quality 0 stays a positive.

    Args:
        logits: ``[n]`` raw scores; fp16 to fp64.
        labels: ``[n]`` integers or bool: 1 positive, 0 negative, -1 ignored. Background is 0 here, unlike in
            :class:`~concordet.assigned.Assigned`, where it is -1: positives beside -1 without any 0 are refused.
        quality: ``[n]`` in [0, 1], typically the IoU; read at the positives only, 0 elsewhere. It gets no
            gradient.
        delta: half width of the smoothed step; 0.5 as published.
        self_relation: what a positive adds to its own rank; None for H(0): 1/2 for delta > 0 and 1 at delta = 0, as
            published.
        method: see :func:`ap_loss`.
        group: see :func:`ap_loss`.
        n_positives: see :func:`ap_loss`.
        segments: see :func:`ap_loss`.
        n_segments: see :func:`ap_loss`.

    Returns:
        RankSort(ranking, sorting), 0-dim each, or ``[s]`` each with ``segments``.

    Raises:
        ValueError: as :func:`ap_loss`, or ``quality`` of a positive is not in [0, 1].

    Paper:
        Oksuz et al.: Rank & Sort Loss for Object Detection and Instance Segmentation (ICCV 2021); Eqs. 3.11-3.18 of the
        thesis on bucketed ranking losses.

    Example:
        >>> import torch
        >>> logits, quality = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.5, 0.9, 0.0])
        >>> rank_sort_loss(logits, torch.tensor([1, 1, 0]), quality, delta=0.0)
        RankSort(ranking=tensor(0.), sorting=tensor(0.1000))
    """
    check_floating("rank_sort_loss", "quality", quality, 1)
    check_floating("rank_sort_loss", "logits", logits, 1)
    check_same(
        "rank_sort_loss", "quality", quality, "logits", logits, hint="give one value per logit, 0 except at positives"
    )
    labels = _checked_labels("rank_sort_loss", logits, labels, n_positives, group)
    if values_are_checked(quality):
        own_quality = quality.detach().masked_fill(labels != 1, 0)  # only positives are read
        check_finite("rank_sort_loss", "quality", own_quality)
        check_range("rank_sort_loss", "quality", own_quality, 0, 1, slack=1e-3)
    own = step_at_zero(delta)
    values, _ = _rank(
        "rank_sort_loss", RANK_SORT, logits, labels, quality, delta, self_relation, own, method, group, n_positives,
        segments, n_segments,
    )  # fmt: skip
    return RankSort(*values.unbind())


def ndcg_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    delta: float = 1.0,
    self_relation: float | None = None,
    method: Method = "auto",
    group: dist.ProcessGroup | None = None,
    n_positives: int | None = None,
    segments: Tensor | None = None,
    n_segments: int | None = None,
) -> Tensor:
    r"""Normalized Discounted Cumulative Gain Loss.

    .. math:: L = 1 - \frac{\sum_{i \in P} G(i)}{G_{max}}, \quad G(i) = \frac{1}{\log_2(1 + rank(i))}, \quad
              G_{max} = \sum_{i=1}^{|P|} \frac{1}{\log_2(1 + i)}

    Its update moves (1 - G(i)) / G_max from each positive to the negatives above it (Eq. A.44). The formula of G_max
    that is printed in the paper lacks the reciprocal.

    Args:
        logits: ``[n]`` raw scores; fp16 to fp64.
        labels: ``[n]`` integers or bool: 1 positive, 0 negative, -1 ignored. Background is 0 here, unlike in
            :class:`~concordet.assigned.Assigned`, where it is -1: positives beside -1 without any 0 are refused.
        delta: half width of the smoothed step; 1 as in AP and aLRP Loss.
        self_relation: what a positive adds to its own rank; None for 1 (for "bucketed": 1/2 with delta > 0).
        method: see :func:`ap_loss`.
        group: see :func:`ap_loss`.
        n_positives: see :func:`ap_loss`.
        segments: see :func:`ap_loss`.
        n_segments: see :func:`ap_loss`.

    Returns:
        0-dim loss (``[s]`` with ``segments``); below 1, and 0 for a perfect order at delta = 0.

    Raises:
        ValueError: as :func:`ap_loss`.

    Paper:
        Appendix D of the aLRP Loss paper, Eqs. A.39-A.44.

    Example:
        >>> import torch
        >>> ndcg_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 1, 0]), delta=0.0)
        tensor(0.3691)
    """
    labels = _checked_labels("ndcg_loss", logits, labels, n_positives, group)
    values, _ = _rank(
        "ndcg_loss", NDCG, logits, labels, None, delta, self_relation, 1.0, method, group, n_positives, segments,
        n_segments,
    )  # fmt: skip
    return values.squeeze(0)


def _checked_labels(
    where: str, logits: Tensor, labels: Tensor, n_positives: int | None, group: dist.ProcessGroup | None
) -> Tensor:
    """Labels as int64, after the checks that all losses have in common."""
    check_floating(where, "logits", logits, 1)
    if n_positives is not None:
        check_count(where, "n_positives", n_positives, 0, hint="leave it out where it is not known")
    # a caller that counts the positives knows what the labels mean; other processes may have the negatives
    return check_ranking_labels(where, labels, logits, negatives=n_positives is None and group is None)


def _check_errors(loc_errors: Tensor, labels: Tensor) -> None:
    where = "alrp_loss"
    largest = torch.finfo(loc_errors.dtype).max
    check_range(where, "loc_errors", loc_errors, -1e-3, largest)  # 1 - GIoU may be rounded below 0
    if values_are_checked(labels) and not on_host(labels):  # there, the ranking counts anyway
        count = int(as_number((labels == 1).sum()))
        if len(loc_errors) != count:
            raise ValueError(
                f"{where}: loc_errors must be one value per positive, {count} in all, got {len(loc_errors)}; give them "
                "in the order of the positives in labels"
            )


def _rank(
    where: str,
    definition: Definition,
    logits: Tensor,
    labels: Tensor,
    aux: Tensor | None,
    delta: float,
    self_relation: float | None,
    published_relation: float,
    method: Method,
    group: dist.ProcessGroup | None,
    n_positives: int | None,
    segments: Tensor | None,
    n_segments: int | None,
    **settings: float,
) -> tuple[Tensor, Tensor]:
    check_positive(where, "delta", delta, or_zero=True)
    check_choice(where, "method", method, get_args(Method))
    if self_relation is None:
        self_relation = step_at_zero(delta) if method == "bucketed" else published_relation
    check_positive(where, "self_relation", self_relation)
    check_finite(where, "logits", logits)
    if segments is not None:
        check_segments(where, segments, n_segments, logits)
    elif n_segments is not None:
        raise ValueError(
            f"{where}: segments must be a tensor with n_segments={n_segments}, got None; give both or none"
        )
    options = RankingOptions(
        delta=float(delta),
        self_relation=float(self_relation),
        method=method,
        group="" if group is None else group.group_name,
        n_positives=UNKNOWN if n_positives is None else n_positives,
        n_segments=1 if n_segments is None else n_segments,
        finite=values_are_checked(logits),
    )
    return ranking_loss(definition, logits, labels, aux, segments=segments, options=options, **settings)
