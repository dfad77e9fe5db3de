"""The authors' ranking losses, run from a clone of their repositories."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from concordet.losses import functional as F
from oracles.clones import source
from oracles.comparison import Comparison, largest

REPOSITORIES = ("RankSortLoss", "BucketedRankingBasedLosses")
MODULE = "mmdet/models/losses/ranking_losses.py"
UNSTABLE = "published sort is not stable: the bucket of a negative tied with a positive is left to chance"
NO_NEGATIVES = "published code raises an IndexError; concordet ranks without false positives"


def module(name: str, *, stable: bool = False) -> types.ModuleType | None:
    """The repository's loss module, on the CPU; with ``stable`` its sorts keep the order of equal scores."""
    text = source(name, MODULE)
    if text is None:
        return None
    loaded = types.ModuleType(name)
    loaded.__dict__["LOSSES"] = types.SimpleNamespace(register_module=lambda: lambda loss: loss)
    text = text.replace("from ..builder import LOSSES", "").replace(".cuda()", "")
    if stable:
        text = text.replace("descending=True)", "descending=True, stable=True)")
    exec(compile(text, name, "exec"), loaded.__dict__)
    return loaded


@contextmanager
def float64_buffers() -> Iterator[None]:
    """Lets the published code, which makes its buffers in the default type, compute in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def case(seed: int, n: int = 400, positives: int = 25, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and qualities."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, generator=generator, dtype=torch.float64)
    if ties:
        logits = (2 * logits).round() / 2
    labels = torch.zeros(n, dtype=torch.int64)
    labels[torch.randperm(n, generator=generator)[:positives]] = 1
    return logits, labels, 0.01 + 0.99 * torch.rand(n, generator=generator, dtype=torch.float64)


def kinds() -> dict[str, list[tuple[Tensor, Tensor, Tensor]]]:
    """Special cases by name; qualities are those of the positives."""
    below = case(0)
    below[0][below[1] == 0] -= 20.0  # no negative reaches a positive
    return {
        "": [case(seed) for seed in range(20)],
        ", tied scores": [case(seed, ties=True) for seed in range(20)],
        ", no negative near a positive": [below],
        ", no negatives at all": [case(seed, n=25) for seed in range(4)],
        ", one positive": [case(seed, positives=1) for seed in range(4)],
    }


def compare() -> Iterator[Comparison]:
    """Every loss of both repositories that runs on the CPU, value and gradient, in float64."""
    with float64_buffers():
        for repository in REPOSITORIES:
            for stable in (False, True):
                loaded = module(repository, stable=stable)
                if loaded is not None:
                    yield from _compare_module(repository, loaded, stable=stable)


def _compare_module(repository: str, loaded: types.ModuleType, *, stable: bool = False) -> Iterator[Comparison]:
    def targets(labels: Tensor, quality: Tensor) -> Tensor:
        return torch.where(labels == 1, quality, 0.0)

    pairs: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "RankSort": (
            lambda x, y, q: loaded.RankSort.apply(x, targets(y, q))[:2],
            lambda x, y, q: F.rank_sort_loss(x, y, q),
        ),
        "APLoss": (
            lambda x, y, q: [loaded.APLoss.apply(x, y.double())],
            lambda x, y, q: [F.ap_loss(x, y, interpolated=True)],
        ),
        "aLRPLoss": (
            lambda x, y, q: [loaded.aLRPLoss.apply(x, y.double(), 1 - q[y == 1])[0]],
            lambda x, y, q: [F.alrp_loss(x, y, 1 - q[y == 1]).classification],
        ),
        "BucketedRankSort": (
            lambda x, y, q: loaded.BucketedRankSort.apply(x, targets(y, q))[:2],
            lambda x, y, q: F.rank_sort_loss(x, y, q, method="bucketed"),
        ),
        "BucketedAPLoss": (
            lambda x, y, q: [loaded.BucketedAPLoss.apply(x, y.double())],
            lambda x, y, q: [F.ap_loss(x, y, method="bucketed")],
        ),
    }
    for name, (theirs, ours) in pairs.items():
        if not hasattr(loaded, name):
            continue
        bucketed = name.startswith("Bucketed")
        for kind, cases in kinds().items():
            if stable and not (bucketed and "tied" in kind):
                continue
            reason = UNSTABLE if "tied" in kind else NO_NEGATIVES if "no negative" in kind else ""
            yield Comparison(
                f"{name}{kind}{', stable sort' if stable else ''}: value and gradient", repository, len(cases),
                deviation(ours, theirs, cases), "relative", 1e-6, reason if bucketed and not stable else "",
            )  # fmt: skip


def deviation(
    ours: Callable[..., Any], theirs: Callable[..., Any], cases: list[tuple[Tensor, Tensor, Tensor]]
) -> float:
    """The larger of the terms' and their gradients' deviations; infinite where the published code cannot run."""
    values, gradients = [], []
    for logits, labels, quality in cases:
        mine, other = (logits.clone().requires_grad_() for _ in range(2))
        found = torch.stack(list(ours(mine, labels, quality)))
        try:
            expected = torch.stack(list(theirs(other, labels, quality)))
        except IndexError:
            return float("inf")
        found.sum().backward()
        expected[0].backward()  # the published RankSort has its whole gradient in the first term
        values.append((found, expected))
        gradients.append((mine.grad, other.grad))
    return max(largest(values), largest(gradients))
