"""Values and gradients of every output: the quadratic method equals scalar loops, the exact one the quadratic one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from concordet.ranking import backend_torch as passes
from tests.ranking.cases import (
    CASES,
    DELTAS,
    TOLERANCE,
    adversarial,
    own_relation,
    random_case,
    values_and_gradients,
    views_case,
)
from tests.ranking.scalar import bucketed

pytestmark = pytest.mark.usefixtures("positives_by")


def _run(name, logits, labels, side, **options):
    logits = logits.clone().requires_grad_()
    return values_and_gradients(CASES[name].outputs(logits, labels, side, **options), logits)


def _assert_close(got, expected, tolerance):
    for value, wanted in zip(got[0], expected[0], strict=True):
        assert value == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    for gradient, wanted in zip(got[1], expected[1], strict=True):
        wanted = torch.as_tensor(wanted, dtype=torch.float64)
        scale = float(wanted.abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=tolerance * scale + 1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["quadratic", "exact"])
@settings(max_examples=150, deadline=None)
@given(case=adversarial())
def test_equals_scalar_loop_on_adversarial_inputs(name, method, case):
    logits, labels, side, delta = case
    loop = CASES[name].loop(logits, labels, side, delta, own_relation(CASES[name], delta))
    n_terms = len(loop.gradients)
    got = _run(
        name, torch.tensor(logits, dtype=torch.float64), torch.tensor(labels, dtype=torch.long),
        torch.tensor(side, dtype=torch.float64), delta=delta, method=method,
    )  # fmt: skip
    _assert_close(got, (loop.values[:n_terms], loop.gradients), TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("p", "n", "ties"), [(1, 1, False), (40, 900, False), (60, 300, True), (129, 1, False)])
def test_exact_equals_quadratic(name, delta, dtype, p, n, ties):
    case = random_case(p, n, seed=p + n, ties=ties, dtype=dtype)
    expected = _run(name, *case, delta=delta, method="quadratic")
    _assert_close(_run(name, *case, delta=delta, method="exact"), expected, TOLERANCE[dtype])
    _assert_close(_run(name, *case, delta=delta), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("layout", ["columns", "expanded"])
def test_views_are_read_as_what_they_show(name, backend, layout):
    if backend == "numba":
        pytest.importorskip("numba")
    plain, views = views_case(torch.float64)
    *views, segments = views[layout]
    logits = views[0].requires_grad_()
    expected = _run(name, *plain[:3], method="quadratic")
    for options in ({}, {"segments": segments, "n_segments": 1}):
        with passes.use_backend(backend):
            outputs = CASES[name].outputs(logits, *views[1:], **options)
        _assert_close(values_and_gradients(tuple(o.sum() for o in outputs), logits), expected, TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("ties", [False, True])
def test_bucketed_is_the_loop_on_bucket_means(name, delta, ties):
    logits, labels, side = random_case(12, 60, seed=7, ties=ties)
    replaced = bucketed(logits.tolist(), labels.tolist(), delta)
    own = own_relation(CASES[name], delta, "bucketed")
    loop = CASES[name].loop(replaced, labels.tolist(), side.tolist(), delta, own)
    got = _run(name, logits, labels, side, delta=delta, method="bucketed")
    _assert_close(got, (loop.values[: len(loop.gradients)], loop.gradients), 1e-9)


@pytest.mark.parametrize("name", CASES)
def test_bucketed_equals_exact_at_delta_zero(name):
    case = random_case(50, 500, seed=3)
    expected = _run(name, *case, delta=0.0, method="exact")
    _assert_close(_run(name, *case, delta=0.0, method="bucketed"), expected, 1e-9)
