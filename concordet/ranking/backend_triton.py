"""The two passes over all logits as Triton kernels; :mod:`concordet.ranking.backend_torch` has them in plain PyTorch.

Each reads every key once. A key below all thresholds, that is below min(s+) - d, needs no search and adds nothing, so
that keys need no compaction and the host no synchronization. Sums are float64; they are added atomically, in no fixed
order, so that their last bits may differ from run to run.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from concordet.ranking.intervals import Intervals

BLOCK = 1024
MAX_BINS = 1 << 15
"""Bins are repeated up to about this many, so that with few positives not all blocks add to the same ones."""

MAX_COPIES = 512


@triton.jit
def bins_of(key, used, thresholds, size, top, BLOCK: tl.constexpr):
    """How many thresholds are at or below each key, bit by bit from the highest; 0 where it is not ``used``."""
    index = tl.zeros([BLOCK], tl.int32)
    half = top
    while half > 0:
        probe = index + half
        possible = used & (probe <= size)
        threshold = tl.load(thresholds + probe - 1, mask=possible, other=0.0)
        index = tl.where(possible & (key >= threshold), probe, index)
        half = half // 2
    return index


@triton.jit
def _locate_and_sum(
    keys, weights, segments, thresholds, origin, interval, weight, moment, n, size, top, copies, n_segments,
    WEIGHTED: tl.constexpr, SEGMENTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    key = tl.load(keys + row, mask=inside, other=0.0)
    used = inside & (key >= tl.load(thresholds))
    index = bins_of(key, used, thresholds, size, top, BLOCK)
    bin = index
    if SEGMENTED:
        bin += tl.load(segments + row, mask=inside, other=0).to(tl.int32) * (size + 1)
    tl.store(interval + row, bin, mask=inside)
    if WEIGHTED:
        added = tl.load(weights + row, mask=used, other=0.0)
    else:
        added = tl.where(used, 1.0, 0.0).to(tl.float64)
    copy = (tl.program_id(0) % copies).to(tl.int64) * n_segments * (size + 1)
    counted = used
    if not SEGMENTED:
        # the many keys above all windows are in one interval: sum them here and add once
        last = index == size
        tl.atomic_add(weight + copy + size, tl.sum(tl.where(last, added, 0.0), 0), sem="relaxed")
        counted = used & (index < size)
    tl.atomic_add(weight + copy + bin, added, mask=counted, sem="relaxed")
    windowed = used & (index < size)
    coordinate = key.to(tl.float64) - tl.load(origin + index, mask=windowed, other=0.0)
    tl.atomic_add(moment + copy + bin, coordinate * added, mask=windowed, sem="relaxed")


@triton.jit
def _spread(keys, interval, origin, lines, out, n, n_intervals, n_bins, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    bin = tl.load(interval + row, mask=inside, other=0)
    index = bin % n_intervals
    used = inside & (index > 0)
    key = tl.load(keys + row, mask=used, other=0.0)
    slope = tl.load(lines + bin, mask=used, other=0.0)
    share = tl.load(lines + n_bins + bin, mask=used, other=0.0)
    share += slope * (key.to(tl.float64) - tl.load(origin + index, mask=used, other=0.0))
    tl.store(out + row, share, mask=inside)


def locate_and_sum(
    axis: Intervals, keys: Tensor, weights: Tensor | None, segments: Tensor | None = None, n_segments: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`concordet.ranking.backend_torch.locate_and_sum`; sums of the first interval, below all windows, are
    0."""
    _check(keys)
    size, bins = axis.size - 1, axis.size * n_segments
    copies = max(1, min(MAX_COPIES, MAX_BINS // bins))
    located = torch.empty(keys.shape, dtype=torch.int32, device=keys.device)
    weight = torch.zeros(copies, n_segments, axis.size, dtype=torch.float64, device=keys.device)
    moment = torch.zeros_like(weight)
    top = 1 << (size.bit_length() - 1)
    launch(
        _locate_and_sum, len(keys), keys, keys if weights is None else weights, keys if segments is None else segments,
        axis.thresholds, _origins(axis), located, weight, moment, len(keys), size, top, copies, n_segments,
        WEIGHTED=weights is not None, SEGMENTED=segments is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return located, weight.sum(0), moment.sum(0)


def spread(axis: Intervals, keys: Tensor, located: Tensor, lines: Tensor) -> Tensor:
    """See :func:`concordet.ranking.backend_torch.spread`; 0 on the first interval."""
    _check(keys)
    out = torch.empty_like(keys)
    launch(
        _spread, len(keys), keys, located, _origins(axis), lines.contiguous(), out, len(keys), axis.size,
        lines.shape[1], BLOCK=BLOCK,
    )  # fmt: skip
    return out


def _origins(axis: Intervals) -> Tensor:
    """``[2p + 1]`` origin of each interval."""
    return axis.origin if len(axis.origin) > 1 else axis.origin.repeat(axis.size)


def launch(kernel: Any, count: int, keys: Tensor, *arguments: Any, block: int = BLOCK, **options: Any) -> None:
    """Runs a kernel in as many programs as there are blocks in ``count``, on the device of ``keys``."""
    if count == 0:
        return
    if keys.is_cuda:
        with torch.cuda.device(keys.device):
            kernel[(triton.cdiv(count, block),)](keys, *arguments, **options)
    else:
        kernel[(triton.cdiv(count, block),)](keys, *arguments, **options)


def _check(keys: Tensor) -> None:
    if not keys.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"back end 'triton' needs tensors on a CUDA device, got {keys.device}; move them, take back end 'torch', "
            "or set TRITON_INTERPRET=1 before Python starts"
        )
