"""Ranking losses of criteria: of one record, or of several records in one call.

:func:`rank_together` ranks all records that have the same ranking loss (decoder layers, groups of queries, stages) in
one call, each record by itself, and stores its values in every record. A term returns the values of a record that has
them; otherwise it ranks the record, which is the reference that tests compare with.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

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
    """Names of the loss's values."""

    def __init__(self, *, delta: float = 1.0, method: Method = "auto") -> None:
        super().__init__()
        self.delta: float
        self.delta, self.method = delta, method

    @abstractmethod
    def rank(self, logits: Tensor, labels: Tensor, aux: Any, **options: Any) -> tuple[Tensor, ...]:
        """Values of the loss for ``[m]`` logits and labels, in the order of ``names``; ``[s]`` each with segments."""

    @property
    def aux_settings(self) -> Hashable:
        """Settings of :meth:`aux`: terms with equal settings have equal auxiliary inputs for a record."""
        return None

    def aux(self, assigned: Assigned, ious: Tensor) -> Any:
        """Auxiliary input of the loss: one value per logit or one per positive, or None."""
        return None

    @property
    def definition(self) -> Hashable:
        """Key of the definition: terms with equal keys can rank in one call."""
        return type(self), self.delta, self.method

    def forward(self, assigned: Assigned, ious: Tensor) -> dict[str, Tensor]:
        """Values by name; those stored in the record, if they are of this term and these tensors."""
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
    """NDCG Loss, with the same default step and algorithm as AP and aLRP Loss."""

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


def rank_together(terms: Sequence[RankingTerm], records: Sequence[Assigned], ious: Sequence[Tensor]) -> list[Assigned]:
    """The records with the values of their ranking losses, from one call per definition.

    Records share a call if their losses have the same definition and their logits the same dtype, device and processes;
    a record that shares none is returned as it is.

    Args:
        terms: Ranking loss of each record.
        records: Records; logits are float32 or better.
        ious: ``[p]`` per record, IoUs of its positives.
    """
    results = list(records)
    calls: dict[Hashable, list[int]] = {}
    for i, (term, record) in enumerate(zip(terms, records, strict=True)):
        shared = (term.definition, record.logits.dtype, record.logits.device, record.group)
        calls.setdefault(shared, []).append(i)
    for indices in calls.values():
        if len(indices) > 1:
            members = [(terms[i], records[i], ious[i]) for i in indices]
            for i, (term, record, own), values in zip(indices, members, _rank_in_one_call(members), strict=True):
                results[i] = replace(record, ranked=Ranked(term, _inputs(record, own), own, values))
    return results


def _rank_in_one_call(ranked: Sequence[tuple[RankingTerm, Assigned, Tensor]]) -> list[tuple[Tensor, ...]]:
    """Values of each (term, record, IoUs of its positives), from one call of the first term's loss."""
    # records with the same number of classes are concatenated first: labels and inputs are then computed once
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
    """The tensors that ranking losses read, concatenated over records with the same number of classes."""
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
    """All tensors that a ranking loss of this record reads."""
    return assigned.logits, assigned.labels, assigned.positive, assigned.boxes, assigned.gt_boxes, ious


def _same(inputs: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    return all(one is other for one, other in zip(inputs, others, strict=True))
