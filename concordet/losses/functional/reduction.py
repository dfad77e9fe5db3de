"""Reduction of losses per prediction; of none of them it is 0, connected to the graph."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from concordet.losses.functional.checks import check_choice

Reduction = Literal["none", "mean", "sum"]
"""How losses per prediction are reduced."""


def reduce(where: str, losses: Tensor, reduction: Reduction) -> Tensor:
    """``losses`` themselves, their mean (0 for none) or their sum.

    Example:
        >>> import torch
        >>> reduce("here", torch.tensor([1.0, 3.0]), "mean"), reduce("here", torch.zeros(0), "mean")
        (tensor(2.), tensor(0.))
    """
    check_choice(where, "reduction", reduction, get_args(Reduction))
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / max(losses.numel(), 1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or float64 if it is; losses are computed in no lower precision, also under autocast."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
