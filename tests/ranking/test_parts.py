"""The parts of the exact method against brute force: wavelet tree, intervals, grid, sums."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concordet.ranking import exact
from concordet.ranking.counts import MASKED_LOGIT, step
from concordet.ranking.exact import ExactCounts
from concordet.ranking.intervals import build_intervals, sort_ascending
from concordet.ranking.quadratic import QuadraticCounts
from concordet.ranking.sums import WaveletTree, prefix_sums, running_sums, split


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 100, 257])
def test_wavelet_tree_equals_brute_force(n):
    generator = torch.Generator().manual_seed(n)
    places = torch.randperm(n, generator=generator)
    weights = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    lengths, bounds = (torch.randint(0, n + 1, (50,), generator=generator) for _ in range(2))
    tree = WaveletTree(places, lengths, bounds)
    got = torch.cat([tree.sums(weights, slice(20)), tree.sums(weights, slice(20, 50))])
    rows = torch.arange(n)
    expected = torch.stack(
        [weights[(rows < length) & (places < bound)].sum(0) for length, bound in zip(lengths, bounds, strict=True)]
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("delta", [0.0, 1e-30, 1e-6, 0.1, 1.0, 100.0])
@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    keys=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=20),
)
def test_intervals_hold_the_keys_that_the_reals_say(dtype, delta, values, keys):
    from fractions import Fraction

    positives, d = torch.tensor(values, dtype=dtype), Fraction(delta)
    axis = build_intervals(positives.double().sort().values, delta, dtype)
    near = [v + s * delta for v in values for s in (-1, 0, 1)]
    keys = torch.tensor([*keys, *values, *near], dtype=torch.float64).to(dtype)
    keys = keys[keys.isfinite()]
    # t - d <= k, in exact arithmetic; float32 thresholds are rounded to float64 first, which moves them by 1e-16 of it
    interval = axis.locate(keys)
    if dtype == torch.float64:
        for key, m in zip(keys.tolist(), interval.tolist(), strict=True):
            below = sum(Fraction(v) - d <= Fraction(key) for v in positives.tolist())
            below += sum(Fraction(v) + d <= Fraction(key) for v in positives.tolist())
            assert m == below
    searched = torch.searchsorted(axis.thresholds, keys, right=True, out_int32=True)
    assert torch.equal(interval, searched)
    assert bool((axis.thresholds.diff() >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_and_their_adjoints(dtype):
    """<a, count(w)> = <spread(a), w>: the adjoint, for both pairs of sums."""
    generator = torch.Generator().manual_seed(3)
    s, k = (
        torch.randn(40, generator=generator, dtype=dtype).sort().values,
        torch.randn(300, generator=generator, dtype=dtype),
    )
    k[::7] = MASKED_LOGIT[dtype]
    quality = (torch.rand(40, generator=generator).double() * 5).round() / 5
    a, w = (torch.rand(40, generator=generator).double() for _ in range(2))
    for method in (ExactCounts, QuadraticCounts):
        counts = method(s, k, 0.7)
        spread = counts.spread_to_negatives(a)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        negatives = counts.above(w)[0]
        torch.testing.assert_close(a @ negatives, spread.double().sum(), rtol=tolerance, atol=0.0)
        assert not spread[::7].any()
        worse = counts.above(w)[2] - counts.better_above(quality, w)[1]
        torch.testing.assert_close(a @ worse, counts.spread_to_worse(a, quality) @ w, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("p", [1, 7, 8])
def test_few_positives_are_counted_by_pairs_and_many_by_a_tree(monkeypatch, p, delta):
    monkeypatch.setattr(exact, "MAX_PAIRWISE_POSITIVES", 7)
    generator = torch.Generator().manual_seed(p)
    s, k = (torch.randn(n, generator=generator).mul(4).round() / 4 for n in (p, 30))  # with ties
    quality = (torch.rand(p, generator=generator).double() * 5).round() / 5
    s = s.sort().values
    weights, amount = torch.rand(p, generator=generator).double(), torch.rand(p, generator=generator).double()
    counts, trees = ExactCounts(s, k, delta), []
    monkeypatch.setattr(exact, "WaveletTree", lambda *order: trees.append(order) or WaveletTree(*order))
    quadratic = QuadraticCounts(s, k, delta)
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(counts.above(weights), quadratic.above(weights))
    close(counts.better_above(quality, weights), quadratic.better_above(quality, weights))
    close(counts.spread_to_worse(amount, quality), quadratic.spread_to_worse(amount, quality))
    assert len(trees) == (p > 7)


@pytest.fixture(params=["operations", "loops"])
def exact_counts(request):
    """The class that counts by PyTorch's operations, and the one that counts by Numba's loops."""
    if request.param == "operations":
        return ExactCounts
    pytest.importorskip("numba", exc_type=ImportError)
    from concordet.ranking.compiled.counts import CompiledCounts

    return CompiledCounts


def test_large_shifts_lose_nothing(exact_counts):
    """Logits around 1e6, where float64 products of keys and deltas would lose ten digits."""
    generator = torch.Generator().manual_seed(5)
    s, k = (torch.randn(n, generator=generator, dtype=torch.float64) * 1e-5 + 1e6 for n in (50, 4000))
    s = s.sort().values
    exact, quadratic = exact_counts(s, k, 1e-6), QuadraticCounts(s, k, 1e-6)
    torch.testing.assert_close(exact.above(), quadratic.above(), rtol=1e-12, atol=1e-12)
    a = torch.rand(50, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(exact.above(a), quadratic.above(a), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(exact.spread_to_negatives(a), quadratic.spread_to_negatives(a), rtol=1e-11, atol=1e-12)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=50))
@settings(max_examples=100, deadline=None)
def test_sorting_by_bits_is_sorting(values):
    x = torch.tensor(values)
    expected, order = torch.sort(x, stable=True)
    got, by_bits = sort_ascending(x)
    assert torch.equal(got, expected)
    assert torch.equal(by_bits, order)


def test_sums():
    x = torch.tensor([[1, 2], [3, 4]])
    assert prefix_sums(x).tolist() == [[0, 1, 3], [0, 3, 7]]
    assert running_sums(x).tolist() == [[1, 3], [3, 7]]
    assert prefix_sums(torch.zeros(0)).tolist() == [0]


def test_split_sums_have_no_rounding_errors():
    """Small values after large ones: a difference of plain running sums would have lost them."""
    from fractions import Fraction

    generator = torch.Generator().manual_seed(8)
    values = torch.randn(2000, generator=generator, dtype=torch.float64)
    values[:1000] *= 1e12
    high, low = split(values)
    assert torch.equal(high + low, values)
    sums = prefix_sums(torch.stack([high, low]))
    got = (sums[:, 1500] - sums[:, 1000]).sum()
    expected = float(sum(map(Fraction, values[1000:1500].tolist())))
    assert float(got) == pytest.approx(expected, rel=1e-12)
    plain = prefix_sums(values)
    assert float(plain[1500] - plain[1000]) != pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("many", [1, 64])
def test_chunks_make_no_difference(monkeypatch, many):
    generator = torch.Generator().manual_seed(6)
    s, k = torch.randn(20, generator=generator).sort().values, torch.randn(1000, generator=generator)
    a = torch.rand(20, generator=generator).double()
    whole = ExactCounts(s, k, 1.0)
    monkeypatch.setattr("concordet.ranking.backend_torch.CHUNK", 64)
    monkeypatch.setattr("concordet.ranking.backend_torch.MANY_CHUNKS", many)
    parts = ExactCounts(s, k, 1.0)
    torch.testing.assert_close(parts.above(), whole.above(), rtol=1e-12, atol=1e-12)
    assert torch.equal(parts.spread_to_negatives(a), whole.spread_to_negatives(a))


def test_step():
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 2.0])
    assert step(x, 1.0).tolist() == [0, 0, 0.5, 0.75, 1]
    assert step(x, 0.0).tolist() == [0, 0, 1, 1, 1]
