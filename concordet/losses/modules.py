"""Every loss as a module: it holds hyperparameters, checks nothing and keeps nothing; the function does the work."""

from __future__ import annotations

import math
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from concordet.losses import functional
from concordet.losses.functional.ranking import ALRP, RankSort


class _Ranking(nn.Module):
    """Hyperparameters that all ranking losses share."""

    def __init__(
        self,
        *,
        delta: float,
        self_relation: float | None = None,
        method: functional.Method = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.delta = delta
        self.self_relation = self_relation
        self.method = method
        self.group = group

    def extra_repr(self) -> str:
        return f"delta={self.delta}, self_relation={self.self_relation}, method={self.method!r}"

    @property
    def _shared(self) -> dict:
        return {
            "delta": self.delta,
            "self_relation": self.self_relation,
            "method": self.method,
            "group": self.group,
        }


class APLoss(_Ranking):
    """:func:`~concordet.losses.functional.ap_loss` as a module.

    Example:
        >>> import torch
        >>> APLoss(delta=0.0)(torch.tensor([2.0, 1.0]), torch.tensor([0, 1]))
        tensor(0.5000)
    """

    def __init__(
        self,
        *,
        delta: float = 1.0,
        interpolated: bool = False,
        self_relation: float | None = None,
        method: functional.Method = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method=method, group=group)
        self.interpolated = interpolated

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.ap_loss(logits, labels, interpolated=self.interpolated, **self._shared)


class BucketedAPLoss(APLoss):
    """The thesis's Bucketed AP Loss: :class:`APLoss` with ``method="bucketed"``.

    Example:
        >>> import torch
        >>> BucketedAPLoss()(torch.tensor([2.0, 1.0]), torch.tensor([0, 1]))
        tensor(0.6667)
    """

    def __init__(
        self, *, delta: float = 1.0, self_relation: float | None = None, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method="bucketed", group=group)


class ALRPLoss(_Ranking):
    """:func:`~concordet.losses.functional.alrp_loss` as a module.

    Example:
        >>> import torch
        >>> ALRPLoss(delta=0.0)(torch.tensor([1.0, 0.0]), torch.tensor([1, 0]), torch.tensor([0.3]))
        ALRP(classification=tensor(0.), localization=tensor(0.3000))
    """

    def __init__(
        self,
        *,
        delta: float = 1.0,
        self_relation: float | None = None,
        method: functional.Method = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method=method, group=group)

    def forward(self, logits: Tensor, labels: Tensor, loc_errors: Tensor) -> ALRP:
        return functional.alrp_loss(logits, labels, loc_errors, **self._shared)


class RankSortLoss(_Ranking):
    """:func:`~concordet.losses.functional.rank_sort_loss` as a module.

    Example:
        >>> import torch
        >>> RankSortLoss()(torch.tensor([1.0, 0.0]), torch.tensor([1, 0]), torch.tensor([0.7, 0.0]))
        RankSort(ranking=tensor(0.), sorting=tensor(0.))
    """

    def __init__(
        self,
        *,
        delta: float = 0.5,
        self_relation: float | None = None,
        method: functional.Method = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method=method, group=group)

    def forward(self, logits: Tensor, labels: Tensor, quality: Tensor) -> RankSort:
        return functional.rank_sort_loss(logits, labels, quality, **self._shared)


class BucketedRankSortLoss(RankSortLoss):
    """The thesis's Bucketed Rank & Sort Loss: :class:`RankSortLoss` with ``method="bucketed"``.

    Example:
        >>> import torch
        >>> BucketedRankSortLoss()(torch.tensor([1.0, 0.0]), torch.tensor([1, 0]), torch.tensor([0.7, 0.0]))
        RankSort(ranking=tensor(0.), sorting=tensor(0.))
    """

    def __init__(
        self, *, delta: float = 0.5, self_relation: float | None = None, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method="bucketed", group=group)


class NDCGLoss(_Ranking):
    """:func:`~concordet.losses.functional.ndcg_loss` as a module.

    Example:
        >>> import torch
        >>> NDCGLoss(delta=0.0)(torch.tensor([2.0, 1.0]), torch.tensor([0, 1]))
        tensor(0.3691)
    """

    def __init__(
        self,
        *,
        delta: float = 1.0,
        self_relation: float | None = None,
        method: functional.Method = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method=method, group=group)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.ndcg_loss(logits, labels, **self._shared)


class _Settings(nn.Module):
    """A module whose attributes are the keyword arguments of its function."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._names = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._settings.items())

    @property
    def _settings(self) -> dict:
        return {name: getattr(self, name) for name in self._names}


class CorrelationLoss(_Settings):
    """:func:`~concordet.losses.functional.correlation_loss` as a module."""

    def __init__(
        self,
        *,
        coefficient: functional.Coefficient = "concordance",
        strength: float | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(coefficient=coefficient, strength=strength, group=group)

    def forward(self, scores: Tensor, quality: Tensor) -> Tensor:
        return functional.correlation_loss(scores, quality, **self._settings)


class AssociationLoss(_Settings):
    """:func:`~concordet.losses.functional.association_loss` as a module."""

    def __init__(
        self,
        *,
        form: functional.AssociationForm = "squared",
        weight: float = 1.0,
        slope: float = 1.0,
        reduction: functional.Reduction = "mean",
    ) -> None:
        super().__init__(form=form, weight=weight, slope=slope, reduction=reduction)

    def forward(self, scores: Tensor, quality: Tensor) -> Tensor:
        return functional.association_loss(scores, quality, **self._settings)


class HarmonicLoss(_Settings):
    """:func:`~concordet.losses.functional.harmonic_loss` as a module."""

    def __init__(self, *, reduction: functional.Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, cls_losses: Tensor, loc_losses: Tensor) -> Tensor:
        return functional.harmonic_loss(cls_losses, loc_losses, **self._settings)


class HarmonicIoULoss(_Settings):
    """:func:`~concordet.losses.functional.harmonic_iou_loss` as a module."""

    def __init__(self, *, gamma: float = 0.8, reduction: functional.Reduction = "mean") -> None:
        super().__init__(gamma=gamma, reduction=reduction)

    def forward(self, iou: Tensor) -> Tensor:
        return functional.harmonic_iou_loss(iou, **self._settings)


class TaskContrastiveLoss(_Settings):
    """:func:`~concordet.losses.functional.task_contrastive_loss` as a module."""

    def __init__(self, *, margin: float = 0.2, reduction: functional.Reduction = "mean") -> None:
        super().__init__(margin=margin, reduction=reduction)

    def forward(self, probabilities: Tensor, labels: Tensor, iou: Tensor) -> Tensor:
        return functional.task_contrastive_loss(probabilities, labels, iou, **self._settings)


class FocalLoss(_Settings):
    """:func:`~concordet.losses.functional.focal_loss` as a module."""

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, reduction: functional.Reduction = "sum") -> None:
        super().__init__(alpha=alpha, gamma=gamma, reduction=reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.focal_loss(logits, targets, **self._settings)


class QualityFocalLoss(_Settings):
    """:func:`~concordet.losses.functional.quality_focal_loss` as a module."""

    def __init__(self, *, beta: float = 2.0, reduction: functional.Reduction = "sum") -> None:
        super().__init__(beta=beta, reduction=reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.quality_focal_loss(logits, targets, **self._settings)


class VarifocalLoss(_Settings):
    """:func:`~concordet.losses.functional.varifocal_loss` as a module."""

    def __init__(self, *, alpha: float = 0.75, gamma: float = 2.0, reduction: functional.Reduction = "sum") -> None:
        super().__init__(alpha=alpha, gamma=gamma, reduction=reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.varifocal_loss(logits, targets, **self._settings)


class MatchabilityAwareLoss(_Settings):
    """:func:`~concordet.losses.functional.matchability_aware_loss` as a module."""

    def __init__(self, *, gamma: float = 1.5, reduction: functional.Reduction = "sum") -> None:
        super().__init__(gamma=gamma, reduction=reduction)

    def forward(self, logits: Tensor, targets: Tensor, positive: Tensor | None = None) -> Tensor:
        return functional.matchability_aware_loss(logits, targets, positive=positive, **self._settings)


class DistributionalRankingLoss(_Settings):
    """:func:`~concordet.losses.functional.distributional_ranking_loss` as a module."""

    def __init__(
        self,
        *,
        margin: float = 0.5,
        smoothness: float = 6.0,
        positive_temperature: float = 1.0,
        negative_temperature: float = 0.1 / math.log(3.5),
        weight: float = 4.0,
    ) -> None:
        super().__init__(
            margin=margin,
            smoothness=smoothness,
            positive_temperature=positive_temperature,
            negative_temperature=negative_temperature,
            weight=weight,
        )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.distributional_ranking_loss(logits, labels, **self._settings)
