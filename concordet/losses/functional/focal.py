"""Losses per logit: focal, quality focal, varifocal and matchability-aware loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from concordet.losses.functional.checks import (
    check_binary,
    check_bool,
    check_finite,
    check_floating,
    check_positive,
    check_range,
    check_same,
)
from concordet.losses.functional.reduction import Reduction, at_least_float32, reduce


def focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0, reduction: Reduction = "sum"
) -> Tensor:
    r"""Focal Loss: cross entropy, weighted down where the classifier is certain.

    .. math:: -\alpha_t (1 - p_t)^\gamma \log p_t

    Args:
        logits: any shape, raw scores.
        targets: the same shape, 0 or 1 (any dtype).
        alpha: weight of the positives, 1 - alpha of the negatives; negative for none. 0.25 as published.
        gamma: focus; 2 as published, 0 is cross entropy.
        reduction: "none", "mean" or "sum"; detectors divide a sum by the number of positives.

    Returns:
        0-dim (or the logits' shape), float32 or better.

    Raises:
        ValueError: shapes, dtypes, targets or alpha are not as above, or a logit is not finite.

    Paper:
        Lin et al.: Focal Loss for Dense Object Detection (ICCV 2017), Eq. 5.

    Example:
        >>> focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([1, 0]), reduction="none")
        tensor([0.0433, 0.1300])
    """
    logits, targets = _checked("focal_loss", logits, targets, gamma=gamma)
    if not alpha <= 1:
        raise ValueError(f"focal_loss: alpha must be at most 1, got {alpha}; 0.25 is the published value")
    check_binary("focal_loss", "targets", targets, hint="take quality_focal_loss for soft targets")
    signed = logits * (2 * targets - 1)  # logit of the true label
    losses = -_power_of_sigmoid(-signed, gamma) * logsigmoid(signed)
    if alpha >= 0:
        losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
    return reduce("focal_loss", losses, reduction)


def quality_focal_loss(logits: Tensor, targets: Tensor, *, beta: float = 2.0, reduction: Reduction = "sum") -> Tensor:
    r"""Quality Focal Loss: the score of an object's class becomes the IoU of its box.

    .. math:: -|q - p|^\beta \left( q \log p + (1 - q) \log (1 - p) \right)

    Args:
        logits: any shape, raw scores.
        targets: the same shape, q in [0, 1]: the IoU at the object's class, 0 elsewhere. No gradient flows through it.
        beta: focus; 2 as published.
        reduction: "none", "mean" or "sum".

    Returns:
        0-dim (or the logits' shape), float32 or better.

    Raises:
        ValueError: shapes, dtypes or ranges are not as above, or a logit is not finite.

    Paper:
        Li et al.: Generalized Focal Loss (NeurIPS 2020), Eq. 2.

    Example:
        >>> quality_focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.0]), reduction="none")
        tensor([0.0000, 0.1733])
    """
    logits, targets = _checked("quality_focal_loss", logits, targets, beta=beta)
    distances = (targets - logits.sigmoid()).abs()
    if 0 < beta < 1:
        # the power has no derivative at 0, where the loss has its minimum
        powers = torch.where(distances > 0, torch.where(distances > 0, distances, 1.0).pow(beta), 0.0)
    else:
        powers = distances.pow(beta)
    losses = powers * _cross_entropy(logits, targets)
    return reduce("quality_focal_loss", losses, reduction)


def varifocal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.75, gamma: float = 2.0, reduction: Reduction = "sum"
) -> Tensor:
    r"""Varifocal Loss: positives are weighted by their IoU, negatives weighted down as in focal loss.

    .. math:: -q \left( q \log p + (1 - q) \log (1 - p) \right) \text{ for } q > 0, \quad
              -\alpha p^\gamma \log (1 - p) \text{ for } q = 0

    Args:
        logits: any shape, raw scores.
        targets: the same shape, q in [0, 1]: the IoU at the object's class, 0 elsewhere. No gradient flows through it.
        alpha: weight of the negatives; 0.75 as published.
        gamma: focus on hard negatives; 2 as published.
        reduction: "none", "mean" or "sum".

    Returns:
        0-dim (or the logits' shape), float32 or better.

    Raises:
        ValueError: shapes, dtypes or ranges are not as above, or a logit is not finite.

    Paper:
        Zhang et al.: VarifocalNet (CVPR 2021), Eq. 2.

    Example:
        >>> varifocal_loss(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.0]), reduction="none")
        tensor([0.3466, 0.1300])
    """
    logits, targets = _checked("varifocal_loss", logits, targets, gamma=gamma, alpha=alpha)
    weights = torch.where(targets > 0, targets, alpha * _power_of_sigmoid(logits, gamma))
    return reduce("varifocal_loss", weights * _cross_entropy(logits, targets), reduction)


def matchability_aware_loss(
    logits: Tensor, targets: Tensor, *, positive: Tensor | None = None, gamma: float = 1.5, reduction: Reduction = "sum"
) -> Tensor:
    r"""Matchability-Aware Loss: a matched box of low IoU still counts in full, towards a low score.

    .. math:: -q^\gamma \log p - (1 - q^\gamma) \log (1 - p) \text{ for a positive}, \quad
              -p^\gamma \log (1 - p) \text{ for a negative}

    The negatives' weight carries no gradient, as in the published code.

    Args:
        logits: any shape, raw scores.
        targets: the same shape, q in [0, 1]: the IoU at the object's class, 0 elsewhere. No gradient flows through it.
        positive: the same shape, bool: True at the positives; None for q > 0.
        gamma: exponent of q and p; 1.5 as published.
        reduction: "none", "mean" or "sum".

    Returns:
        0-dim (or the logits' shape), float32 or better.

    Raises:
        ValueError: shapes, dtypes or ranges are not as above, or a logit is not finite.

    Paper:
        Huang et al.: DEIM: DETR with Improved Matching for Fast Convergence (CVPR 2025), Eq. 7.

    Example:
        >>> matchability_aware_loss(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.0]), reduction="none")
        tensor([0.6931, 0.2451])
    """
    logits, targets = _checked("matchability_aware_loss", logits, targets, gamma=gamma)
    if positive is None:
        positive = targets > 0
    check_same("matchability_aware_loss", "positive", positive, "logits", logits)
    check_bool("matchability_aware_loss", "positive", positive)
    weights = torch.where(positive, 1.0, logits.detach().sigmoid().pow(gamma))
    targets = torch.where(positive, targets.pow(gamma), 0.0)  # 0 at negatives for every gamma: 0^0 is 1
    return reduce("matchability_aware_loss", weights * _cross_entropy(logits, targets), reduction)


def _power_of_sigmoid(logits: Tensor, exponent: float) -> Tensor:
    """sigmoid(logits)^exponent, with a finite gradient where the sigmoid is 0 in floating point."""
    if 0 < exponent < 1:
        return (exponent * logsigmoid(logits)).exp()
    return logits.sigmoid().pow(exponent)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    # -t log p - (1 - t) log (1 - p)
    return -logsigmoid(logits) + (1 - targets) * logits


def _checked(where: str, logits: Tensor, targets: Tensor, **settings: float) -> tuple[Tensor, Tensor]:
    """Logits in float32 or better, and targets of the same type without gradient; settings are at least 0."""
    check_floating(where, "logits", logits)
    check_same(where, "targets", targets, "logits", logits)
    check_finite(where, "logits", logits)
    check_range(where, "targets", targets, 0, 1, slack=1e-3)
    for name, value in settings.items():
        check_positive(where, name, value, or_zero=True)
    logits = at_least_float32(logits)
    return logits, targets.detach().to(logits.dtype)
