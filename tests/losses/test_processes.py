"""Two gloo processes against one: global values, gradients times the number of processes, empty batches, no hanging."""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from concordet.losses import functional as F
from tests.ranking.cases import random_case

SPLITS = [(60, 60), (5, 115), (0, 120)]


def _losses(logits, labels, side, group, method):
    errors = side[labels == 1].clone().requires_grad_()
    alrp = F.alrp_loss(logits, labels, errors, group=group, method=method)
    outputs = [
        F.ap_loss(logits, labels, group=group, method=method),
        F.ap_loss(logits, labels, interpolated=True, group=group, method=method),
        *F.rank_sort_loss(logits, labels, side, group=group, method=method),
        F.ndcg_loss(logits, labels, group=group, method=method),
        *alrp,
    ]
    gradients = [torch.autograd.grad(output, logits, retain_graph=True)[0] for output in outputs[:-1]]
    gradients.append(torch.autograd.grad(outputs[-1], errors)[0])
    return [float(output.detach()) for output in outputs], gradients


def _work(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(minutes=4)
    )
    group = dist.group.WORLD
    kept = {}
    for method in ("exact", "quadratic"):
        for case, split in enumerate(SPLITS):
            logits, labels, side = random_case(17, 100, seed=case)
            rows = slice(0, split[0]) if rank == 0 else slice(split[0], None)
            kept[method, case] = _losses(logits[rows].requires_grad_(), labels[rows], side[rows], group, method)
        nothing = torch.zeros(0, dtype=torch.float64, requires_grad=True)
        kept[method, "empty"] = _losses(
            nothing, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64), group, method
        )
    torch.save(kept, os.path.join(results, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, args=(os.path.join(folder, "store"), folder), nprocs=2)
        return [torch.load(os.path.join(folder, f"{rank}.pt")) for rank in range(2)]


@pytest.mark.parametrize("method", ["exact", "quadratic"])
@pytest.mark.parametrize("case", range(len(SPLITS)))
def test_two_processes_equal_one(by_rank, method, case):
    logits, labels, side = random_case(17, 100, seed=case)
    values, gradients = _losses(logits.requires_grad_(), labels, side, None, method)
    for kept in by_rank:
        assert kept[method, case][0] == pytest.approx(values, rel=1e-12)
    parts = zip(by_rank[0][method, case][1], by_rank[1][method, case][1], strict=True)
    for gradient, (first, second) in zip(gradients, parts, strict=True):
        torch.testing.assert_close(torch.cat([first, second]), 2 * gradient, rtol=1e-10, atol=1e-14)


def test_empty_batches_everywhere(by_rank):
    for kept in by_rank:
        assert kept["exact", "empty"][0] == [0.0] * 7


def test_bucketed_ranks_one_process_only():
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="expected group=None with method='bucketed'"):
            F.ap_loss(torch.zeros(1), torch.ones(1).long(), method="bucketed", group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
