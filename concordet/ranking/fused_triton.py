"""A whole ranking loss of few positives in a dozen launches: the positives' part as Triton kernels too.

The numbers are those of :mod:`concordet.ranking.exact` with :mod:`concordet.ranking.definitions`; names are theirs.
Among the positives every pair is looked at (p^2 of them, 16 million at :data:`MAX_POSITIVES`), so that no tree is
needed; sorting and scans are PyTorch's. For float32 logits in one process; everything else, and other
definitions, take the general path.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from concordet.ranking.backend_triton import BLOCK, MAX_BINS, MAX_COPIES, bins_of, launch
from concordet.ranking.definitions import MIN_FALSE_POSITIVES, MIN_WORSE
from concordet.ranking.intervals import CHAIN_GAP

MAX_POSITIVES = 4096
"""Positives up to which their pairs are few beside the passes over all logits."""

KINDS = {"ap": 0, "alrp": 1, "rank_sort": 2, "ndcg": 3}
"""Definitions that the kernels compute."""

ROWS, COLUMNS = 32, 64
"""Pairs of positives taken at a time."""


@triton.jit
def _finite(value):
    """``nan_to_num``."""
    value = tl.where(value == value, value, 0.0)
    return tl.minimum(tl.maximum(value, -3.4028234663852886e38), 3.4028234663852886e38)


@triton.jit
def _gather(
    logits, aux, segments, positive, scores, side, owner, p,
    KIND: tl.constexpr, SEGMENTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Logits, auxiliary input and rankings of the positives, the last one first: of equal ones it shall be first."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < p
    row = tl.load(positive + p - 1 - i, mask=inside, other=0)
    tl.store(scores + i, _finite(tl.load(logits + row, mask=inside, other=0.0)), mask=inside)
    if SEGMENTED:
        tl.store(owner + i, tl.load(segments + row, mask=inside, other=0).to(tl.int32), mask=inside)
    if KIND == 1:
        tl.store(side + i, tl.load(aux + p - 1 - i, mask=inside, other=0.0).to(tl.float64), mask=inside)
    if KIND == 2:
        tl.store(side + i, tl.load(aux + row, mask=inside, other=0.0).to(tl.float64), mask=inside)


@triton.jit
def _count(scores, p, top, bound, SHIFT: tl.constexpr, STRICT: tl.constexpr):
    """How many of the ascending scores are, with ``SHIFT`` added, at or below each bound (or below it)."""
    n = tl.zeros_like(bound).to(tl.int32)
    half = top
    while half > 0:
        probe = n + half
        possible = probe <= p
        value = tl.load(scores + probe - 1, mask=possible, other=0.0).to(tl.float64) + SHIFT
        passed = value < bound if STRICT else value <= bound
        n = tl.where(possible & passed, probe, n)
        half = half // 2
    return n


@triton.jit
def _intervals(
    scores, order, side, owner, thresholds, origin, edges, local, sorted_side, sorted_owner, p, top,
    DELTA: tl.constexpr, GAP: tl.constexpr, SIDE: tl.constexpr, SEGMENTED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Thresholds in ascending order, the interval above each positive's two, and the origins of intervals.

    The order is merged from that of the scores: t - d and t + d ascend as t does. Where no window is open, an interval
    has no origin: infinity.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < 2 * p
    upper = row >= p
    i = tl.where(upper, row - p, row)
    score = tl.load(scores + i, mask=inside, other=0.0).to(tl.float64)
    bound = tl.where(upper, score + DELTA, score - DELTA)
    begun = _count(scores, p, top, bound, -DELTA, False)
    ended = _count(scores, p, top, bound, DELTA, False)
    before = _count(scores, p, top, bound, DELTA, True)
    place = i + tl.where(upper, begun, before)
    # the last positive of the chain that the last window begun belongs to
    last = tl.zeros_like(i) + p
    start = 0
    while start < p:
        j = start + tl.arange(0, COLUMNS)
        value = tl.load(scores + j, mask=j < p, other=0.0).to(tl.float64)
        following = tl.load(scores + j + 1, mask=j + 1 < p, other=0.0).to(tl.float64)
        ends = (j < p) & ((j == p - 1) | (following - value > GAP))
        candidates = tl.where(ends[None, :] & (j[None, :] >= begun[:, None] - 1), j[None, :], p)
        last = tl.minimum(last, tl.min(candidates, 1))
        start += COLUMNS
    chain = tl.load(scores + last, mask=inside & (last < p), other=0.0).to(tl.float64)
    tl.store(thresholds + place, bound, mask=inside)
    tl.store(origin + place + 1, tl.where(begun > ended, chain, float("inf")), mask=inside)
    tl.store(edges + row, begun + ended, mask=inside)
    tl.store(local + i, score - chain, mask=inside & (row < p))
    own = tl.load(order + i, mask=inside, other=0)
    if SEGMENTED:
        tl.store(sorted_owner + i, tl.load(owner + own, mask=inside, other=0), mask=inside & (row < p))
    if SIDE:
        tl.store(sorted_side + i, tl.load(side + own, mask=inside, other=0.0), mask=inside & (row < p))


@triton.jit
def _locate_and_sum(
    logits, labels, segments, thresholds, origin, interval, weight, moment, seen, n, size, top, copies, n_segments,
    SEGMENTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Interval of each negative, counts and distances by interval; how many positives there are, and how many NaN."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    label = tl.load(labels + row, mask=inside, other=-1).to(tl.int64)
    value = tl.load(logits + row, mask=inside, other=0.0)
    counted = (label == 0) | (label == 1)
    tl.atomic_add(seen, tl.sum(tl.where(label == 1, 1.0, 0.0).to(tl.float64), 0), sem="relaxed")
    bad = tl.where(counted & (value != value), 1.0, 0.0).to(tl.float64)
    if SEGMENTED:
        segment = tl.load(segments + row, mask=inside, other=0).to(tl.int32)
        tl.atomic_add(seen + 1 + segment, bad, mask=bad > 0, sem="relaxed")
    else:
        tl.atomic_add(seen + 1, tl.sum(bad, 0), sem="relaxed")
    key = _finite(value).to(tl.float64)
    used = inside & (label == 0) & (key >= tl.load(thresholds))
    index = bins_of(key, used, thresholds, size, top, BLOCK)
    bin = index
    if SEGMENTED:
        bin += segment * (size + 1)
    tl.store(interval + row, bin, mask=inside)
    amount = tl.where(used, 1.0, 0.0).to(tl.float64)
    copy = (tl.program_id(0) % copies).to(tl.int64) * n_segments * (size + 1)
    windowed = used & (index < size)
    if SEGMENTED:
        tl.atomic_add(weight + copy + bin, amount, mask=used, sem="relaxed")
    else:
        # the keys above all windows are many, and in one interval: they are added up here first
        tl.atomic_add(weight + copy + size, tl.sum(tl.where(index == size, amount, 0.0), 0), sem="relaxed")
        tl.atomic_add(weight + copy + bin, amount, mask=windowed, sem="relaxed")
    start = tl.load(origin + index, mask=windowed, other=float("inf"))
    tl.atomic_add(moment + copy + bin, key - start, mask=windowed & (start < float("inf")), sem="relaxed")


@triton.jit
def _step(difference, DELTA: tl.constexpr):
    if DELTA > 0:
        above = tl.minimum(tl.maximum(difference / (2 * DELTA) + 0.5, 0.0), 1.0)
    else:
        above = tl.where(difference >= 0, 1.0, 0.0).to(tl.float64)
    return above


@triton.jit
def _rank(
    scores, side, owner, edges, local, sums, lines, values, coefficients, errors, inverse, p, size, n_segments, gain,
    gain_rest,
    DELTA: tl.constexpr, SELF: tl.constexpr, MIN_FP: tl.constexpr, MIN_W: tl.constexpr, KIND: tl.constexpr,
    SEGMENTED: tl.constexpr,    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Soft counts of each positive i, what the definition makes of them, and where its lines begin and end."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = i < p
    score = tl.load(scores + i, mask=inside, other=0.0).to(tl.float64)
    quality = tl.zeros([ROWS], tl.float64)
    if KIND == 2:
        quality = tl.load(side + i, mask=inside, other=0.0)
    segment = tl.zeros([ROWS], tl.int32)
    if SEGMENTED:
        segment = tl.load(owner + i, mask=inside, other=0)
    count = tl.zeros([ROWS], tl.float64)  # of the positives in its ranking
    positives = tl.zeros([ROWS], tl.float64)
    weighted = tl.zeros([ROWS], tl.float64)
    better = tl.zeros([ROWS], tl.float64)
    better_weighted = tl.zeros([ROWS], tl.float64)
    start = 0
    while start < p:
        k = start + tl.arange(0, COLUMNS)
        other = tl.load(scores + k, mask=k < p, other=0.0).to(tl.float64)
        above = _step(other[None, :] - score[:, None], DELTA)
        same = (k[None, :] < p) & (i[:, None] < p)
        if SEGMENTED:
            same = same & (tl.load(owner + k, mask=k < p, other=-1)[None, :] == segment[:, None])
        count += tl.sum(tl.where(same, 1.0, 0.0).to(tl.float64), 1)
        above = tl.where(same & (k[None, :] != i[:, None]), above, 0.0)
        positives += tl.sum(above, 1)
        if KIND == 1:
            weighted += tl.sum(above * tl.load(side + k, mask=k < p, other=0.0)[None, :], 1)
        if KIND == 2:
            theirs = tl.load(side + k, mask=k < p, other=0.0)
            loss = above * (1 - theirs)[None, :]
            as_good = theirs[None, :] >= quality[:, None]
            weighted += tl.sum(loss, 1)
            better += tl.sum(tl.where(as_good, above, 0.0), 1)
            better_weighted += tl.sum(tl.where(as_good, loss, 0.0), 1)
        start += COLUMNS
    begin = tl.load(edges + i, mask=inside, other=1)
    end = tl.load(edges + p + i, mask=inside, other=1)
    count = tl.where(inside, count, 1.0)
    base = segment * (size + 1)
    moments = n_segments * (size + 1)  # where their sums begin, and the constants of lines
    below_end = tl.load(sums + base + end - 1, mask=inside, other=0.0)
    negatives = tl.load(sums + base + size, mask=inside, other=0.0) - below_end
    window_start = tl.load(local + i, mask=inside, other=0.0) - DELTA
    if DELTA > 0:
        window = below_end - tl.load(sums + base + begin - 1, mask=inside, other=0.0)
        moment = tl.load(sums + moments + base + end - 1, mask=inside, other=0.0)
        moment -= tl.load(sums + moments + base + begin - 1, mask=inside, other=0.0)
        negatives += (moment - window_start * window) / (2 * DELTA)
    rank = SELF + positives + negatives
    value = negatives / rank
    error = value
    if KIND == 1:
        error = (negatives + weighted) / rank
        tl.store(inverse + i, 1 / rank, mask=inside)
    if KIND == 3:
        ratio = tl.zeros([ROWS], tl.float64) + gain + gain_rest
        if SEGMENTED:  # as many positives as there are in the ranking
            largest = tl.zeros([ROWS], tl.float64)
            start = 0
            while start < p:
                k = start + tl.arange(0, COLUMNS)
                gains = 1 / tl.log2((2 + k).to(tl.float64))
                largest += tl.sum(tl.where(k[None, :] < count[:, None], gains[None, :], 0.0), 1)
                start += COLUMNS
            ratio = count / largest
        share = ratio / tl.log2(1 + rank)
        value = 1 - share
        error = ratio - share
    least = MIN_FP if KIND % 2 == 1 else 0.0
    coefficient = tl.where(negatives > least, error / count / negatives, 0.0)
    tl.store(errors + i, coefficient * negatives, mask=inside)
    if SEGMENTED:
        tl.atomic_add(values + segment, value / count, mask=inside, sem="relaxed")
    else:
        tl.atomic_add(values, tl.sum(tl.where(inside, value / count, 0.0), 0), sem="relaxed")
    if KIND == 2:
        own_loss = SELF * (1 - quality)
        current = (own_loss + weighted) / (SELF + positives)
        target = (own_loss + better_weighted) / (SELF + better)
        worse = positives - better
        sorting = tl.where(worse > MIN_W, current - target, 0.0)
        share = tl.where(worse > MIN_W, sorting / count / worse, 0.0)
        tl.store(coefficients + i, share, mask=inside)
        tl.store(errors + p + i, share * worse, mask=inside)
        if SEGMENTED:
            tl.atomic_add(values + n_segments + segment, sorting / count, mask=inside, sem="relaxed")
        else:
            tl.atomic_add(values + 1, tl.sum(tl.where(inside, sorting / count, 0.0), 0), sem="relaxed")
    if DELTA > 0:
        rise = coefficient / (2 * DELTA)
        tl.atomic_add(lines + base + begin, rise, mask=inside, sem="relaxed")
        tl.atomic_add(lines + base + end, -rise, mask=inside, sem="relaxed")
        tl.atomic_add(lines + moments + base + begin, -window_start * rise, mask=inside, sem="relaxed")
        coefficient += window_start * rise
    tl.atomic_add(lines + moments + base + end, coefficient, mask=inside, sem="relaxed")


@triton.jit
def _spread(logits, interval, origin, lines, out, n, size, n_segments, N_TERMS: tl.constexpr, BLOCK: tl.constexpr):
    """What each negative pays: the line of its interval; 0 at all others, and in the row of sorting."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    bin = tl.load(interval + row, mask=inside, other=0)
    index = bin % (size + 1)
    used = inside & (index > 0)
    key = _finite(tl.load(logits + row, mask=used, other=0.0)).to(tl.float64)
    start = tl.load(origin + index, mask=used, other=float("inf"))
    slope = tl.load(lines + bin, mask=used & (start < float("inf")), other=0.0)
    share = tl.load(lines + n_segments * (size + 1) + bin, mask=used, other=0.0)
    share += tl.where(start < float("inf"), slope * (key - start), 0.0)
    tl.store(out + row, share, mask=inside)
    if N_TERMS == 2:
        tl.store(out + n + row, tl.zeros([BLOCK], tl.float32), mask=inside)


@triton.jit
def _place(
    scores, side, owner, order, positive, coefficients, errors, inverse, accumulated, seen, out, values, weights, n, p,
    n_segments, DELTA: tl.constexpr, WANTED: tl.constexpr, KIND: tl.constexpr, SEGMENTED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What each positive k receives, aLRP's weights, and the values: NaN where a logit is, or a number was wrong."""
    k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = k < p
    own = p - 1 - tl.load(order + k, mask=inside, other=0)
    total = tl.zeros([ROWS], tl.float64)
    count = tl.zeros([ROWS], tl.float64)
    segment = tl.zeros([ROWS], tl.int32)
    if SEGMENTED:
        segment = tl.load(owner + k, mask=inside, other=0)
    if KIND == 2:
        score = tl.load(scores + k, mask=inside, other=0.0).to(tl.float64)
        quality = tl.load(side + k, mask=inside, other=0.0)
    if KIND % 3 != 0:
        start = 0
        while start < p:
            i = start + tl.arange(0, COLUMNS)
            same = (i[None, :] < p) & (k[:, None] < p)
            if SEGMENTED:
                same = same & (tl.load(owner + i, mask=i < p, other=-1)[None, :] == segment[:, None])
            count += tl.sum(tl.where(same, 1.0, 0.0).to(tl.float64), 1)
            if KIND == 1:
                reciprocal = tl.load(inverse + i, mask=i < p, other=0.0)
                total += tl.sum(tl.where(same & (i[None, :] <= k[:, None]), reciprocal[None, :], 0.0), 1)
            else:
                other = tl.load(scores + i, mask=i < p, other=0.0).to(tl.float64)
                theirs = tl.load(side + i, mask=i < p, other=0.0)
                above = _step(score[:, None] - other[None, :], DELTA)
                coefficient = tl.load(coefficients + i, mask=i < p, other=0.0)
                total += tl.sum(
                    tl.where(same & (quality[:, None] < theirs[None, :]), above * coefficient[None, :], 0.0), 1
                )
            start += COLUMNS
    if KIND == 1:
        tl.store(weights + own, total / tl.where(inside, count, 1.0), mask=inside)
    if WANTED:
        row = tl.load(positive + own, mask=inside, other=0)
        tl.store(out + row, -tl.load(errors + k, mask=inside, other=0.0), mask=inside)
        if KIND == 2:
            tl.store(out + n + row, total - tl.load(errors + p + k, mask=inside, other=0.0), mask=inside)
    if tl.program_id(0) == 0:
        start = 0
        while start < n_segments:
            j = start + tl.arange(0, COLUMNS)
            ours = j < n_segments
            counted = tl.load(seen + 0 * j, mask=ours, other=0.0)
            valid = (counted == p) & (tl.load(seen + 1 + j, mask=ours, other=0.0) == 0)
            value = tl.load(accumulated + j, mask=ours, other=0.0)
            tl.store(values + j, tl.where(valid, value, float("nan")), mask=ours)
            if KIND == 2:
                value = tl.load(accumulated + n_segments + j, mask=ours, other=0.0)
                tl.store(values + n_segments + j, tl.where(valid, value, float("nan")), mask=ours)
            start += COLUMNS


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
    wide = {"dtype": torch.float64, "device": device}
    copies = max(1, min(MAX_COPIES, MAX_BINS // bins))
    # all that is added to: one tensor to be filled with zeros
    zeros = torch.zeros((2 * copies + 2) * bins + 3 * n_segments + 1, **wide)  # type: ignore[call-overload]
    counted, lines, accumulated, seen = zeros.split([2 * copies * bins, 2 * bins, 2 * n_segments, n_segments + 1])
    counted, lines = counted.view(2, copies, n_segments, size + 1), lines.view(2, n_segments, size + 1)
    given, rankings = (logits if other is None else other for other in (aux, segments))
    owner, sorted_owner = (torch.empty(p if several else 0, dtype=torch.int32, device=device) for _ in range(2))

    scores, side = torch.empty(p, dtype=logits.dtype, device=device), torch.empty(p, **wide)  # type: ignore[call-overload]
    launch(
        _gather, p, logits, given, rankings, positive, scores, side, owner, p, KIND=kind, SEGMENTED=several, BLOCK=BLOCK
    )
    scores, order = torch.sort(scores, stable=True)

    thresholds, origin, local, sorted_side = (torch.empty(k, **wide) for k in (size, size + 1, p, p))  # type: ignore[call-overload]
    edges = torch.empty(2, p, dtype=torch.int32, device=device)
    launch(
        _intervals, size, scores, order, side, owner, thresholds, origin, edges, local, sorted_side, sorted_owner, p,
        _top(p), DELTA=delta, GAP=CHAIN_GAP * delta, SIDE=kind in (1, 2), SEGMENTED=several, ROWS=ROWS, COLUMNS=COLUMNS,
        block=ROWS,
    )  # fmt: skip

    interval = torch.empty(n, dtype=torch.int32, device=device)
    launch(
        _locate_and_sum, n, logits, labels, rankings, thresholds, origin, interval, counted[0], counted[1], seen, n,
        size, _top(size), copies, n_segments, SEGMENTED=several, BLOCK=BLOCK,
    )  # fmt: skip
    sums = counted.sum(1).cumsum(2)

    coefficients, errors, inverse = (torch.empty(*k, **wide) for k in ((p,), (2, p), (p,)))  # type: ignore[call-overload]
    launch(
        _rank, p, scores, sorted_side, sorted_owner, edges, local, sums, lines, accumulated, coefficients, errors,
        inverse, p, size, n_segments, *_gain(p if kind == 3 else 1), DELTA=delta, SELF=self_relation,
        MIN_FP=MIN_FALSE_POSITIVES, MIN_W=MIN_WORSE, KIND=kind, SEGMENTED=several, ROWS=ROWS, COLUMNS=COLUMNS,
        block=ROWS,
    )  # fmt: skip

    updates = torch.empty(n_terms, n if wants_gradient else 0, dtype=logits.dtype, device=device)
    if wants_gradient:
        launch(
            _spread, n, logits, interval, origin, lines.cumsum(2), updates, n, size, n_segments, N_TERMS=n_terms,
            BLOCK=BLOCK,
        )  # fmt: skip
    values = torch.empty(n_terms, n_segments, dtype=logits.dtype, device=device)
    weights = torch.empty_like(aux) if kind == 1 and aux is not None else None
    launch(
        _place, p, scores, sorted_side, sorted_owner, order, positive, coefficients, errors, inverse, accumulated, seen,
        updates, values, values if weights is None else weights, n, p, n_segments, DELTA=delta, WANTED=wants_gradient,
        KIND=kind, SEGMENTED=several, ROWS=ROWS, COLUMNS=COLUMNS, block=ROWS,
    )  # fmt: skip
    return values, updates, weights


def takes(logits: Tensor, positive: Tensor, definition: str, settings: dict[str, float]) -> bool:
    """Whether these kernels compute a definition of these logits and positives."""
    known = definition in KINDS and logits.dtype == torch.float32 and not any(settings.values())
    return known and 0 < len(positive) <= MAX_POSITIVES


def _top(count: int) -> int:
    """Largest power of two that is not above ``count``, with which a search begins."""
    return 1 << (count.bit_length() - 1)


@lru_cache
def _gain(p: int) -> tuple[float, float]:
    """NDCG's p / G_max, in two parts: numbers reach a kernel as float32."""
    gain = p / math.fsum(1 / math.log2(1 + i) for i in range(1, p + 1))
    (high,) = struct.unpack("f", struct.pack("f", gain))
    return high, gain - high
