"""The loops of :mod:`concordet.ranking.compiled.counts`; README.md of the folder above derives what they compute.

Rankings stand one after the other: the positives of ranking s at ``first[s]:first[s + 1]`` in ascending order, its
thresholds from ``2 first[s]`` on, and its intervals from ``2 first[s] + s`` on. Counts and intervals within a ranking
begin at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop:
    """Compiles a function at its first call, or takes it from the cache on disk."""
    try:
        return cast(Any, njit(cache=True, nogil=True, error_model="numpy")(loop))
    except RuntimeError:  # no folder for a cache can be written
        return cast(Any, njit(nogil=True, error_model="numpy")(loop))


LOWEST = float(np.finfo(np.float64).min)

CELLS = 4
"""Cells per threshold of the grid in which keys are looked up."""

BLOCK = 256
"""Keys whose look-ups overlap."""


@compiled
def threshold(t: float, distance: float) -> float:
    """The smallest float64 not below the real number ``t + distance``."""
    total = max(t + distance, LOWEST)
    added = total - t  # Knuth's two-sum: total + rest is the exact sum
    rest = (t - (total - added)) + (distance - added)
    return np.nextafter(total, np.inf) if rest > 0 else total


@compiled
def count_up_to(values: Floats, bounds: Floats, including: bool, counts: Integers) -> None:
    """Fills ``counts`` with the number of values below each bound, or up to and including it; both are ascending."""
    i = 0
    for x in range(len(bounds)):
        while i < len(values) and (values[i] < bounds[x] or (including and values[i] == bounds[x])):
            i += 1
        counts[x] = i


@compiled
def cut(
    t: Floats, first: Integers, delta: float, gap: float
) -> tuple[Floats, Floats, Flags, Floats, Integers, Integers, Integers]:
    """The intervals between the thresholds t - d and t + d; positives further apart than ``gap`` share no origin.

    Returns:
        ``[2p]`` thresholds; ``[2p + s, 3]`` origin of each interval, and zeros; ``[2p + s]`` whether a window is open;
        ``[p]`` distance of each positive from its origin; ``[2, p]`` intervals that begin at t - d and at t + d;
        ``[2, p]`` number of positives below these; ``[2, p]`` number of windows that begin, and end, at or below t.
    """
    p, n = len(t), len(first) - 1
    thresholds, local = np.empty(2 * p), np.empty(p)
    axis, opened = np.zeros((2 * p + n, 3)), np.zeros(2 * p + n, np.bool_)
    intervals, below, passed = np.empty((2, p), np.int64), np.empty((2, p), np.int64), np.empty((2, p), np.int64)
    bounds = np.empty((2, p))
    for i in range(p):
        bounds[0, i], bounds[1, i] = threshold(t[i], -delta), threshold(t[i], delta)
    for s in range(n):
        start, end = first[s], first[s + 1]
        begun, ended, top = start, start, start - 1
        for m in range(2 * start, 2 * end):
            if begun < end and bounds[0, begun] <= bounds[1, ended]:
                if begun > top:  # a chain of windows that touch begins: its last positive is the origin
                    top = begun
                    while top + 1 < end and t[top + 1] - t[top] <= gap:
                        top += 1
                thresholds[m], local[begun] = bounds[0, begun], t[begun] - t[top]
                begun += 1
            else:
                thresholds[m] = bounds[1, ended]
                ended += 1
            if begun > ended:
                opened[m + s + 1], axis[m + s + 1, 0] = True, t[top]
        for k in range(2):
            count_up_to(thresholds[2 * start : 2 * end], bounds[k, start:end], True, intervals[k, start:end])
            count_up_to(t[start:end], bounds[k, start:end], False, below[k, start:end])
            count_up_to(bounds[k, start:end], t[start:end], True, passed[k, start:end])
    return thresholds, axis, opened, local, intervals, below, passed


@compiled
def build_grid(thresholds: Floats, first: Integers) -> tuple[Floats, NDArray[np.int32], int]:
    """Equal cells over each ranking's thresholds, so that the interval of a key is searched in its cell only.

    Returns:
        ``[s, 2]`` lowest threshold and cells per unit; the number of thresholds before each cell and, for each ranking,
        before the end of its last one; the largest power of two up to the most thresholds in a cell.
    """
    n, most, step = len(first) - 1, 1, 1
    scales, before = np.zeros((n, 2)), np.zeros(2 * CELLS * first[n] + n, np.int32)
    for s in range(n):
        start, end = 2 * first[s], 2 * first[s + 1]
        if start == end:
            continue
        counts = before[CELLS * start + s : CELLS * end + s + 1]
        last = len(counts) - 2
        low = thresholds[start]
        scale = max(last / max(thresholds[end - 1] - low, 1e-30), 1e-30)
        scales[s, 0], scales[s, 1] = low, scale
        for m in range(start, end):
            counts[1 + int(min((thresholds[m] - low) * scale, float(last)))] = m + 1 - start
        for cell in range(last + 1):
            counts[cell + 1] = max(counts[cell + 1], counts[cell])
            most = max(most, counts[cell + 1] - counts[cell])
    while 2 * step <= most:
        step *= 2
    return scales, before, step


@compiled
def count_keys(
    keys: Floats,
    rankings: Integers,
    first: Integers,
    thresholds: Floats,
    axis: Floats,
    scales: Floats,
    before: NDArray[np.int32],
    step: int,
) -> tuple[NDArray[np.int32], Floats]:
    """``[n]`` interval of each key, and ``[2p + s, 3]``: origin, number of keys, and sum of their distances from it.

    Every step is made for a block of keys, so that the processor need not wait for one look-up to begin the next.
    """
    where, sums = np.empty(len(keys), np.int32), axis.copy()
    s, start, n = 0, 0, 2 * first[1]
    for block in range(0, len(keys), BLOCK):
        stop = min(block + BLOCK, len(keys))
        for j in range(block, stop):
            if len(rankings):
                s = rankings[j]
                start, n = 2 * first[s], 2 * (first[s + 1] - first[s])
            cell = max(min((keys[j] - scales[s, 0]) * scales[s, 1], CELLS * n - 1.0), 0.0)
            where[j] = before[CELLS * start + s + int(cell)]
        width = step
        while width:
            for j in range(block, stop):
                if len(rankings):
                    s = rankings[j]
                    start, n = 2 * first[s], 2 * (first[s + 1] - first[s])
                # beyond the cell, and at the last threshold that is looked up instead of one beyond, keys are lower
                probe = start + min(where[j] + width, n) - 1
                where[j] += width * (thresholds[probe] <= keys[j])
            width >>= 1
        for j in range(block, stop):
            if len(rankings):
                s = rankings[j]
                start, n = 2 * first[s], 2 * (first[s + 1] - first[s])
            m = min(where[j], n)  # above the last threshold, and without positives
            where[j] = start + s + m
            if m > 0:
                m += start + s
                sums[m, 1] += 1
                sums[m, 2] += keys[j] - sums[m, 0]
    return where, sums


@compiled
def soft_count(above: float, inside: float, moment: float, local: float, delta: float) -> float:
    """Sum of H at a positive: what is above its window, and what the weights and moments inside contribute."""
    return above + (moment - (local - delta) * inside) / (2 * delta) if delta > 0 else above


@compiled
def keys_above(
    first: Integers, intervals: Integers, local: Floats, opened: Flags, sums: Floats, delta: float
) -> Floats:
    """``[p]`` sums of H over the keys of each positive's ranking."""
    above = np.empty(len(local))
    counts, moments = sums[:, 1].copy(), sums[:, 2].copy()
    for s in range(len(first) - 1):
        start, end = 2 * first[s] + s, 2 * first[s + 1] + s
        moments[end] = 0.0
        for m in range(end - 1, start - 1, -1):
            counts[m] += counts[m + 1]
            # no window crosses an interval where none is open
            moments[m] = moments[m] + moments[m + 1] if opened[m] else 0.0
        for i in range(first[s], first[s + 1]):
            low, high = start + intervals[0, i], start + intervals[1, i]
            inside, moment = counts[low] - counts[high], moments[low] - moments[high]
            above[i] = soft_count(counts[high], inside, moment, local[i], delta)
    return above


@compiled
def positives_above(first: Integers, below: Integers, local: Floats, weights: Floats, delta: float) -> Floats:
    """``[c, p]`` sums of weights ``[c, p]`` times H over the positives of each one's ranking, itself included."""
    above = np.empty_like(weights)
    n = len(local)
    totals, moments = np.empty(n + 1), np.empty(n + 1)
    for c in range(len(weights)):
        w = weights[c]
        for s in range(len(first) - 1):
            start, end = first[s], first[s + 1]
            totals[end] = moments[end] = 0.0
            for k in range(end - 1, start - 1, -1):
                totals[k], moments[k] = totals[k + 1] + w[k], moments[k + 1] + w[k] * local[k]
            for i in range(start, end):
                low, high = start + below[0, i], start + below[1, i]
                inside, moment = totals[low] - totals[high], moments[low] - moments[high]
                above[c, i] = soft_count(totals[high], inside, moment, local[i], delta)
    return above


@compiled
def lines(
    first: Integers,
    intervals: Integers,
    local: Floats,
    axis: Floats,
    opened: Flags,
    coefficients: Floats,
    delta: float,
) -> Floats:
    """``[2p + s, 3]`` origin, slope and constant of k -> sum of a_i H(k - t_i), which is a line on each interval."""
    result = axis.copy()
    for s in range(len(first) - 1):
        start = 2 * first[s] + s
        for i in range(first[s], first[s + 1]):
            a, low, high = coefficients[i], start + intervals[0, i], start + intervals[1, i]
            if delta > 0:
                rise = a / (2 * delta)
                result[low, 1] += rise
                result[high, 1] -= rise
                result[low, 2] -= rise * (local[i] - delta)
                result[high, 2] += rise * (local[i] - delta)
            result[high, 2] += a
        for m in range(start + 1, 2 * first[s + 1] + s + 1):
            result[m, 1] = result[m, 1] + result[m - 1, 1] if opened[m] else 0.0
            result[m, 2] += result[m - 1, 2]
    return result


@compiled
def spread(keys: Floats, where: NDArray[np.int32], lines: Floats, shares: Floats) -> None:
    """Fills ``shares`` ``[n]`` with the value of each key's line."""
    for j in range(len(keys)):
        m = where[j]
        shares[j] = lines[m, 1] * (keys[j] - lines[m, 0]) + lines[m, 2]


@compiled
def insert(tree: Floats, position: int, row: Floats) -> None:
    """Adds a row at a position of a Fenwick tree ``[n, c]``."""
    position += 1
    while position <= len(tree):
        for c in range(len(row)):
            tree[position - 1, c] += row[c]
        position += position & -position


@compiled
def read(tree: Floats, position: int, sums: Floats) -> None:
    """Fills ``sums`` ``[c]`` with the sums of a Fenwick tree's rows before a position."""
    sums[:] = 0.0
    while position > 0:
        for c in range(len(sums)):
            sums[c] += tree[position - 1, c]
        position &= position - 1


@compiled
def better_above(
    first: Integers,
    owner: Integers,
    below: Integers,
    local: Floats,
    quality: Floats,
    order: Integers,
    weights: Floats,
    delta: float,
) -> Floats:
    """``[c, p]`` sums of weights ``[c, p]`` times H over the positives of the same ranking with q_k >= q_i, i included.

    Positives are inserted in a tree over their scores, from the best to the worst: then it has the better ones.
    """
    columns, p = weights.shape
    tree, above = np.zeros((p, 2 * columns)), np.empty((columns, p))
    row, at_low, at_high = np.empty(2 * columns), np.zeros(2 * columns), np.empty(2 * columns)
    total = np.zeros((len(first) - 1, columns))
    inserted = 0
    for x in range(p):
        i = order[x]
        while inserted < p and quality[order[inserted]] == quality[i]:
            k = order[inserted]
            start, end = first[owner[k]], first[owner[k] + 1]
            for c in range(columns):
                row[c], row[columns + c] = weights[c, k], weights[c, k] * local[k]
                total[owner[k], c] += weights[c, k]
            insert(tree[start:end], k - start, row)
            inserted += 1
        start, end = first[owner[i]], first[owner[i] + 1]
        read(tree[start:end], below[1, i], at_high)
        if delta > 0:
            read(tree[start:end], below[0, i], at_low)
        for c in range(columns):
            inside, moment = at_high[c] - at_low[c], at_high[columns + c] - at_low[columns + c]
            above[c, i] = soft_count(total[owner[i], c] - at_high[c], inside, moment, local[i], delta)
    return above


@compiled
def spread_to_worse(
    first: Integers,
    owner: Integers,
    passed: Integers,
    local: Floats,
    quality: Floats,
    order: Integers,
    coefficients: Floats,
    delta: float,
) -> Floats:
    """``[p]`` sum of a_i H(t_k - t_i) over the positives i of the same ranking with q_i > q_k."""
    p = len(local)
    tree, shares = np.zeros((p, 2)), np.empty(p)
    row, begun, ended = np.empty(2), np.empty(2), np.empty(2)
    inserted = 0
    for x in range(p):
        k = order[x]
        while quality[order[inserted]] > quality[k]:
            i = order[inserted]
            start, end = first[owner[i]], first[owner[i] + 1]
            row[0], row[1] = coefficients[i], coefficients[i] * local[i]
            insert(tree[start:end], i - start, row)
            inserted += 1
        start, end = first[owner[k]], first[owner[k] + 1]
        read(tree[start:end], passed[1, k], ended)
        shares[k] = ended[0]
        if delta > 0:
            read(tree[start:end], passed[0, k], begun)
            window, moment = begun[0] - ended[0], begun[1] - ended[1]
            shares[k] += ((local[k] + delta) * window - moment) / (2 * delta)
    return shares
