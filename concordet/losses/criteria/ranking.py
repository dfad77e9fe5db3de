"""Ranking losses of criteria: of one record, or of several records in one call.

:func:`rank_together` ranks all records that have the same ranking loss (decoder layers, groups of queries, stages) in
one call of it, each record by itself, and hands every record its values.  A term that gets a record with values returns
them; otherwise it ranks the record, which is the reference that tests compare with.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from concordet.assigned import Assigned, Ranked
from concordet.losses import functional
from concordet.losses.criteria.box import box_losses
from concordet.losses.functional.ranking import Method


class RankingTerm(nn.Module, ABC):
    """A ranking loss of all predictions and classes of a record.

    Args:
        delta: Half the width of the step.
        method: Algorithm of the ranking loss.
    """

    names: ClassVar[tuple[str, ...]] = ("ranking",)
    """Names of its values."""

    def __init__(self, *, delta: float = 1.0, method: Method = "auto") -> None:
        super().__init__()
        self.delta: float
        self.delta, self.method = delta, method

    @abstractmethod
    def rank(self, logits: Tensor, labels: Tensor, aux: Any, **options: Any) -> tuple[Tensor, ...]:
        """Its values in the order of ``names``, of ``[m]`` logits and ranking labels; ``[s]`` each with segments."""

    @property
    def aux_settings(self) -> Hashable:
        """Terms with equal ones have the same :meth:`aux` of a record."""
        return None

    def aux(self, assigned: Assigned, ious: Tensor) -> Any:
        """What the loss takes besides logits and labels: one value per logit or one per positive."""
        return None

    @property
    def definition(self) -> Hashable:
        """Terms with equal ones rank by the same definition."""
        return type(self), self.delta, self.method

    def forward(self, assigned: Assigned, ious: Tensor) -> dict[str, Tensor]:
        """Values by name; those that the record has, if they are of this term."""
        ranked = assigned.ranked
        if ranked is not None and ranked.term is self and _same(ranked.inputs, _inputs(assigned, ious)):
            values = ranked.values
        else:
            options = {"group": assigned.group, "n_positives": len(assigned.positive)}
            logits, labels = assigned.logits.flatten(), assigned.ranking_labels()
            values = self.rank(logits, labels, self.aux(assigned, ious), **options)
        return dict(zip(self.names, values, strict=True))


class APTerm(RankingTerm):
    """AP Loss: delta 1 as published, 0.5 for PAA."""

    def rank(self, logits: Tensor, labels: Tensor, aux: Any, **options: Any) -> tuple[Tensor, ...]:
        return (functional.ap_loss(logits, labels, delta=self.delta, method=self.method, **options),)


class NDCGTerm(RankingTerm):
    """NDCG Loss, with the step's width and the algorithm that AP and aLRP Loss have by default."""

    def rank(self, logits: Tensor, labels: Tensor, aux: Any, **options: Any) -> tuple[Tensor, ...]:
        return (functional.ndcg_loss(logits, labels, delta=self.delta, method=self.method, **options),)


class RankSortTerm(RankingTerm):
    """Rank & Sort Loss: positives above negatives, and positives among themselves by IoU."""

    names = ("ranking", "sorting")

    def __init__(self, *, delta: float = 0.5, method: Method = "auto") -> None:
        super().__init__(delta=delta, method=method)

    def aux(self, assigned: Assigned, ious: Tensor) -> Tensor:
        return assigned.class_targets(ious).flatten()

    def rank(self, logits: Tensor, labels: Tensor, aux: Any, **options: Any) -> tuple[Tensor, ...]:
        return functional.rank_sort_loss(logits, labels, aux, delta=self.delta, method=self.method, **options)


class ALRPTerm(RankingTerm):
    """aLRP Loss in its two parts, both of which depend on the ranking.

    Args:
        positive_iou: IoU tau from which on predictions are positive. An error is (1 - GIoU) / (2 (1 - tau)).
        giou: False makes an error (1 - IoU) / (1 - tau).
        method: Algorithm of the ranking loss.
    """

    names = ("classification", "localization")

    def __init__(self, positive_iou: float, *, giou: bool = True, method: Method = "auto") -> None:
        super().__init__(method=method)
        self.positive_iou: float
        self.giou: bool
        self.positive_iou, self.giou = positive_iou, giou

    @property
    def aux_settings(self) -> Hashable:
        return self.positive_iou, self.giou

    def aux(self, assigned: Assigned, ious: Tensor) -> Tensor:
        largest = 2 if self.giou else 1  # the largest possible error of a box
        return box_losses("giou" if self.giou else "iou", assigned) / (largest * (1 - self.positive_iou))

    def rank(self, logits: Tensor, labels: Tensor, aux: Any, **options: Any) -> tuple[Tensor, ...]:
        return functional.alrp_loss(logits, labels, aux, delta=self.delta, method=self.method, **options)


def rank_together(
    terms: Sequence[RankingTerm | None], records: Sequence[Assigned], ious: Sequence[Tensor]
) -> list[Assigned]:
    """The records, those with a ranking loss with its values in them, from one call per definition.

    Records share a call if their losses have the same definition and their logits the same type, device and processes.

    Args:
        terms: Ranking loss of each record; None without one.
        records: Records; logits are float32 or better.
        ious: ``[p]`` per record, IoUs of its positives.
    """
    results = list(records)
    calls: dict[Hashable, list[int]] = {}
    for i, (term, record) in enumerate(zip(terms, records, strict=True)):
        if term is not None:
            shared = (term.definition, record.logits.dtype, record.logits.device, record.group)
            calls.setdefault(shared, []).append(i)
    for indices in calls.values():
        if len(indices) > 1:
            mine = [(cast(RankingTerm, terms[i]), records[i], ious[i]) for i in indices]
            for i, (term, record, own), values in zip(indices, mine, _rank_in_one_call(mine), strict=True):
                results[i] = replace(record, ranked=Ranked(term, _inputs(record, own), own, values))
    return results


def _rank_in_one_call(ranked: Sequence[tuple[RankingTerm, Assigned, Tensor]]) -> list[tuple[Tensor, ...]]:
    """Values of each (term, record, IoUs of its positives), from one call of the first one's loss."""
    # records of one width are put in a row first, so that labels and inputs are made for all of them at once
    alike: dict[Hashable, list[int]] = {}
    for i, (term, record, _) in enumerate(ranked):
        alike.setdefault((term.aux_settings, record.logits.shape[1]), []).append(i)
    order = [i for indices in alike.values() for i in indices]
    logits, labels, aux = [], [], []
    for indices in alike.values():
        term = ranked[indices[0]][0]
        joined = _join([ranked[i][1] for i in indices])
        logits.append(joined.logits.flatten())
        labels.append(joined.ranking_labels())
        aux.append(term.aux(joined, torch.cat([ranked[i][2] for i in indices])))
    sizes = [ranked[i][1].logits.numel() for i in order]
    values = ranked[0][0].rank(
        torch.cat(logits),
        torch.cat(labels),
        None if aux[0] is None else torch.cat(aux),
        group=ranked[0][1].group,
        n_positives=sum(len(record.positive) for _, record, _ in ranked),
        segments=torch.cat([labels[0].new_full((size,), k) for k, size in enumerate(sizes)]),
        n_segments=len(sizes),
    )
    by_record = dict(zip(order, zip(*(value.unbind() for value in values), strict=True), strict=True))
    return [by_record[i] for i in range(len(ranked))]


def _join(records: Sequence[Assigned]) -> Assigned:
    """What ranking losses look at, of all records of one number of classes in a row."""
    starts = itertools.accumulate((len(record.labels) for record in records), initial=0)
    return replace(
        records[0],
        logits=torch.cat([record.logits for record in records]),
        labels=torch.cat([record.labels for record in records]),
        positive=torch.cat([record.positive + start for record, start in zip(records, starts, strict=False)]),
        boxes=torch.cat([record.boxes for record in records]),
        gt_boxes=torch.cat([record.gt_boxes for record in records]),
    )


def _inputs(assigned: Assigned, ious: Tensor) -> tuple[Tensor, ...]:
    """All tensors that a ranking loss of this record looks at."""
    return assigned.logits, assigned.labels, assigned.positive, assigned.boxes, assigned.gt_boxes, ious


def _same(inputs: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    return all(mine is other for mine, other in zip(inputs, others, strict=True))
