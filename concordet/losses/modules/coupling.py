"""Losses that couple scores and localization, as modules."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from concordet.losses import functional
from concordet.losses.functional import AssociationForm, Coefficient, Reduction
from concordet.losses.modules.base import FunctionModule


class CorrelationLoss(FunctionModule):
    r"""Correlation Loss: 1 minus the correlation of the positives' scores and IoUs.

    .. math:: L = 1 - \rho(s, q)

    Only the scores get a gradient.

    Args:
        coefficient: "concordance" (matches values), "spearman" (matches ranks) or "pearson".
        strength: Strength of Spearman's soft ranks, > 0; None for 0.3 / p.
        group: Processes whose positives are one sample; None for this process only.

    Shapes:
        scores ``[p]`` in [0, 1], quality ``[p]`` in [0, 1] to a 0-dim loss in [0, 2].

    Raises:
        ValueError: see :func:`~concordet.losses.functional.correlation_loss`, which computes the loss.

    Paper:
        Kahraman et al.: Correlation Loss: Enforcing Correlation between Classification and Localization (AAAI 2023),
        Eq. 4.

    Example:
        >>> import torch
        >>> CorrelationLoss()(torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.2, 0.5, 0.9]))
        tensor(0.)
    """

    def __init__(
        self,
        *,
        coefficient: Coefficient = "concordance",
        strength: float | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(coefficient=coefficient, strength=strength, group=group)

    def forward(self, scores: Tensor, quality: Tensor) -> Tensor:
        """The loss."""
        return functional.correlation_loss(scores, quality, **self._settings)


class AssociationLoss(FunctionModule):
    r"""Association Loss: the score of each positive is pulled towards its IoU.

    .. math:: \beta (p - k I)^2 \quad \text{(squared)}, \qquad -\beta \log(1 - |p - k I|) \quad \text{(cross\_entropy)}

    Only the scores get a gradient.

    Args:
        form: "squared" (PSE) or "cross_entropy" (PCE).
        weight: Beta, >= 0; 1 as published.
        slope: k, > 0; 1 as published.
        reduction: "none", "mean" over the positives, or "sum".

    Shapes:
        scores ``[p]`` in [0, 1], quality ``[p]`` in [0, 1] to a 0-dim loss, or ``[p]`` for "none".

    Raises:
        ValueError: see :func:`~concordet.losses.functional.association_loss`, which computes the loss.

    Paper:
        Xu et al.: Association Loss for Visual Object Detection (IEEE SPL 2020), Eq. 8.

    Example:
        >>> import torch
        >>> AssociationLoss()(torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.5]))
        tensor(0.0800)
    """

    def __init__(
        self,
        *,
        form: AssociationForm = "squared",
        weight: float = 1.0,
        slope: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(form=form, weight=weight, slope=slope, reduction=reduction)

    def forward(self, scores: Tensor, quality: Tensor) -> Tensor:
        """The loss."""
        return functional.association_loss(scores, quality, **self._settings)


class HarmonicLoss(FunctionModule):
    r"""Harmonic Loss of the positives: each task's loss grows where the other one does well.

    .. math:: (1 + e^{-L}) CE + (1 + e^{-CE}) L

    Args:
        reduction: "none", "mean" over the positives, or "sum".

    Shapes:
        cls_losses ``[p]`` >= 0, loc_losses ``[p]`` >= 0 to a 0-dim loss, or ``[p]`` for "none".

    Raises:
        ValueError: see :func:`~concordet.losses.functional.harmonic_loss`, which computes the loss.

    Paper:
        Wang and Zhang: Reconcile Prediction Consistency for Balanced Object Detection (ICCV 2021), Eqs. 2-7.

    Example:
        >>> import torch
        >>> HarmonicLoss()(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
        tensor(2.)
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, cls_losses: Tensor, loc_losses: Tensor) -> Tensor:
        """The loss."""
        return functional.harmonic_loss(cls_losses, loc_losses, **self._settings)


class HarmonicIoULoss(FunctionModule):
    r"""Harmonic IoU Loss: an IoU loss with a larger gradient for accurate boxes.

    .. math:: (1 + IoU)^\gamma (1 - IoU)

    Args:
        gamma: Focus, in [0, 1]; 0.8 as published, 0 is the IoU loss.
        reduction: "none", "mean" over the positives, or "sum".

    Shapes:
        iou ``[p]`` in [0, 1], differentiable, to a 0-dim loss, or ``[p]`` for "none".

    Raises:
        ValueError: see :func:`~concordet.losses.functional.harmonic_iou_loss`, which computes the loss.

    Paper:
        Wang and Zhang (ICCV 2021), Eq. 10.

    Example:
        >>> import torch
        >>> HarmonicIoULoss(reduction="none")(torch.tensor([0.0, 1.0]))
        tensor([1., 0.])
    """

    def __init__(self, *, gamma: float = 0.8, reduction: Reduction = "mean") -> None:
        super().__init__(gamma=gamma, reduction=reduction)

    def forward(self, iou: Tensor) -> Tensor:
        """The loss."""
        return functional.harmonic_iou_loss(iou, **self._settings)


class TaskContrastiveLoss(FunctionModule):
    r"""Task-Contrastive Loss of the positives: the difference of score and IoU above a margin.

    .. math:: \frac{1}{1 + \beta_e} \max(0, |p_i - IoU_i| - m), \quad \beta_e = e^{-\sum_k p_k \log p_k}

    Args:
        margin: m, >= 0; 0.2 as published.
        reduction: "none", "mean" over the positives, or "sum".

    Shapes:
        probabilities ``[p, c]`` in [0, 1], labels ``[p]`` integers 0..c-1, iou ``[p]`` in [0, 1] to a 0-dim loss, or
        ``[p]`` for "none".

    Raises:
        ValueError: see :func:`~concordet.losses.functional.task_contrastive_loss`, which computes the loss.

    Paper:
        Wang and Zhang (ICCV 2021), Eq. 8.

    Example:
        >>> import torch
        >>> TaskContrastiveLoss()(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.tensor([0.5]))
        tensor(0.1500)
    """

    def __init__(self, *, margin: float = 0.2, reduction: Reduction = "mean") -> None:
        super().__init__(margin=margin, reduction=reduction)

    def forward(self, probabilities: Tensor, labels: Tensor, iou: Tensor) -> Tensor:
        """The loss."""
        return functional.task_contrastive_loss(probabilities, labels, iou, **self._settings)
