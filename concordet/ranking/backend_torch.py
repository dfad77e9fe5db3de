"""The two passes over all logits in plain PyTorch, and which implementation of them runs where.

Everything else in the exact method is as small as the positives.  :mod:`concordet.ranking.backend_triton` has the
same two
functions as Triton kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from concordet.ranking.intervals import Intervals
from concordet.ranking.sums import binned_sums, on_host

BACKENDS = {"torch": "concordet.ranking.backend_torch", "triton": "concordet.ranking.backend_triton"}
"""Modules with ``locate_and_sum`` and ``spread``.  ``auto``, the default, is triton on CUDA, torch elsewhere."""

CHUNK = 1 << 19
"""Keys taken at a time on a CPU, so that what is made of them stays small and in its cache."""

_BACKEND: ContextVar[str] = ContextVar("backend", default="auto")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Have the passes run by this implementation within a block.

    Args:
        name: one of :data:`BACKENDS`, or ``auto``.

    Raises:
        ValueError: for another name, or where its package is not installed.

    Example:
        >>> from concordet.losses.functional import ap_loss
        >>> with use_backend("torch"):
        ...     ap_loss(torch.tensor([0.5, -9.0]), torch.tensor([1, 0]))
        tensor(0.)
    """
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"expected a back end of {', '.join((*BACKENDS, 'auto'))}, got {name!r}")
    if name == "triton" and find_spec("triton") is None:
        raise ValueError("back end 'triton' needs the package triton; install it, or take 'torch' or 'auto'")
    token = _BACKEND.set(name)
    try:
        yield
    finally:
        _BACKEND.reset(token)


def backend_for(keys: Tensor) -> ModuleType:
    """The implementation for these keys.

    Under ``torch.use_deterministic_algorithms`` it is PyTorch, which then adds in a fixed order; Triton's atomic
    additions change the last bits of float64 sums from run to run.
    """
    name = _BACKEND.get()
    if name == "auto":
        kernels = keys.is_cuda and not torch.are_deterministic_algorithms_enabled() and find_spec("triton") is not None
        name = "triton" if kernels else "torch"
    return import_module(BACKENDS[name])


def locate_and_sum(axis: Intervals, keys: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``[n]`` int32 interval of each key; ``[2p + 1]`` float64 weight, and weight times coordinate, on each interval.

    Args:
        axis: the intervals.
        keys: ``[n]`` finite keys.
        weights: ``[n]`` float64, or None for one each.
    """
    places = [axis.locate(keys[rows]) for rows in _chunks(keys)]
    interval = torch.cat(places) if places else keys.new_empty(0, dtype=torch.int32)
    size = len(axis.origin)
    weight = torch.zeros(size, dtype=torch.float64, device=keys.device)
    moment = torch.zeros_like(weight)
    for rows in _chunks(keys):
        coordinate = axis.coordinate(keys[rows], interval[rows])
        if weights is None:
            weight += binned_sums(interval[rows], None, size)
        else:
            weight.index_add_(0, interval[rows], weights[rows])
            coordinate *= weights[rows]
        moment.index_add_(0, interval[rows], coordinate)
    return interval, weight, torch.where(axis.live, moment, 0.0)


def spread(axis: Intervals, keys: Tensor, interval: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    """``[n]`` constant + slope x coordinate of every key, in the keys' dtype.

    Args:
        interval: ``[n]`` of each key.
        constant: ``[2p + 1]`` of each interval.
        slope: likewise.
    """
    shares = torch.empty_like(keys)
    for rows in _chunks(keys):
        share = axis.coordinate(keys[rows], interval[rows])
        share.mul_(slope.index_select(0, interval[rows])).add_(constant.index_select(0, interval[rows]))
        shares[rows] = share
    return shares


def _chunks(keys: Tensor) -> list[slice]:
    size = CHUNK if on_host(keys) else max(len(keys), 1)
    return [slice(start, start + size) for start in range(0, len(keys), size)]
