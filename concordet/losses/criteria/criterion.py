"""Criteria: a core (classification and box), an auxiliary head's term and couplings, weighted in one place.

A criterion takes a detector's :class:`~concordet.assigned.Assigned` and returns named, weighted terms whose sum is the
loss. ``build_criterion("focal+concordance(0.3)", defaults)`` builds one by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, ValuesView
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from concordet.assigned import Assigned
from concordet.boxes import paired_iou
from concordet.losses.criteria.bases import QualityHead
from concordet.losses.criteria.cores import Core, WithL1
from concordet.losses.criteria.couplings import WeightedCoupling
from concordet.losses.criteria.mask import MaskTerm, mask_value, segmentation_value
from concordet.losses.criteria.ranking import RankingTerm, rank_together
from concordet.losses.criteria.terms import CoreTerms, Terms, joined, sum_of_role
from concordet.losses.functional.reduction import at_least_float32


@dataclass(frozen=True)
class Needs:
    """What a criterion needs from a detector, which is built and matches objects accordingly.

    Attributes:
        softmax: The classifier is one softmax over classes and background.
        quality_head: Target of the auxiliary head; the detector is built without that head for None.
        samples: Negatives are sampled (two-stage detectors) or mined (SSD); otherwise the loss sees all of them.
        ranks_only: The loss depends only on the order of the scores: they are not probabilities, and a detector must
            not drop boxes below a fixed score.
        balances_boxes: Box terms are scaled to the value of the classification terms.
    """

    softmax: bool = False
    quality_head: QualityHead | None = None
    samples: bool = False
    ranks_only: bool = False
    balances_boxes: bool = False


ExtraTerm = Callable[[Assigned, Tensor, CoreTerms], Tensor | None]
"""A term besides the core's: maps (assigned, IoUs, the core's terms) to a value, or None if it does not apply."""


class Criterion(nn.Module):
    """Named, weighted terms of one stage: classification and box, masks, auxiliary head, couplings.

    The IoU of each positive's decoded box is computed once and carries no gradient: it is a target.

    Args:
        core: Classification and box terms.
        needs: What the criterion needs from a detector.
        couplings: Couplings by name, added to the loss.
        mask: Mask term, for detectors that predict masks.
        quality_weight: Weight of the auxiliary head's term.

    Example:
        >>> import torch
        >>> from concordet.assigned import Assigned
        >>> from concordet.losses import build_criterion
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        >>> assigned = Assigned(
        ...     logits=torch.tensor([[2.0, -1.0], [0.5, 0.0]], requires_grad=True),  # 2 predictions, 2 classes
        ...     labels=torch.tensor([0, -1]),  # the first has an object of class 0, the second is background
        ...     positive=torch.tensor([0]),
        ...     boxes=boxes.clone().requires_grad_(),
        ...     gt_boxes=boxes + 1,
        ...     gt_ids=torch.tensor([0]),
        ...     image_ids=torch.tensor([0]),
        ...     normalizer=torch.tensor(1.0),
        ... )
        >>> terms = build_criterion("rank_sort")(assigned)
        >>> list(terms)
        ['ranking', 'sorting', 'box']
        >>> sum(terms.values()).backward()
    """

    def __init__(
        self,
        core: Core,
        *,
        needs: Needs | None = None,
        couplings: Mapping[str, WeightedCoupling] | None = None,
        mask: MaskTerm | None = None,
        quality_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.core = core
        self.needs: Needs = needs or Needs()
        self.couplings: dict[str, WeightedCoupling] = dict(couplings or {})
        self.mask: MaskTerm = mask or MaskTerm()
        self.quality_weight = quality_weight
        self.group: dist.ProcessGroup | None = None  # see rank_over

    def forward(self, assigned: Assigned) -> Terms:
        """Named 0-dim terms, weighted, all connected to the graph; their sum is the loss."""
        with torch.autocast(assigned.logits.device.type, enabled=False):
            assigned, ious = self.prepare(assigned)
            terms = self.core(assigned, ious)
            extras = {name: extra(assigned, ious, terms) for name, extra in self._extra_terms().items()}
        values = {name: term.value for name, term in terms.items()}
        return joined(values, {name: value for name, value in extras.items() if value is not None})

    def prepare(self, assigned: Assigned) -> tuple[Assigned, Tensor]:
        """The record with logits in float32 or better and this criterion's processes, and ``[p]`` IoUs."""
        if assigned.ranked is not None:  # by `rank_records`, which prepared it
            return assigned, assigned.ranked.ious
        # Losses are computed in float32 or better whatever the detector ran in: bf16 IoUs and counts are not usable.
        assigned = replace(assigned, logits=at_least_float32(assigned.logits), group=self.group)
        return assigned, paired_iou(assigned.boxes.detach(), assigned.gt_boxes)

    def _extra_terms(self) -> dict[str, ExtraTerm]:
        extras: dict[str, ExtraTerm] = {
            "mask": self._mask_term,
            "segmentation": _segmentation_term,
            "quality": self._quality_term,
        }
        for name, coupling in self.couplings.items():
            extras[name] = _coupling_term(coupling)
        return extras

    def _mask_term(self, assigned: Assigned, ious: Tensor, terms: CoreTerms) -> Tensor | None:
        if assigned.masks is None:
            return None
        return mask_value(self.mask, assigned.masks, assigned, sum_of_role(terms, "classification"))

    def _quality_term(self, assigned: Assigned, ious: Tensor, terms: CoreTerms) -> Tensor | None:
        if self.needs.quality_head is None:
            return None
        return self.quality_weight * quality_value(assigned, ious, self.needs.quality_head)

    def on_epoch_end(self) -> None:
        """Tells a core with state (aLRP's self-balancing) that an epoch of training has ended."""
        self.core.on_epoch_end()


def quality_value(assigned: Assigned, ious: Tensor, target: QualityHead) -> Tensor:
    """0-dim binary cross entropy of the auxiliary head over the normalizer (FCOS Sec. 3.2; PAA for IoU)."""
    quality = assigned.quality
    if quality is None or quality.logits is None:
        raise ValueError(
            f"criterion must have no auxiliary head for a detector built without one, got {target!r}; "
            "build the detector with this loss"
        )
    targets = ious if target == "iou" else quality.targets
    if targets is None:
        raise ValueError(
            "auxiliary head must be 'iou_head' for a detector without centerness targets, got 'centerness'"
        )
    losses = F.binary_cross_entropy_with_logits(at_least_float32(quality.logits), targets, reduction="sum")
    return losses / assigned.normalizer


def _segmentation_term(assigned: Assigned, ious: Tensor, terms: CoreTerms) -> Tensor | None:
    return None if assigned.segmentation is None else segmentation_value(assigned.segmentation)


def _coupling_term(coupling: WeightedCoupling) -> ExtraTerm:
    return lambda assigned, ious, terms: coupling(assigned, ious)


def add_l1(criterion: Criterion, *, classification: float = 2.0, l1: float = 5.0) -> None:
    """Adds L1 of encoded boxes to a criterion, in place, for set predictors.

    Self-balanced losses balance it too. Ranking losses keep the weight of their classification terms. Harmonic loss,
    which has a regression term, stays as it is.

    Args:
        criterion: Criterion to change.
        classification: Factor of the classification terms; 2 as published.
        l1: Weight of L1; 5 as published.
    """
    core, needs = criterion.core, criterion.needs
    if not core.includes_regression:
        factor = 1.0 if needs.ranks_only else classification
        criterion.core = WithL1(core, classification=factor, l1=l1, balanced=needs.balances_boxes)


def rank_over(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Makes every criterion in a model rank, correlate and balance over the batches of all processes of a group.

    The values of these terms are then those of one process with the whole batch, and so is the mean of gradients over
    processes, which DDP computes. The other terms are sums over predictions and need no group: their normalizers are
    averaged over all processes in any case.

    Args:
        model: Detector, or any other module with criteria in it.
        group: Processes that all run their criteria at every step; None for each process by itself, as published.

    Example:
        >>> from concordet.losses import build_criterion
        >>> criterion = build_criterion("rank_sort")
        >>> rank_over(criterion, None)
    """
    for module in model.modules():
        if isinstance(module, Criterion):
            module.group = group


def rank_records(criteria: Sequence[nn.Module], records: Sequence[Assigned]) -> list[Assigned]:
    """Ranks all records whose criteria have the same ranking loss in one call, and stores the values in the records.

    Args:
        criteria: Criterion of each record, which is called with the returned record afterwards.
        records: Records of one batch: stages, decoder layers, groups of queries.

    Returns:
        The records; those that are ranked with others have :attr:`~concordet.assigned.Assigned.ranked`.
    """
    together: dict[int, Criterion] = {}
    terms: list[RankingTerm] = []
    for i, criterion in enumerate(criteria):
        if isinstance(criterion, Criterion) and criterion.core.ranking is not None:
            together[i] = criterion
            terms.append(criterion.core.ranking)
    results = list(records)
    if len(together) < 2:
        return results
    with torch.autocast(records[0].logits.device.type, enabled=False):
        prepared = [criterion.prepare(records[i]) for i, criterion in together.items()]
        ranked = rank_together(terms, *zip(*prepared, strict=True))
    for i, record in zip(together, ranked, strict=True):
        results[i] = record
    return results


class CriterionDict(nn.ModuleDict):
    """Criteria by name; a ``ModuleDict`` whose values have a type."""

    if TYPE_CHECKING:

        def __getitem__(self, key: str) -> Criterion: ...

        def values(self) -> ValuesView[Criterion]: ...


class StagedCriterion(nn.Module):
    """One criterion per stage (RPN and head, Cascade's three heads, decoder layers), each with a weight.

    Stages with the same ranking loss are ranked in one call, each by itself.

    Args:
        stages: Criteria by name; the ``stage`` of a record names its criterion.
        weights: Factors of all terms of a stage, by name; 1 for other stages.
    """

    def __init__(self, stages: Mapping[str, Criterion], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.stages: CriterionDict = CriterionDict(stages)
        self.weights: dict[str, float] = dict(weights or {})

    @property
    def needs(self) -> Needs:
        """Needs of the last stage, whose scores are the detector's."""
        return list(self.stages.values())[-1].needs

    def forward(self, records: Sequence[Assigned]) -> Terms:
        """Weighted terms of all stages, each named ``stage_term``."""
        losses: Terms = {}
        criteria = [self.stages[assigned.stage] for assigned in records]
        for criterion, assigned in zip(criteria, rank_records(criteria, records), strict=True):
            weight = self.weights.get(assigned.stage, 1.0)
            named = {f"{assigned.stage}_{name}": weight * value for name, value in criterion(assigned).items()}
            losses = joined(losses, named)
        return losses

    def on_epoch_end(self) -> None:
        """Passes the end of an epoch on to every stage."""
        for criterion in self.stages.values():
            criterion.on_epoch_end()
