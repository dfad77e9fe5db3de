"""Every loss over predictions of a batch that is no sum takes a criterion's group."""

import pytest
import torch
import torch.distributed as dist

from concordet import distributed
from concordet.losses import build_criterion, rank_over
from concordet.losses.criteria import sum_terms
from tests.losses.test_criteria import record


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def collectives(name, group, monkeypatch):
    """Loss of a record, and how many collectives of the group it calls."""
    calls = []
    for method in ("all_gather", "all_sum", "all_max"):
        original = getattr(distributed.MultiProcess, method)

        def counted(self, *own, original=original):
            calls.append(original.__name__)
            return original(self, *own)

        monkeypatch.setattr(distributed.MultiProcess, method, counted)
    criterion = build_criterion(name)
    rank_over(criterion, group)
    value = sum_terms(criterion(record())).detach()
    monkeypatch.undo()
    return value, len(calls)


@pytest.mark.parametrize(
    "name",
    [
        "ap",
        "bucketed_ap",
        "alrp",
        "rank_sort",
        "bucketed_rank_sort",
        "ndcg",
        "distributional_ranking",
        "focal+concordance",
        "focal+spearman",
    ],
)
def test_rank_over_reaches_every_term_that_needs_it(name, group, monkeypatch):
    value, with_group = collectives(name, group, monkeypatch)
    expected, without = collectives(name, None, monkeypatch)
    torch.testing.assert_close(value, expected)
    assert with_group > without
