"""Criteria: a classification term, a box term, an auxiliary head's term and couplings, weighed in one place.

A criterion takes the detector's :class:`~concordet.types.Assigned` and returns named, weighted terms whose sum is the
loss.  ``build_criterion("focal+concordance(0.3)", usual)`` makes one by name; names are listed by :func:`list_losses`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from concordet.boxes import paired_iou
from concordet.losses import functional
from concordet.losses.box import BoxTerm, box_losses, weigh
from concordet.types import IGNORED, Assigned

QualityHead = Literal["centerness", "iou"]
Terms = dict[str, Tensor]
ClassificationTerm = Callable[[Assigned, Tensor], Terms]  # (assigned, ious [p], detached) -> terms, unweighted
CouplingTerm = Callable[[Assigned, Tensor], Tensor]


@dataclass(frozen=True)
class Usual:
    """The terms a detector was published with; criteria by name start from them.

    Attributes:
        classification: name of the base loss.
        box: its box term.
        quality: its auxiliary head, None for none.
    """

    classification: str = "focal"
    box: BoxTerm = field(default_factory=BoxTerm)
    quality: QualityHead | None = None


class Criterion(nn.Module):
    """Named, weighted terms of one stage: classification, box, auxiliary head, couplings.

    Args:
        classification: function of (assigned, IoUs of the positives ``[p]``) to unweighted terms.
        box: the box term.
        quality: trains the detector's auxiliary head on centerness or on IoU; None builds the detector without it.
        couplings: name to function of (assigned, IoUs) and weight, added to the loss.
        self_balance: scales the box term so that it equals the classification's value (RS Loss, Sec. 3.3 there; the
            factor carries no gradient), instead of a weight to tune.
        ranking: the classification loss depends on differences of logits only, so a detector need not start from a
            small prior probability.

    The IoU of each positive's decoded box is computed once and carries no gradient: it is a target.
    """

    def __init__(
        self,
        classification: ClassificationTerm,
        box: BoxTerm,
        *,
        quality: QualityHead | None = None,
        couplings: dict[str, tuple[CouplingTerm, float]] | None = None,
        self_balance: bool = False,
        ranking: bool = False,
    ) -> None:
        super().__init__()
        self.classification = classification
        self.box = box
        self.quality = quality
        self.couplings = dict(couplings or {})
        self.self_balance = self_balance
        self.ranking = ranking

    def forward(self, assigned: Assigned) -> Terms:
        """Named 0-dim terms, each already weighted, all connected to the graph; their sum is the loss."""
        # Losses are computed in fp32 whatever the detector ran in: bf16 IoUs and counts are not usable.
        with torch.autocast(assigned.logits.device.type, enabled=False):
            assigned = replace(assigned, logits=assigned.logits.float())
            ious = paired_iou(assigned.boxes.detach(), assigned.gt_boxes)
            terms = self.classification(assigned, ious)
            box = weigh(self.box, assigned, box_losses(self.box.kind, assigned), ious)
            if self.self_balance:
                box = box * balance(sum_terms(terms), box)
            terms = {**terms, "box": box}
            if self.quality is not None:
                terms["quality"] = quality_term(assigned, ious, self.quality)
            for name, (coupling, weight) in self.couplings.items():
                terms[name] = weight * coupling(assigned, ious)
        return terms


def sum_terms(terms: Terms) -> Tensor:
    """0-dim sum of all terms."""
    return torch.stack(list(terms.values())).sum()


def balance(classification: Tensor, box: Tensor) -> Tensor:
    """Factor that makes the box term as large as the classification's, without gradient; 1 where the box term is 0."""
    return torch.where(box > 0, classification / torch.where(box > 0, box, 1), 1).detach()


def quality_term(assigned: Assigned, ious: Tensor, target: QualityHead) -> Tensor:
    """Binary cross entropy of the auxiliary head, over the normalizer (FCOS Sec. 3.2; PAA for IoU)."""
    if assigned.quality_logits is None:
        raise ValueError(f"this detector has no auxiliary head for {target!r}; build it with this loss by name")
    targets = ious if target == "iou" else assigned.quality_targets
    if targets is None:
        raise ValueError("this detector has no centerness targets; use 'iou_head' instead of 'centerness'")
    losses = F.binary_cross_entropy_with_logits(assigned.quality_logits.float(), targets, reduction="sum")
    return losses / assigned.normalizer


# --- classification terms -------------------------------------------------------------------------------------------


def one_hot(assigned: Assigned, values: Tensor | float = 1.0) -> Tensor:
    """``[n, c]`` targets: ``values`` ``[p]`` at each positive's class, 0 elsewhere."""
    targets = torch.zeros_like(assigned.logits)
    rows = assigned.positive
    targets[rows, assigned.labels[rows]] = torch.as_tensor(values, dtype=targets.dtype, device=targets.device)
    return targets


def flat_labels(assigned: Assigned) -> Tensor:
    """``[n * c]`` labels of a ranking loss: 1 positive, 0 negative, -1 ignored; one ranking over all classes."""
    ignored = (assigned.labels == IGNORED).to(torch.int64)
    labels = -ignored[:, None].repeat(1, assigned.logits.shape[1])
    labels[assigned.positive, assigned.labels[assigned.positive]] = 1
    return labels.flatten()


def over_used_rows(losses: Tensor, assigned: Assigned) -> Tensor:
    """0-dim sum of ``losses`` ``[n, c]`` over rows that are not ignored, over the normalizer."""
    return (losses * (assigned.labels != IGNORED)[:, None]).sum() / assigned.normalizer


def focal_term(assigned: Assigned, ious: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Terms:
    """Focal loss over the number of positives."""
    losses = functional.focal_loss(assigned.logits, one_hot(assigned), alpha=alpha, gamma=gamma, reduction="none")
    return {"classification": over_used_rows(losses, assigned)}


def cross_entropy_term(assigned: Assigned, ious: Tensor) -> Terms:
    """Binary cross entropy of each class over the number of positives."""
    losses = F.binary_cross_entropy_with_logits(assigned.logits, one_hot(assigned), reduction="none")
    return {"classification": over_used_rows(losses, assigned)}


def quality_focal_term(assigned: Assigned, ious: Tensor) -> Terms:
    """Quality Focal Loss: the target of a positive is its IoU."""
    losses = functional.quality_focal_loss(assigned.logits, one_hot(assigned, ious), reduction="none")
    return {"classification": over_used_rows(losses, assigned)}


def varifocal_term(assigned: Assigned, ious: Tensor) -> Terms:
    """Varifocal Loss: the target of a positive is its IoU, and so is its weight."""
    losses = functional.varifocal_loss(assigned.logits, one_hot(assigned, ious), reduction="none")
    return {"classification": over_used_rows(losses, assigned)}


def average_precision_term(assigned: Assigned, ious: Tensor, *, method: str = "auto") -> Terms:
    """AP Loss with delta 1, as published."""
    return {"ranking": functional.ap_loss(assigned.logits.flatten(), flat_labels(assigned), method=method)}


def rank_sort_term(assigned: Assigned, ious: Tensor, *, method: str = "auto") -> Terms:
    """Rank & Sort Loss: positives above negatives, and among themselves by IoU."""
    result = functional.rank_sort_loss(
        assigned.logits.flatten(), flat_labels(assigned), one_hot(assigned, ious).flatten(), method=method
    )
    return {"ranking": result.ranking, "sorting": result.sorting}


# --- couplings ------------------------------------------------------------------------------------------------------


def correlation_coupling(assigned: Assigned, ious: Tensor, *, coefficient: str) -> Tensor:
    """1 - correlation of the positives' class probabilities with their IoUs (Correlation Loss)."""
    return functional.correlation_loss(assigned.positive_logits.sigmoid(), ious, coefficient=coefficient)


def association_coupling(assigned: Assigned, ious: Tensor, *, form: str) -> Tensor:
    """PSE or PCE over the number of positives (Association Loss, Eq. 12)."""
    losses = functional.association_loss(assigned.positive_logits.sigmoid(), ious, form=form, reduction="sum")
    return losses / assigned.normalizer


# --- criteria by name -----------------------------------------------------------------------------------------------

_RANK_SORT_BOX = BoxTerm("giou", weighting="score")
_AP_BOX = BoxTerm("giou", weight=2.0)

BASES: dict[str, Callable[[Usual], Criterion]] = {
    "focal": lambda usual: Criterion(focal_term, usual.box),
    "ce": lambda usual: Criterion(cross_entropy_term, usual.box),
    "quality_focal": lambda usual: Criterion(quality_focal_term, BoxTerm("giou", weight=2.0, weighting="score")),
    "varifocal": lambda usual: Criterion(varifocal_term, BoxTerm("giou", weight=1.5, weighting="iou")),
    "ap": lambda usual: Criterion(average_precision_term, _AP_BOX, ranking=True),
    "rank_sort": lambda usual: Criterion(rank_sort_term, _RANK_SORT_BOX, self_balance=True, ranking=True),
    "bucketed_ap": lambda usual: Criterion(partial(average_precision_term, method="bucketed"), _AP_BOX, ranking=True),
    "bucketed_rank_sort": lambda usual: Criterion(
        partial(rank_sort_term, method="bucketed"), _RANK_SORT_BOX, self_balance=True, ranking=True
    ),
}
"""Base losses: name to criterion, given the detector's usual terms."""

COUPLINGS: dict[str, tuple[CouplingTerm, float]] = {
    "concordance": (partial(correlation_coupling, coefficient="concordance"), 0.3),
    "spearman": (partial(correlation_coupling, coefficient="spearman"), 0.1),
    "pearson": (partial(correlation_coupling, coefficient="pearson"), 0.3),
    "pse": (partial(association_coupling, form="squared"), 1.0),
    "pce": (partial(association_coupling, form="cross_entropy"), 1.0),
}
"""Terms added with ``+``: name to function and default weight."""

HEADS: dict[str, QualityHead] = {"centerness": "centerness", "iou_head": "iou"}
"""Auxiliary heads added with ``+``."""

_PART = re.compile(r"(?P<name>[a-z_]+)(?:\((?P<weight>[^()]*)\))?")


def list_losses() -> list[str]:
    """Names that ``loss=`` takes; those with a leading ``+`` are added to another.

    Example:
        >>> "rank_sort" in list_losses() and "+concordance" in list_losses()
        True
    """
    return ["default", *BASES, *(f"+{name}" for name in (*COUPLINGS, *HEADS))]


def build_criterion(loss: str, usual: Usual | None = None) -> Criterion:
    """The criterion of this name.

    Args:
        loss: a base name, then any couplings and an auxiliary head: ``rank_sort``, ``focal+concordance(0.3)``,
            ``focal+pse``, ``default+spearman(0.1)``.  A number in brackets is the coupling's weight (>= 0).
            ``default`` is the detector's own, auxiliary head included; every other base is built without that head
            unless ``+centerness`` or ``+iou_head`` asks for it.
        usual: the detector's published terms; None is focal loss with GIoU.

    Raises:
        ValueError: for an unknown name, a bad weight or a combination without meaning.

    Example:
        >>> sorted(build_criterion("focal+concordance(0.3)").couplings)
        ['concordance']
    """
    usual = usual or Usual()
    base, *extras = (_parse(part, loss) for part in loss.replace(" ", "").split("+"))
    name, weight = base
    if weight is not None:
        raise ValueError(
            f"loss {name!r} in {loss!r} takes no weight; only couplings do, as in 'focal+concordance(0.3)'"
        )
    if name in COUPLINGS or name in HEADS:
        raise ValueError(f"{name!r} in {loss!r} is no loss of its own; add it to a base loss, as in 'focal+{name}'")
    if name != "default" and name not in BASES:
        raise ValueError(f"unknown loss {name!r} in {loss!r}; choose one of default, {', '.join(BASES)}")
    criterion = BASES[usual.classification if name == "default" else name](usual)
    if name == "default":
        criterion.quality = usual.quality
    for extra, weight in extras:
        _add(criterion, extra, weight, loss)
    return criterion


def _parse(part: str, loss: str) -> tuple[str, float | None]:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"cannot read {part!r} in loss {loss!r}; write it as 'focal' or 'focal+concordance(0.3)'")
    if match["weight"] is None:
        return match["name"], None
    try:
        weight = float(match["weight"])
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight in {part!r} of loss {loss!r} must be a number of at least 0, got {match['weight']!r}")
    return match["name"], weight


def _add(criterion: Criterion, name: str, weight: float | None, loss: str) -> None:
    if name in HEADS:
        if weight is not None:
            raise ValueError(f"auxiliary head {name!r} in {loss!r} takes no weight")
        if criterion.quality not in (None, HEADS[name]):
            raise ValueError(f"loss {loss!r} asks for two auxiliary heads; a detector has one")
        criterion.quality = HEADS[name]
        return
    if name in BASES or name == "default":
        raise ValueError(f"loss {loss!r} has two base losses; keep one of them and add couplings to it")
    if name not in COUPLINGS:
        raise ValueError(f"unknown coupling {name!r} in {loss!r}; choose one of {', '.join((*COUPLINGS, *HEADS))}")
    if name in criterion.couplings:
        raise ValueError(f"coupling {name!r} stands twice in {loss!r}; add their weights instead")
    function, default = COUPLINGS[name]
    criterion.couplings[name] = (function, default if weight is None else weight)
