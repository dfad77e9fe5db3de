"""Observed values: Theorem 2's balance, self-balancing, harmonic factors."""

import pytest
import torch

from concordet.boxes import paired_iou
from concordet.losses import build_criterion
from concordet.losses.criteria import sum_terms
from concordet.losses.criteria.cores import HarmonicCore
from concordet.losses.criteria.observers import gradient_ratio, observe

from .test_criteria import record


def ratio(name, **sizes):
    assigned = record(**sizes)
    criterion = build_criterion(name)
    (gradient,) = torch.autograd.grad(sum_terms(criterion(assigned)), assigned.logits)
    return float(gradient_ratio(gradient, assigned))


@pytest.mark.parametrize("name", ["ap", "alrp", "rank_sort"])
@pytest.mark.parametrize("seed", range(5))
def test_ranking_losses_balance_positives_and_negatives(name, seed):
    """aLRP Loss, Theorem 2, with far more negatives than positives."""
    # RS Loss's sorting moves positives against positives: with one IoU for all there is none.
    assigned_sizes = {"positives": 1 if name == "rank_sort" else 6, "negatives": 300, "seed": seed}
    assert ratio(name, **assigned_sizes) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["focal", "ce"])
def test_score_based_losses_do_not_balance_them(name):
    ratios = [ratio(name, positives=6, negatives=n) for n in (30, 300, 3000)]
    assert ratios[0] < ratios[1] < ratios[2]
    assert ratios[2] > 5 * ratios[0]


def test_ratio_is_undefined_without_positives():
    assert ratio("focal", positives=0) == float("inf")
    assert torch.tensor(ratio("ap", positives=0)).isnan()


def test_self_balance_is_what_the_criterion_applied():
    assigned = record()
    criterion = build_criterion("rank_sort")
    terms = criterion(assigned)
    plain = build_criterion("quality_focal")(assigned)["box"] / 2  # the same GIoU weighed by score
    assert observe(criterion, assigned)["self_balance"].item() == pytest.approx((terms["box"] / plain).item(), rel=1e-5)
    assert observe(build_criterion("alrp"), assigned)["self_balance"] == 50


def test_harmonic_factors():
    assigned = record()
    seen = observe(build_criterion("harmonic"), assigned)
    entropies, localization = HarmonicCore().losses(assigned)
    assert seen["localization_factor"].item() == pytest.approx((1 + (-entropies).exp()).mean().item())
    assert seen["classification_factor"].item() == pytest.approx((1 + (-localization).exp()).mean().item())


def test_inconsistency_is_the_mean_distance():
    assigned = record()
    ious = paired_iou(assigned.boxes, assigned.gt_boxes)
    expected = (assigned.positive_logits.sigmoid() - ious).abs().mean()
    torch.testing.assert_close(observe(build_criterion("focal"), assigned)["inconsistency"], expected.detach())
