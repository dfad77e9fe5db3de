"""What a criterion is put together from: functions of (assigned, IoUs of the positives) to unweighted terms.

Cores give classification and box terms, couplings one more term.  IoUs ``[p]`` carry no gradient: they are targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from concordet.assigned import BACKGROUND, IGNORED, Assigned
from concordet.boxes import paired_iou
from concordet.distributed import process_group, world
from concordet.losses import functional
from concordet.losses.criteria.box import BoxTerm, box_losses, weigh
from concordet.losses.functional.reduction import at_least_float32

QualityHead = Literal["centerness", "iou"]
Terms = dict[str, Tensor]
Core = Callable[[Assigned, Tensor], Terms]
Coupling = Callable[[Assigned, Tensor], Tensor]


def sum_terms(terms: Terms) -> Tensor:
    """0-dim sum of all terms."""
    return torch.stack(list(terms.values())).sum()


def balance(classification: Tensor, box: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Factor that makes the box term as large as the classification's, without gradient; 1 where the box term is 0.

    With a group it is the same everywhere: the ratio of the terms' means over its processes.
    """
    classification, box = process_group(group).all_mean(torch.stack([classification, box]).detach())
    return torch.where(box > 0, classification / torch.where(box > 0, box, 1), 1)


def quality_term(assigned: Assigned, ious: Tensor, target: QualityHead) -> Tensor:
    """Binary cross entropy of the auxiliary head, over the normalizer (FCOS Sec. 3.2; PAA for IoU)."""
    if assigned.quality_logits is None:
        raise ValueError(f"this detector has no auxiliary head for {target!r}; build it with this loss by name")
    targets = ious if target == "iou" else assigned.quality_targets
    if targets is None:
        raise ValueError("this detector has no centerness targets; use 'iou_head' instead of 'centerness'")
    losses = F.binary_cross_entropy_with_logits(at_least_float32(assigned.quality_logits), targets, reduction="sum")
    return losses / assigned.normalizer


# --- classification terms -------------------------------------------------------------------------------------------


def one_hot(assigned: Assigned, values: Tensor | float = 1.0) -> Tensor:
    """``[n, c]`` targets: ``values`` ``[p]`` at each positive's class, 0 elsewhere."""
    targets = torch.zeros_like(assigned.logits)
    rows = assigned.positive
    if not isinstance(values, Tensor):
        values = targets.new_full((), values)
    targets[rows, assigned.labels[rows]] = values.to(targets.dtype)
    return targets


def flat_labels(assigned: Assigned) -> Tensor:
    """``[n * c]`` labels of a ranking loss: 1 positive, 0 negative, -1 ignored; one ranking over all classes."""
    ignored = (assigned.labels == IGNORED).to(torch.int64)
    labels = -ignored[:, None].repeat(1, assigned.logits.shape[1])
    labels[assigned.positive, assigned.labels[assigned.positive]] = 1
    return labels.flatten()


def known(assigned: Assigned) -> dict[str, Any]:
    """What a record tells a ranking loss: with whom to rank, and how many positives there are."""
    return {"group": assigned.group, "n_positives": len(assigned.positive)}


def over_used_rows(losses: Tensor, assigned: Assigned) -> Tensor:
    """0-dim sum of ``losses`` ``[n, c]`` over rows that are not ignored, over the normalizer."""
    return (losses * (assigned.labels != IGNORED)[:, None]).sum() / assigned.normalizer


def focal_term(assigned: Assigned, ious: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Terms:
    """Focal loss over the number of positives."""
    losses = functional.focal_loss(assigned.logits, one_hot(assigned), alpha=alpha, gamma=gamma, reduction="none")
    return {"classification": over_used_rows(losses, assigned)}


def cross_entropy_term(assigned: Assigned, ious: Tensor, *, background: float | None = None) -> Terms:
    """Cross entropy over the normalizer: of the softmax, or binary of each class.

    Of a softmax with a weight of the ``background`` it is the weighted mean over all predictions that are used; the
    sum of weights is averaged over processes as the normalizer is.
    """
    if assigned.softmax:
        losses = softmax_entropies(assigned)
        if background is None:
            return {"classification": losses.sum() / assigned.normalizer}
        weights = torch.where(assigned.labels == BACKGROUND, background, 1.0) * (assigned.labels != IGNORED)
        total = world().all_mean(weights.sum())
        return {"classification": (weights * losses).sum() / total.clamp(min=torch.finfo(losses.dtype).tiny)}
    losses = F.binary_cross_entropy_with_logits(assigned.logits, one_hot(assigned), reduction="none")
    return {"classification": over_used_rows(losses, assigned)}


def softmax_entropies(assigned: Assigned) -> Tensor:
    """``[n]`` cross entropies of a softmax classifier, 0 where ignored; the background is the last class."""
    background = assigned.logits.shape[1] - 1
    targets = torch.where(assigned.labels == BACKGROUND, background, assigned.labels)
    return F.cross_entropy(assigned.logits, targets, ignore_index=IGNORED, reduction="none")


def quality_focal_term(assigned: Assigned, ious: Tensor) -> Terms:
    """Quality Focal Loss: the target of a positive is its IoU."""
    losses = functional.quality_focal_loss(assigned.logits, one_hot(assigned, ious), reduction="none")
    return {"classification": over_used_rows(losses, assigned)}


def varifocal_term(assigned: Assigned, ious: Tensor) -> Terms:
    """Varifocal Loss: the target of a positive is its IoU, and so is its weight."""
    losses = functional.varifocal_loss(assigned.logits, one_hot(assigned, ious), reduction="none")
    return {"classification": over_used_rows(losses, assigned)}


def distributional_ranking_term(assigned: Assigned, ious: Tensor) -> Terms:
    """DR Loss over the batch, where its published code takes it by image."""
    return {"classification": functional.distributional_ranking_loss(assigned.logits.flatten(), flat_labels(assigned))}


def average_precision_term(assigned: Assigned, ious: Tensor, *, delta: float = 1.0, method: str = "auto") -> Terms:
    """AP Loss; published with delta 1, and 0.5 for PAA."""
    logits, labels = assigned.logits.flatten(), flat_labels(assigned)
    return {"ranking": functional.ap_loss(logits, labels, delta=delta, method=method, **known(assigned))}


def rank_sort_term(assigned: Assigned, ious: Tensor, *, method: str = "auto") -> Terms:
    """Rank & Sort Loss: positives above negatives, and among themselves by IoU."""
    logits, labels, quality = assigned.logits.flatten(), flat_labels(assigned), one_hot(assigned, ious).flatten()
    result = functional.rank_sort_loss(logits, labels, quality, method=method, **known(assigned))
    return {"ranking": result.ranking, "sorting": result.sorting}


# --- cores ----------------------------------------------------------------------------------------------------------


def separate(assigned: Assigned, ious: Tensor, *, classification: Core, box: BoxTerm) -> Terms:
    """A classification loss and a box loss that do not know of one another."""
    terms = classification(assigned, ious)
    return {**terms, "box": weigh(box, assigned, box_losses(box.kind, assigned, box.beta), ious)}


def self_balanced(assigned: Assigned, ious: Tensor, *, classification: Core, box: BoxTerm) -> Terms:
    """The box term is scaled to the classification's value, so that there is no weight to tune (RS Loss)."""
    terms = separate(assigned, ious, classification=classification, box=box)
    box_value = terms.pop("box")
    return {**terms, "box": box_value * balance(sum_terms(terms), box_value, assigned.group)}


def harmonic_parts(assigned: Assigned, *, alpha: float = 1.5, gamma: float = 0.8) -> tuple[Tensor, Tensor]:
    """``[p]`` cross entropies of the positives' own classes, and localization losses (Eq. 11)."""
    overlaps = paired_iou(assigned.boxes, assigned.gt_boxes)
    localization = alpha * functional.harmonic_iou_loss(overlaps, gamma=gamma, reduction="none")
    if assigned.deltas is not None:
        localization = localization + box_losses("smooth_l1", assigned)
    if assigned.softmax:
        return softmax_entropies(assigned)[assigned.positive], localization
    return F.softplus(-assigned.positive_logits), localization


def harmonic(
    assigned: Assigned,
    ious: Tensor,
    *,
    alpha: float = 1.5,
    gamma: float = 0.8,
    margin: float = 0.2,
    contrast: float = 1.0,
    background: float | None = None,
) -> Terms:
    """HarmonicDet: cross entropy and localization of a positive weigh each other, plus Task-Contrastive loss.

    Localization is smooth L1 of the encoded regression, where the detector has one, plus ``alpha`` times the Harmonic
    IoU loss.  With a sigmoid a class the positive's own class is harmonised, every other logit is a negative.
    ``contrast`` is the Task-Contrastive loss's factor, ``background`` that of a softmax's rows without object.

    Wang and Zhang (ICCV 2021), Eqs. 8-13; alpha, gamma and margin as published.
    """
    entropies, localization = harmonic_parts(assigned, alpha=alpha, gamma=gamma)
    if assigned.softmax:
        losses = softmax_entropies(assigned)
        negatives = (1.0 if background is None else background) * (losses.sum() - losses[assigned.positive].sum())
    else:
        losses = F.softplus(assigned.logits) * (1 - one_hot(assigned))
        negatives = (losses * (assigned.labels != IGNORED)[:, None]).sum()
    contrasts = functional.task_contrastive_loss(
        assigned.probabilities(),
        assigned.labels[assigned.positive],
        paired_iou(assigned.boxes, assigned.gt_boxes),
        margin=margin,
        reduction="sum",
    )
    return {
        "classification": negatives / assigned.normalizer,
        "harmonic": functional.harmonic_loss(entropies, localization, reduction="sum") / assigned.normalizer,
        "contrast": contrast * contrasts / assigned.normalizer,
    }


class AverageLRP(nn.Module):
    """aLRP Loss: one loss ranks positives above negatives and weighs their localization errors by rank.

    The localization part is scaled by mean(total) / mean(localization) of the previous epoch (Oksuz et al. 2020,
    Sec. 4.2), 50 in the first.  This is state of the training: it lives in buffers, so it is saved with the model,
    and moves on when :meth:`on_epoch_end` is called; :meth:`forward` only adds up.

    Args:
        first_weight: during the first epoch; 50 as published.
        method: of the ranking engine.
        positive_iou: tau, the IoU from which on predictions are positive; an error is (1 - GIoU) / (2 (1 - tau)), 0.5
            as published, 0.7 in a region proposal network.
        balanced: without it the localization part keeps the weight 1 (Table 2's rows without SB).
        giou: without it an error is (1 - IoU) / (1 - tau), as in Eq. 9 (Table 2's rows with IoU).
    """

    weight: Tensor
    sums: Tensor

    def __init__(
        self,
        first_weight: float = 50.0,
        method: str = "auto",
        positive_iou: float = 0.5,
        *,
        balanced: bool = True,
        giou: bool = True,
    ) -> None:
        super().__init__()
        self.method = method
        self.positive_iou = positive_iou
        self.balanced, self.giou = balanced, giou
        self.register_buffer("weight", torch.tensor(first_weight if balanced else 1.0))
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))  # total, localization

    def forward(self, assigned: Assigned, ious: Tensor) -> Terms:
        """Classification and weighted localization."""
        worst = 2 if self.giou else 1  # the greatest error of a box
        errors = box_losses("giou" if self.giou else "iou", assigned) / (worst * (1 - self.positive_iou))
        logits, labels = assigned.logits.flatten(), flat_labels(assigned)
        parts = functional.alrp_loss(logits, labels, errors, method=self.method, group=assigned.group)
        if self.training and self.balanced:
            total = (parts.classification + parts.localization).detach()
            self.sums += torch.stack([total, parts.localization.detach()])
        return {"classification": parts.classification, "box": self.weight * parts.localization}

    def on_epoch_end(self) -> None:
        """Takes the weight of the next epoch from this one's means; nothing changes where there was no positive."""
        total, localization = self.sums
        self.weight.copy_(torch.where(localization > 0, total / localization.clamp(min=1e-12), self.weight))
        self.sums.zero_()


# --- couplings ------------------------------------------------------------------------------------------------------


def correlation_coupling(assigned: Assigned, ious: Tensor, *, coefficient: str, **settings: float) -> Tensor:
    """1 - correlation of the positives' class probabilities with their IoUs (Correlation Loss)."""
    return functional.correlation_loss(
        assigned.scores(), ious, coefficient=coefficient, group=assigned.group, **settings
    )


def association_coupling(assigned: Assigned, ious: Tensor, *, form: str, slope: float = 1.0) -> Tensor:
    """PSE or PCE over the number of positives (Association Loss, Eq. 12)."""
    losses = functional.association_loss(assigned.scores(), ious, form=form, slope=slope, reduction="sum")
    return losses / assigned.normalizer
