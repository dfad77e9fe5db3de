"""Checks of what users hand to losses: one sentence with what was expected, what came and what to do.

Shapes, dtypes and devices are always checked. What a value is can only be seen by waiting for the device: values are
checked on a CPU, on other devices where :func:`value_checks` asks for it, and never inside torch.compile. What is not
checked may become NaN, and NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from concordet.ranking.sums import on_host

_VALUE_CHECKS: ContextVar[bool | None] = ContextVar("value_checks", default=None)


@contextmanager
def value_checks(enabled: bool) -> Iterator[None]:
    """Turn the checks of values on or off within a block, whatever the device.

    Example:
        >>> from concordet.losses.functional import ap_loss
        >>> with value_checks(False):
        ...     ap_loss(torch.tensor([0.5, float("nan")]), torch.tensor([1, 0]))
        tensor(nan)
    """
    token = _VALUE_CHECKS.set(enabled)
    try:
        yield
    finally:
        _VALUE_CHECKS.reset(token)


def values_are_checked(tensor: Tensor) -> bool:
    """Whether checks that look at this tensor's values run here."""
    if torch.compiler.is_compiling():  # first: older compilers do not know context variables
        return False
    asked = _VALUE_CHECKS.get()
    return on_host(tensor) if asked is None else asked


def check_floating(where: str, name: str, tensor: Tensor, n_dims: int | None = None) -> None:
    """``tensor`` is a floating-point tensor with ``n_dims`` dimensions (any number for None)."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise ValueError(
            f"{where}: expected {name} to be a floating-point tensor, got {_kind(tensor)}; convert it first."
        )
    if n_dims is not None and tensor.ndim != n_dims:
        raise ValueError(
            f"{where}: expected {name} with {n_dims} dimension(s), got shape {tuple(tensor.shape)}; flatten it."
        )


def check_integer(where: str, name: str, tensor: Tensor) -> None:
    """``tensor`` is an integer tensor."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.is_floating_point()
        or tensor.is_complex()
        or tensor.dtype == torch.bool
    ):
        raise ValueError(
            f"{where}: expected {name} to be an integer tensor, got {_kind(tensor)}; convert it with .long()."
        )


def check_same(where: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Two tensors have one shape and one device."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{where}: expected {name} and {other_name} of the same shape, got {tuple(tensor.shape)} and "
            f"{tuple(other.shape)}; give one {name} entry for each entry of {other_name}."
        )
    check_device(where, name, tensor, other_name, other)


def check_device(where: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Two tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{where}: expected {name} and {other_name} on the same device, got {tensor.device} and {other.device}; "
            "move one of them."
        )


def check_finite(where: str, name: str, tensor: Tensor) -> None:
    """No NaN and no infinity, where values are checked."""
    if not values_are_checked(tensor) or tensor.numel() == 0:
        return
    values = tensor.detach()
    total = values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    # a finite sum has finite terms; an infinite one may have overflowed
    if not total.isfinite() and not values.isfinite().all():
        n_bad = int((~values.isfinite()).sum())
        raise ValueError(
            f"{where}: expected finite {name}, got {n_bad} NaN or infinite value(s) among {values.numel()}; "
            "look for the step before that made them, or label such entries -1 and set them to 0."
        )


def check_range(where: str, name: str, tensor: Tensor, low: float, high: float) -> None:
    """All values are in [low, high], where values are checked."""
    if not values_are_checked(tensor) or tensor.numel() == 0:
        return
    smallest, largest = (value.item() for value in tensor.detach().aminmax())
    if not (smallest >= low and largest <= high):
        raise ValueError(
            f"{where}: expected {name} in [{low:g}, {high:g}], got values from {smallest:g} to {largest:g}; "
            "clamp or rescale them."
        )


def check_labels(where: str, labels: Tensor) -> None:
    """Labels are -1, 0 or 1, where values are checked."""
    if not values_are_checked(labels) or labels.numel() == 0:
        return
    smallest, largest = (int(value) for value in labels.aminmax())
    if smallest < -1 or largest > 1:
        raise ValueError(
            f"{where}: expected labels of 1 (positive), 0 (negative) or -1 (ignored), got labels from {smallest} to "
            f"{largest}; ranking losses are class-agnostic: flatten a one-hot [n, classes] target instead."
        )


def check_positive(where: str, name: str, value: float, *, or_zero: bool = False) -> None:
    """A hyperparameter is a finite number above 0, or at least 0."""
    finite = isinstance(value, (int, float)) and value == value and abs(value) != float("inf")
    if not finite or value < 0 or (value == 0 and not or_zero):
        raise ValueError(
            f"{where}: expected {name} {'>= 0' if or_zero else '> 0'}, got {value!r}; choose a finite number like that."
        )


def check_choice(where: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """A hyperparameter is one of a few names."""
    if value not in choices:
        raise ValueError(f"{where}: expected {name} to be one of {', '.join(choices)}; got {value!r}.")


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
