"""The core of set predictors (DETR, Sparse R-CNN): L1 of normalised boxes beside another core's terms."""

from __future__ import annotations

from torch import Tensor, nn

from concordet.assigned import Assigned
from concordet.losses.criteria.box import BoxTerm, box_losses, weigh
from concordet.losses.criteria.cores import Core, Terms, balance, sum_terms


class SetCore(nn.Module):
    """Adds the term ``l1`` to a core that has none, and weighs its classification.

    The detector gives boxes in units of the image as encoded regression; L1 is the sum over the four coordinates.

    Args:
        core: another core; Harmonic loss, which has a regression of its own, is left as it is.
        classification: factor of the term of that name; 2 as published (ranking losses have none of that name but
            aLRP's, which is balanced and keeps its own).
        l1: factor of the new term; 5 as published.
        balanced: L1 is weighed by score and scaled to the classification's value, as RS Loss does with the box term,
            each for itself.
    """

    def __init__(self, core: Core, *, classification: float = 2.0, l1: float = 5.0, balanced: bool = False) -> None:
        super().__init__()
        self.core = core
        self.classification = classification
        self.l1 = l1
        self.balanced = balanced

    def forward(self, assigned: Assigned, ious: Tensor) -> Terms:
        """The other core's terms, and ``l1``."""
        terms = self.core(assigned, ious)
        if "harmonic" in terms:
            return terms
        losses = box_losses("l1", assigned)
        if self.balanced:
            value = weigh(BoxTerm("l1", weighting="score"), assigned, losses, ious)
            classification = sum_terms({k: v for k, v in terms.items() if k != "box"})
            return {**terms, "l1": value * balance(classification, value, assigned.group)}
        if "classification" in terms:
            terms["classification"] = self.classification * terms["classification"]
        return {**terms, "l1": weigh(BoxTerm("l1", self.l1), assigned, losses, ious)}

    def on_epoch_end(self) -> None:
        """Passes the end of an epoch on to a core with state."""
        hook = getattr(self.core, "on_epoch_end", None)
        if hook is not None:
            hook()
