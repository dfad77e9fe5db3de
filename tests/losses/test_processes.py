"""Two, three and four gloo processes against one: global values, gradients times their number, no hanging."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.util import find_spec
from typing import get_args

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from concordet.assigned import BACKGROUND, IGNORED, Assigned
from concordet.losses import functional as F
from concordet.losses import value_checks
from concordet.losses.criteria.ranking import RankSortTerm, rank_together
from concordet.losses.functional import Coefficient
from concordet.ranking import exact
from concordet.ranking.backend_torch import use_backend
from tests.processes import forkserver
from tests.ranking.cases import random_case

WORLDS = (2, 3, 4)
METHODS = ("exact", "quadratic", "bucketed")
TREES = "exact, positives by a tree"
"""Method "exact" as it counts many positives among each other; the batches here have few."""
LOOPS = "exact, by compiled loops"
EXACT = (TREES, LOOPS)
"""Ways of method "exact"."""
COLLECTIVES = [name for name in dir(dist) if name.startswith(("all_", "broadcast", "gather", "reduce", "scatter"))]


def even(labels, world):
    return torch.arange(len(labels)) % world


def uneven(labels, world):
    return (torch.arange(len(labels)) * world * 3 // len(labels)).clamp_max(world - 1)


def nothing_in_the_first(labels, world):
    return 1 + torch.arange(len(labels)) % (world - 1)


def positives_in_the_last_only(labels, world):
    return torch.where(labels == 1, world - 1, torch.arange(len(labels)) % world)


# positives, negatives, and what they are: rounded logits tie, also over processes
BATCHES = {
    "ordinary": {"p": 17, "n": 100},
    "ties": {"p": 17, "n": 100, "ties": True},
    "one positive": {"p": 1, "n": 20},
    "no negative": {"p": 9, "n": 0},
    "no positive": {"p": 0, "n": 20},
}

# a batch, and which process has each row
CASES = {
    "ordinary": ("ordinary", even),
    "uneven": ("ordinary", uneven),
    "an empty process": ("ordinary", nothing_in_the_first),
    "positives in one process": ("ordinary", positives_in_the_last_only),
    "ties": ("ties", uneven),
    "one positive": ("one positive", even),
    "no negative": ("no negative", nothing_in_the_first),
    "no positive": ("no positive", nothing_in_the_first),
}


def batch(case, world):
    """A batch with the processes' rows one after the other, as one process has it, and the rows of each."""
    name, split = CASES[case]
    logits, labels, side = random_case(**BATCHES[name], seed=len(case))
    owner, order = torch.sort(split(labels, world), stable=True)
    return (logits[order], labels[order], side[order]), [owner == rank for rank in range(world)]


def layers(logits, labels, side, group, method):
    """RS Loss of three layers of one class: in one call over the group, by itself without one."""
    term = RankSortTerm(method="exact" if method in EXACT else method)
    records, ious = [], []
    for i in range(3):
        rows = (side * 3).long().clamp_max(2) == i
        own = torch.where(labels[rows] == 1, 0, torch.where(labels[rows] == 0, BACKGROUND, IGNORED))
        positive = torch.nonzero(own == 0).squeeze(1)
        boxes = logits.new_zeros(len(positive), 4)
        count = logits.new_tensor(1.0)
        records.append(Assigned(
            logits=logits[rows, None], labels=own, positive=positive, boxes=boxes, gt_boxes=boxes, gt_ids=positive,
            image_ids=positive, normalizer=count, group=group,
        ))  # fmt: skip
        ious.append(side[rows][positive])
    if group is not None:
        records = rank_together([term] * 3, records, ious)
    return [value for r, own in zip(records, ious, strict=True) for value in term(r, own).values()]


def results(case, logits, labels, side, group=None):
    """Value and gradient of every loss with every method; ties matter with a hard step."""
    logits = logits.clone().requires_grad_()
    errors = side[labels == 1].clone().requires_grad_()
    found = {}

    def keep(name, value, leaf=logits):
        (gradient,) = torch.autograd.grad(1.5 * value.sum(), leaf, retain_graph=True)
        found[name] = (value.detach(), gradient / 1.5)

    for method in (*METHODS, TREES, *([LOOPS] if find_spec("numba") else [])):
        with pytest.MonkeyPatch.context() as patch, use_backend("numba" if method == LOOPS else "torch"):
            patch.setattr(exact, "MAX_PAIRWISE_POSITIVES", 0 if method == TREES else 256)
            for delta in (0.0, 0.7) if case == "ties" else (0.7,):
                shared = {"group": group, "method": "exact" if method in EXACT else method, "delta": delta}
                keep(("ap", method, delta), F.ap_loss(logits, labels, **shared))
                keep(("interpolated ap", method, delta), F.ap_loss(logits, labels, interpolated=True, **shared))
                ranking, sorting = F.rank_sort_loss(logits, labels, side, **shared)
                keep(("ranking", method, delta), ranking)
                keep(("sorting", method, delta), sorting)
                keep(("ndcg", method, delta), F.ndcg_loss(logits, labels, **shared))
                classification, localization = F.alrp_loss(logits, labels, errors, **shared)
                keep(("alrp", method, delta), classification)
                keep(("alrp localization", method, delta), localization, errors)
                # three rankings in one call; the rows of each are spread over the processes
                shared |= {"segments": (side * 3).long().clamp_max(2), "n_segments": 3}
                keep(("aps", method, delta), F.ap_loss(logits, labels, interpolated=True, **shared))
                rankings, sortings = F.rank_sort_loss(logits, labels, side, **shared)
                keep(("rankings", method, delta), rankings)
                keep(("sortings", method, delta), sortings)
                keep(("ndcgs", method, delta), F.ndcg_loss(logits, labels, **shared))
                classification, localization = F.alrp_loss(logits, labels, errors, **shared)
                keep(("alrps", method, delta), classification)
                keep(("alrp localizations", method, delta), localization, errors)
            keep(("layers", method), torch.stack(layers(logits, labels, side, group, method)))
    positive = labels == 1
    keep("distributional ranking", F.distributional_ranking_loss(logits, labels, group=group))
    for coefficient in get_args(Coefficient):
        loss = F.correlation_loss(logits[positive].sigmoid(), side[positive], coefficient=coefficient, group=group)
        keep(coefficient, loss)
    return found


def bytes_sent(p, n, group):
    """Bytes that one process hands to collectives, by loss."""
    sent = 0

    def counting(function):
        def call(*arguments, **options):
            nonlocal sent
            tensor = next(a for a in reversed(arguments) if isinstance(a, torch.Tensor))
            sent += tensor.numel() * tensor.element_size()
            return function(*arguments, **options)

        return call

    logits, labels, side = random_case(p, n, seed=0)
    scores = logits[labels == 1].sigmoid()
    calls = {
        **{
            f"{name} {method}": lambda loss=loss, method=method: loss(logits, labels, group=group, method=method)
            for name, loss in (("ap", F.ap_loss), ("ndcg", F.ndcg_loss))
            for method in METHODS
        },
        **{
            f"rank_sort {method}": lambda method=method: F.rank_sort_loss(
                logits, labels, side, group=group, method=method
            )
            for method in METHODS
        },
        "alrp": lambda: F.alrp_loss(logits, labels, side[labels == 1], group=group),
        "distributional ranking": lambda: F.distributional_ranking_loss(logits, labels, group=group),
        **{
            c: lambda c=c: F.correlation_loss(scores, side[labels == 1], coefficient=c, group=group)
            for c in get_args(Coefficient)
        },
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, counting(getattr(dist, name)))
        for name, call in calls.items():
            sent = 0
            call()
            found[name] = sent
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=max(WORLDS), timeout=timedelta(minutes=2)
    )
    groups = {world: dist.new_group(list(range(world))) for world in WORLDS}
    kept = {}
    for world, group in groups.items():
        if rank < world:
            for case in CASES:
                values, rows = batch(case, world)
                kept[world, case] = results(case, *(value[rows[rank]] for value in values), group=group)
            kept[world, "bytes"] = {(p, n): bytes_sent(p, n, group) for p, n in ((20, 50), (20, 5000), (200, 50))}
    torch.save(kept, os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """Results of each of four processes; the first two and the first three are groups of their own."""
    if "forkserver" not in mp.get_all_start_methods():
        pytest.skip("processes are started by a fork server, which Windows lacks")
    folder = tmp_path_factory.mktemp("processes")
    forkserver()  # everything is imported once
    mp.start_processes(work, args=(str(folder),), nprocs=max(WORLDS), start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(max(WORLDS))]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", CASES)
def test_several_processes_equal_one(by_rank, case, world):
    values, rows = batch(case, world)
    with value_checks(False):  # one process by itself refuses positives beside ignored labels only
        expected = results(case, *values)
    positive = values[1] == 1
    for name, (value, gradient) in expected.items():
        parts = [by_rank[rank][world, case][name] for rank in range(world)]
        for own, _ in parts:
            torch.testing.assert_close(own, value, rtol=1e-9, atol=1e-12)
        by_positive = name[0] in ("alrp localization", "alrp localizations")
        for (_, own), mine in zip(parts, rows, strict=True):
            share = gradient[mine[positive]] if by_positive else gradient[mine]
            torch.testing.assert_close(own, world * share, rtol=1e-9, atol=1e-12)
        assert value.isfinite().all()


def test_nothing_to_rank_is_zero_everywhere(by_rank):
    for name, (value, gradient) in by_rank[0][2, "no positive"].items():
        if name == "distributional ranking":  # counts negatives by themselves
            continue
        assert not value.any()
        assert not gradient.any()


@pytest.mark.parametrize("world", WORLDS)
def test_bytes_sent_grow_with_positives_only(by_rank, world):
    sent = by_rank[0][world, "bytes"]
    few, many_negatives, many_positives = sent[20, 50], sent[20, 5000], sent[200, 50]
    assert many_negatives == few
    for name, count in few.items():
        if name in ("pearson", "concordance", "distributional ranking"):
            assert many_positives[name] == count == 8 * 8
        else:
            # each process has p positives: logit, quality, and for all p * world of them five sums at most
            assert 8 * 20 <= count <= 8 * (2 * 20 + 5 * 20 * world + 8)
            assert 9 * count < many_positives[name] + 9 * 8 * 8 <= 10 * count + 9 * 8 * 8
