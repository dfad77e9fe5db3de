"""The loops that Numba compiles: their parts against exact arithmetic and brute force, and when they are used."""

from __future__ import annotations

import math
import sys
import warnings
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concordet.errors import MissingPackageError
from concordet.losses import functional as F
from concordet.losses import value_checks
from concordet.ranking import backend_torch
from concordet.ranking.backend_torch import compiled_for, use_backend
from concordet.ranking.counts import MASKED_LOGIT
from concordet.ranking.quadratic import QuadraticCounts
from concordet.ranking.segments import Segments
from tests.ranking.cases import random_case

pytest.importorskip("numba", exc_type=ImportError)
from concordet.ranking.compiled import loops
from concordet.ranking.compiled.counts import CompiledCounts

NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=200, deadline=None)
@given(t=NUMBERS, delta=st.sampled_from([0.0, 1e-30, 1e-6, 0.1, 1.0, 1e5]))
def test_thresholds_are_the_smallest_floats_not_below_the_sum(t, delta):
    for distance in (-delta, delta):
        got, exact = loops.threshold(t, distance), Fraction(t) + Fraction(distance)
        assert Fraction(got) >= exact
        assert Fraction(math.nextafter(got, -math.inf)) < exact


@pytest.mark.parametrize("delta", [0.0, 1e-30, 0.1, 1.0, 1e5])
@settings(max_examples=60, deadline=None)
@given(
    rankings=st.lists(st.lists(NUMBERS, max_size=9), min_size=1, max_size=4).filter(any),
    keys=st.lists(NUMBERS, max_size=20),
)
def test_intervals_hold_the_keys_that_the_reals_say(delta, rankings, keys):
    values = [v for own in rankings for v in own]
    keys = [*keys, *values, *(v + s * delta for v in values for s in (-1, 1)), MASKED_LOGIT[torch.float64]]
    index = torch.tensor([s for s, own in enumerate(rankings) for _ in own])
    t = torch.tensor(values, dtype=torch.float64)
    order = t.argsort(stable=True)
    all_keys = torch.tensor(keys, dtype=torch.float64).repeat(len(rankings))
    owners = torch.arange(len(rankings)).repeat_interleave(len(keys))
    counts = CompiledCounts(
        t[order], all_keys, delta, segments=Segments(index[order], len(rankings)), negative_segments=owners
    )
    first, d = counts._first, Fraction(delta)
    for key, s, where in zip(all_keys.tolist(), owners.tolist(), counts._where.tolist(), strict=True):
        k = Fraction(key)
        expected = sum((Fraction(v) - d <= k) + (Fraction(v) + d <= k) for v in rankings[s])
        assert where == 2 * int(first[s]) + s + expected


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_sums_equal_matrices(n, delta):
    generator = torch.Generator().manual_seed(n)
    s, k = (torch.randn(m, generator=generator, dtype=torch.float64).mul(4).round() / 4 for m in (n, 700))
    s = s.sort().values
    k[::7] = MASKED_LOGIT[k.dtype]
    quality, w, a = ((torch.rand(n, generator=generator).double() * 5).round() / 5 for _ in range(3))
    index, owners = (torch.randint(0, 3, (m,), generator=generator) for m in (n, 700))
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    for segments, negatives in ((Segments(), None), (Segments(index, 3), owners)):
        got, expected = (
            method(s, k, delta, segments=segments, negative_segments=negatives)
            for method in (CompiledCounts, QuadraticCounts)
        )
        close(got.above(w), expected.above(w))
        close(got.better_above(quality, w), expected.better_above(quality, w))
        close(got.spread_to_negatives(a), expected.spread_to_negatives(a))
        close(got.spread_to_worse(a, quality), expected.spread_to_worse(a, quality))


def test_each_quality_has_its_own_order():
    generator = torch.Generator().manual_seed(4)
    s, first, second = (torch.rand(30, generator=generator, dtype=torch.float64) for _ in range(3))
    got, expected = (method(s.sort().values, s[:0], 0.1) for method in (CompiledCounts, QuadraticCounts))
    for quality in (first, second, first):
        torch.testing.assert_close(got.better_above(quality), expected.better_above(quality), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_extreme_logits_and_deltas_stay_within_the_arrays():
    """t - d below the lowest float, in the loops as Python, which notices an index that is no number."""
    lowest = torch.finfo(torch.float64).min
    s, k = (torch.tensor(values, dtype=torch.float64) for values in ([lowest, 0.0], [lowest, lowest, 1.0]))
    cut = loops.cut.py_func(s.numpy(), np.array([0, 2]), 1e292, 4e292)
    assert np.isfinite(cut[0]).all()
    scales, before, step = loops.build_grid.py_func(cut[0], np.array([0, 2]))
    loops.count_keys.py_func(k.numpy(), np.empty(0, np.int64), np.array([0, 2]), cut[0], cut[1], scales, before, step)
    counts, expected = CompiledCounts(s, k, 1e292), QuadraticCounts(s, k, 1e292)
    torch.testing.assert_close(counts.above()[0], expected.above()[0])


def test_a_process_may_have_no_logit_of_its_own():
    """Positives are those of all processes."""
    s = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    segments = Segments(torch.tensor([0, 1, 0]), 2)
    counts = CompiledCounts(s, s[:0], 1.0, segments=segments, negative_segments=torch.zeros(0, dtype=torch.int64))
    assert counts.above()[0].tolist() == [0, 0, 0]
    assert len(counts.spread_to_negatives(torch.ones(3).double())) == 0


@pytest.mark.parametrize("wrong", [3, 1000, -1, -(10**9)])
def test_a_wrong_segment_is_an_error_without_checks_of_values_too(wrong):
    logits, labels, _ = random_case(20, 300, seed=2)
    segments = torch.arange(len(logits)) % 3
    segments[(labels == 0).nonzero()[:5, 0]] = wrong
    with value_checks(False), use_backend("numba"), pytest.raises(ValueError, match=r"segments must be in 0\.\.2, got"):
        F.ap_loss(logits, labels, segments=segments, n_segments=3)


def test_one_cell_of_the_grid_may_hold_all_thresholds_but_one():
    s = torch.cat([torch.linspace(0, 1e-3, 500), torch.tensor([1e6])]).double()
    k = torch.linspace(-1e-3, 2e-3, 3000).double()
    got, expected = CompiledCounts(s, k, 1e-5), QuadraticCounts(s, k, 1e-5)
    torch.testing.assert_close(got.above(), expected.above(), rtol=1e-11, atol=1e-9)


def test_where_no_cache_can_be_written_it_compiles_in_every_process(monkeypatch):
    """As under an account without a home, with a package that others installed."""
    njit = loops.njit

    def refuses_a_cache(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(loops, "njit", refuses_a_cache)
    assert loops.compiled(lambda x: 2 * x)(3.0) == 6.0


class TestChoosing:
    @pytest.fixture(autouse=True)
    def asked_again(self):
        backend_torch._numba_works.cache_clear()
        yield
        backend_torch._numba_works.cache_clear()

    def test_on_a_cpu_by_default(self, monkeypatch):
        keys = torch.zeros(3)
        assert compiled_for(keys).CompiledCounts is CompiledCounts
        with use_backend("torch"):
            assert compiled_for(keys) is None
        logits, labels, side = random_case(40, 300, seed=1)
        made = []
        monkeypatch.setattr(CompiledCounts, "spread_to_worse", lambda self, a, q: made.append(self) or a)
        F.rank_sort_loss(logits.requires_grad_(), labels, side)
        assert len(made) == 1

    def test_without_numba_by_operations(self, monkeypatch):
        monkeypatch.setattr(backend_torch, "find_spec", lambda name: None)
        assert compiled_for(torch.zeros(3)) is None
        for name in [name for name in sys.modules if name.startswith("concordet.ranking.compiled")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "numba", None)
        with (
            pytest.raises(MissingPackageError, match=r"needs the package numba; install it with: pip install 'concord"),
            use_backend("numba"),
        ):
            pass

    def test_a_numba_that_cannot_be_imported_is_named_once(self, monkeypatch):
        def broken(name):
            raise ImportError("Numba needs NumPy 1.20 or less")

        monkeypatch.setattr(backend_torch, "import_module", broken)
        with pytest.warns(UserWarning, match="without Numba, which cannot be imported: Numba needs NumPy"):
            assert compiled_for(torch.zeros(3)) is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert compiled_for(torch.zeros(3)) is None

    def test_elsewhere_it_is_refused(self):
        with use_backend("numba"), pytest.raises(ValueError, match="needs tensors on a CPU, got meta; move them"):
            compiled_for(torch.zeros(3, device="meta"))
