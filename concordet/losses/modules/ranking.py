"""Ranking losses as modules."""

from __future__ import annotations

import math

import torch.distributed as dist
from torch import Tensor

from concordet.losses import functional
from concordet.losses.functional import ALRP, Method, RankSort
from concordet.losses.modules.base import FunctionModule


class APLoss(FunctionModule):
    r"""AP Loss: one minus the precision at the positives, averaged.

    .. math:: L = \frac{1}{|P|} \sum_{i \in P} \frac{N_{FP}(i)}{rank(i)}

    Args:
        delta: Half width of the smoothed step, in logits, >= 0; 1 as published. 0 is the hard step.
        interpolated: Take precision as its running maximum, as the published code does.
        self_relation: What a positive adds to its own rank; None for the published value.
        method: Algorithm; see :data:`~concordet.losses.functional.Method`.
        group: Processes whose batches are ranked together; None for this process only.

    Shapes:
        logits ``[n]`` raw scores, labels ``[n]`` (1 positive, 0 negative, -1 ignored) to a 0-dim loss in [0, 1].

    Raises:
        ValueError: see :func:`~concordet.losses.functional.ap_loss`, which computes the loss.

    Paper:
        Chen et al.: AP-Loss for Accurate One-Stage Object Detection (TPAMI 2020).

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
        method: Method = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            delta=delta, interpolated=interpolated, self_relation=self_relation, method=method, group=group
        )

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        n_positives: int | None = None,
        segments: Tensor | None = None,
        n_segments: int | None = None,
    ) -> Tensor:
        """The loss; what belongs to a batch is as in :func:`~concordet.losses.functional.ap_loss`."""
        return functional.ap_loss(
            logits, labels, n_positives=n_positives, segments=segments, n_segments=n_segments, **self._settings
        )


class BucketedAPLoss(APLoss):
    """Bucketed AP Loss: :class:`APLoss` with ``method="bucketed"``.

    Negatives between two positives stand for one prototype each, their mean (Algorithm 2).

    Args:
        delta: Half width of the smoothed step, in logits, >= 0.
        self_relation: What a positive adds to its own rank; None for H(0): 1/2 for delta > 0, 1 for delta = 0.
        group: Processes whose batches are ranked together; None for this process only.

    Shapes:
        As :class:`APLoss`.

    Paper:
        Yavuz et al.: Bucketed Ranking-based Losses for Efficient Training of Object Detectors (ECCV 2024).

    Example:
        >>> import torch
        >>> BucketedAPLoss()(torch.tensor([2.0, 1.0]), torch.tensor([0, 1]))
        tensor(0.6667)
    """

    def __init__(
        self, *, delta: float = 1.0, self_relation: float | None = None, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method="bucketed", group=group)


class ALRPLoss(FunctionModule):
    r"""Average Localization-Recall-Precision Loss: false positives and localization errors in one ranking.

    .. math:: L_{cls} = \frac{1}{|P|} \sum_i \frac{N_{FP}(i)}{rank(i)}, \quad
              L_{loc} = \frac{1}{|P|} \sum_i \frac{1}{rank(i)} \sum_{k \text{ at or above } i} E_k

    Args:
        delta: Half width of the smoothed step, in logits, >= 0; 1 as published.
        self_relation: What a positive adds to its own rank; None for the published value.
        method: Algorithm; see :data:`~concordet.losses.functional.Method`.
        group: Processes whose batches are ranked together; None for this process only.

    Shapes:
        logits ``[n]``, labels ``[n]`` (1, 0 or -1), loc_errors ``[p]`` of the positives in their order to
        ``ALRP(classification, localization)``, 0-dim each.

    Raises:
        ValueError: see :func:`~concordet.losses.functional.alrp_loss`, which computes the loss.

    Paper:
        Oksuz et al.: A Ranking-based, Balanced Loss Function Unifying Classification and Localisation in Object
        Detection (NeurIPS 2020), Eqs. 9-14.

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
        method: Method = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method=method, group=group)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        loc_errors: Tensor,
        *,
        n_positives: int | None = None,
        segments: Tensor | None = None,
        n_segments: int | None = None,
    ) -> ALRP:
        """Both parts; what belongs to a batch is as in :func:`~concordet.losses.functional.alrp_loss`."""
        return functional.alrp_loss(
            logits,
            labels,
            loc_errors,
            n_positives=n_positives,
            segments=segments,
            n_segments=n_segments,
            **self._settings,
        )


class RankSortLoss(FunctionModule):
    r"""Rank & Sort Loss: positives above negatives, and positives sorted by their quality.

    .. math:: \ell_R(i) = \frac{N_{FP}(i)}{rank(i)}, \quad
              \ell_S(i) = \frac{\sum_k H(x_{ik})(1 - q_k)}{\sum_k H(x_{ik})}

    Args:
        delta: Half width of the smoothed step, in logits, >= 0; 0.5 as published.
        self_relation: What a positive adds to its own rank; None for H(0), as published.
        method: Algorithm; see :data:`~concordet.losses.functional.Method`.
        group: Processes whose batches are ranked together; None for this process only.

    Shapes:
        logits ``[n]``, labels ``[n]`` (1, 0 or -1), quality ``[n]`` in [0, 1] (read at the positives) to
        ``RankSort(ranking, sorting)``, 0-dim each.

    Raises:
        ValueError: see :func:`~concordet.losses.functional.rank_sort_loss`, which computes the loss.

    Paper:
        Oksuz et al.: Rank & Sort Loss for Object Detection and Instance Segmentation (ICCV 2021).

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
        method: Method = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method=method, group=group)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        quality: Tensor,
        *,
        n_positives: int | None = None,
        segments: Tensor | None = None,
        n_segments: int | None = None,
    ) -> RankSort:
        """Both parts; what belongs to a batch is as in :func:`~concordet.losses.functional.rank_sort_loss`."""
        return functional.rank_sort_loss(
            logits, labels, quality, n_positives=n_positives, segments=segments, n_segments=n_segments, **self._settings
        )


class BucketedRankSortLoss(RankSortLoss):
    """Bucketed Rank & Sort Loss: :class:`RankSortLoss` with ``method="bucketed"``.

    Args:
        delta: Half width of the smoothed step, in logits, >= 0.
        self_relation: What a positive adds to its own rank; None for H(0): 1/2 for delta > 0, 1 for delta = 0.
        group: Processes whose batches are ranked together; None for this process only.

    Shapes:
        As :class:`RankSortLoss`.

    Paper:
        Yavuz et al.: Bucketed Ranking-based Losses for Efficient Training of Object Detectors (ECCV 2024).

    Example:
        >>> import torch
        >>> BucketedRankSortLoss()(torch.tensor([1.0, 0.0]), torch.tensor([1, 0]), torch.tensor([0.7, 0.0]))
        RankSort(ranking=tensor(0.), sorting=tensor(0.))
    """

    def __init__(
        self, *, delta: float = 0.5, self_relation: float | None = None, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method="bucketed", group=group)


class NDCGLoss(FunctionModule):
    r"""Normalized Discounted Cumulative Gain Loss.

    .. math:: L = 1 - \frac{1}{G_{max}} \sum_{i \in P} \frac{1}{\log_2(1 + rank(i))}

    Args:
        delta: Half width of the smoothed step, in logits, >= 0; 1 as in AP and aLRP Loss.
        self_relation: What a positive adds to its own rank; None for the published value.
        method: Algorithm; see :data:`~concordet.losses.functional.Method`.
        group: Processes whose batches are ranked together; None for this process only.

    Shapes:
        logits ``[n]``, labels ``[n]`` (1, 0 or -1) to a 0-dim loss below 1.

    Raises:
        ValueError: see :func:`~concordet.losses.functional.ndcg_loss`, which computes the loss.

    Paper:
        Appendix D of the aLRP Loss paper (Oksuz et al., NeurIPS 2020), Eqs. A.39-A.44.

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
        method: Method = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(delta=delta, self_relation=self_relation, method=method, group=group)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        n_positives: int | None = None,
        segments: Tensor | None = None,
        n_segments: int | None = None,
    ) -> Tensor:
        """The loss; what belongs to a batch is as in :func:`~concordet.losses.functional.ndcg_loss`."""
        return functional.ndcg_loss(
            logits, labels, n_positives=n_positives, segments=segments, n_segments=n_segments, **self._settings
        )


class DistributionalRankingLoss(FunctionModule):
    r"""DR Loss: a logistic hinge between the expected scores of reweighted negatives and positives.

    .. math:: \frac{\tau}{L} \log\left(1 + e^{L (\hat P_- - \hat P_+ + m)}\right)

    Args:
        margin: m, >= 0; 0.5 as published.
        smoothness: L, > 0; 6 as published.
        positive_temperature: lambda+, > 0; 1 as published.
        negative_temperature: lambda-, > 0; 0.1 / log(3.5) as published.
        weight: tau, >= 0; 4 as published.
        group: Processes whose batches are one; None for this process only.

    Shapes:
        logits ``[n]`` raw scores, labels ``[n]`` (1 positive, 0 negative, -1 ignored) to a 0-dim loss.

    Raises:
        ValueError: see :func:`~concordet.losses.functional.distributional_ranking_loss`, which computes the loss.

    Paper:
        Qian et al.: DR Loss: Improving Object Detection by Distributional Ranking (CVPR 2020), Eqs. 5-10.

    Example:
        >>> import torch
        >>> DistributionalRankingLoss()(torch.tensor([4.0, -4.0]), torch.tensor([1, 0]))
        tensor(0.0400)
    """

    def __init__(
        self,
        *,
        margin: float = 0.5,
        smoothness: float = 6.0,
        positive_temperature: float = 1.0,
        negative_temperature: float = 0.1 / math.log(3.5),
        weight: float = 4.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            margin=margin,
            smoothness=smoothness,
            positive_temperature=positive_temperature,
            negative_temperature=negative_temperature,
            weight=weight,
            group=group,
        )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        return functional.distributional_ranking_loss(logits, labels, **self._settings)
