"""The worked example of the aLRP Loss paper: Figure 1, Tables A.5 and A.6."""

from __future__ import annotations

import pytest
import torch

from concordet.losses import functional as F
from tests.ranking import scalar
from tests.ranking.cases import random_case

SCORES = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
POSITIVE = [0, 2, 5, 9]  # a1, a3, a6, a10
LABELS = torch.zeros(10, dtype=torch.long).index_fill_(0, torch.tensor(POSITIVE), 1)
IOUS = {
    "R1": ([0.95, 0.80, 0.65, 0.50], 0.53),
    # a10 of R2: Table A.6 prints 0.20, but its own last column, Table A.5 and Fig. 1 need 0.05
    "R2": ([0.80, 0.65, 0.50, 0.95], 0.69),
    "R3": ([0.50, 0.65, 0.80, 0.95], 0.89),
}


@pytest.mark.parametrize("method", ["exact", "quadratic", "bucketed"])
@pytest.mark.parametrize("output", IOUS)
def test_table_a6(output, method):
    ious, expected = IOUS[output]
    errors = (1 - torch.tensor(ious, dtype=torch.float64)) / (1 - 0.5)
    loss = F.alrp_loss(SCORES, LABELS, errors, delta=0.0, method=method)
    assert float(loss.classification + loss.localization) == pytest.approx(expected, abs=0.006)
    # N_FP and rank of the table: 0/1, 1/3, 3/6, 6/10
    assert float(loss.classification) == pytest.approx((0 + 1 / 3 + 3 / 6 + 6 / 10) / 4)


@pytest.mark.parametrize("method", ["exact", "quadratic", "bucketed"])
def test_ap_loss_of_the_example(method):
    assert float(F.ap_loss(SCORES, LABELS, delta=0.0, method=method)) == pytest.approx(0.36, abs=0.005)


def test_cross_entropy_of_the_example():
    # a score of exactly 1 has no finite logit; its loss is 0
    losses = F.focal_loss(torch.logit(SCORES[1:]), LABELS[1:], alpha=-1, gamma=0.0)
    assert float(losses) / 10 == pytest.approx(0.87, abs=0.005)


def test_l1_and_iou_losses_of_the_example():
    # Eq. A.22: the second box is larger than its object
    boxes = torch.tensor([[0, 0, 1, y] for y in (0.95, 1.25, 0.65, 0.50)], dtype=torch.float64)
    truth = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)
    assert float((boxes - truth).abs().sum(1).mean()) == pytest.approx(0.29, abs=0.005)
    assert float(F.harmonic_iou_loss(torch.tensor(IOUS["R1"][0]), gamma=0.0)) == pytest.approx(0.28, abs=0.006)


@pytest.mark.parametrize(("output", "expected"), [("R1", 0.37), ("R2", 0.29), ("R3", 0.20)])
def test_table_a5_follows_from_the_ap_loss_at_each_threshold(output, expected):
    """COCO-style AP over 10 recalls and 5 objects, of which 4 are found: two recall points for each of them."""
    average = 0.0
    for threshold in (0.5, 0.65, 0.8, 0.95):
        labels = torch.zeros(10, dtype=torch.long)
        for place, iou in zip(POSITIVE, IOUS[output][0], strict=True):
            labels[place] = int(iou >= threshold - 1e-9)
        found = int(labels.sum())
        loss = float(F.ap_loss(SCORES, labels, delta=0.0, interpolated=True))
        average += (1 - loss) * found / 5 / 4
    assert average == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", ["exact", "quadratic"])
def test_localization_and_its_gradient(delta, method):
    logits, labels, side = random_case(15, 80, seed=9, ties=True)
    errors = side[labels == 1].requires_grad_()
    loop = scalar.alrp(logits.tolist(), labels.tolist(), errors.tolist(), delta, 1.0)
    loss = F.alrp_loss(logits.requires_grad_(), labels, errors, delta=delta, method=method)
    assert float(loss.localization.detach()) == pytest.approx(loop.values[1], rel=1e-12)
    (5 * loss.localization).backward()
    expected = torch.tensor(loop.loc_gradient, dtype=torch.float64)
    torch.testing.assert_close(errors.grad, 5 * expected, rtol=1e-12, atol=1e-15)
    assert logits.grad is None or not logits.grad.any()  # localization moves no logit
