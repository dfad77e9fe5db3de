"""Checks of the arguments of losses: errors say what was expected, what was passed and what to do.

Shapes, dtypes and devices are always checked. Reading a value waits for the device: values are checked on a CPU, on
other devices where :func:`value_checks` asks for it, and never inside torch.compile or the transforms of torch.func.
Invalid values that are not checked may become NaN, and NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from concordet.ranking.segments import check_segment_range
from concordet.ranking.sums import as_number, on_host

_VALUE_CHECKS: ContextVar[bool | None] = ContextVar("value_checks", default=None)


@contextmanager
def value_checks(enabled: bool) -> Iterator[None]:
    """Turns the checks of values on or off within a block, whatever the device.

    Args:
        enabled: Whether values are checked.

    Returns:
        A context manager. Outside of one, values are checked on a CPU only, since a check makes a GPU wait.

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
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # one of vmap has many values
        return False
    asked = _VALUE_CHECKS.get()
    return on_host(tensor) if asked is None else asked


def check_floating(where: str, name: str, tensor: Tensor, n_dims: int | None = None) -> None:
    """Checks that ``tensor`` is a floating-point tensor with ``n_dims`` dimensions (any number for None)."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise ValueError(f"{where}: {name} must be a floating-point tensor, got {_kind(tensor)}; convert it first")
    if n_dims is not None and tensor.ndim != n_dims:
        raise ValueError(
            f"{where}: {name} must have {n_dims} dimension(s), got shape {tuple(tensor.shape)}; flatten it"
        )


def check_integer(where: str, name: str, tensor: Tensor, *, or_bool: bool = False) -> None:
    """Checks that ``tensor`` is an integer tensor, or a bool one if ``or_bool``."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.is_floating_point()
        or tensor.is_complex()
        or (tensor.dtype == torch.bool and not or_bool)
    ):
        raise ValueError(f"{where}: {name} must be an integer tensor, got {_kind(tensor)}; convert it with .long()")


def check_bool(where: str, name: str, tensor: Tensor) -> None:
    """Checks that ``tensor`` is a bool tensor."""
    check_tensor(where, name, tensor)
    if tensor.dtype != torch.bool:
        raise ValueError(f"{where}: {name} must be a bool tensor, got {_kind(tensor)}; convert it with .bool()")


def check_same(where: str, name: str, tensor: Tensor, other_name: str, other: Tensor, *, hint: str = "") -> None:
    """Checks that two tensors have the same shape and device."""
    check_tensor(where, name, tensor)
    if tensor.shape != other.shape:
        raise ValueError(
            f"{where}: {name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(tensor.shape)}; "
            f"{hint or f'give one entry of {name} per entry of {other_name}'}"
        )
    check_device(where, name, tensor, other_name, other)


def check_device(where: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Checks that two tensors are on the same device."""
    check_tensor(where, name, tensor)
    check_tensor(where, other_name, other)
    if tensor.device != other.device:
        raise ValueError(
            f"{where}: {name} must be on the device of {other_name}, {other.device}, got {tensor.device}; "
            "move one of them"
        )


def check_tensor(where: str, name: str, tensor: Tensor) -> None:
    """Checks that an argument is a tensor."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{where}: {name} must be a tensor, got {_kind(tensor)}; convert it with torch.as_tensor")


def check_binary(where: str, name: str, tensor: Tensor, *, hint: str) -> None:
    """Checks that all values are 0 or 1, where values are checked."""
    if not values_are_checked(tensor):
        return
    values = tensor.detach()
    if not bool(((values == 0) | (values == 1)).all()):
        other = values[(values != 0) & (values != 1)][0]
        raise ValueError(f"{where}: {name} must be 0 or 1, got {float(other):g}; {hint}")


def check_finite(where: str, name: str, tensor: Tensor) -> None:
    """Checks that no value is NaN or infinite, where values are checked."""
    if not values_are_checked(tensor) or tensor.numel() == 0:
        return
    values = tensor.detach()
    total = values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    # a finite sum has finite terms; an infinite one may have overflowed
    if not math.isfinite(as_number(total)) and not values.isfinite().all():
        n_bad = int((~values.isfinite()).sum())
        raise ValueError(
            f"{where}: {name} must be finite, got {n_bad} NaN or infinite value(s) among {values.numel()}; find the "
            "step that made them, or label such entries -1 and set them to 0"
        )


def check_range(where: str, name: str, tensor: Tensor, low: float, high: float, *, slack: float = 0.0) -> None:
    """Checks that all values are in [low, high + slack], where values are checked; ``slack`` allows for rounding."""
    if not values_are_checked(tensor) or tensor.numel() == 0:
        return
    values = tensor.detach()
    if not values.is_floating_point():
        values = values.long()  # no unsigned aminmax
    smallest, largest = (as_number(value) for value in values.aminmax())
    if not (smallest >= low and largest <= high + slack):
        raise ValueError(
            f"{where}: {name} must be in [{low:g}, {high:g}], got values from {smallest:g} to {largest:g}; clamp or "
            "rescale them"
        )


def check_ranking_labels(where: str, labels: Tensor, logits: Tensor, *, negatives: bool = False) -> Tensor:
    """Labels of a ranking loss as int64, checked to be 1, 0 or -1 (or bool), one per logit.

    With ``negatives``, labels with positives and ignored entries must also have negatives:
    :data:`concordet.assigned.BACKGROUND` is -1, which ranking losses ignore, and such labels would silently give 0.
    """
    check_integer(where, "labels", labels, or_bool=True)
    check_same(where, "labels", labels, "logits", logits)
    if labels.dtype != torch.int64:
        labels = labels.long()
    if not values_are_checked(labels) or labels.numel() == 0:
        return labels
    smallest, largest = (int(as_number(value)) for value in labels.aminmax())
    if smallest < -1 or largest > 1:
        raise ValueError(
            f"{where}: labels must be 1 (positive), 0 (negative) or -1 (ignored), got labels from {smallest} to "
            f"{largest}; ranking losses are class-agnostic: flatten a one-hot [n, classes] target instead"
        )
    if negatives and smallest == -1 and largest == 1 and as_number(labels.count_nonzero()) == labels.numel():
        raise ValueError(
            f"{where}: labels must contain negatives (0), got only 1 and -1, which means ignored here; label the "
            "background 0 (concordet.assigned.BACKGROUND is -1; Assigned.ranking_labels() converts)"
        )
    return labels


def check_segments(where: str, segments: Tensor, n_segments: int | None, logits: Tensor) -> None:
    """Checks that ``segments`` has an integer for every logit, in 0..n_segments-1 where values are checked."""
    check_integer(where, "segments", segments)
    check_same(where, "segments", segments, "logits", logits)
    check_count(where, "n_segments", n_segments, 1, hint="give the number of segments")
    if n_segments is not None and values_are_checked(segments):
        check_segment_range(segments, n_segments, f"{where}: ")


def check_count(where: str, name: str, value: int | None, least: int, *, hint: str) -> None:
    """Checks that an argument is an integer of at least ``least``."""
    if not isinstance(value, (int, torch.SymInt)) or value < least:
        raise ValueError(f"{where}: {name} must be an integer >= {least}, got {value}; {hint}")


def check_positive(where: str, name: str, value: float, *, or_zero: bool = False) -> None:
    """Checks that a hyperparameter is a finite number above 0, or at least 0 if ``or_zero``."""
    finite = isinstance(value, (int, float)) and value == value and abs(value) != float("inf")
    if not finite or value < 0 or (value == 0 and not or_zero):
        wanted = "a finite number >= 0" if or_zero else "a finite number > 0"
        raise ValueError(f"{where}: {name} must be {wanted}, got {value!r}")


def check_choice(where: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Checks that a hyperparameter is one of a few names."""
    if value not in choices:
        raise ValueError(f"{where}: {name} must be one of {', '.join(choices)}, got {value!r}")


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
