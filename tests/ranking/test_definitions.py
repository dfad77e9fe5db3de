"""A definition is all that a new ranking loss needs: NDCG@k, the example of docs/extend/ranking_loss.md."""

from __future__ import annotations

import math

import pytest
import torch

from concordet.losses import functional as F
from concordet.ranking import Definition, RankingOptions, Result, Term, ranking_loss, register
from tests.ranking.cases import random_case


def ndcg_at_k(counts, aux, *, self_relation, k):
    false_positives, positives = counts.above()
    rank = self_relation + positives + false_positives
    gain = torch.where(rank <= k, 1 / torch.log2(1 + rank), 0)
    p = counts.segments.sizes(len(rank))
    gains = 1 / torch.log2(torch.arange(2.0, len(rank) + 2, dtype=rank.dtype))
    ideal = gains.cumsum(0)[torch.as_tensor(p).clamp(max=int(k)) - 1]
    value = 1 - p * gain / ideal
    return Result(terms=(Term(value=value, error=p * (1 - gain) / ideal, pmf_denominator=false_positives),))


NDCG_AT_K = register(Definition(name="test_ndcg_at_k", compute=ndcg_at_k, settings={"k": 10}))


def run(logits, labels, k=None, **options):
    leaf = logits.clone().requires_grad_()
    settings = {} if k is None else {"k": k}
    values, _ = ranking_loss(NDCG_AT_K, leaf, labels, options=RankingOptions(**options), **settings)
    values[0].backward()
    return float(values[0].detach()), leaf.grad


@pytest.mark.parametrize("delta", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_a_definition_is_a_loss(delta, k):
    logits, labels, _ = random_case(8, 50, seed=1)
    expected_value, expected = run(logits, labels, k, delta=delta, method="quadratic")
    value, gradient = run(logits, labels, k, delta=delta, method="exact")
    assert value == pytest.approx(expected_value, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    # the definition again, by hand
    s, positives = logits.tolist(), [i for i, y in enumerate(labels.tolist()) if y == 1]
    gains = 0.0
    for i in positives:
        others = [j for j, y in enumerate(labels.tolist()) if y in (0, 1) and j != i]
        steps = [min(max((s[j] - s[i]) / 2 + 0.5, 0), 1) if delta else float(s[j] >= s[i]) for j in others]
        gains += 1 / math.log2(2 + sum(steps)) if 1 + sum(steps) <= k else 0.0
    ideal = sum(1 / math.log2(1 + i) for i in range(1, min(len(positives), k) + 1))
    assert value == pytest.approx(1 - gains / ideal)


def test_settings_have_defaults_and_others_are_refused():
    logits, labels, _ = random_case(8, 50, seed=1)
    assert run(logits, labels)[0] == run(logits, labels, 10)[0] != run(logits, labels, 3)[0]
    with pytest.raises(ValueError, match="settings of 'test_ndcg_at_k' must be among k, got 'depth'; leave it out"):
        ranking_loss(NDCG_AT_K, logits, labels, depth=3)


def test_names_are_unique():
    assert register(NDCG_AT_K) is NDCG_AT_K
    with pytest.raises(ValueError, match="name must be free, got 'ap', which is registered"):
        register(Definition(name="ap", compute=ndcg_at_k))


def test_a_definition_that_is_run_again_replaces_itself():
    """As in a notebook, or where two tests execute one page of the documentation."""

    def once(k):
        def compute(counts, aux, *, self_relation):
            return ndcg_at_k(counts, aux, self_relation=self_relation, k=k)

        return register(Definition(name="test_run_again", compute=compute))

    once(1)
    again = once(20)
    logits, labels, _ = random_case(8, 50, seed=3)
    assert ranking_loss(again, logits, labels)[0] == run(logits, labels, 20)[0] != run(logits, labels, 1)[0]


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
