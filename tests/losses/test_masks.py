"""Terms of masks and pixels against loops over pixels, and aLRP's errors where positives need a higher IoU."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou_loss

from concordet.assigned import Masks, Segmentation
from concordet.losses import build_criterion, functional
from concordet.losses.criteria import LossDefaults
from concordet.losses.criteria.mask import MaskTerm, mask_losses, mask_value, segmentation_value
from tests.losses.test_criteria import record


def masked(positives=4, side=6, **options):
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(positives, side, side, generator=generator)
    targets = (torch.rand(positives, side, side, generator=generator) < 0.5).float()
    return replace(record(positives, **options), masks=Masks(logits.requires_grad_(), targets))


def test_dice_is_the_published_loop():
    assigned = masked()
    got = mask_losses("dice", assigned.masks)
    for value, logits, targets in zip(got.tolist(), assigned.masks.logits, assigned.masks.targets, strict=True):
        inner = squares = 0.0
        for x, t in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
            p = 1 / (1 + 2.718281828459045**-x)
            inner += p * t
            squares += p * p + t * t
        assert value == pytest.approx(1 - 2 * inner / (squares + 1e-5), rel=1e-5)


def test_cross_entropy_is_the_mean_over_pixels_and_positives():
    assigned = masked()
    got = mask_value(MaskTerm(), assigned.masks, assigned, torch.tensor(0.0))
    expected = F.binary_cross_entropy_with_logits(assigned.masks.logits, assigned.masks.targets)
    torch.testing.assert_close(got, expected)


def test_ranking_losses_weigh_masks_by_score_and_balance_them():
    assigned = masked()
    terms = build_criterion("rank_sort+concordance")(assigned)
    rank = (terms["ranking"] + terms["sorting"]).item()
    assert terms["mask"].item() == pytest.approx(rank, rel=1e-5)
    scores = assigned.logits[assigned.positive].sigmoid().amax(1).detach()
    losses = mask_losses("dice", assigned.masks)
    weighted = (scores * losses).sum() / scores.sum()
    expected = torch.autograd.grad(weighted * (rank / weighted.item()), assigned.masks.logits)[0]
    torch.testing.assert_close(torch.autograd.grad(terms["mask"], assigned.masks.logits)[0], expected)


def test_other_losses_take_the_mean():
    assigned = masked()
    for loss, kind in (("ce", "bce"), ("focal+pse", "bce"), ("ap", "dice")):
        torch.testing.assert_close(build_criterion(loss)(assigned)["mask"], mask_losses(kind, assigned.masks).mean())


@pytest.mark.parametrize("loss", ["default", "rank_sort", "ap", "alrp"])
def test_without_objects_the_term_is_zero(loss):
    assigned = masked(positives=0)
    value = build_criterion(loss)(assigned)["mask"]
    value.backward()
    assert value == 0
    assert assigned.masks.logits.grad.shape == (0, 6, 6)


def test_no_masks_no_term():
    assert "mask" not in build_criterion("rank_sort")(record())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "l2"}, "kind of a mask term must be one of bce, dice, got 'l2'"),
        ({"weighting": "iou"}, "none, score, got 'iou'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        MaskTerm(**options)


@pytest.mark.parametrize("tau", [0.5, 0.7])
def test_alrp_errors_are_relative_to_the_positives_iou(tau):
    """E = (1 - GIoU) / (2 (1 - tau))."""
    assigned = record()
    box = build_criterion("alrp", LossDefaults(positive_iou=tau))(assigned)["box"]
    errors = generalized_box_iou_loss(assigned.boxes, assigned.gt_boxes) / (2 * (1 - tau))
    parts = functional.alrp_loss(assigned.logits.flatten(), assigned.ranking_labels(), errors)
    torch.testing.assert_close(box, 50 * parts.localization)  # the first epoch's weight


def test_pixels_of_unknown_class_cost_nothing():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 4, 5, generator=generator, requires_grad=True)
    targets = torch.randint(-1, 2, logits.shape, generator=generator)
    value = segmentation_value(Segmentation(logits, targets))
    expected = 0.0
    for x, t in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        expected += {1: -math.log(p), 0: -math.log(1 - p), -1: 0.0}[t]
    assert value.item() == pytest.approx(expected / (2 * 4 * 5), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[targets < 0].abs().max() == 0
