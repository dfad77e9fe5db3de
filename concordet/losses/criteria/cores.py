"""Cores: the classification and box terms of a criterion, as small modules."""

from __future__ import annotations

from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from concordet.assigned import Assigned
from concordet.boxes import paired_iou
from concordet.losses import functional
from concordet.losses.criteria.box import BoxTerm, box_losses, box_value, weigh
from concordet.losses.criteria.classification import Classification, softmax_entropies
from concordet.losses.criteria.ranking import ALRPTerm, RankingTerm
from concordet.losses.criteria.terms import CoreTerms, Term, as_terms, balance, joined, sum_of_role
from concordet.losses.functional.ranking import Method


class Core(nn.Module):
    """Base class of cores: classification and box terms of a batch.

    A subclass implements :meth:`forward`; :meth:`observe` if it has values to plot, :meth:`on_epoch_end` if it has
    state, and :attr:`ranking` if one of its parts is a ranking loss. ``includes_regression`` says that its terms
    already compare encoded regressions, so that :class:`WithL1` is not needed.

    Example:
        A core whose box term grows with the classification loss, registered under a name for every detector:

        >>> from concordet.losses import BoxTerm, Core, Term, build_criterion, functional, register_loss
        >>> from concordet.losses.criteria.box import box_value
        >>> @register_loss("doc_joint")
        ... class Joint(Core):
        ...     def __init__(self, defaults, *, weight=2.0):
        ...         super().__init__()
        ...         self.weight = weight
        ...
        ...     def forward(self, assigned, ious):
        ...         losses = functional.focal_loss(assigned.logits, assigned.class_targets(), reduction="none")
        ...         classification = assigned.normalized_sum(losses)
        ...         box = self.weight * (1 + classification.detach()) * box_value(BoxTerm("giou"), assigned, ious)
        ...         return {"classification": Term(classification), "box": Term(box, "box")}
        >>> build_criterion("doc_joint(weight=1)+concordance(0.3)").core.weight
        1.0
    """

    includes_regression: ClassVar[bool] = False

    @property
    def ranking(self) -> RankingTerm | None:
        """The ranking loss that :meth:`forward` calls, if any: records of several stages can then share one call."""
        return None

    def forward(self, assigned: Assigned, ious: Tensor) -> CoreTerms:
        """The terms by name.

        Args:
            assigned: predictions and their objects; logits are float32 or better.
            ious: ``[p]`` IoUs of the positives' boxes and objects, without gradient.
        """
        raise NotImplementedError

    def observe(self, assigned: Assigned, ious: Tensor) -> dict[str, Tensor]:
        """0-dim values worth plotting besides the terms, by name."""
        return {}

    def on_epoch_end(self) -> None:
        """Called when an epoch of training ends."""


class NoTerms(Core):
    """No terms: the core of a criterion that adds couplings to a loss computed elsewhere."""

    def forward(self, assigned: Assigned, ious: Tensor) -> CoreTerms:
        return {}


class SeparateCore(Core):
    """A classification loss and a box loss that are independent of each other.

    Args:
        classification: Classification loss.
        box: Box term.
    """

    def __init__(self, classification: Classification, box: BoxTerm) -> None:
        super().__init__()
        self.classification = classification
        self.box = box

    @property
    def ranking(self) -> RankingTerm | None:
        return self.classification if isinstance(self.classification, RankingTerm) else None

    def forward(self, assigned: Assigned, ious: Tensor) -> CoreTerms:
        terms = as_terms(self.classification(assigned, ious))
        return joined(terms, {"box": Term(box_value(self.box, assigned, ious), "box")})


class SelfBalancedCore(SeparateCore):
    """A box term that is scaled to the value of the classification terms, without a weight to tune (RS Loss)."""

    def forward(self, assigned: Assigned, ious: Tensor) -> CoreTerms:
        terms = super().forward(assigned, ious)
        box = terms["box"].value
        return {**terms, "box": Term(box * self._balance(terms, assigned), "box")}

    def observe(self, assigned: Assigned, ious: Tensor) -> dict[str, Tensor]:
        """``self_balance``: the factor of the box term (RS Loss)."""
        return {"self_balance": self._balance(super().forward(assigned, ious), assigned)}

    @staticmethod
    def _balance(terms: CoreTerms, assigned: Assigned) -> Tensor:
        return balance(sum_of_role(terms, "classification"), terms["box"].value, assigned.group)


class HarmonicCore(Core):
    """HarmonicDet: cross entropy and localization of a positive weight each other, plus Task-Contrastive loss.

    Localization is smooth L1 of the encoded regression, for detectors that have one, plus ``alpha`` times the Harmonic
    IoU loss. With one sigmoid per class only the logit of the positive's own class is harmonized; every other logit is
    a negative.

    Args:
        alpha: Weight of the Harmonic IoU loss; 1.5 as published.
        gamma: Focus of the Harmonic IoU loss; 0.8 as published.
        margin: Margin of the Task-Contrastive loss; 0.2 as published.
        contrast_weight: Weight of the Task-Contrastive loss.
        no_object_weight: Weight of the background in a softmax; None for 1.
        beta: Error at which smooth L1 turns from quadratic to linear; by name the detector's own, as the paper takes
            its base detectors' smooth L1.

    Paper:
        Wang and Zhang: Reconcile Prediction Consistency for Balanced Object Detection (ICCV 2021), Eqs. 8-13.
    """

    includes_regression = True

    def __init__(
        self,
        *,
        alpha: float = 1.5,
        gamma: float = 0.8,
        margin: float = 0.2,
        contrast_weight: float = 1.0,
        no_object_weight: float | None = None,
        beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        self.alpha: float
        self.gamma: float
        self.beta: float
        self.alpha, self.gamma, self.beta = alpha, gamma, beta
        self.margin: float
        self.contrast_weight: float
        self.margin, self.contrast_weight = margin, contrast_weight
        self.no_object_weight: float = 1.0 if no_object_weight is None else no_object_weight
        none = torch.zeros(0)  # numbers out of range are found here, not at the first batch
        functional.harmonic_iou_loss(none, gamma=gamma)
        functional.task_contrastive_loss(none[:, None].expand(0, 1), none.long(), none, margin=margin)

    def losses(self, assigned: Assigned) -> tuple[Tensor, Tensor]:
        """``[p]`` cross entropies of the positives' classes, and ``[p]`` localization losses (Eq. 11)."""
        return self._entropies(assigned)[0], self._localization(assigned, _differentiable_ious(assigned))

    def _localization(self, assigned: Assigned, ious: Tensor) -> Tensor:
        losses = self.alpha * functional.harmonic_iou_loss(ious, gamma=self.gamma, reduction="none")
        if assigned.regression is None:
            return losses
        return losses + box_losses("smooth_l1", assigned, self.beta)

    def _entropies(self, assigned: Assigned) -> tuple[Tensor, Tensor]:
        """``[p]`` cross entropies of the positives' classes, and the 0-dim loss of the negatives."""
        if not assigned.softmax:
            negatives = assigned.normalized_sum(F.softplus(assigned.logits) * (1 - assigned.class_targets()))
            return F.softplus(-assigned.positive_logits), negatives
        losses = softmax_entropies(assigned)
        own = losses[assigned.positive]
        return own, self.no_object_weight * (losses.sum() - own.sum()) / assigned.normalizer

    def forward(self, assigned: Assigned, ious: Tensor) -> CoreTerms:
        ious = _differentiable_ious(assigned)
        localization = self._localization(assigned, ious)
        entropies, negatives = self._entropies(assigned)
        contrasts = functional.task_contrastive_loss(
            assigned.probabilities(), assigned.labels[assigned.positive], ious, margin=self.margin, reduction="sum"
        )
        joint = functional.harmonic_loss(entropies, localization, reduction="sum")
        return {
            "classification": Term(negatives),
            "harmonic": Term(joint / assigned.normalizer),
            "contrast": Term(self.contrast_weight * contrasts / assigned.normalizer, "extra"),
        }

    def observe(self, assigned: Assigned, ious: Tensor) -> dict[str, Tensor]:
        """``classification_factor`` and ``localization_factor``: means of 1 + beta_r and 1 + beta_c (Figure 4)."""
        classification, localization = functional.harmonic_factors(*self.losses(assigned))
        return {"classification_factor": classification.mean(), "localization_factor": localization.mean()}


def _differentiable_ious(assigned: Assigned) -> Tensor:
    return paired_iou(assigned.boxes, assigned.gt_boxes)


class ALRPCore(Core):
    """aLRP Loss: one loss ranks positives above negatives and weights their localization errors by rank.

    The localization part is scaled by mean(total) / mean(localization) of the previous epoch (Oksuz et al. 2020,
    Sec. 4.2), and by 50 in the first. This training state is in buffers, which are saved with the model;
    :meth:`forward` adds to the sums, and :meth:`on_epoch_end` sets the factor.

    Args:
        first_weight: Weight of the localization part during the first epoch; 50 as published.
        method: Algorithm of the ranking loss.
        positive_iou: IoU tau from which on predictions are positive. An error is (1 - GIoU) / (2 (1 - tau)); 0.5 as
            published, 0.7 in a region proposal network.
        balanced: False leaves the weight of the localization part at 1 (Table 2, rows without SB).
        giou: False makes an error (1 - IoU) / (1 - tau), as in Eq. 9 (Table 2, rows with IoU).
    """

    weight: Tensor
    sums: Tensor

    def __init__(
        self,
        first_weight: float = 50.0,
        method: Method = "auto",
        positive_iou: float = 0.5,
        *,
        balanced: bool = True,
        giou: bool = True,
    ) -> None:
        super().__init__()
        self.term: ALRPTerm = ALRPTerm(positive_iou, giou=giou, method=method)
        self.balanced = balanced
        self.register_buffer("weight", torch.tensor(first_weight if balanced else 1.0))
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))  # total, localization

    @property
    def ranking(self) -> RankingTerm:
        return self.term

    def forward(self, assigned: Assigned, ious: Tensor) -> CoreTerms:
        parts = self.term(assigned, ious)
        classification, localization = parts["classification"], parts["localization"]
        if self.training and self.balanced:
            self.sums += torch.stack([classification + localization, localization]).detach()
        return {"classification": Term(classification), "box": Term(self.weight * localization, "box")}

    def observe(self, assigned: Assigned, ious: Tensor) -> dict[str, Tensor]:
        """``self_balance``: the weight of the localization part (aLRP Loss, Figure 3)."""
        return {"self_balance": self.weight.clone()}

    def on_epoch_end(self) -> None:
        """Sets the weight for the next epoch from this epoch's means; without positives it stays as it is."""
        total, localization = self.sums
        self.weight.copy_(torch.where(localization > 0, total / localization.clamp(min=1e-12), self.weight))
        self.sums.zero_()


_SCORED_L1: Final = BoxTerm("l1", weighting="score")


class WithL1(Core):
    """A core with the additional term ``l1``, for set predictors (DETR, Sparse R-CNN).

    Their encoded regressions are boxes in units of the image; L1 is the sum over the four coordinates.

    Args:
        core: Core to add the term to.
        classification: Factor of the core's classification terms.
        l1: Factor of the new term; 5 as published.
        balanced: L1 is weighted by score and, like RS Loss's box term, scaled to the value of the classification terms.
    """

    def __init__(self, core: Core, *, classification: float = 1.0, l1: float = 5.0, balanced: bool = False) -> None:
        super().__init__()
        self.core = core
        self.classification = classification
        self.l1 = l1
        self.balanced = balanced

    @property
    def ranking(self) -> RankingTerm | None:
        return self.core.ranking

    def forward(self, assigned: Assigned, ious: Tensor) -> CoreTerms:
        terms = self.core(assigned, ious)
        losses = box_losses("l1", assigned)
        if self.balanced:
            value = weigh(_SCORED_L1, assigned, losses, ious)
            factor = balance(sum_of_role(terms, "classification"), value, assigned.group)
            return joined(terms, {"l1": Term(value * factor, "box")})
        if self.classification != 1:
            terms = {
                name: Term(self.classification * term.value, term.role) if term.role == "classification" else term
                for name, term in terms.items()
            }
        return joined(terms, {"l1": Term(weigh(BoxTerm("l1", self.l1), assigned, losses, ious), "box")})

    def observe(self, assigned: Assigned, ious: Tensor) -> dict[str, Tensor]:
        return self.core.observe(assigned, ious)

    def on_epoch_end(self) -> None:
        self.core.on_epoch_end()
