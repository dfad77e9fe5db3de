"""Distributional Ranking Loss: the hardest positives rank above the hardest negatives by a margin."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import softplus

from concordet.distributed import SingleProcess, process_group
from concordet.losses.functional.checks import (
    check_finite,
    check_floating,
    check_positive,
    check_ranking_labels,
)
from concordet.losses.functional.reduction import at_least_float32


def distributional_ranking_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.5,
    smoothness: float = 6.0,
    positive_temperature: float = 1.0,
    negative_temperature: float = 0.1 / math.log(3.5),
    weight: float = 4.0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""DR Loss: a logistic hinge between the expected scores of reweighted negatives and positives.

    .. math:: \frac{\tau}{L} \log\left(1 + e^{L (\hat P_- - \hat P_+ + m)}\right), \quad
              \hat P_- = \sum_{j \in N} q_j p_j, \; q_j \propto e^{p_j / \lambda_-}, \quad
              \hat P_+ = \sum_{i \in P} q_i p_i, \; q_i \propto e^{-p_i / \lambda_+}

    with the scores p = sigmoid(logit). The published code computes it per image; here it is over all logits. Without
    positives their expected score is 1, as there; without negatives theirs is 0; without both the loss is 0.

    Args:
        logits: ``[n]`` raw scores; fp16 to fp64.
        labels: ``[n]`` integers or bool: 1 positive, 0 negative, -1 ignored. Background is 0 here, unlike in
            :class:`~concordet.assigned.Assigned`, where it is -1: positives beside -1 without any 0 are refused.
        margin: m; 0.5 as published.
        smoothness: L; 6 as published.
        positive_temperature: lambda+; 1 as published.
        negative_temperature: lambda-; 0.1 / log(3.5) as published. The smaller, the more the hardest negatives count.
        weight: tau; 4 as published.
        group: processes whose batches are one; all of them must call. The value is then global, and gradients are the
            global loss's times the number of processes, so that DDP's average is the global gradient. Only sums are
            exchanged.

    Returns:
        0-dim loss, float32 or better.

    Raises:
        ValueError: shapes, dtypes, labels or hyperparameters are not as above, or a logit is not finite.

    Paper:
        Qian et al.: DR Loss: Improving Object Detection by Distributional Ranking (CVPR 2020), Eqs. 5-10.

    Example:
        >>> distributional_ranking_loss(torch.tensor([4.0, -4.0]), torch.tensor([1, 0]))
        tensor(0.0400)
    """
    where = "distributional_ranking_loss"
    check_floating(where, "logits", logits, 1)
    # other processes may have the negatives
    labels = check_ranking_labels(where, labels, logits, negatives=group is None)
    return unchecked_distributional_ranking_loss(
        logits,
        labels,
        margin=margin,
        smoothness=smoothness,
        positive_temperature=positive_temperature,
        negative_temperature=negative_temperature,
        weight=weight,
        group=group,
    )


def unchecked_distributional_ranking_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.5,
    smoothness: float = 6.0,
    positive_temperature: float = 1.0,
    negative_temperature: float = 0.1 / math.log(3.5),
    weight: float = 4.0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """DR Loss without the check of labels: a criterion's may be positive or ignored only."""
    where = "distributional_ranking_loss"
    for name, value in (
        ("smoothness", smoothness),
        ("positive_temperature", positive_temperature),
        ("negative_temperature", negative_temperature),
    ):
        check_positive(where, name, value)
    check_positive(where, "margin", margin, or_zero=True)
    check_positive(where, "weight", weight, or_zero=True)
    check_finite(where, "logits", logits)

    processes = process_group(group)
    scores = at_least_float32(logits).sigmoid()
    above, n_positives = _expected(scores, labels == 1, -1 / positive_temperature, processes, otherwise=1.0)
    below, n_negatives = _expected(scores, labels == 0, 1 / negative_temperature, processes, otherwise=0.0)
    loss = weight / smoothness * softplus(smoothness * (below - above + margin))
    return torch.where(n_positives + n_negatives > 0, loss, scores.sum() * 0.0)


def _expected(
    scores: Tensor, chosen: Tensor, sharpness: float, processes: SingleProcess, *, otherwise: float
) -> tuple[Tensor, Tensor]:
    """Expectation of the chosen scores under q ~ exp(sharpness * score), and their number; ``otherwise`` for none."""
    sign = math.copysign(1.0, sharpness)
    sharpness = sign * min(abs(sharpness), torch.finfo(scores.dtype).max)
    ordered = torch.where(chosen, sign * scores.detach(), -torch.inf)
    best = processes.all_max(torch.cat([ordered, ordered.new_full((1,), -torch.inf)]).amax())
    best = sign * torch.where(best.isinf(), 0.0, best)
    # distances from the best score are exactly 0 where scores tie, however sharp the weights
    distances = torch.where(chosen, scores - best, 0.0)
    powers = torch.where(chosen, (sharpness * distances).exp(), 0.0)
    total, moment = processes.all_sum(torch.stack([powers.sum(), (powers * distances).sum()]))
    count = processes.all_sum(chosen.sum())
    none = count == 0
    return torch.where(none, otherwise, best + moment / torch.where(none, 1.0, total)), count
