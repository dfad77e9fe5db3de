"""Losses with ordinary derivatives: values against their papers and other libraries, gradients by gradcheck."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torchvision.ops import sigmoid_focal_loss

from concordet.losses import functional as F
from concordet.losses.functional.correlations import _pool_adjacent_violators


def _rand(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOGITS = _rand(12, seed=1) * 8 - 4
UNIT = _rand(12, seed=2) * 0.9 + 0.05
QUALITY = _rand(12, seed=3) * 0.9 + 0.05
ONE_HOT = (_rand(12, seed=4) > 0.6).double()


# --- focal and its relatives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-1.0, 0.25, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_focal_equals_torchvision(alpha, gamma, reduction):
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    got = F.focal_loss(ours, ONE_HOT.long(), alpha=alpha, gamma=gamma, reduction=reduction)
    expected = sigmoid_focal_loss(theirs, ONE_HOT, alpha=alpha, gamma=gamma, reduction=reduction)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_focal_is_finite_at_extreme_logits():
    logits = torch.tensor([1e4, -1e4, 100.0, -100.0], requires_grad=True)
    loss = F.focal_loss(logits, torch.tensor([0, 1, 1, 0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def _log_loss(p, q):
    return -(q * math.log(p) + (1 - q) * math.log(1 - p))


def test_baselines_equal_their_papers():
    targets = (ONE_HOT * QUALITY).tolist()
    scores = LOGITS.sigmoid().tolist()
    pairs = list(zip(scores, targets, strict=True))
    quality_focal = [abs(q - p) ** 2 * _log_loss(p, q) for p, q in pairs]
    varifocal = [q * _log_loss(p, q) if q > 0 else -0.75 * p**2 * math.log(1 - p) for p, q in pairs]
    matchability = [_log_loss(p, q**1.5) if q > 0 else -(p**1.5) * math.log(1 - p) for p, q in pairs]
    targets = torch.tensor(targets, dtype=torch.float64)
    for function, expected in (
        (F.quality_focal_loss, quality_focal),
        (F.varifocal_loss, varifocal),
        (F.matchability_aware_loss, matchability),
    ):
        got = function(LOGITS, targets, reduction="none")
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_matchability_keeps_a_positive_of_no_overlap():
    logits, targets = torch.tensor([0.0]), torch.tensor([0.0])
    as_positive = F.matchability_aware_loss(logits, targets, positive=torch.tensor([True]))
    assert float(as_positive) == pytest.approx(math.log(2))
    assert float(F.matchability_aware_loss(logits, targets)) == pytest.approx(0.5**1.5 * math.log(2))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5])
def test_matchability_of_a_negative_ignores_its_target(gamma):
    targets, positive = torch.tensor([0.7, 0.7, 0.0]), torch.tensor([True, False, False])
    p = 1 / (1 + math.exp(-0.3))
    expected = [_log_loss(p, 0.7**gamma), *[-(p**gamma) * math.log(1 - p)] * 2]
    got = F.matchability_aware_loss(torch.full((3,), 0.3), targets, positive=positive, gamma=gamma, reduction="none")
    assert got.tolist() == pytest.approx(expected)
    without = F.matchability_aware_loss(torch.full((1,), 0.3), torch.zeros(1), gamma=gamma)
    assert without.item() == pytest.approx(expected[2])
    with pytest.raises(ValueError, match=r"positive must be a bool tensor, got a tensor of torch\.int64; convert"):
        F.matchability_aware_loss(torch.zeros(3), targets, positive=positive.long())


def test_distributional_ranking_equals_the_published_code():
    labels = torch.tensor([1, 0, 0, 1, -1, 0, 0, 1, 0, 0, 0, -1])
    positive, negative = LOGITS[labels == 1].sigmoid(), LOGITS[labels == 0].sigmoid()
    temperature = 0.1 / math.log(3.5)
    below = (torch.softmax(negative / temperature, 0) * negative).sum()
    above = (torch.softmax(-positive, 0) * positive).sum()
    expected = 4 * torch.log(1 + torch.exp(6 * (below - above + 0.5))) / 6
    torch.testing.assert_close(F.distributional_ranking_loss(LOGITS, labels), expected)
    alone = 4 * torch.log(1 + torch.exp(6 * (below - 1 + 0.5))) / 6
    torch.testing.assert_close(F.distributional_ranking_loss(LOGITS, labels.clamp_max(0)[labels != 1][[0]].new_tensor([
        0 if y == 0 else -1 for y in labels.tolist()])), alone)  # fmt: skip
    sharp = F.distributional_ranking_loss(LOGITS, labels, negative_temperature=1e-4, positive_temperature=1e-4)
    torch.testing.assert_close(sharp, 4 * torch.log(1 + torch.exp(6 * (negative.max() - positive.min() + 0.5))) / 6)


# --- association ----------------------------------------------------------------------------------------------------


def test_pse_gradient_is_equation_11():
    """d(CE + PSE)/do = (p - 1)(alpha - 2 beta p^2 + 2 beta k I p): what Eq. 11 means; it prints the PSE part negated.

    The text below it needs this sign: the factor is to turn negative where p is much higher than I.
    """
    alpha, beta, k = 0.25, 1.3, 0.8
    logits = LOGITS.clone().requires_grad_()
    p = logits.sigmoid()
    loss = -alpha * p.log().sum() + F.association_loss(p, QUALITY, weight=beta, slope=k, reduction="sum")
    loss.backward()
    p = p.detach()
    torch.testing.assert_close(logits.grad, (p - 1) * (alpha - 2 * beta * p**2 + 2 * beta * k * QUALITY * p))


def test_association_forms():
    got = F.association_loss(UNIT, QUALITY, form="cross_entropy", weight=2.0, reduction="none")
    torch.testing.assert_close(got, -2 * (1 - (UNIT - QUALITY).abs()).log())
    quality = QUALITY.clone().requires_grad_()
    F.association_loss(UNIT.clone().requires_grad_(), quality).backward()
    assert quality.grad is None
    far = F.association_loss(torch.tensor([1.0]), torch.tensor([0.0]), form="cross_entropy")
    assert far.isfinite()
    assert float(F.association_loss(torch.zeros(0), torch.zeros(0))) == 0


# --- harmonic -------------------------------------------------------------------------------------------------------


def test_harmonic_gradient_is_equations_6_and_7():
    p, regression = UNIT.clone().requires_grad_(), QUALITY * 3
    F.harmonic_loss(-p.log(), regression, reduction="sum").backward()
    beta = torch.exp(-regression)
    torch.testing.assert_close(p.grad, -(1 + beta) / p.detach() + regression)  # Eq. 6
    loc_losses = regression.clone().requires_grad_()
    F.harmonic_loss(-UNIT.log(), loc_losses, reduction="sum").backward()
    torch.testing.assert_close(loc_losses.grad, 1 + UNIT + beta * UNIT.log())  # by L, where e^-CE = p and CE = -log p


def test_harmonic_factors_follow_the_other_task():
    cls_losses, loc_losses = torch.tensor([0.1, 2.0]), torch.tensor([3.0, 0.2])
    for_cls, for_loc = F.harmonic_factors(cls_losses, loc_losses)
    torch.testing.assert_close(
        F.harmonic_loss(cls_losses, loc_losses), (for_cls * cls_losses + for_loc * loc_losses).mean()
    )
    assert for_loc[0] > for_cls[0]  # classification is good, localization is bad: localization counts more


def test_harmonic_iou_falls_for_every_allowed_focus():
    iou = torch.linspace(0, 1, 101, dtype=torch.float64)
    for gamma in (0.0, 0.3, 0.8, 1.0):
        assert bool((F.harmonic_iou_loss(iou, gamma=gamma, reduction="none").diff() <= 1e-15).all())
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\], got 1.2"):
        F.harmonic_iou_loss(iou, gamma=1.2)


def test_task_contrastive_equals_equation_8():
    probabilities, labels = torch.softmax(LOGITS.reshape(4, 3), 1), torch.tensor([0, 2, 1, 1])
    iou = UNIT[:4]
    expected = []
    for row, label, overlap in zip(probabilities.tolist(), labels.tolist(), iou.tolist(), strict=True):
        factor = math.exp(-sum(p * math.log(p) for p in row))
        expected.append(max(0, abs(row[label] - overlap) - 0.2) / (1 + factor))
    got = F.task_contrastive_loss(probabilities, labels, iou, reduction="none")
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    certain = torch.eye(3, dtype=torch.float64)[labels].requires_grad_()
    F.task_contrastive_loss(certain, labels, iou).backward()
    assert certain.grad.isfinite().all()
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        F.task_contrastive_loss(probabilities, labels + 1, iou)


# --- correlation ----------------------------------------------------------------------------------------------------


def test_coefficients_equal_scipy():
    x, y = UNIT.numpy(), QUALITY.numpy()
    assert float(F.correlation(UNIT, QUALITY, "pearson")) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    concordance = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert float(F.correlation(UNIT, QUALITY, "concordance")) == pytest.approx(concordance)
    hard = F.correlation(UNIT, QUALITY, "spearman", strength=1e-6)
    assert float(hard) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    for coefficient in ("pearson", "concordance", "spearman"):
        assert float(F.correlation(UNIT, UNIT, coefficient)) == pytest.approx(1)


def test_spearmans_default_strength_shrinks_with_the_sample():
    for n in (12, 300):
        x, noise = _rand(n, seed=5), _rand(n, seed=6)
        y = (x + noise) / 2
        default = F.correlation(x, y, "spearman")
        assert float(default) == float(F.correlation(x, y, "spearman", strength=0.3 / n))
    assert float(default) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=0.01)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 300), st.integers(0, 10**6))
def test_published_spearman_is_pearson(n, seed):
    """At strength 1, soft ranks of values in [0, 1] are affine in the values."""
    x, y = _rand(n, seed=seed), _rand(n, seed=seed + 1)
    torch.testing.assert_close(
        F.correlation(x, y, "spearman", strength=1.0), F.correlation(x, y, "pearson"), rtol=0, atol=1e-11
    )


def test_correlation_loss_moves_scores_only():
    for coefficient in ("pearson", "concordance", "spearman"):
        scores, quality = UNIT.clone().requires_grad_(), QUALITY.clone().requires_grad_()
        F.correlation_loss(scores, quality, coefficient=coefficient).backward()
        assert quality.grad is None
        assert scores.grad.abs().sum() > 0


@pytest.mark.parametrize("coefficient", ["pearson", "concordance", "spearman"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_undefined_correlation_is_zero_with_zero_gradient(coefficient, n):
    scores = torch.full((n,), 0.5, requires_grad=True)
    quality = torch.full((n,), 0.5)
    loss = F.correlation_loss(scores, quality, coefficient=coefficient)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert float(loss.detach()) == 0
    assert torch.equal(gradient, torch.zeros(n))
    assert F.correlation(scores, quality, coefficient).isnan()


@pytest.mark.parametrize("coefficient", ["pearson", "concordance", "spearman"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quality_keeps_its_precision_beside_coarser_scores(coefficient, dtype):
    """IoUs within 0.01 of each other, of which bfloat16 tells a few apart only."""
    scores, quality = _rand(50, seed=7).to(dtype), 0.9 + 0.01 * _rand(50, seed=8)
    wide = scores.double().requires_grad_()
    expected = 1 - F.correlation(wide, quality, coefficient)
    scores.requires_grad_()
    loss = F.correlation_loss(scores, quality, coefficient=coefficient)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(v, x)[0].double() for v, x in ((loss, scores), (expected, wide))]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-2 * float(gradients[1].abs().max()))
    if coefficient == "pearson":
        assert expected.item() == pytest.approx(1 - np.corrcoef(wide.detach(), quality)[0, 1])


def test_correlation_loss_of_half_precision_is_float32():
    scores = UNIT.to(torch.bfloat16).requires_grad_()
    loss = F.correlation_loss(scores, QUALITY.to(torch.bfloat16))
    loss.backward()
    assert loss.dtype == torch.float32
    assert scores.grad.dtype == torch.bfloat16


def _soft_rank_by_enumeration(values, strength):
    """The projection onto the permutahedron as the best of the face means over all ordered partitions (n <= 5)."""
    n = len(values)
    z = np.asarray(values) / strength
    best, best_distance = None, math.inf
    for order in itertools.permutations(range(n)):
        for cuts in itertools.product([0, 1], repeat=n - 1):
            ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [n]
            point, start = np.zeros(n), 0
            for end in ends:
                rows = list(order[start:end])
                ranks = np.arange(n - start, n - end, -1)
                point[rows] = z[rows] + ranks.mean() - z[rows].mean()
                start = end
            # inside the permutahedron: the k largest sum to at most the k largest ranks
            if np.all(np.cumsum(np.sort(point)[::-1]) <= np.cumsum(np.arange(n, 0, -1)) + 1e-9):
                distance = float(((point - z) ** 2).sum())
                if distance < best_distance:
                    best, best_distance = point, distance
    return best


@pytest.mark.parametrize("strength", [0.01, 0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_soft_rank_is_the_projection(strength, seed):
    values = _rand(4, seed=seed)
    expected = _soft_rank_by_enumeration(values.tolist(), strength)
    torch.testing.assert_close(F.soft_rank(values, strength=strength), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 7, 200])
@pytest.mark.parametrize("seed", range(5))
def test_isotonic_regression_without_scipy_is_scipys(n, seed):
    values = _rand(n, seed=seed)
    values = torch.where(values > 0.7, values.round(decimals=1), values)  # some are equal
    fitted, begins = _pool_adjacent_violators(values)
    expected = scipy.optimize.isotonic_regression(values.numpy())
    np.testing.assert_allclose(fitted, expected.x, rtol=1e-12, atol=1e-15)
    sizes = torch.diff(begins, append=torch.tensor([n]))
    torch.testing.assert_close(fitted, fitted[begins].repeat_interleave(sizes))


def test_soft_rank_limits():
    ranks = scipy.stats.rankdata(UNIT.numpy())
    np.testing.assert_allclose(F.soft_rank(UNIT, strength=1e-6), ranks, atol=1e-9)
    np.testing.assert_allclose(F.soft_rank(UNIT, strength=1e6), np.full(12, 6.5), atol=1e-4)
    tied = torch.tensor([0.2, 0.7, 0.2])
    assert F.soft_rank(tied, strength=1e-3).tolist() == pytest.approx([1.5, 3, 1.5], abs=1e-4)
    assert F.soft_rank(torch.zeros(0), strength=1.0).shape == (0,)


# --- gradients ------------------------------------------------------------------------------------------------------

SMOOTH = {
    "focal": (lambda x: F.focal_loss(x, ONE_HOT), LOGITS),
    "quality_focal": (lambda x: F.quality_focal_loss(x, QUALITY), LOGITS),
    "varifocal": (lambda x: F.varifocal_loss(x, QUALITY * ONE_HOT), LOGITS),
    "distributional_ranking": (lambda x: F.distributional_ranking_loss(x, ONE_HOT.long()), LOGITS),
    "squared": (lambda x: F.association_loss(x, QUALITY), UNIT),
    "cross_entropy": (lambda x: F.association_loss(x, QUALITY, form="cross_entropy"), UNIT),
    "harmonic_cls": (lambda x: F.harmonic_loss(x, QUALITY), UNIT),
    "harmonic_loc": (lambda x: F.harmonic_loss(QUALITY, x), UNIT),
    "harmonic_iou": (F.harmonic_iou_loss, UNIT),
    "task_contrastive": (
        lambda x: F.task_contrastive_loss(x.reshape(4, 3), torch.tensor([0, 2, 1, 1]), QUALITY[:4]),
        UNIT,
    ),
    "pearson": (lambda x: F.correlation_loss(x, QUALITY, coefficient="pearson"), UNIT),
    "concordance": (lambda x: F.correlation_loss(x, QUALITY), UNIT),
    "spearman": (lambda x: F.correlation_loss(x, QUALITY, coefficient="spearman", strength=0.05), UNIT),
    "soft_rank": (lambda x: F.soft_rank(x, strength=0.05), UNIT),
    "soft_rank_of_ties": (lambda x: F.soft_rank(x, strength=0.5), UNIT),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name):
    function, at = SMOOTH[name]
    assert gradcheck(function, at.clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.focal_loss(x, (x > 0.5).long()),
        lambda x: F.quality_focal_loss(x, (x > 0.5).to(x.dtype)),
        lambda x: F.varifocal_loss(x, (x > 0.5).to(x.dtype)),
        lambda x: F.matchability_aware_loss(x, (x > 0.5).to(x.dtype)),
        lambda x: F.distributional_ranking_loss(x, (x > 0.5).long()),
        lambda x: F.association_loss(x, x.flip(0)),
        lambda x: F.harmonic_loss(x, x.flip(0)),
        F.harmonic_iou_loss,
        lambda x: F.task_contrastive_loss(x.reshape(4, 3), torch.tensor([0, 2, 1, 1]), x[:4]),
        lambda x: F.correlation_loss(x, x.flip(0)),
        lambda x: F.correlation_loss(x, x.flip(0), coefficient="spearman"),
    ],
)
def test_half_precision_is_computed_in_float32(function, dtype):
    x = UNIT.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = function(x)
    loss.backward()
    assert loss.dtype == torch.float32
    assert x.grad.dtype == dtype
    torch.testing.assert_close(loss.detach().double(), function(x.detach().double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("coefficient", ["pearson", "spearman", "concordance"])
def test_one_positive_has_no_correlation(coefficient):
    score = torch.tensor([0.3], requires_grad=True)
    loss = F.correlation_loss(score, torch.tensor([0.8]), coefficient=coefficient)
    loss.backward()
    assert loss == 0
    assert score.grad == 0
    assert F.correlation(score, torch.tensor([0.8]), coefficient).isnan()
