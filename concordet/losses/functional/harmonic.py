"""The Harmonic losses: classification and localization weight each other."""

from __future__ import annotations

import torch
from torch import Tensor

from concordet.losses.functional.checks import (
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same,
    values_are_checked,
)
from concordet.losses.functional.reduction import Reduction, at_least_float32, reduce


def harmonic_loss(cls_losses: Tensor, loc_losses: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Harmonic Loss of the positives: each task's loss grows where the other one does well.

    .. math:: (1 + \beta_r) CE + (1 + \beta_c) L, \quad \beta_r = e^{-L}, \quad \beta_c = e^{-CE}

    The factors carry gradient, as Eqs. 4-7 differentiate them: the derivative by p is L - (1 + e^{-L}) / p.

    Args:
        cls_losses: ``[p]`` cross entropies of the positives, at least 0.
        loc_losses: ``[p]`` localization losses, at least 0 (Smooth L1 summed over the box; plus 1.5 Harmonic IoU loss
            for HarmonicDet, Eq. 11).
        reduction: "none", "mean" over the positives, or "sum".

    Returns:
        0-dim (or ``[p]``), float32 or better; 0 without positives.

    Raises:
        ValueError: shapes or dtypes are not as above, or a value is negative or not finite.

    Paper:
        Wang and Zhang: Reconcile Prediction Consistency for Balanced Object Detection (ICCV 2021), Eqs. 2-7.

    Example:
        >>> harmonic_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), reduction="none")
        tensor([2., 2.])
    """
    cls_losses, loc_losses = _checked("harmonic_loss", cls_losses, loc_losses)
    losses = (1 + (-loc_losses).exp()) * cls_losses + (1 + (-cls_losses).exp()) * loc_losses
    return reduce("harmonic_loss", losses, reduction)


def _checked(where: str, cls_losses: Tensor, loc_losses: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of both tasks in float32 or better."""
    check_floating(where, "cls_losses", cls_losses)
    check_floating(where, "loc_losses", loc_losses)
    check_same(where, "loc_losses", loc_losses, "cls_losses", cls_losses)
    check_range(where, "cls_losses", cls_losses, 0, torch.finfo(cls_losses.dtype).max)
    check_range(where, "loc_losses", loc_losses, 0, torch.finfo(loc_losses.dtype).max)
    return at_least_float32(cls_losses), at_least_float32(loc_losses)


def harmonic_factors(cls_losses: Tensor, loc_losses: Tensor) -> tuple[Tensor, Tensor]:
    """Factors by which the two tasks weight each other in :func:`harmonic_loss`, for monitoring.

    Args:
        cls_losses: ``[p]`` cross entropies of the positives, at least 0.
        loc_losses: ``[p]`` localization losses of the positives, at least 0.

    Returns:
        ``[p]`` factors 1 + beta_r = 1 + exp(-L) of the classification losses, and ``[p]`` factors 1 + beta_c =
        1 + exp(-CE) of the localization losses, in (1, 2] and without gradient, float32 or better.

    Raises:
        ValueError: shapes, dtypes or ranges are not as above.

    Paper:
        Wang and Zhang: Reconcile Prediction Consistency for Balanced Object Detection (ICCV 2021), Eq. 3 and Figure 4.

    Example:
        >>> harmonic_factors(torch.tensor([0.0]), torch.tensor([0.0]))
        (tensor([2.]), tensor([2.]))
    """
    cls_losses, loc_losses = _checked("harmonic_factors", cls_losses.detach(), loc_losses.detach())
    return 1 + (-loc_losses).exp(), 1 + (-cls_losses).exp()


def harmonic_iou_loss(iou: Tensor, *, gamma: float = 0.8, reduction: Reduction = "mean") -> Tensor:
    r"""Harmonic IoU Loss: an IoU loss with a larger gradient for accurate boxes.

    .. math:: (1 + IoU)^\gamma (1 - IoU)

    Args:
        iou: ``[p]`` IoUs of the positives in [0, 1], differentiable.
        gamma: focus, in [0, 1] so that the loss falls with the IoU; 0.8 as published, 0 is the IoU loss.
        reduction: "none", "mean" over the positives, or "sum".

    Returns:
        0-dim (or ``[p]``), float32 or better; 0 without positives.

    Raises:
        ValueError: dtype, gamma or range are not as above, or a value is not finite.

    Paper:
        Wang and Zhang (ICCV 2021), Eq. 10.

    Example:
        >>> harmonic_iou_loss(torch.tensor([0.0, 0.5, 1.0]), reduction="none")
        tensor([1.0000, 0.6916, 0.0000])
    """
    where = "harmonic_iou_loss"
    check_floating(where, "iou", iou)
    check_positive(where, "gamma", gamma, or_zero=True)
    if gamma > 1:
        raise ValueError(
            f"{where}: gamma must be in [0, 1], got {gamma!r}; above 1 the loss would rise with the IoU of bad boxes"
        )
    check_range(where, "iou", iou, -1e-3, 1 + 1e-3)
    iou = at_least_float32(iou)
    return reduce(where, (1 + iou).pow(gamma) * (1 - iou), reduction)


def task_contrastive_loss(
    probabilities: Tensor, labels: Tensor, iou: Tensor, *, margin: float = 0.2, reduction: Reduction = "mean"
) -> Tensor:
    r"""Task-Contrastive Loss of the positives: the difference of score and IoU above a margin.

    .. math:: \frac{1}{1 + \beta_e} \max(0, |p_i - IoU_i| - m), \quad \beta_e = e^{-\sum_k p_k \log p_k}

    with the probability p_i of the positive's own class; an uncertain classification (large entropy) weighs little.
    Gradients flow through everything, the weight and the IoU included: the paper stops none.

    Args:
        probabilities: ``[p, c]`` class probabilities in [0, 1] of the positives.
        labels: ``[p]`` integers 0..c-1, the positives' own classes.
        iou: ``[p]`` IoUs in [0, 1].
        margin: m; 0.2 as published.
        reduction: "none", "mean" over the positives, or "sum".

    Returns:
        0-dim (or ``[p]``), float32 or better; 0 without positives.

    Raises:
        ValueError: shapes, dtypes, ranges or labels are not as above, or a value is not finite.

    Paper:
        Wang and Zhang (ICCV 2021), Eq. 8.

    Example:
        >>> probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
        >>> task_contrastive_loss(probabilities, torch.tensor([0, 1]), torch.tensor([0.5, 0.5]))
        tensor(0.0750)
    """
    where = "task_contrastive_loss"
    check_floating(where, "probabilities", probabilities, 2)
    if probabilities.shape[1] == 0:
        raise ValueError(
            f"{where}: probabilities must have at least one class, got shape {tuple(probabilities.shape)}; give [p, c]"
        )
    check_integer(where, "labels", labels)
    check_floating(where, "iou", iou, 1)
    for name, tensor in (("labels", labels), ("iou", iou)):
        check_same(where, name, tensor, "probabilities[:, 0]", probabilities[:, 0])
    check_positive(where, "margin", margin, or_zero=True)
    check_range(where, "probabilities", probabilities, 0, 1)
    check_finite(where, "iou", iou)
    _check_classes(where, labels, probabilities.shape[1])
    probabilities = at_least_float32(probabilities)
    iou = iou.to(probabilities.dtype)
    own = probabilities.gather(1, labels.long()[:, None]).squeeze(1)  # [p]
    # p log p is 0 at 0, where the logarithm and its derivative are not finite
    entropy = -(probabilities * probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()).sum(1)
    return reduce(where, ((own - iou).abs() - margin).clamp_min(0) / (1 + entropy.exp()), reduction)


def _check_classes(where: str, labels: Tensor, n_classes: int) -> None:
    if not values_are_checked(labels) or labels.numel() == 0:
        return
    smallest, largest = (int(value) for value in labels.long().aminmax())  # no unsigned aminmax
    if smallest < 0 or largest >= n_classes:
        raise ValueError(
            f"{where}: labels must be from 0 to {n_classes - 1} (probabilities has {n_classes} columns), "
            f"got labels from {smallest} to {largest}; give the classes of the positives' objects"
        )
