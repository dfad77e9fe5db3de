"""Refiners against scalar loops written from the papers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concordet.assigned import BACKGROUND, IGNORED
from concordet.detectors.parts.coders import delta_codec
from concordet.detectors.parts.reassignment import Scene, better_component, hard_negatives, mixture_matches


def scene_of(anchors, objects, classes=3, softmax=False, levels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = 50 * torch.rand(anchors, 2, generator=generator)
    center = 50 * torch.rand(objects, 2, generator=generator)
    return Scene(
        logits=2 * torch.randn(anchors, classes + softmax, generator=generator),
        regressions=0.3 * torch.randn(anchors, 4, generator=generator),
        anchors=torch.cat([corner, corner + 12], 1),
        codec=delta_codec(),
        boxes=torch.cat([center, center + 14], 1),
        classes=torch.randint(0, classes, (objects,), generator=generator),
        level_sizes=levels or [anchors],
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.integers(0, 12), st.integers(0, 5), st.integers(0, 100))
def test_hard_negatives_are_the_three_of_highest_loss_per_positive(positives, negatives, ignored, seed):
    matches = torch.tensor([0] * positives + [BACKGROUND] * negatives + [IGNORED] * ignored, dtype=torch.int64)
    matches = matches[torch.randperm(len(matches), generator=torch.Generator().manual_seed(seed))]
    scene = scene_of(len(matches), 1, softmax=True, seed=seed)
    costs = {
        i: math.log(sum(math.exp(v) for v in row)) - row[-1]
        for i, row in enumerate(scene.logits.tolist())
        if matches[i] == BACKGROUND
    }
    kept = set(sorted(costs, key=costs.get, reverse=True)[: 3 * positives])
    expected = [m if m != BACKGROUND or i in kept else IGNORED for i, m in enumerate(matches.tolist())]
    assert hard_negatives(matches, scene).tolist() == expected


def focal(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if target else -0.75 * p**2 * math.log(1 - p)


def giou_loss(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return 1 - overlap / union + (hull - union) / hull


def decoded(values, anchor):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = (anchor[0] + anchor[2]) / 2 + values[0] * width, (anchor[1] + anchor[3]) / 2 + values[1] * height
    width, height = width * math.exp(values[2]), height * math.exp(values[3])
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def split(costs, rounds=200):
    """Expectation maximization of two normal distributions from the extremes, then the paper's scheme (c)."""
    means, variances, shares = [min(costs), max(costs)], [1.0, 1.0], [0.5, 0.5]

    def densities(x):
        return [
            shares[k] * math.exp(-((x - means[k]) ** 2) / (2 * variances[k])) / math.sqrt(2 * math.pi * variances[k])
            for k in range(2)
        ]

    for _ in range(rounds):
        table = [[v / sum(densities(x)) for v in densities(x)] for x in costs]
        for k in range(2):
            total = sum(row[k] for row in table)
            means[k] = sum(row[k] * x for row, x in zip(table, costs, strict=True)) / total
            spread = sum(row[k] * (x - means[k]) ** 2 for row, x in zip(table, costs, strict=True))
            variances[k], shares[k] = spread / total + 1e-6, total / len(costs)
    better = [i for i, x in enumerate(costs) if densities(x)[0] >= densities(x)[1]]
    densest = max(better, key=lambda i: sum(densities(costs[i])))
    return better[: better.index(densest) + 1]


def test_mixture_keeps_what_expectation_maximization_keeps():
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        low = 0.4 + 0.05 * torch.randn(12, generator=generator, dtype=torch.float64)
        high = 2.0 + 0.1 * torch.randn(15, generator=generator, dtype=torch.float64)
        costs = sorted([*low.tolist(), *high.tolist()])
        assert better_component(torch.tensor(costs).double().numpy()).tolist() == split(costs)


def test_mixture_matches_take_each_objects_best_candidates_of_each_level():
    scene = scene_of(60, 3, levels=[40, 20])
    matches = torch.randint(-1, 3, (60,), generator=torch.Generator().manual_seed(5))
    expected = [BACKGROUND] * 60
    for k in range(3):
        costs = {}
        for i in (i for i in range(60) if matches[i] == k):
            box = decoded(scene.regressions[i].tolist(), scene.anchors[i].tolist())
            costs[i] = 1.3 * giou_loss(box, scene.boxes[k].tolist())
            costs[i] += sum(focal(v, c == scene.classes[k]) for c, v in enumerate(scene.logits[i].tolist()))
        first, second = ([i for i in costs if low <= i < high] for low, high in ((0, 40), (40, 60)))
        candidates = sorted(sorted(first, key=costs.get)[:9] + sorted(second, key=costs.get)[:9], key=costs.get)
        for place in better_component(torch.tensor([costs[i] for i in candidates]).double().numpy()):
            expected[candidates[place]] = k
    assert mixture_matches(matches, scene).tolist() == expected
    assert sum(m >= 0 for m in expected) > 3


@pytest.mark.parametrize("costs", [[], [0.5], [0.5, 0.5, 0.5], [0.1, 9.0]])
def test_mixture_of_few_or_equal_candidates(costs):
    kept = better_component(torch.tensor(costs).double().numpy()).tolist()
    assert kept == [*range(len(kept))]
    assert bool(kept) == bool(costs)


def test_mixture_survives_a_diverged_model_and_an_image_without_objects():
    scene = scene_of(20, 2)
    scene.regressions[:5] = torch.nan
    matches = torch.tensor([0, 1] * 10)
    assert (mixture_matches(matches, scene) >= 0).any()
    assert (mixture_matches(torch.full((20,), BACKGROUND), scene_of(20, 0)) == BACKGROUND).all()
