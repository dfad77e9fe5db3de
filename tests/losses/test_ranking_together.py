"""Several records ranked in one call equal each ranked by itself, and cost about as many operations as one."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from concordet.assigned import Assigned, Regression
from concordet.losses import build_criterion
from concordet.losses.criteria import LossDefaults, StagedCriterion, rank_records
from concordet.losses.criteria.cores import SelfBalancedCore
from concordet.losses.criteria.criterion import Criterion
from concordet.losses.criteria.ranking import APTerm, RankSortTerm, rank_together
from concordet.losses.criteria.terms import sum_terms
from tests.losses.test_criteria import record
from tests.ranking.operations import count_operations

NAMES = ["ap", "alrp", "rank_sort", "ndcg", "bucketed_ap", "bucketed_rank_sort", "rank_sort+concordance(0.3)", "focal"]


def wide(assigned: Assigned, stage: str) -> Assigned:
    """The record in float64."""

    def double(value):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().double().requires_grad_(value.requires_grad)
        if isinstance(value, Regression):
            return Regression(double(value.deltas), double(value.targets))
        return value

    return replace(
        assigned,
        stage=stage,
        **{f.name: double(getattr(assigned, f.name)) for f in fields(assigned) if f.name != "stage"},
    )


def layers(n=6):
    """Records of different sizes and classes; one without positives, one without negatives."""
    sizes = [(5, 20, 4, 3), (0, 9, 0, 3), (3, 0, 0, 1), (12, 60, 9, 7), (1, 30, 2, 3), (8, 40, 0, 3)]
    return [wide(record(*sizes[i % len(sizes)], seed=i), f"layer{i}") for i in range(n)]


def gradients(terms, records):
    leaves = [leaf for r in records for leaf in (r.logits, r.boxes)]
    scaled = [value * (i + 1) for i, value in enumerate(terms.values())]  # a different gradient for every term
    return torch.autograd.grad(torch.stack(scaled).sum(), leaves, allow_unused=True, materialize_grads=True)


class TestStages:
    @pytest.mark.parametrize("positives_by", ["tree", "pairs", "loops"], indirect=True)
    @pytest.mark.parametrize("name", NAMES)
    def test_equal_each_stage_by_itself(self, name, positives_by):
        records = layers()
        criterion = StagedCriterion({r.stage: build_criterion(name) for r in records}, {"layer1": 0.5})
        reference = StagedCriterion({r.stage: build_criterion(name) for r in records}, {"layer1": 0.5})
        terms, expected = criterion(records), {}
        for r in records:
            expected |= reference([r])  # one record: the path per layer
        assert list(terms) == list(expected)
        for term, value in expected.items():
            torch.testing.assert_close(terms[term], value, rtol=1e-12, atol=1e-12, msg=term)
        for mine, other in zip(gradients(terms, records), gradients(expected, records), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
        criterion.on_epoch_end()
        reference.on_epoch_end()
        for key, value in reference.state_dict().items():
            torch.testing.assert_close(criterion.state_dict()[key], value, rtol=1e-12, atol=0)

    def test_one_call_per_definition(self):
        losses = ["ap", "rank_sort", "ap", "rank_sort+pse", "focal", "bucketed_ap"]
        records = layers()
        stages = {r.stage: build_criterion(loss) for r, loss in zip(records, losses, strict=True)}
        stages["layer2"] = build_criterion("ap", LossDefaults(ap_delta=0.5))
        stages["layer4"] = build_criterion("ap", LossDefaults(ap_delta=0.5))
        assert calls(lambda: StagedCriterion(stages)(records)) == 4  # AP twice, RS, bucketed AP

    def test_proposals_and_heads_of_alrp_share_a_call(self):
        """Their errors differ in the least IoU of a positive, their rankings do not."""
        records = layers(2)
        stages = {
            r.stage: build_criterion("alrp", LossDefaults(positive_iou=p))
            for r, p in zip(records, (0.7, 0.5), strict=True)
        }
        assert calls(lambda: StagedCriterion(stages)(records)) == 1

    def test_half_precision_is_ranked_in_float32(self):
        records = [replace(record(seed=i), stage=f"{i}") for i in range(3)]
        records = [replace(r, logits=r.logits.detach().bfloat16().requires_grad_()) for r in records]
        criterion = StagedCriterion({r.stage: build_criterion("rank_sort") for r in records})
        terms = criterion(records)
        for r in records:
            for name, value in criterion([r]).items():
                torch.testing.assert_close(terms[name], value)


class TestCores:
    def test_a_core_that_changes_its_record_ranks_what_it_made(self):
        class Sharper(SelfBalancedCore):
            def forward(self, assigned, ious):
                return super().forward(replace(assigned, logits=2 * assigned.logits), ious)

        records = layers(2)
        criteria = [Criterion(Sharper(RankSortTerm(), build_criterion("rank_sort").core.box)) for _ in records]
        for criterion, assigned, ranked in zip(criteria, records, rank_records(criteria, records), strict=True):
            assert ranked.ranked is not None
            for name, value in criterion(assigned).items():
                torch.testing.assert_close(criterion(ranked)[name], value, rtol=0, atol=0)

    def test_values_are_taken_by_their_own_term_only(self):
        records = layers(2)
        ious = [torch.full((len(r.positive),), 0.5, dtype=torch.float64) for r in records]
        terms = [APTerm(), APTerm()]
        (first, _) = rank_together(terms, records, ious)
        assert terms[0](first, ious[0])["ranking"] is first.ranked.values[0]
        assert terms[1](first, ious[0])["ranking"] is not first.ranked.values[0]

    def test_a_single_record_is_left_as_it_is(self):
        records = layers(2)
        assert rank_records([build_criterion("focal"), build_criterion("ap")], records) == records


class TestOperations:
    @pytest.mark.parametrize("name", ["ap", "alrp", "rank_sort", "ndcg"])
    def test_six_layers_launch_about_as_many_as_one(self, name):
        core = build_criterion(name).core
        term, n = core.ranking, 6
        records = [record(6, 200, 10, 4, seed=i) for i in range(n)]
        ious = [torch.linspace(0, 1, 6) for _ in records]

        def one(logits):
            return list(term(replace(records[0], logits=logits), ious[0]).values())

        def all_of_them(logits):
            parts = [replace(r, logits=own) for r, own in zip(records, logits.split(216), strict=True)]
            return [value for r in rank_together([term] * n, parts, ious) for value in r.ranked.values]

        single = count_operations(one, torch.randn(216, 4))
        together = count_operations(all_of_them, torch.randn(6 * 216, 4))
        # besides the ranking, labels and IoUs of every record are put in a row
        assert together <= single + 15 * n, (together, single)

    def test_a_criterion_ranks_once_whatever_the_number_of_layers(self):
        for n in (1, 2, 6, 24):
            records = layers(n)
            criterion = StagedCriterion({r.stage: build_criterion("rank_sort") for r in records})
            assert calls(lambda: sum_terms(criterion(records)).backward()) == 1  # noqa: B023 (called at once)


def calls(function):
    """How many times the ranking operator is called."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    return sum(event.name == "concordet::ranking" for event in recorded.events())
