"""Distributional Ranking Loss: the hardest positives are to stand above the hardest negatives by a margin."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from concordet.losses.functional.checks import (
    check_finite,
    check_floating,
    check_integer,
    check_labels,
    check_positive,
    check_same,
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
) -> Tensor:
    r"""DR Loss: a logistic hinge between the expected scores of reweighted negatives and positives.

    .. math:: \frac{\tau}{L} \log\left(1 + e^{L (\hat P_- - \hat P_+ + m)}\right), \quad
              \hat P_- = \sum_{j \in N} q_j p_j, \; q_j \propto e^{p_j / \lambda_-}, \quad
              \hat P_+ = \sum_{i \in P} q_i p_i, \; q_i \propto e^{-p_i / \lambda_+}

    with the scores p = sigmoid(logit). The published code takes it by image; here it is of what is given. Without
    positives their expected score counts 1, as there; without negatives theirs counts 0; without both the loss is 0.

    Args:
        logits: ``[n]`` raw scores; fp16 to fp64.
        labels: ``[n]`` integers: 1 positive, 0 negative, -1 ignored.
        margin: m; 0.5 as published.
        smoothness: L; 6 as published.
        positive_temperature: lambda+; 1 as published.
        negative_temperature: lambda-; 0.1 / log(3.5) as published. Smaller looks at the hardest alone.
        weight: tau; 4 as published.

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
    check_integer(where, "labels", labels)
    check_same(where, "labels", labels, "logits", logits)
    for name, value in (
        ("smoothness", smoothness),
        ("positive_temperature", positive_temperature),
        ("negative_temperature", negative_temperature),
    ):
        check_positive(where, name, value)
    check_positive(where, "margin", margin, or_zero=True)
    check_positive(where, "weight", weight, or_zero=True)
    check_labels(where, labels)
    check_finite(where, "logits", logits)

    scores = at_least_float32(logits).sigmoid()
    positive, negative = labels == 1, labels == 0
    above = _expected(scores, positive, -1 / positive_temperature, otherwise=1.0)
    below = _expected(scores, negative, 1 / negative_temperature, otherwise=0.0)
    loss = weight / smoothness * softplus(smoothness * (below - above + margin))
    return torch.where((positive | negative).any(), loss, scores.sum() * 0.0)


def _expected(scores: Tensor, chosen: Tensor, sharpness: float, *, otherwise: float) -> Tensor:
    """Expectation of the chosen scores under q ~ exp(sharpness * score); ``otherwise`` for none chosen."""
    if scores.numel() == 0:
        return scores.sum() + otherwise
    powers = sharpness * scores.detach()
    greatest = torch.where(chosen, powers, -torch.inf).max()  # -inf for none chosen
    shifted = torch.where(chosen, sharpness * scores - greatest, 0.0)
    powers = torch.where(chosen, shifted.exp(), 0.0)
    total = powers.sum()
    none = ~chosen.any()
    return torch.where(none, otherwise, (powers * scores).sum() / torch.where(none, 1.0, total))
