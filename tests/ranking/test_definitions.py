"""A new ranking loss is a definition and nothing else: the example of docs/losses/add_your_own.md."""

from __future__ import annotations

import pytest
import torch

from concordet.losses import functional as F
from concordet.ranking import Definition, Result, Side, Term, ranking_loss, register
from tests.ranking.cases import random_case


def reciprocal_rank(counts, own, side):
    """1 - 1 / (1 + N(i)): how far each positive is from the top of the negatives."""
    false = counts.negatives_above()
    error = 1 - 1 / (1 + false)
    return Result(terms=(Term(value=error, error=error, mass=false),))


RECIPROCAL = register(Definition(name="test_reciprocal", n_terms=1, side=Side.NONE, compute=reciprocal_rank))


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_a_definition_is_a_loss(delta):
    logits, labels, _ = random_case(8, 50, seed=1)
    results = {}
    for method in ("quadratic", "exact"):
        s = logits.clone().requires_grad_()
        values, _ = ranking_loss(RECIPROCAL, s, labels, delta=delta, self_relation=1.0, method=method)
        values[0].backward()
        results[method] = (values.detach(), s.grad)
    torch.testing.assert_close(results["exact"], results["quadratic"], rtol=1e-10, atol=1e-12)
    # the definition again, by hand
    x = logits[labels == 0][None] - logits[labels == 1][:, None]
    false = ((x / (2 * delta) + 0.5).clamp(0, 1) if delta else (x >= 0).double()).sum(1)
    assert float(results["exact"][0]) == pytest.approx(float((1 - 1 / (1 + false)).mean()))


def test_names_are_taken_once():
    assert register(RECIPROCAL) is RECIPROCAL
    with pytest.raises(ValueError, match="'ap' is registered already"):
        register(Definition(name="ap", n_terms=1, side=Side.NONE, compute=reciprocal_rank))


def test_self_relation_counts_in_every_definition():
    logits, labels, side = random_case(8, 50, seed=2)
    labels = labels.clone()
    for function in (F.ap_loss, F.ndcg_loss):
        half = function(logits, labels, self_relation=0.5)
        assert not torch.isclose(half, function(logits, labels))
        assert torch.isclose(half, function(logits, labels, self_relation=0.5, method="quadratic"))
    default = F.rank_sort_loss(logits, labels, side)
    assert torch.equal(default.sorting, F.rank_sort_loss(logits, labels, side, self_relation=0.5).sorting)
    assert torch.equal(
        F.ap_loss(logits, labels, method="bucketed"),
        F.ap_loss(logits, labels, method="bucketed", self_relation=0.5),
    )
