"""Sizes of feature maps that stay variables in exported graphs.

Transformers' networks call functions that PyTorch's exporters turn into the numbers of the example, so that a graph
would work for images of one size, or one number of images, only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class VariableSizes(TorchFunctionMode):
    """Within it, functions of sizes have the same results by operators that exporters keep.

    Example:
        >>> with VariableSizes():
        ...     torch.linspace(0.5, 2.5, 3), torch.as_tensor([(2, 3)]), torch.topk(torch.tensor([1.0, 2.0]), 1)[1]
        (tensor([0.5000, 1.5000, 2.5000]), tensor([[2, 3]]), tensor([1]))
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        replacement = REPLACEMENTS.get(func, func)
        return replacement(*args, **(kwargs or {}))


def steps_of_one(start: float, end: Any, steps: Any, **options: Any) -> Tensor:
    """``torch.linspace`` of a grid: ``end - start`` is ``steps - 1``, so that ``end`` says nothing new."""
    return torch.arange(steps, **options) + start


def stacked(values: Any, **options: Any) -> Tensor:
    """``torch.as_tensor`` of a list of pairs."""
    if not isinstance(values, list):
        return torch.as_tensor(values, **options)
    rows = [torch.stack([torch.scalar_tensor(value, **options) for value in row]) for row in values]
    return torch.stack(rows).to(options.get("dtype", torch.long))


def padded_topk(values: Tensor, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
    """``torch.topk`` whose k may exceed the number of values: the last one then repeats."""
    best, index = torch.topk(torch.nn.functional.pad(values, (0, k), value=-torch.inf), k, dim)
    return best, index.clamp(max=values.shape[dim] - 1)


def contiguous_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: for transposed inputs, ``torch.export`` would fix that the batch is not 1."""
    return torch.nn.functional.linear(inputs.contiguous(), weight, bias)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.linspace: steps_of_one,
    torch.as_tensor: stacked,
    torch.topk: padded_topk,
    torch.nn.functional.linear: contiguous_linear,
}
