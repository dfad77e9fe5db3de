"""The ranking losses as scalar loops that follow the papers' formulas, independent of the package."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Scalar:
    """Values by term, gradients by term, and the gradient of aLRP's localization part."""

    values: list[float]
    gradients: list[list[float]]
    loc_gradient: list[float] = field(default_factory=list)


def h(x: float, delta: float) -> float:
    if delta == 0:
        return 1.0 if x >= 0 else 0.0
    return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)


def _sides(labels: list[int]) -> tuple[list[int], list[int]]:
    return [i for i, y in enumerate(labels) if y == 1], [i for i, y in enumerate(labels) if y == 0]


def _distribute(gradient: list[float], i: int, error: float, shares: dict[int, float], z: float) -> None:
    mass = sum(shares.values())
    if mass <= 0:
        return
    gradient[i] -= error / z
    for j, share in shares.items():
        gradient[j] += error * share / mass / z


def ap(s, labels, delta, own, interpolated=False) -> Scalar:
    positives, negatives = _sides(labels)
    gradient, precision, share_of = [0.0] * len(s), {}, {}
    for i in positives:
        false = {j: h(s[j] - s[i], delta) for j in negatives}
        rank_positive = own + sum(h(s[k] - s[i], delta) for k in positives if k != i)
        precision[i] = rank_positive / (rank_positive + sum(false.values()))
        share_of[i] = false
    if interpolated:
        best = 0.0
        for i in sorted(positives, key=lambda i: s[i]):
            best = precision[i] = max(best, precision[i])
    for i in positives:
        _distribute(gradient, i, 1 - precision[i], share_of[i], len(positives))
    value = sum(1 - p for p in precision.values()) / len(positives) if positives else 0.0
    return Scalar([value], [gradient])


def alrp(s, labels, errors, delta, own) -> Scalar:
    positives, negatives = _sides(labels)
    gradient, value, localization = [0.0] * len(s), 0.0, 0.0
    p = len(positives)
    e = dict(zip(positives, errors, strict=True))
    loc_gradient = dict.fromkeys(positives, 0.0)
    order = sorted(positives, key=lambda i: -s[i])  # stable
    for place, i in enumerate(order):
        false = {j: h(s[j] - s[i], delta) for j in negatives}
        n_false = sum(false.values())
        rank = own + sum(h(s[k] - s[i], delta) for k in positives if k != i) + n_false
        value += n_false / rank / p
        for k in order[: place + 1]:
            localization += e[k] / rank / p
            loc_gradient[k] += 1 / rank / p
        if n_false > 1e-5:
            cumulated = sum(e[k] * h(s[k] - s[i], delta) for k in positives if k != i)
            _distribute(gradient, i, (n_false + cumulated) / rank, false, p)
    return Scalar([value, localization], [gradient], [loc_gradient[i] for i in positives])


def rank_sort(s, labels, q, delta, own) -> Scalar:
    positives, negatives = _sides(labels)
    p = len(positives)
    values, gradients = [0.0, 0.0], [[0.0] * len(s), [0.0] * len(s)]
    for i in positives:
        relation = {k: own if k == i else h(s[k] - s[i], delta) for k in positives}
        false = {j: h(s[j] - s[i], delta) for j in negatives}
        rank = sum(relation.values()) + sum(false.values())
        ranking = sum(false.values()) / rank
        values[0] += ranking / p
        _distribute(gradients[0], i, ranking, false, p)
        current = sum(r * (1 - q[k]) for k, r in relation.items()) / sum(relation.values())
        better = {k: r for k, r in relation.items() if q[k] >= q[i]}
        target = sum(r * (1 - q[k]) for k, r in better.items()) / sum(better.values())
        worse = {k: r for k, r in relation.items() if q[k] < q[i]}
        if sum(worse.values()) > 1e-10:
            values[1] += (current - target) / p
            _distribute(gradients[1], i, current - target, worse, p)
    return Scalar(values, gradients)


def ndcg(s, labels, delta, own) -> Scalar:
    positives, negatives = _sides(labels)
    gradient = [0.0] * len(s)
    best = sum(1 / math.log2(1 + i) for i in range(1, len(positives) + 1))
    gains = 0.0
    for i in positives:
        false = {j: h(s[j] - s[i], delta) for j in negatives}
        rank = own + sum(h(s[k] - s[i], delta) for k in positives if k != i) + sum(false.values())
        gain = 1 / math.log2(1 + rank)
        gains += gain
        if sum(false.values()) > 1e-5:
            _distribute(gradient, i, (1 - gain) / best, false, 1)
    return Scalar([1 - gains / best if positives else 0.0], [gradient])


def bucketed(s, labels, delta) -> list[float]:
    """Every kept negative's logit replaced by the mean of its bucket (Algorithm 2, lines 1-3)."""
    least = min(s[i] for i, y in enumerate(labels) if y == 1) - delta
    kept = [i for i, y in enumerate(labels) if y == 1 or (y == 0 and s[i] >= least)]
    order = sorted(kept, key=lambda i: (-s[i], -labels[i]))
    replaced, run = list(s), []
    for i in [*order, None]:
        if i is not None and labels[i] == 0:
            run.append(i)
            continue
        for j in run:
            replaced[j] = min(max(sum(s[k] for k in run) / len(run), s[run[-1]]), s[run[0]])
        run = []
    return replaced
