"""Independent rankings in one call equal separate calls, for every loss and method, with as many operations as one."""

from __future__ import annotations

import pytest
import torch

from concordet.losses import functional as F
from concordet.losses import value_checks
from tests.ranking.cases import CASES, DELTAS, random_case, values_and_gradients
from tests.ranking.operations import count_operations

METHODS = ("exact", "quadratic", "bucketed")
SIZES = [(9, 40), (0, 12), (1, 30), (14, 0), (3, 300), (0, 0)]
"""Positives and negatives of each ranking; some have none."""

pytestmark = pytest.mark.usefixtures("positives_by")


def rankings(*, ties=False, spread=2.0, seed=0):
    """Separate cases, and the same in one call in random order: logits, labels, side, segments, rows of each case."""
    cases = [
        random_case(p, n, seed=seed + i, ties=ties, spread=spread * 10 ** (i - 2)) for i, (p, n) in enumerate(SIZES)
    ]
    segments = torch.cat([torch.full((len(case[0]),), i) for i, case in enumerate(cases)])
    order = torch.argsort(torch.rand(len(segments), generator=torch.Generator().manual_seed(seed)))
    # stable within each ranking, so that ties have one order
    order = order[torch.argsort(order % 7, stable=True)].sort().values if ties else order
    joined = [torch.cat(column)[order] for column in zip(*cases, strict=True)]
    return joined, segments[order]


def compare(name, joined, segments, n_segments, tolerance=1e-12, **options):
    logits, labels, side = joined
    leaf = logits.clone().requires_grad_()
    outputs = CASES[name].outputs(leaf, labels, side, segments=segments, n_segments=n_segments, **options)
    for term, output in enumerate(outputs):
        assert output.shape == (n_segments,)
        # a different gradient arrives at every ranking
        scales = torch.arange(1, n_segments + 1, dtype=output.dtype)
        (gradient,) = torch.autograd.grad(output @ scales, leaf, retain_graph=True)
        for segment in range(n_segments):
            rows = segments == segment
            own = logits[rows].clone().requires_grad_()
            # a ranking without negatives is refused, unless the number of its positives shows that it is meant
            known = {"n_positives": int((labels[rows] == 1).sum()), **options}
            values, gradients = values_and_gradients(CASES[name].outputs(own, labels[rows], side[rows], **known), own)
            assert float(output[segment].detach()) == pytest.approx(values[term], rel=tolerance, abs=tolerance)
            expected = gradients[term] * scales[segment]
            scale = float(expected.abs().max()) if len(expected) else 0.0
            torch.testing.assert_close(gradient[rows], expected, rtol=tolerance, atol=tolerance * max(scale, 1))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("delta", DELTAS)
def test_equal_separate_calls(name, method, delta):
    compare(name, *rankings(seed=3), len(SIZES), method=method, delta=delta)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_equal_separate_calls_with_ties(name, method):
    for delta in (0.0, 0.5):
        compare(name, *rankings(ties=True, spread=200.0, seed=4), len(SIZES), method=method, delta=delta)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_one_segment_is_one_ranking(name, method):
    case = random_case(12, 90, seed=5)
    compare(name, case, torch.zeros(len(case[0]), dtype=torch.int32), 1, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_the_localization_of_alrp(method):
    (logits, labels, side), segments = rankings(seed=6)
    positive = labels == 1
    errors = side[positive].clone().requires_grad_()
    got = F.alrp_loss(logits, labels, errors, method=method, segments=segments, n_segments=len(SIZES)).localization
    scales = torch.arange(1.0, len(SIZES) + 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(got @ scales, errors)
    for i in range(len(SIZES)):
        rows = segments == i
        own = side[rows & positive].clone().requires_grad_()
        expected = F.alrp_loss(logits[rows], labels[rows], own, method=method, n_positives=len(own)).localization
        torch.testing.assert_close(got[i], expected, rtol=1e-12, atol=1e-12)
        (wanted,) = torch.autograd.grad(expected, own, allow_unused=True)
        torch.testing.assert_close(gradient[segments[positive] == i], wanted * scales[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_empty_segments_are_zero(name):
    logits, labels, side = random_case(5, 30, seed=7)
    logits.requires_grad_()
    segments = torch.full((len(logits),), 2)
    for output in CASES[name].outputs(logits, labels, side, segments=segments, n_segments=4):
        assert output.detach()[[0, 1, 3]].tolist() == [0, 0, 0]
        (gradient,) = torch.autograd.grad(output[3], logits, retain_graph=True)
        assert not gradient.any()


@pytest.mark.parametrize("name", CASES)
def test_operations_do_not_grow_with_the_segments(name):
    counts = []
    for n_segments in (2, 5, 40):
        logits, labels, side = random_case(40, 400, seed=8)
        segments = torch.arange(len(logits)) % n_segments
        counts.append(
            count_operations(
                lambda leaf, y, q, s=segments, n=n_segments: CASES[name].outputs(leaf, y, q, segments=s, n_segments=n),
                logits, labels, side,
            )
        )  # fmt: skip
    # the search in a cell of the grid may take a few steps more or less
    assert max(counts) - min(counts) <= 9, counts


def test_a_nan_spoils_its_own_ranking_only():
    logits, labels, _ = random_case(8, 40, seed=9)
    segments = torch.arange(len(logits)) % 3
    logits[(labels == 0) & (segments == 1)] = torch.nan
    with value_checks(False):
        values = F.ap_loss(logits, labels, segments=segments, n_segments=3)
    assert values.isnan().tolist() == [False, True, False]


def test_bad_segments_are_refused():
    logits, labels, _ = random_case(3, 9, seed=0)
    segments = torch.zeros_like(labels)
    cases = [
        ({"segments": segments}, "n_segments must be an integer >= 1, got None"),
        ({"segments": segments, "n_segments": 0}, "n_segments must be an integer >= 1, got 0"),
        ({"segments": segments - 1, "n_segments": 2}, r"segments must be in 0..1, got values from -1 to -1"),
        ({"segments": segments + 2, "n_segments": 2}, r"segments must be in 0..1, got values from 2 to 2"),
        ({"segments": segments[:-1], "n_segments": 1}, "segments must have the shape of logits"),
        ({"segments": segments.float(), "n_segments": 1}, "segments must be an integer tensor"),
        ({"n_segments": 2}, "segments must be a tensor with n_segments=2, got None"),
    ]  # fmt: skip
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            F.ap_loss(logits, labels, **options)
