"""The two passes over all logits in plain PyTorch, and the choice of their implementation.

Everything else in the exact method is O(p). :mod:`concordet.ranking.backend_triton` has the same two functions as
Triton kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from concordet.errors import requires
from concordet.ranking.intervals import Intervals
from concordet.ranking.sums import binned_sums, on_host

FUSED = "concordet.ranking.fused_triton"
"""Module whose ``compute`` computes a whole ranking loss of few positives with Triton."""

COMPILED = "concordet.ranking.compiled.counts"
"""Module whose ``CompiledCounts`` counts with Numba."""

BACKENDS = ("torch", "triton", "numba")
"""``auto``, the default, is triton on CUDA, numba on a CPU, and torch elsewhere and where these are not installed."""

CHUNK = 1 << 17
"""Keys taken at a time on a CPU, so that intermediate tensors fit its cache."""

MANY_CHUNKS = 64
"""Chunks from which intervals are copied to one tensor: by themselves they would lie scattered between freed ones, and
take a tenth more memory. Of few chunks, a tensor that is made anew each time takes longer."""

_BACKEND: ContextVar[str] = ContextVar("backend", default="auto")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs the passes with this implementation within a block.

    Args:
        name: one of :data:`BACKENDS`, or ``auto``.

    Raises:
        ValueError: for another name, or if Triton is not installed.
        MissingPackageError: if Numba is not installed.
        ImportError: if Numba cannot be imported.

    Example:
        >>> from concordet.losses.functional import ap_loss
        >>> with use_backend("torch"):
        ...     ap_loss(torch.tensor([0.5, -9.0]), torch.tensor([1, 0]))
        tensor(0.)
    """
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"backend must be one of {', '.join((*BACKENDS, 'auto'))}, got {name!r}")
    if name == "triton" and find_spec(name) is None:
        raise ValueError("back end 'triton' needs the package triton; install it, or take 'torch' or 'auto'")
    if name == "numba":
        with requires("back end 'numba'", "numba"):
            import_module(COMPILED)
    token = _BACKEND.set(name)
    try:
        yield
    finally:
        _BACKEND.reset(token)


def backend_for(keys: Tensor) -> ModuleType:
    """The module with ``locate_and_sum`` and ``spread`` for these keys.

    Under ``torch.use_deterministic_algorithms`` it is PyTorch, which then adds in a fixed order; Triton's atomic
    additions change the last bits of float64 sums from run to run.
    """
    return import_module("concordet.ranking.backend_" + ("triton" if _name_for(keys) == "triton" else "torch"))


def fused_for(keys: Tensor) -> ModuleType | None:
    """The module that computes whole losses for these keys, where there is one."""
    return import_module(FUSED) if _name_for(keys) == "triton" else None


def compiled_for(keys: Tensor) -> ModuleType | None:
    """The module that counts these keys by compiled loops, where there is one.

    Raises:
        ValueError: if back end numba is chosen, and the keys are not on a CPU.
    """
    if _name_for(keys) != "numba":
        return None
    if not on_host(keys):
        raise ValueError(f"back end 'numba' needs tensors on a CPU, got {keys.device}; move them, or take 'auto'")
    return import_module(COMPILED)


def _name_for(keys: Tensor) -> str:
    name = _BACKEND.get()
    if name != "auto":
        return name
    if keys.is_cuda and not torch.are_deterministic_algorithms_enabled() and find_spec("triton") is not None:
        return "triton"
    return "numba" if on_host(keys) and _numba_works() else "torch"


@cache
def _numba_works() -> bool:
    if find_spec("numba") is None:
        return False
    try:
        import_module(COMPILED)
    except Exception as error:  # Numba supports some versions of Python and NumPy only, and says so in several ways
        warnings.warn(f"ranking losses are computed without Numba, which cannot be imported: {error}", stacklevel=2)
        return False
    return True


def locate_and_sum(
    axis: Intervals, keys: Tensor, weights: Tensor | None, segments: Tensor | None = None, n_segments: int = 1
) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor, Tensor]:
    """Interval of each key, and sums over the keys of each ranking and interval.

    Args:
        axis: the intervals.
        keys: ``[n]`` finite keys.
        weights: ``[n]`` float64, or None for a weight of 1.
        segments: ``[n]`` int64 ranking of each key, or None for one ranking.
        n_segments: number s of rankings.

    Returns:
        where the keys are, for :func:`spread`; ``[s, 2p + 1]`` weights, and ``[s, 2p + 1]`` float64 sums of weight
        times coordinate, whose numbers mean nothing where no window is open.
    """
    located: list[tuple[Tensor, Tensor | None]] = []
    size = axis.size * n_segments
    chunks = _chunks(keys, size)
    together = None
    if len(chunks) > MANY_CHUNKS:
        together = torch.empty(len(keys), dtype=torch.int32, device=keys.device)
    weight = moment = torch.zeros(0, dtype=torch.float64, device=keys.device)
    for rows in chunks:
        interval = axis.locate(keys[rows])
        coordinate = axis.coordinate(keys[rows], interval)
        if segments is not None:
            interval.add_(segments[rows], alpha=axis.size)
        weight_sums = binned_sums(interval, None if weights is None else weights[rows], size)
        moment_sums = binned_sums(interval, coordinate if weights is None else coordinate * weights[rows], size)
        weight = weight + weight_sums if located else weight_sums
        moment = moment + moment_sums if located else moment_sums
        # for several chunks, coordinates are computed again: they take more memory than the intervals
        if together is not None:
            interval = together[rows].copy_(interval)
        located.append((interval, coordinate if len(chunks) == 1 else None))
    if not located:
        weight = moment = torch.zeros(size, dtype=torch.float64, device=keys.device)
    return located, weight.view(n_segments, -1), moment.view(n_segments, -1)


def spread(axis: Intervals, keys: Tensor, located: list[tuple[Tensor, Tensor | None]], lines: Tensor) -> Tensor:
    """``[n]`` slope x coordinate + constant of every key, in the keys' dtype.

    Args:
        axis: the intervals.
        keys: ``[n]`` finite keys.
        located: where they are, from :func:`locate_and_sum`.
        lines: ``[2, s (2p + 1)]`` float64 slope and constant on each interval of each ranking.
    """
    if len(located) == 1:
        return _evaluate(axis, keys, *located[0], lines)
    shares = torch.empty_like(keys)
    for rows, (interval, coordinate) in zip(_chunks(keys, lines.shape[1]), located, strict=True):
        shares[rows] = _evaluate(axis, keys[rows], interval, coordinate, lines)
    return shares


def _evaluate(axis: Intervals, keys: Tensor, interval: Tensor, coordinate: Tensor | None, lines: Tensor) -> Tensor:
    slope, constant = (line.index_select(0, interval) for line in lines)
    if coordinate is None:
        coordinate = axis.coordinate(keys, interval if lines.shape[1] == axis.size else interval % axis.size)
    return constant.addcmul_(slope, coordinate).to(keys.dtype)


def _chunks(keys: Tensor, n_bins: int) -> list[slice]:
    # every chunk makes sums of all bins, so that small chunks would cost more than their keys
    size = max(CHUNK, 4 * n_bins) if on_host(keys) else max(len(keys), 1)
    return [slice(start, start + size) for start in range(0, len(keys), size)]
