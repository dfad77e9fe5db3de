"""Correlation Loss beside its authors' code, and soft ranks beside those of the paper's authors."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from concordet.losses import functional as F
from concordet.losses.functional.correlations import soft_rank
from oracles.clones import definition, source
from oracles.comparison import Comparison, largest

HEAD = "mmdet/models/dense_heads/corr_atss_head.py"
SAMPLES = 20
BIASED = "Lin's definition, moments over n; published code: variances over n - 1"


def functions() -> dict[str, Callable[[Tensor, Tensor], Tensor]] | None:
    """The coefficients of the authors' ATSS head, without the rest of its file."""
    found = {name: definition("CorrLoss", HEAD, name, owner="CorrATSSHead") for name in ("concordancer", "pearsonr")}
    if None in found.values():
        return None
    return {name: lambda x, y, method=method: method(None, x, y) for name, method in found.items()}


def soft_ranks() -> types.ModuleType | None:
    """The operators of "Fast Differentiable Sorting and Ranking", without numba."""
    isotonic, operators = types.ModuleType("isotonic"), types.ModuleType("operators")
    for module, path in ((isotonic, "third_party/isotonic.py"), (operators, "numpy_ops.py")):
        text = source("fast-soft-sort", f"fast_soft_sort/{path}")
        if text is None:
            return None
        text = text.replace("from .third_party import isotonic", "").replace(
            "from numba import njit", "raise ImportError"
        )
        operators.__dict__["isotonic"] = isotonic
        exec(compile(text, path, "exec"), module.__dict__)
    return operators


def sample(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Scores and IoUs of n positives, half related."""
    generator = torch.Generator().manual_seed(seed)
    quality = torch.rand(n, generator=generator, dtype=torch.float64)
    noise = torch.rand(n, generator=generator, dtype=torch.float64)
    return 0.1 + 0.4 * quality + 0.4 * noise, quality


def _value_and_gradient(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = function(leaf, y)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def compare() -> Iterator[Comparison]:
    """Pearson, concordance at several sizes, soft ranks, and Spearman."""
    published = functions()
    for name, coefficient, reason in (("pearsonr", "pearson", ""), ("concordancer", "concordance", BIASED)):
        for n in (5, 50, 500) if published else ():
            pairs = []
            for seed in range(SAMPLES):
                x, y = sample(seed, n)
                ours = _value_and_gradient(lambda a, b, c=coefficient: F.correlation_loss(a, b, coefficient=c), x, y)
                pairs.append(tuple(zip(ours, _value_and_gradient(published[name], x, y), strict=True)))
            for index, what in enumerate(("value", "gradient")):
                yield Comparison(
                    f"correlation loss, {coefficient}, {n} positives: {what}", "CorrLoss", SAMPLES,
                    largest(p[index] for p in pairs), "relative", 1e-9, reason,
                )  # fmt: skip
    operators = soft_ranks()
    if operators is not None:
        yield from _soft_rank(operators)
    yield _spearman()


def _soft_rank(operators: types.ModuleType) -> Iterator[Comparison]:
    ranks, gradients = [], []
    for seed in range(SAMPLES):
        for strength in (1e-3, 0.3 / 100, 0.1, 1.0):
            values = sample(seed, 100)[0]
            if seed % 4 == 0:
                values = (values * 20).round() / 20  # ties
            weights = torch.linspace(-1, 1, 100, dtype=torch.float64)
            leaf = values.clone().requires_grad_()
            ours = soft_rank(leaf, strength=strength)
            (ours * weights).sum().backward()
            theirs = operators.SoftRank(values.numpy(), regularization_strength=strength)
            ranks.append((ours, torch.from_numpy(theirs.compute())))
            if seed % 4:  # with ties each has another, equally right, order of them
                gradients.append((leaf.grad, torch.from_numpy(theirs.vjp(weights.numpy()))))
    yield Comparison("soft ranks, some tied: value", "fast-soft-sort", len(ranks), largest(ranks), "relative", 1e-9)
    yield Comparison("soft ranks: gradient", "fast-soft-sort", len(gradients), largest(gradients), "relative", 1e-9)


def _spearman() -> Comparison:
    """With a strength below all gaps soft ranks are ranks."""
    deviation = 0.0
    for seed in range(SAMPLES):
        x, y = sample(seed, 200)
        ours = F.correlation_loss(x, y, coefficient="spearman", strength=1e-9)
        deviation = max(deviation, abs(1 - float(ours) - spearmanr(np.asarray(x), np.asarray(y)).statistic))
    return Comparison("correlation loss, hard spearman: value", "SciPy", SAMPLES, deviation, "coefficient", 1e-9)
