"""One harness for every ranking loss: the functions, their scalar loops, and adversarial inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from concordet.losses import functional as F
from tests.ranking import scalar
from tests.ranking.scalar import Scalar

DELTAS = (0.0, 1e-6, 0.5, 1.0, 100.0)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Tolerance relative to the largest gradient, and to 1 for values."""


@dataclass(frozen=True)
class Case:
    """A loss: its outputs for (logits, labels, side, options) and the same from the scalar loop."""

    outputs: Callable[..., tuple[Tensor, ...]]
    loop: Callable[..., Scalar]
    hard_own: bool = False  # whether the published self relation is H(0)


def _side(labels: Tensor, side: Tensor) -> Tensor:
    return side[labels == 1]


CASES = {
    "ap": Case(
        lambda s, y, q, **o: (F.ap_loss(s, y, **o),),
        lambda s, y, q, d, own: scalar.ap(s, y, d, own),
    ),
    "interpolated_ap": Case(
        lambda s, y, q, **o: (F.ap_loss(s, y, interpolated=True, **o),),
        lambda s, y, q, d, own: scalar.ap(s, y, d, own, interpolated=True),
    ),
    "alrp": Case(
        lambda s, y, q, **o: F.alrp_loss(s, y, _side(y, q), **o)[:1],
        lambda s, y, q, d, own: scalar.alrp(s, y, [e for e, t in zip(q, y, strict=True) if t == 1], d, own),
    ),
    "rank_sort": Case(
        lambda s, y, q, **o: F.rank_sort_loss(s, y, q, **o),
        lambda s, y, q, d, own: scalar.rank_sort(s, y, q, d, own),
        hard_own=True,
    ),
    "ndcg": Case(
        lambda s, y, q, **o: (F.ndcg_loss(s, y, **o),),
        lambda s, y, q, d, own: scalar.ndcg(s, y, d, own),
    ),
}


def own_relation(case: Case, delta: float, method: str = "exact") -> float:
    """The published self relation."""
    return 0.5 if (case.hard_own or method == "bucketed") and delta > 0 else 1.0


def values_and_gradients(outputs: tuple[Tensor, ...], logits: Tensor) -> tuple[list[float], list[Tensor]]:
    """Each output and its own gradient."""
    gradients = [torch.autograd.grad(output, logits, retain_graph=True)[0] for output in outputs]
    return [float(output.detach()) for output in outputs], gradients


def random_case(p: int, n: int, *, seed: int, spread: float = 2.0, ties: bool = False, dtype=torch.float64):
    """Logits, labels and side information in random order, with some ignored entries."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.ones(p), torch.zeros(n), -torch.ones(3)]).long()
    logits = torch.randn(p + n + 3, generator=generator, dtype=torch.float64) * spread + labels.clamp_min(0)
    side = torch.rand(p + n + 3, generator=generator, dtype=torch.float64)
    if ties:
        logits, side = (logits * 2).round() / 2, (side * 4).round() / 4
    order = torch.randperm(len(labels), generator=generator)
    return logits[order].to(dtype), labels[order], side[order].to(dtype)


def views_case(dtype: torch.dtype) -> tuple[tuple[Tensor, ...], dict[str, tuple[Tensor, ...]]]:
    """Logits, labels, side information and segments, and the same as views whose rows are not neighbors in memory."""
    plain = (*random_case(20, 300, seed=8, dtype=dtype), torch.zeros(323, dtype=torch.long))
    columns = tuple(torch.stack([tensor, tensor.flip(0)], 1)[:, 0] for tensor in plain)
    return plain, {"columns": columns, "expanded": (*plain[:3], plain[3][:1].expand(323))}


@st.composite
def adversarial(draw, max_size: int = 14):
    """Ties, differences near delta, huge and tiny logits, any mixture of labels; with the delta they are near to."""
    delta = draw(st.sampled_from(DELTAS))
    size = draw(st.integers(0, max_size))
    scale = draw(st.sampled_from([1e-12, 1e-3, 1.0, 10.0, 1e4, 1e8]))
    base = draw(st.lists(st.sampled_from([-1.0, -0.3, 0.0, 0.1, 0.7, 1.0]), min_size=size, max_size=size))
    steps = draw(st.lists(st.sampled_from([-2, -1, 0, 0, 0, 1, 2]), min_size=size, max_size=size))
    nudges = draw(st.lists(st.sampled_from([0.0, 0.0, 1e-9, -1e-9, 1e-3, -0.4]), min_size=size, max_size=size))
    logits = [b * scale + k * delta + e * max(delta, 1e-9) for b, k, e in zip(base, steps, nudges, strict=True)]
    labels = draw(st.lists(st.sampled_from([1, 1, 0, 0, 0, -1]), min_size=size, max_size=size))
    if 1 in labels and 0 not in labels:  # refused beside ignored ones, see check_ranking_labels
        labels = [max(label, 0) for label in labels]
    side = draw(st.lists(st.sampled_from([0.0, 0.2, 0.2, 0.5, 0.9, 1.0]), min_size=size, max_size=size))
    return logits, labels, side, delta
