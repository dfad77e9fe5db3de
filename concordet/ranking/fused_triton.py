"""A whole ranking loss of few positives in a dozen launches: the positives' part as Triton kernels too.

The values are those of :mod:`concordet.ranking.exact`. Among the positives every pair is compared (p^2 of them, 16
million at :data:`MAX_POSITIVES`), so that no tree is needed; sorting and scans are PyTorch's. For float32 logits in one
process; everything else, and other definitions, take the general path.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache, partial

import torch
from torch import Tensor

from concordet.ranking import fused_kernels as kernels
from concordet.ranking.backend_triton import BLOCK, MAX_BINS, MAX_COPIES, launch
from concordet.ranking.definitions import MIN_FALSE_POSITIVES, MIN_WORSE
from concordet.ranking.intervals import CHAIN_GAP

MAX_POSITIVES = 4096
"""Number of positives up to which their pairs cost little beside the passes over all logits."""

KINDS = {"ap": 0, "alrp": 1, "rank_sort": 2, "ndcg": 3}
"""Definitions that the kernels compute, and their numbers there."""

ROWS, COLUMNS = 32, 64
"""Pairs of positives that a program compares at a time."""


def compute(
    logits: Tensor,
    labels: Tensor,
    aux: Tensor | None,
    positive: Tensor,
    segments: Tensor | None,
    name: str,
    *,
    n_segments: int,
    delta: float,
    self_relation: float,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values ``[t, s]``, updates ``[t, n]`` (``[t, 0]`` if not wanted) and aLRP's weights ``[p]``.

    Args:
        logits: ``[n]`` float32.
        labels: ``[n]`` integer.
        aux: ``[p]`` (aLRP), ``[n]`` (RS) or None.
        positive: ``[p]`` indices of the positives, 0 < p <= :data:`MAX_POSITIVES`.
        segments: ``[n]`` int64 ranking of each logit, or None for one ranking.
        name: a definition in :data:`KINDS`.
        n_segments: number s of rankings.
        delta: half width of the step.
        self_relation: what a positive adds to its own rank.
        wants_gradient: whether updates are computed.
    """
    n, p, kind, device = len(logits), len(positive), KINDS[name], logits.device
    n_terms, size, several = 1 + (kind == 2), 2 * p, segments is not None
    bins = n_segments * (size + 1)
    empty = partial(torch.empty, dtype=torch.float64, device=device)
    copies = max(1, min(MAX_COPIES, MAX_BINS // bins))
    # everything that kernels add to, in one tensor: a single launch fills it with zeros
    zeros = torch.zeros((2 * copies + 2) * bins + 3 * n_segments + 1, dtype=torch.float64, device=device)
    counted, lines, accumulated, seen = zeros.split([2 * copies * bins, 2 * bins, 2 * n_segments, n_segments + 1])
    counted, lines = counted.view(2, copies, n_segments, size + 1), lines.view(2, n_segments, size + 1)
    aux_input, rankings = (logits if other is None else other for other in (aux, segments))  # not read if None
    owner, sorted_owner = (torch.empty(p if several else 0, dtype=torch.int32, device=device) for _ in range(2))

    scores, aux_values = torch.empty(p, dtype=logits.dtype, device=device), empty(p)
    launch(
        kernels.gather, p, logits, aux_input, rankings, positive, scores, aux_values, owner, p, KIND=kind,
        SEGMENTED=several, BLOCK=BLOCK,
    )  # fmt: skip
    scores, order = torch.sort(scores, stable=True)

    thresholds, origin, local, sorted_aux = (empty(k) for k in (size, size + 1, p, p))
    edges = torch.empty(2, p, dtype=torch.int32, device=device)
    launch(
        kernels.find_intervals, size, scores, order, aux_values, owner, thresholds, origin, edges, local, sorted_aux,
        sorted_owner, p, _top(p), DELTA=delta, GAP=CHAIN_GAP * delta, AUX=kind in (1, 2), SEGMENTED=several, ROWS=ROWS,
        COLUMNS=COLUMNS, block=ROWS,
    )  # fmt: skip

    interval = torch.empty(n, dtype=torch.int32, device=device)
    launch(
        kernels.locate_and_sum, n, logits, labels, rankings, thresholds, origin, interval, counted[0], counted[1], seen,
        n, size, _top(size), copies, n_segments, SEGMENTED=several, BLOCK=BLOCK,
    )  # fmt: skip
    sums = counted.sum(1).cumsum(2)

    coefficients, errors, inverse = empty(p), empty(2, p), empty(p)
    launch(
        kernels.rank_positives, p, scores, sorted_aux, sorted_owner, edges, local, sums, lines, accumulated,
        coefficients, errors, inverse, p, size, n_segments, *_gain(p if kind == 3 else 1), DELTA=delta,
        SELF=self_relation, MIN_FP=MIN_FALSE_POSITIVES, MIN_W=MIN_WORSE, KIND=kind, SEGMENTED=several, ROWS=ROWS,
        COLUMNS=COLUMNS, block=ROWS,
    )  # fmt: skip

    updates = torch.empty(n_terms, n if wants_gradient else 0, dtype=logits.dtype, device=device)
    if wants_gradient:
        launch(
            kernels.spread, n, logits, interval, origin, lines.cumsum(2), updates, n, size, n_segments, N_TERMS=n_terms,
            BLOCK=BLOCK,
        )  # fmt: skip
    values = torch.empty(n_terms, n_segments, dtype=logits.dtype, device=device)
    weights = torch.empty_like(aux) if kind == 1 and aux is not None else None
    launch(
        kernels.scatter, p, scores, sorted_aux, sorted_owner, order, positive, coefficients, errors, inverse,
        accumulated, seen, updates, values, values if weights is None else weights, n, p, n_segments, DELTA=delta,
        WANTED=wants_gradient, KIND=kind, SEGMENTED=several, ROWS=ROWS, COLUMNS=COLUMNS, block=ROWS,
    )  # fmt: skip
    return values, updates, weights


def takes(logits: Tensor, positive: Tensor, definition: str, settings: dict[str, float]) -> bool:
    """Whether the kernels compute this definition for these logits and positives."""
    supported = definition in KINDS and logits.dtype == torch.float32 and not any(settings.values())
    return supported and 0 < len(positive) <= MAX_POSITIVES


def _top(count: int) -> int:
    """Largest power of two not above ``count``: the first step of a binary search."""
    return 1 << (count.bit_length() - 1)


@lru_cache
def _gain(p: int) -> tuple[float, float]:
    """NDCG's p / G_max as the sum of two float32 numbers, as which a kernel receives its arguments."""
    gain = p / math.fsum(1 / math.log2(1 + i) for i in range(1, p + 1))
    (high,) = struct.unpack("f", struct.pack("f", gain))
    return high, gain - high
