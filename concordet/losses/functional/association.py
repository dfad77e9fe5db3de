"""Association Loss: the score of each positive is pulled towards its IoU."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from concordet.losses.functional.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_positive,
    check_range,
    check_same,
)
from concordet.losses.functional.reduction import Reduction, at_least_float32, reduce

AssociationForm = Literal["squared", "cross_entropy"]


def association_loss(
    scores: Tensor,
    quality: Tensor,
    *,
    form: AssociationForm = "squared",
    weight: float = 1.0,
    slope: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Association loss of the positives: proxy squared error (PSE) or proxy cross entropy (PCE).

    .. math:: \beta (p - k I)^2 \quad \text{(squared)}, \qquad -\beta \log(1 - |p - k I|) \quad \text{(cross\_entropy)}

    Only the scores get a gradient.

    Args:
        scores: ``[p]`` probabilities in [0, 1] of the positives' own classes.
        quality: ``[p]`` IoUs in [0, 1].
        form: "squared" (PSE) or "cross_entropy" (PCE); the squared form is the better one in the paper.
        weight: beta; 1 as published.
        slope: k; 1 as published.
        reduction: "none", "mean" over the positives, or "sum".

    Returns:
        0-dim (or ``[p]``), float32 or better; 0 without positives.

    Raises:
        ValueError: shapes, dtypes or ranges are not as above, or a value is not finite.

    Paper:
        Xu et al.: Association Loss for Visual Object Detection (IEEE SPL 2020), Eq. 8. Eq. 11 prints the PSE part of
        the gradient with the opposite sign of its derivative (and of the text below it).

    Example:
        >>> association_loss(torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.5]), reduction="none")
        tensor([0.1600, 0.0000])
    """
    where = "association_loss"
    check_floating(where, "scores", scores)
    check_floating(where, "quality", quality)
    check_same(where, "quality", quality, "scores", scores)
    check_choice(where, "form", form, get_args(AssociationForm))
    check_positive(where, "weight", weight, or_zero=True)
    check_positive(where, "slope", slope)
    check_finite(where, "quality", quality)
    check_range(where, "scores", scores, 0, 1)
    check_range(where, "quality", quality, 0, 1, slack=1e-3)
    scores = at_least_float32(scores)
    difference = scores - slope * quality.detach().to(scores.dtype)
    if form == "squared":
        losses = difference.square()
    else:
        # the loss would be infinite at a difference of 1 or more, which slopes over 1 allow
        losses = -(1 - difference.abs()).clamp_min(torch.finfo(scores.dtype).eps).log()
    return reduce(where, weight * losses, reduction)
