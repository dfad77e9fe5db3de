"""Losses per logit as modules."""

from __future__ import annotations

from torch import Tensor

from concordet.losses import functional
from concordet.losses.functional import Reduction
from concordet.losses.modules.base import FunctionModule


class FocalLoss(FunctionModule):
    r"""Focal Loss: cross entropy, weighted down where the classifier is certain.

    .. math:: -\alpha_t (1 - p_t)^\gamma \log p_t

    Args:
        alpha: Weight of the positives, 1 - alpha of the negatives; negative for none. 0.25 as published.
        gamma: Focus, >= 0; 2 as published, 0 is cross entropy.
        reduction: "none", "mean" or "sum"; detectors divide a sum by the number of positives.

    Shapes:
        logits of any shape, targets of the same shape, 0 or 1, to a 0-dim loss, or their shape for "none".

    Raises:
        ValueError: see :func:`~concordet.losses.functional.focal_loss`, which computes the loss.

    Paper:
        Lin et al.: Focal Loss for Dense Object Detection (ICCV 2017), Eq. 5.

    Example:
        >>> import torch
        >>> FocalLoss()(torch.tensor([0.0, 0.0]), torch.tensor([1, 0]))
        tensor(0.1733)
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, reduction: Reduction = "sum") -> None:
        super().__init__(alpha=alpha, gamma=gamma, reduction=reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss."""
        return functional.focal_loss(logits, targets, **self._settings)


class QualityFocalLoss(FunctionModule):
    r"""Quality Focal Loss: the score of the object's class becomes the IoU of its box.

    .. math:: -|q - p|^\beta \left( q \log p + (1 - q) \log (1 - p) \right)

    Args:
        beta: Focus, >= 0; 2 as published.
        reduction: "none", "mean" or "sum"; detectors divide a sum by the number of positives.

    Shapes:
        logits of any shape, targets of the same shape in [0, 1], to a 0-dim loss, or their shape for "none".

    Raises:
        ValueError: see :func:`~concordet.losses.functional.quality_focal_loss`, which computes the loss.

    Paper:
        Li et al.: Generalized Focal Loss (NeurIPS 2020), Eq. 2.

    Example:
        >>> import torch
        >>> QualityFocalLoss()(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.0]))
        tensor(0.1733)
    """

    def __init__(self, *, beta: float = 2.0, reduction: Reduction = "sum") -> None:
        super().__init__(beta=beta, reduction=reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss."""
        return functional.quality_focal_loss(logits, targets, **self._settings)


class VarifocalLoss(FunctionModule):
    r"""Varifocal Loss: positives are weighted by their IoU, negatives weighted down as in focal loss.

    .. math:: -q \left( q \log p + (1 - q) \log (1 - p) \right) \text{ for } q > 0, \quad
              -\alpha p^\gamma \log (1 - p) \text{ for } q = 0

    Args:
        alpha: Weight of the negatives; 0.75 as published.
        gamma: Focus on hard negatives, >= 0; 2 as published.
        reduction: "none", "mean" or "sum"; detectors divide a sum by the number of positives.

    Shapes:
        logits of any shape, targets of the same shape in [0, 1], to a 0-dim loss, or their shape for "none".

    Raises:
        ValueError: see :func:`~concordet.losses.functional.varifocal_loss`, which computes the loss.

    Paper:
        Zhang et al.: VarifocalNet (CVPR 2021), Eq. 2.

    Example:
        >>> import torch
        >>> VarifocalLoss(reduction="none")(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.0]))
        tensor([0.3466, 0.1300])
    """

    def __init__(self, *, alpha: float = 0.75, gamma: float = 2.0, reduction: Reduction = "sum") -> None:
        super().__init__(alpha=alpha, gamma=gamma, reduction=reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss."""
        return functional.varifocal_loss(logits, targets, **self._settings)


class MatchabilityAwareLoss(FunctionModule):
    r"""Matchability-Aware Loss: a matched box of low IoU still counts in full, towards a low score.

    .. math:: -q^\gamma \log p - (1 - q^\gamma) \log (1 - p) \text{ for a positive}, \quad
              -p^\gamma \log (1 - p) \text{ for a negative}

    Args:
        gamma: Exponent of q and p, >= 0; 1.5 as published.
        reduction: "none", "mean" or "sum"; detectors divide a sum by the number of positives.

    Shapes:
        logits of any shape, targets of the same shape in [0, 1], positive of the same shape, bool (None for q > 0), to
        a 0-dim loss, or their shape for "none".

    Raises:
        ValueError: see :func:`~concordet.losses.functional.matchability_aware_loss`, which computes the loss.

    Paper:
        Huang et al.: DEIM: DETR with Improved Matching for Fast Convergence (CVPR 2025), Eq. 7.

    Example:
        >>> import torch
        >>> MatchabilityAwareLoss(reduction="none")(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.0]))
        tensor([0.6931, 0.2451])
    """

    def __init__(self, *, gamma: float = 1.5, reduction: Reduction = "sum") -> None:
        super().__init__(gamma=gamma, reduction=reduction)

    def forward(self, logits: Tensor, targets: Tensor, positive: Tensor | None = None) -> Tensor:
        """The loss."""
        return functional.matchability_aware_loss(logits, targets, positive=positive, **self._settings)
