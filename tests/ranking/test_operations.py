"""How many operations a loss launches: what a ranking of few logits costs on a CPU, and of any size on a GPU."""

from __future__ import annotations

import pytest
import torch

from concordet.losses import functional as F
from concordet.ranking.backend_torch import use_backend
from tests.ranking.cases import random_case
from tests.ranking.operations import count_operations

pytestmark = pytest.mark.usefixtures("operations_only")

LOSSES = {
    "ap": lambda s, y, q: [F.ap_loss(s, y)],
    "alrp": lambda s, y, e: F.alrp_loss(s, y, e),
    "ndcg": lambda s, y, q: [F.ndcg_loss(s, y)],
    "rank_sort": F.rank_sort_loss,
}


@pytest.fixture
def operations_only():
    """Without Numba, which needs fewer operations."""
    with use_backend("torch"):
        yield


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("p", "n"), [(30, 10_000), (250, 10_000), (1000, 60_000), (5000, 100_000)])
def test_few_operations(name, p, n):
    logits, labels, side = random_case(p, n, seed=1, dtype=torch.float32)
    limit = (130 if p <= 256 else 400) if name == "rank_sort" else 100
    aux = side[labels == 1] if name == "alrp" else side
    assert count_operations(LOSSES[name], logits, labels, aux) <= limit


@pytest.mark.parametrize("name", LOSSES)
def test_small_problems_need_fewer_still(name):
    logits, labels, side = random_case(20, 2000, seed=2, dtype=torch.float32)
    aux = side[labels == 1] if name == "alrp" else side
    assert count_operations(LOSSES[name], logits, labels, aux) <= (115 if name == "rank_sort" else 95)
