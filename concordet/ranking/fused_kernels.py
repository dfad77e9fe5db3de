"""Kernels of :mod:`concordet.ranking.fused_triton`, in the order in which it launches them.

``KIND`` is the definition: 0 for AP, 1 for aLRP, 2 for RS and 3 for NDCG. The formulas are those of
:mod:`concordet.ranking.definitions` and :mod:`concordet.ranking.exact`, with the same names.
"""

from __future__ import annotations

import triton
import triton.language as tl

from concordet.ranking.backend_triton import bins_of


@triton.jit
def _finite(value):
    """``nan_to_num``."""
    value = tl.where(value == value, value, 0.0)
    return tl.minimum(tl.maximum(value, -3.4028234663852886e38), 3.4028234663852886e38)


@triton.jit
def gather(
    logits, aux, segments, positive, scores, aux_values, owner, p,
    KIND: tl.constexpr, SEGMENTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Logits, auxiliary input and rankings of the positives in reverse: the stable sort then has the later of equal
    logits first."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < p
    row = tl.load(positive + p - 1 - i, mask=inside, other=0)
    tl.store(scores + i, _finite(tl.load(logits + row, mask=inside, other=0.0)), mask=inside)
    if SEGMENTED:
        tl.store(owner + i, tl.load(segments + row, mask=inside, other=0).to(tl.int32), mask=inside)
    if KIND == 1:
        tl.store(aux_values + i, tl.load(aux + p - 1 - i, mask=inside, other=0.0).to(tl.float64), mask=inside)
    if KIND == 2:
        tl.store(aux_values + i, tl.load(aux + row, mask=inside, other=0.0).to(tl.float64), mask=inside)


@triton.jit
def _count_below(scores, p, top, bound, SHIFT: tl.constexpr, STRICT: tl.constexpr):
    """Number of ascending scores that are, with ``SHIFT`` added, at or below each bound; below it if ``STRICT``."""
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
def find_intervals(
    scores, order, aux_values, owner, thresholds, origin, edges, local, sorted_aux, sorted_owner, p, top,
    DELTA: tl.constexpr, GAP: tl.constexpr, AUX: tl.constexpr, SEGMENTED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Thresholds in ascending order, the interval above each positive's two, and the origins of intervals.

    Both t - d and t + d ascend with t, so that their merged order is counted, not sorted. Intervals without an open
    window have the origin infinity.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < 2 * p
    upper = row >= p
    i = tl.where(upper, row - p, row)
    score = tl.load(scores + i, mask=inside, other=0.0).to(tl.float64)
    bound = tl.where(upper, score + DELTA, score - DELTA)
    begun = _count_below(scores, p, top, bound, -DELTA, False)
    ended = _count_below(scores, p, top, bound, DELTA, False)
    before = _count_below(scores, p, top, bound, DELTA, True)
    index = i + tl.where(upper, begun, before)
    # last positive of the chain of the last window that has begun
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
    tl.store(thresholds + index, bound, mask=inside)
    tl.store(origin + index + 1, tl.where(begun > ended, chain, float("inf")), mask=inside)
    tl.store(edges + row, begun + ended, mask=inside)
    tl.store(local + i, score - chain, mask=inside & (row < p))
    own = tl.load(order + i, mask=inside, other=0)
    if SEGMENTED:
        tl.store(sorted_owner + i, tl.load(owner + own, mask=inside, other=0), mask=inside & (row < p))
    if AUX:
        tl.store(sorted_aux + i, tl.load(aux_values + own, mask=inside, other=0.0), mask=inside & (row < p))


@triton.jit
def locate_and_sum(
    logits, labels, segments, thresholds, origin, interval, weight, moment, seen, n, size, top, copies, n_segments,
    SEGMENTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Interval of each negative, counts and moments of intervals, and the numbers of positives and of NaN logits."""
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
    used_weight = tl.where(used, 1.0, 0.0).to(tl.float64)
    copy = (tl.program_id(0) % copies).to(tl.int64) * n_segments * (size + 1)
    windowed = used & (index < size)
    if SEGMENTED:
        tl.atomic_add(weight + copy + bin, used_weight, mask=used, sem="relaxed")
    else:
        # the many keys above all windows are in one interval: sum them here and add once
        tl.atomic_add(weight + copy + size, tl.sum(tl.where(index == size, used_weight, 0.0), 0), sem="relaxed")
        tl.atomic_add(weight + copy + bin, used_weight, mask=windowed, sem="relaxed")
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
def rank_positives(
    scores, aux_values, owner, edges, local, sums, lines, values, coefficients, errors, inverse, p, size, n_segments,
    gain, gain_rest, DELTA: tl.constexpr, SELF: tl.constexpr, MIN_FP: tl.constexpr, MIN_W: tl.constexpr,
    KIND: tl.constexpr, SEGMENTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Soft counts, value and error of each positive i, and the changes of slope and constant at its window's ends."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = i < p
    score = tl.load(scores + i, mask=inside, other=0.0).to(tl.float64)
    quality = tl.zeros([ROWS], tl.float64)
    if KIND == 2:
        quality = tl.load(aux_values + i, mask=inside, other=0.0)
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
            weighted += tl.sum(above * tl.load(aux_values + k, mask=k < p, other=0.0)[None, :], 1)
        if KIND == 2:
            theirs = tl.load(aux_values + k, mask=k < p, other=0.0)
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
    moments = n_segments * (size + 1)  # offset of the moments in sums, and of the constants in lines
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
        if SEGMENTED:  # G_max depends on the number of positives in the ranking
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
    min_denominator = MIN_FP if KIND % 2 == 1 else 0.0  # aLRP and NDCG
    coefficient = tl.where(negatives > min_denominator, error / count / negatives, 0.0)
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
def spread(logits, interval, origin, lines, out, n, size, n_segments, N_TERMS: tl.constexpr, BLOCK: tl.constexpr):
    """Update of each negative, from the line of its interval; 0 for other logits, and in the row of sorting."""
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
def scatter(
    scores, aux_values, owner, order, positive, coefficients, errors, inverse, accumulated, seen, out, values, weights,
    n, p, n_segments, DELTA: tl.constexpr, WANTED: tl.constexpr, KIND: tl.constexpr, SEGMENTED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Updates of the positives, aLRP's weights, and the values: NaN if a logit is NaN or ``n_positives`` is wrong."""
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
        quality = tl.load(aux_values + k, mask=inside, other=0.0)
    if KIND % 3 != 0:  # aLRP and RS
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
                theirs = tl.load(aux_values + i, mask=i < p, other=0.0)
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
            in_range = j < n_segments
            counted = tl.load(seen + 0 * j, mask=in_range, other=0.0)
            valid = (counted == p) & (tl.load(seen + 1 + j, mask=in_range, other=0.0) == 0)
            value = tl.load(accumulated + j, mask=in_range, other=0.0)
            tl.store(values + j, tl.where(valid, value, float("nan")), mask=in_range)
            if KIND == 2:
                value = tl.load(accumulated + n_segments + j, mask=in_range, other=0.0)
                tl.store(values + n_segments + j, tl.where(valid, value, float("nan")), mask=in_range)
            start += COLUMNS
