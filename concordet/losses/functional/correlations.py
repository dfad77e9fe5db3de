"""Correlation Loss and the differentiable coefficients in it."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from concordet.distributed import SINGLE_PROCESS, SingleProcess, process_group
from concordet.losses.functional.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_positive,
    check_range,
    check_same,
)
from concordet.losses.functional.reduction import at_least_float32

Coefficient = Literal["pearson", "spearman", "concordance"]

RELATIVE_STRENGTH = 0.3
"""Default strength of Spearman's soft ranks times n, for values in [0, 1]. Gaps between neighbors shrink as 1/n, and so
must the strength: at 0.3 / n the coefficient is within 1 % of the rank correlation and 60 % of the scores still get a
gradient; from 1 / n on it is Pearson's (docs/losses/correlation.md)."""


def correlation(x: Tensor, y: Tensor, coefficient: Coefficient, *, strength: float | None = None) -> Tensor:
    r"""Correlation coefficient of two samples, differentiable in both.

    .. math:: \rho = \frac{cov(x, y)}{\sigma_x \sigma_y} \text{ (pearson)}, \quad
              \gamma = \frac{2 cov(x, y)}{\sigma_x^2 + \sigma_y^2 + (\mu_x - \mu_y)^2} \text{ (concordance)}

    and Spearman's is Pearson's of the soft ranks of x and y. Moments are the population's (over n), as in Lin's
    definition; the published code of Correlation Loss has variances over n - 1 in the concordance, which changes the
    loss by up to 4 % at 5 samples, 0.1 % at 50 and less than 0.001 % at 500.

    Args:
        x: ``[n]`` values.
        y: ``[n]`` values.
        coefficient: "pearson", "spearman" or "concordance".
        strength: strength of :func:`soft_rank`, for "spearman" only; None for 0.3 / n, which suits values in [0, 1].

    Returns:
        0-dim in [-1, 1], float32 or better; NaN where it is undefined (fewer than two values, or no variance).

    Raises:
        ValueError: shapes, dtypes or the coefficient's name are not as above, or a value is not finite.

    Paper:
        Lin: A Concordance Correlation Coefficient (Biometrics 1989); Kahraman et al.: Correlation Loss (AAAI 2023),
            Sec. 4.

    Example:
        >>> x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
        >>> correlation(x, y, "pearson"), correlation(x, y, "concordance")
        (tensor(1.), tensor(0.5714))
    """
    _check_settings("correlation", coefficient, strength)
    _check_pair("correlation", "x", x, "y", y)
    numerator, denominator, n = _fraction(x, y, coefficient, strength)
    return numerator / torch.where(n > 1, denominator, 0)


def correlation_loss(
    scores: Tensor,
    quality: Tensor,
    *,
    coefficient: Coefficient = "concordance",
    strength: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Correlation Loss: 1 - rho of the positives' scores and IoUs, with a gradient through the scores only.

    Args:
        scores: ``[p]`` probabilities in [0, 1] of the positives' own classes.
        quality: ``[p]`` IoUs in [0, 1]; clamped at 1e-6 as in the published code.
        coefficient: "concordance" (matches values), "spearman" (matches ranks) or "pearson".
        strength: strength of Spearman's soft ranks; the smaller, the harder the ranks. None for 0.3 / p, which was
            chosen by measurement. At 1, the published setting, soft ranks of values in [0, 1] are affine in the values:
            Spearman is then exactly Pearson.
        group: processes whose positives are one sample; all of them must call, with or without positives. The value is
            then global and gradients are the global loss's times the number of processes, so that DDP's average is
            the global gradient. Eight sums are exchanged, or for Spearman the positives.

    Returns:
        0-dim in [0, 2], float32 or better; 0 with zero gradients where the coefficient is undefined (fewer than two
        positives, or no variance).

    Raises:
        ValueError: shapes, dtypes, ranges or the coefficient's name are not as above, or a value is not finite.

    Paper:
        Kahraman et al.: Correlation Loss: Enforcing Correlation between Classification and Localization (AAAI 2023),
        Eq. 4.

    Example:
        >>> correlation_loss(torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.9, 0.5, 0.2]), coefficient="pearson")
        tensor(1.9865)
    """
    _check_settings("correlation_loss", coefficient, strength)
    _check_pair("correlation_loss", "scores", scores, "quality", quality)
    check_range("correlation_loss", "scores", scores, 0, 1)
    check_range("correlation_loss", "quality", quality, 0, 1, slack=1e-3)
    quality = quality.detach().double().clamp_min(1e-6)  # not in the scores' dtype, which may be coarser
    numerator, denominator, n = _fraction(scores, quality, coefficient, strength, process_group(group))
    # where the coefficient is 0 / 0, the division must not be computed: its gradient would be NaN
    undefined = (denominator <= torch.finfo(denominator.dtype).tiny) | (n < 2)
    rho = numerator / torch.where(undefined, 1.0, denominator)
    return torch.where(undefined, numerator * 0.0, 1 - rho)


def soft_rank(values: Tensor, *, strength: float) -> Tensor:
    r"""Differentiable ranks: 1 for the smallest value, n for the largest, blurred where values are close.

    .. math:: r = \arg\min_{y \in \mathcal{P}(n, ..., 1)} \left\| y - \theta / \epsilon \right\|^2

    the projection onto the permutahedron (all permutations of 1..n and their mixtures). It is exact as soon as
    neighboring values are at least ``strength`` apart, and affine in the values while n - 1 times their range stays
    small against it. The projection is an isotonic regression on the CPU (SciPy's where it is installed); its gradient
    is exact.

    Args:
        values: ``[n]``.
        strength: epsilon > 0, in the values' unit.

    Returns:
        ``[n]`` soft ranks that sum to n(n + 1)/2, float32 or better.

    Raises:
        ValueError: shape, dtype or strength are not as above, or a value is not finite.

    Paper:
        Blondel et al.: Fast Differentiable Sorting and Ranking (ICML 2020), Props. 1-4, with the quadratic
        regularization.

    Example:
        >>> soft_rank(torch.tensor([5.0, 1.0, 2.0]), strength=1.0)
        tensor([3., 1., 2.])
        >>> soft_rank(torch.tensor([5.0, 1.0, 2.0]), strength=10.0)
        tensor([2.2333, 1.8333, 1.9333])
    """
    check_floating("soft_rank", "values", values, 1)
    check_positive("soft_rank", "strength", strength)
    check_finite("soft_rank", "values", values)
    ranks, _ = _soft_rank(at_least_float32(values), float(strength))
    return ranks


@torch.library.custom_op("concordet::soft_rank", mutates_args=())
def _soft_rank(values: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Soft ranks, and ``[n]`` index of the block of pooled values that each value is in."""
    n = len(values)
    ranks, blocks = torch.zeros_like(values), torch.zeros(n, dtype=torch.long, device=values.device)
    if n == 0:
        return ranks, blocks
    order = torch.argsort(values, descending=True, stable=True)
    s = values[order].double() / strength
    w = torch.arange(n, 0, -1, dtype=s.dtype, device=s.device)
    if s.isfinite().all():
        fit, starts = _isotonic_regression((w - s).cpu())  # the regression increases, so values are negated
        v = -fit.to(s.device)
        block = torch.zeros(n, dtype=torch.long).index_fill_(0, starts, 1).cumsum(0).to(s.device) - 1
    else:  # NaN stays NaN
        v, block = torch.full_like(s, float("nan")), torch.zeros_like(order)
    ranks[order] = (s - v).to(ranks.dtype)
    blocks[order] = block
    return ranks, blocks


def _isotonic_regression(values: Tensor) -> tuple[Tensor, Tensor]:
    """The closest ascending values, ``[n]``, and the start of each block of equal ones."""
    try:
        from scipy.optimize import isotonic_regression
    except ImportError:  # losses depend on torch only
        return _pool_adjacent_violators(values)
    fit = isotonic_regression(values.numpy())
    return torch.from_numpy(fit.x), torch.as_tensor(fit.blocks[:-1], dtype=torch.long)


def _pool_adjacent_violators(values: Tensor) -> tuple[Tensor, Tensor]:
    """Isotonic regression without SciPy: a block is merged into the one before it while its mean is not larger."""
    sums: list[float] = []
    starts: list[int] = []
    for index, value in enumerate(values.tolist()):
        sums.append(value)
        starts.append(index)
        end = index + 1
        while len(sums) > 1 and sums[-2] * (end - starts[-1]) >= sums[-1] * (starts[-1] - starts[-2]):
            total = sums.pop()
            sums[-1] += total
            starts.pop()
    begins = torch.tensor(starts, dtype=torch.long)
    sizes = torch.diff(begins, append=torch.tensor([len(values)]))
    means = torch.tensor(sums, dtype=values.dtype) / sizes
    return means.repeat_interleave(sizes), begins


@_soft_rank.register_fake
def _soft_rank_fake(values: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(values, dtype=torch.long)


def _soft_rank_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.strength = inputs[1]
    ctx.save_for_backward(output[1])


def _soft_rank_backward(ctx: Any, grad_ranks: Tensor, grad_blocks: Tensor | None) -> tuple[Tensor, None]:
    # r = s - (block means of s - w): the Jacobian is identity minus averaging within blocks
    (blocks,) = ctx.saved_tensors
    gradient = grad_ranks.double()
    sums = torch.zeros_like(gradient).index_add(0, blocks, gradient)
    sizes = torch.zeros_like(gradient).index_add(0, blocks, torch.ones_like(gradient))
    means = (sums / sizes.clamp_min(1))[blocks]
    return ((gradient - means) / ctx.strength).to(grad_ranks.dtype), None


_soft_rank.register_autograd(_soft_rank_backward, setup_context=_soft_rank_setup)


def _fraction(
    x: Tensor, y: Tensor, coefficient: Coefficient, strength: float | None, processes: SingleProcess = SINGLE_PROCESS
) -> tuple[Tensor, Tensor, Tensor]:
    """Numerator and denominator of the coefficient over the samples of all processes, and the sample size.

    In float64: moments of near-constant samples cancel.
    """
    dtype = at_least_float32(x).dtype
    x, y = x.double(), y.double()
    if coefficient == "spearman":
        # ranks need the whole sample, which every process then has
        (x, y), _ = processes.all_gather(x, y)
        processes = SINGLE_PROCESS
        strength = RELATIVE_STRENGTH / max(len(x), 1) if strength is None else strength
        x, y = soft_rank(x, strength=strength), soft_rank(y, strength=strength)
    count, sum_x, sum_y = processes.all_sum(torch.stack([x.new_tensor(float(len(x))), x.sum(), y.sum()]).detach())
    n = count.clamp_min(1)
    # moments about detached means: accurate, and each process differentiates its own part
    origin_x, origin_y = sum_x / n, sum_y / n
    x, y = x - origin_x, y - origin_y
    sums = torch.stack([x.sum(), y.sum(), (x * y).sum(), x.square().sum(), y.square().sum()])
    mean_x, mean_y, covariance, variance_x, variance_y = processes.all_sum(sums) / n
    covariance = covariance - mean_x * mean_y
    variance_x, variance_y = variance_x - mean_x.square(), variance_y - mean_y.square()
    mean_x, mean_y = mean_x + origin_x, mean_y + origin_y
    if coefficient == "concordance":
        numerator, denominator = 2 * covariance, variance_x + variance_y + (mean_x - mean_y).square()
    else:
        product = variance_x * variance_y
        # the square root has no derivative at 0
        numerator, denominator = covariance, torch.where(product > 0, product, 1.0).sqrt() * (product > 0)
    return numerator.to(dtype), denominator.to(dtype), count


def _check_settings(where: str, coefficient: str, strength: float | None) -> None:
    check_choice(where, "coefficient", coefficient, get_args(Coefficient))
    if strength is not None:
        check_positive(where, "strength", strength)


def _check_pair(where: str, name: str, x: Tensor, other_name: str, y: Tensor) -> None:
    check_floating(where, name, x, 1)
    check_floating(where, other_name, y, 1)
    check_same(where, other_name, y, name, x)
    check_finite(where, name, x)
    check_finite(where, other_name, y)
